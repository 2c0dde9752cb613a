"""pyproject.toml says everything about the package, but for this: the wheel also holds what lies beside the package.

configs/ and constraints.txt stay at the root, where people look for them; in a wheel they lie inside the package, where
stage1_pro.core.config.packaged finds them.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = [*sorted(Path("configs").rglob("*.yaml")), Path("constraints.txt")]


class BuildWithConfigs(build_py):
    """build_py, and the files beside the package; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in zip(BESIDE, self._targets(), strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *map(str, self._targets())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, BESIDE)]

    def _targets(self) -> list[Path]:
        return [Path(self.build_lib) / "stage1_pro" / source for source in BESIDE]


setup(cmdclass={"build_py": BuildWithConfigs})

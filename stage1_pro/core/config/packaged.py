"""The configs and version constraints that come with the package: beside it in a checkout, inside it in a wheel."""

from os.path import expanduser
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
SHARED = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS = SHARED / "configs"
CONSTRAINTS = SHARED / "constraints.txt"


def config_names() -> list[str]:
    """Return the names that `--config` knows: demo, phase3, ab/lora."""
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


def config_file(path: Path) -> Path:
    """The file that `--config PATH` means: that file, or else the packaged config of that name.

    `phase3` and `configs/phase3.yaml` name the packaged one wherever no such file lies here. `phase3.yaml` does not:
    it is a file of the user's that is missing.
    """
    path = Path(expanduser(path))  # --config=~/my.yaml, which no shell completes
    if path.is_file():
        return path
    name = path.as_posix()
    if path.suffix == ".yaml" and path.parts[0] == "configs":
        name = Path(*path.parts[1:]).with_suffix("").as_posix()
    return CONFIGS / f"{name}.yaml" if name in config_names() else path

"""Imports between rooms: the contracts of pyproject.toml hold, and each of them is red where it is broken."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PLANTED = {
    "Scripts call the core, never the other way round": (
        "core/seeds.py",
        "def planted():\n    import stage1_pro.scripts.prepare_demo",
    ),
    "Imports point downward": ("core/policies/softmax.py", "from stage1_pro.core.inference import decisions"),
    "No room imports one that imports it": ("core/artifacts.py", "from stage1_pro.core.config import phases"),
    "Any host can read a policy: no torch, no run, nothing that only POSIX has": (
        "core/metrics/exits.py",
        "import pwd",
    ),
    "Any host can decide: no run, no training, nothing that only POSIX has": (
        "core/inference/predictor.py",
        "def planted():\n    import fcntl",
    ),
}


def lint(folder: Path) -> subprocess.CompletedProcess:
    """The contracts of this repository on the package in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache", "pyproject.toml"]
    environment = {"PYTHONPATH": str(folder), "PATH": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_contracts_hold() -> None:
    done = lint(REPOSITORY)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize("contract", [contract["name"] for contract in CONTRACTS])
def test_a_planted_import_breaks_its_contract(contract: str, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "stage1_pro", tmp_path / "stage1_pro", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    name, line = PLANTED[contract]
    with open(tmp_path / "stage1_pro" / name, "a") as file:
        file.write(f"\n\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())


CLASSIFICATION = """
import sys
import stage1_pro.core.finish_calibration, stage1_pro.core.report.run.page, stage1_pro.core.training.fit
import stage1_pro.core.training.start, stage1_pro.core.training.trainer
print(sorted(name for name in sys.modules if name.startswith(("monai", "nibabel", "stage1_pro.core.data.masks"))))
"""


def test_classification_imports_nothing_of_masks() -> None:
    done = subprocess.run([sys.executable, "-c", CLASSIFICATION], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

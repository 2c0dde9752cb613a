"""The wheel by itself: what is in it, and that `stage1` works where there is no repository."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCE = ["stage1_pro", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
SOURCE += ["constraints.txt", *(path.name for path in REPOSITORY.glob("requirements*.txt"))]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
Stage1 = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy of links, since setuptools leaves build/ and *.egg-info behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCE:
        (source / name).symlink_to(REPOSITORY / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture
def stage1(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage1:
    """The installed console script over the dependencies at hand, in an empty folder."""
    place = tmp_path / "installed"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(place / "bin" / "stage1"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    return call


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "stage1 = stage1_pro.__main__:main" in archive.read(entry_points).decode()
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    extras = {path.stem.partition("-")[2] for path in REPOSITORY.glob("requirements-*.txt")} - {"demo", "dev"}
    assert set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE)) == extras >= {"serve", "onnx", "mlflow"}
    assert set(re.findall(r"^Requires-Dist: .*; extra == .(\w+).$", metadata, re.MULTILINE)) == extras  # none is empty
    assert re.search(r"^Requires-Dist: uvicorn\S*; extra == .serve.$", metadata, re.MULTILINE)
    package = REPOSITORY / "stage1_pro"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(REPOSITORY).as_posix() for path in files}
    beside = [*(REPOSITORY / "configs").rglob("*.yaml"), REPOSITORY / "constraints.txt"]
    assert inside == expected | {f"stage1_pro/{path.relative_to(REPOSITORY).as_posix()}" for path in beside}


def test_stage1_prepares_a_run_outside_the_repository(stage1: Stage1, tmp_path: Path) -> None:
    version = stage1("--version")
    assert f"{tmp_path}/installed/stage1_pro/configs" in version.stdout
    assert Path(version.stdout.split()[-1]).read_text() == (REPOSITORY / "constraints.txt").read_text()
    assert stage1("demo-data", "smoke", "data/smoke").returncode == 0
    done = stage1("splits", "--config", "phase3", "--config", "smoke", "--run", "runs/a")
    assert done.returncode == 0, done.stderr
    words = "train --run runs/a --config phase3 --config smoke"
    assert re.fullmatch(rf"next  \S*bin/stage1 {words}", done.stdout.splitlines()[-1])
    untrained = stage1("calibrate", "--run", "runs/a")
    assert untrained.returncode == 2
    assert untrained.stderr == "stage1 calibrate: runs/a is not trained yet. Run stage1 train --run runs/a first.\n"


@pytest.mark.slow
def test_a_fresh_environment_goes_from_images_to_decisions_by_stage1_alone(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "fresh")], check=True)
    programs = tmp_path / "fresh" / "bin"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    constraints = str(REPOSITORY / "constraints.txt")
    install = [str(programs / "python"), "-m", "pip", "install", "-q", "-c", constraints, str(wheel)]
    subprocess.run(install, check=True, env=outside, cwd=tmp_path)
    settings = ["--config", "phase6", "--config", "smoke"]
    chain = [
        ["demo-data", "smoke", "data/smoke"],
        ["splits", *settings, "--run", "runs/a"],
        ["train", *settings, "--run", "runs/a"],
        ["calibrate", "--run", "runs/a"],
        ["evaluate", "--run", "runs/a"],
        ["export", "--run", "runs/a"],
        ["export", "--verify", "runs/a/bundle"],
        ["predict", "runs/a/bundle", "data/smoke/images", "--out", "decisions.csv"],
    ]
    for words in chain:
        done = subprocess.run(
            [str(programs / "stage1"), *words], cwd=tmp_path, env=outside, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ".py" not in done.stdout  # every next line names a sub-command
    decisions = (tmp_path / "decisions.csv").read_text().splitlines()
    assert len(decisions) == 601
    assert any(",exit," in row for row in decisions)

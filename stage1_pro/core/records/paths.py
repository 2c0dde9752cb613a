"""Where everything lies: the folder of runs, its newest run, and the files of one run."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stage1_pro.core.config.phases import POLICY_TABLE

RUNS = Path("runs")

LATEST = str(RUNS / "latest")


class _Within:
    """The path of one part of a run; `name` is relative to the run's directory."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, run: Any, _: type) -> Path:
        return run.path / self.name


class RunPaths:
    """The parts of a run directory, whether they exist or not.

    >>> RunPaths(Path("runs/a")).scores_path("val_test").as_posix()
    'runs/a/scores/val_test.parquet'
    """

    splits_path = _Within("splits.json")
    config_path = _Within("config.json")
    environment_path = _Within("environment.json")
    metrics_path = _Within("metrics.csv")
    model_path = _Within("model_best.pth")
    onnx_path = _Within("model.onnx")
    tracking_path = _Within("tracking.json")
    suspects_path = _Within("suspects.csv")
    checkpoints_path = _Within("checkpoints")
    eval_path = _Within("eval.json")
    figures_path = _Within("figures")
    report_path = _Within("report.html")
    bundle_path = _Within("bundle")

    def __init__(self, path: Path):
        self.path = path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def scores_path(self, split: str) -> Path:
        return self.path / "scores" / f"{split}.parquet"

    def policy_files(self) -> list[Path]:
        """The policy files that are there, of whatever policy."""
        return [self.path / row.file for row in POLICY_TABLE.values() if (self.path / row.file).exists()]


def unused_name(kind: str) -> Path:
    """Return runs/<kind>-<UTC time>, with a number where another one began in the same second."""
    return unused(RUNS / f"{kind}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def unused(path: Path) -> Path:
    """Return a path, with a number where something of its name exists."""
    names = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 100)))
    return next(name for name in names if not name.exists())


def shortest(path: Path) -> Path:
    """Return the real path, relative to the working directory where it lies inside it."""
    real = path.resolve()
    return real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else real


def point_latest(run: Path) -> None:
    """Let runs/latest name this run, where it lies in runs/."""
    if run.resolve().parent != RUNS.resolve():
        return
    temporary = RUNS / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.resolve().name)
    os.replace(temporary, RUNS / "latest")

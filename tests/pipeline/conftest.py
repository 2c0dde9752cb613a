"""Scripts run in this process: the same entry point, without paying for the imports every time."""

import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "stage1_pro" / "scripts"
CASES = 640


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def script(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Call a script by name with its arguments; returns status, stdout and stderr."""

    def call(name: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        seen = capsys.readouterr()
        return Outcome(status, seen.out, seen.err)

    return call


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Noisy squares, a little redder or bluer: most are easy, some are not."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    lines = ["path,label"]
    for index in range(CASES):
        label = ("blue", "red")[index % 2]
        shift = rng.normal(42, 25) * (1 if label == "red" else -1)
        pixels = np.array([128 + shift, 100, 128 - shift]) + rng.normal(0, 40, (32, 32, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{label}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def settings(images: Path) -> str:
    return f"""
model_path: random:test_efficientnet
target_fnr_exit: 0.1
epochs: 12
batch_size: 32
lr_head: 3e-3
early_stop_patience: 12
bootstrap_samples: 100
dataset_params:
  sources: [{{name: noise, labels: {images}/labels.csv}}]
  class_names: [blue, red]
  image_size: 32
  val_select_ratio: 0.25
  val_calib_ratio: 0.3
  val_test_ratio: 0.2
  num_workers: 0
"""


@pytest.fixture(scope="session")
def config(images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "noise.yaml"
    path.write_text(settings(images))
    return path


@pytest.fixture(scope="session")
def trained_once(config, tmp_path_factory) -> Path:
    """One phase-2 run, trained and scored; tests take copies."""
    import subprocess

    run = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--config", str(config), "--phase", "2", "--run", str(run)]
    for name in ("00_make_splits", "20_train"):
        subprocess.run([sys.executable, str(SCRIPTS / f"{name}.py"), *flags], check=True, capture_output=True)
    return run


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    return shutil.copytree(trained_once, tmp_path / "runs" / "trained", symlinks=True)


@pytest.fixture
def calibrated(trained, script) -> Path:
    assert script("25_threshold_sweep", "--run", trained).status == 0
    return trained


@pytest.fixture
def evaluated(calibrated, script) -> Path:
    assert script("40_eval_selective", "--run", calibrated).status == 0
    return calibrated


@pytest.fixture
def bundle(evaluated, script) -> Path:
    assert script("50_export_bundle", "--run", evaluated).status == 0
    return evaluated / "bundle"

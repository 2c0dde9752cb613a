"""Runs of every phase that is needed, made once for all workers and copied by the tests."""

from collections.abc import Callable
from pathlib import Path

import chain
import pytest
from shared_folders import made_once


@pytest.fixture
def script() -> Callable[..., chain.Outcome]:
    """Call a script by name with its arguments; returns status, stdout and stderr."""
    return chain.call


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Noisy squares, a little redder or bluer: most are easy, some are not."""
    return made_once(tmp_path_factory, "images", chain.draw)


def settings(images: Path) -> str:
    return f"""
model_path: random:test_efficientnet
target_fnr_exit: 0.1
epochs: 12
batch_size: 32
lr_head: 3e-3
early_stop_patience: 12
use_ema: true
bootstrap_samples: 100
dataset_params:
  sources: [{{name: noise, labels: {images}/labels.csv}}]
  class_names: [blue, red]
  positive_class: red
  image_size: 32
  val_select_ratio: 0.25
  val_calib_ratio: 0.3
  val_test_ratio: 0.2
  num_workers: 0
"""


@pytest.fixture(scope="session")
def config(images, tmp_path_factory) -> Path:
    folder = made_once(tmp_path_factory, "config", lambda at: (at / "noise.yaml").write_text(settings(images)))
    return folder / "noise.yaml"


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """make_once(name, make): the run of this name, made at the given path by the first worker that needs it."""

    def once(name: str, make: Callable[[Path], object]) -> Path:
        def in_folder(folder: Path) -> None:
            make(folder / "runs" / name)

        return made_once(tmp_path_factory, f"run-{name}", in_folder) / "runs" / name

    return once


@pytest.fixture(scope="session")
def go_on_once(tmp_path_factory) -> Callable[[Path, str, tuple[str, ...]], Path]:
    """go_on_once(run, what, scripts): the run after these scripts too."""

    def once(run: Path, what: str, *scripts: str) -> Path:
        def in_folder(folder: Path) -> None:
            copied = chain.copy(run, folder / "runs")
            for name in scripts:
                chain.done(name, "--run", copied)

        return made_once(tmp_path_factory, f"{what}-{run.name}", in_folder) / "runs" / run.name

    return once


# ---- phase 2: the softmax policy


@pytest.fixture(scope="session")
def trained_once(config, make_once) -> Path:
    """One phase-2 run, trained and scored; tests take copies."""
    flags = ["--config", str(config), "--phase", "2"]
    return make_once("trained", lambda run: chain.train_run(run, flags, "epoch 4/", "epoch 10/"))


@pytest.fixture(scope="session")
def calibrated_once(trained_once, go_on_once) -> Path:
    return go_on_once(trained_once, "calibrated", "25_threshold_sweep")


@pytest.fixture(scope="session")
def evaluated_once(calibrated_once, go_on_once) -> Path:
    return go_on_once(calibrated_once, "evaluated", "40_eval_selective")


@pytest.fixture(scope="session")
def exported_once(evaluated_once, go_on_once) -> Path:
    return go_on_once(evaluated_once, "exported", "50_export_bundle")


@pytest.fixture
def runs(tmp_path) -> Path:
    """The folder that a test's runs lie in."""
    return tmp_path / "runs"


@pytest.fixture
def trained(trained_once, runs) -> Path:
    return chain.copy(trained_once, runs)


@pytest.fixture
def calibrated(calibrated_once, runs) -> Path:
    return chain.copy(calibrated_once, runs)


@pytest.fixture
def evaluated(evaluated_once, runs) -> Path:
    return chain.copy(evaluated_once, runs)


@pytest.fixture
def bundle(exported_once, runs) -> Path:
    return chain.copy(exported_once, runs) / "bundle"


# ---- phases 3 and 6: the gate and SCRC policies


@pytest.fixture(scope="session")
def gated_once(config, make_once) -> Path:
    """One phase-3 run, trained and scored; tests take copies."""
    return make_once("gated", lambda run: chain.train_run(run, ["--config", str(config), *chain.GATED], "epoch 4/"))


@pytest.fixture(scope="session")
def exported_gate_once(gated_once, go_on_once) -> Path:
    return go_on_once(gated_once, "exported", "33_calibrate_gate", "40_eval_selective", "50_export_bundle")


@pytest.fixture(scope="session")
def scrc_once(config, make_once) -> Path:
    """One phase-6 run, trained and scored; tests take copies."""
    return make_once("scrc", lambda run: chain.train_run(run, ["--config", str(config), *chain.CONFORMAL]))


@pytest.fixture(scope="session")
def exported_scrc_once(scrc_once, go_on_once) -> Path:
    return go_on_once(scrc_once, "exported", "36_calibrate_scrc", "40_eval_selective", "50_export_bundle")

"""A run and a bundle that an older version wrote, with its modules in other places, are read.

older_runs.tar.xz holds a run that was interrupted after the third of six epochs, and one that was certified,
evaluated and exported, with the decisions of its bundle.
"""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ARCHIVE = Path(__file__).parents[1] / "records" / "older_runs.tar.xz"


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(tmp_path / "runs" / "calibrated" / "bundle" / "model_best.pth", tmp_path / "runs" / "calibrated")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bundle_is_verified_and_decides_as_before(before, script):
    assert script("50_export_bundle", "--verify", "runs/calibrated/bundle").status == 0
    assert script("60_predict", "runs/calibrated/bundle", "images", "--out", "again.csv").status == 0
    again, then = (pd.read_csv(before / name) for name in ("again.csv", "decisions.csv"))
    probabilities = then.select_dtypes("float").columns
    assert len(probabilities)
    pd.testing.assert_frame_equal(again.drop(columns=probabilities), then.drop(columns=probabilities))
    np.testing.assert_allclose(again[probabilities], then[probabilities], atol=1e-4)  # another host rounds otherwise


def test_a_run_is_evaluated_and_exported(before, script):
    for left in ("bundle", "eval.json"):
        path = before / "runs" / "calibrated" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert script("40_eval_selective", "--run", "runs/calibrated").status == 0
    assert script("50_export_bundle", "--run", "runs/calibrated").status == 0


def test_an_interrupted_run_goes_on_to_its_bundle(before, script):
    assert script("20_train", "--resume", "runs/interrupted").status == 0
    for name in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
        outcome = script(name, "--run", "runs/interrupted")
        assert outcome.status == 0, outcome.err

"""43 on Ray: the table of 43 without it, failures told alike, and Ctrl-C leaves no training behind."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from on_ray import EXTRA, finished, started, until

pytestmark = EXTRA


@pytest.fixture
def words(config: Path, tmp_path: Path) -> list[object]:
    """Two arms that train and one that cannot, one seed."""
    for name, text in (
        ("plain", "phase: 2\n"),
        ("fast", "phase: 2\nlr_head: 1.0e-2\n"),
        ("broken", "phase: 2\nmodel_path: file:absent.safetensors:test_efficientnet\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    arms = [tmp_path / f"{name}.yaml" for name in ("plain", "fast", "broken")]
    return ["--config", config, "--epochs", 2, "--arms", *arms, "--seeds", 1, "--jobs", 2]


def measured(folder: Path) -> list[dict[str, Any]]:
    """What ab.json says of each arm but for times, and digests of files that hold dates."""
    arms = json.loads((folder / "ab.json").read_text().replace(str(folder), "OUT"))["arms"]
    for arm in arms:
        arm.pop("cost"), arm.pop("time_ratio")
        arm["runs"] = [{name: run[name] for name in ("figures", "fnr_on_exits")} for run in arm["runs"]]
    return arms


def test_the_table_is_that_of_processes_and_a_trial_fails_alone(words, tmp_path):
    found = {}
    for engine in ("processes", "ray"):
        status, out, err = finished("43_ab_test", *words, "--out", tmp_path / engine, "--engine", engine)
        assert status == 2, (out, err)
        assert err.startswith("43_ab_test.py: 1 run failed: broken-seed")
        assert "FAILED, 20_train.py ended with status 2: " in out
        found[engine] = measured(tmp_path / engine)
    assert found["ray"] == found["processes"]
    assert [len(arm["runs"]) for arm in found["ray"]] == [1, 1, 0]


def test_an_interruption_ends_training_which_can_be_resumed(words, tmp_path):
    words += ["--out", tmp_path / "out", "--engine", "ray", "--epochs", 60]
    with started("43_ab_test", *words) as process:
        logs = tmp_path / "out" / "logs"
        until(lambda: any("epoch 3/" in log.read_text() for log in logs.glob("plain-*.log")), 300)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "43_ab_test.py: Interrupted; the files on disk are whole.\n"
    assert any("resume with: " in log.read_text() for log in logs.glob("plain-*.log"))

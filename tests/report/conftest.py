"""A calibrated and evaluated run with made-up scores: nothing is trained, no torch is imported."""

from collections.abc import Callable
from typing import Any

import pytest
from made_runs import METRICS, calibrate, make_run

from stage1_pro.core.evaluation import evaluate_run
from stage1_pro.core.records.policy_file import write_policy
from stage1_pro.core.records.run import Run


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Callable[..., tuple[Run, dict[str, Any], dict[str, Any]]]:
    """Make (run, policy, evaluation). name: of the run; threshold: in place of the certified one."""

    def make(
        name: str = "run",
        class_names: tuple[str, str] = ("other", "red"),
        threshold: float | None = None,
        metrics: str = METRICS,
    ) -> tuple[Run, dict[str, Any], dict[str, Any]]:
        run = make_run(tmp_path_factory.mktemp("runs") / name, "softmax", class_names, metrics)
        policy = calibrate(run)
        if threshold is not None:
            policy["exit_threshold"] = threshold
        write_policy(run, policy)
        return run, policy, evaluate_run(run, policy)

    return make

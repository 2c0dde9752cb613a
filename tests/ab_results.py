"""Results of made-up trials: decisions without a training behind them."""

from pathlib import Path

import numpy as np

from stage1_pro.core.ab.plan import Arm, Plan
from stage1_pro.core.ab.results import Cost, Result
from stage1_pro.core.comparison.contender import Certificate, Contender, SharedCases, fnr_on_exits, measured
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.base import ExitDecisions

RISK = Risk(0.05, 0.95)
CONFIG = Stage1ProConfig(phase=2, target_fnr_exit=0.05, bootstrap_samples=200)
CASES = SharedCases(np.arange(400) % 2, group_index(None, 400), np.ones(400, bool), "0" * 64)


def plan_of(names: list[str], seeds: int = 3, folder: str = "runs/ab/test") -> Plan:
    arms = tuple(Arm(name, {"lr_head": 0.1 * (at + 1)}, CONFIG) for at, name in enumerate(names))
    return Plan(Path(folder), arms, tuple(range(42, 42 + seeds)))


def decided(coverage: float, seed: int, false_positives: int = 0, skill: float = 2.0) -> ExitDecisions:
    """The first `coverage` of the cases exit, all answered rightly but for so many negatives."""
    rng = np.random.default_rng(seed)
    answers, exits = CASES.labels.copy(), np.arange(400) < round(400 * coverage)
    answers[np.flatnonzero(CASES.labels == 0)[:false_positives]] = 1
    answers[-20:] = 1 - answers[-20:]  # of the cases that mostly defer
    scores = rng.normal(np.where(answers == CASES.labels, skill, 0.0), 1)
    return ExitDecisions(exits, answers, scores, scores)


def result_of(trial, decisions: ExitDecisions, seconds: float = 10.0, certified: bool = True) -> Result:
    digests = {"model": "1" * 64, "policy": "2" * 64 if certified else None, "scores": "3" * 64}
    contender = Contender(
        *(trial.name, str(trial.path), 2, "softmax", trial.seed, RISK),
        *(Certificate(0.04, 1) if certified else None, decisions, "score", digests),
    )
    fnr = fnr_on_exits(contender, CASES, 0.95)
    figures = {**measured(decisions, CASES), "fnr_on_exits": np.nan if fnr["value"] is None else fnr["value"]}
    return Result(trial, contender, figures, fnr, Cost(100.0, seconds, 5, 512.0, "process", 1000, False))

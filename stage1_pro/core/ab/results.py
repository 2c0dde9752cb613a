"""From the run directory of an ended trial to its figures and what they cost."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.ab.plan import Plan, Trial
from stage1_pro.core.ab.runner import demand_equal_splits
from stage1_pro.core.comparison.contender import Contender, SharedCases, fnr_on_exits, measured
from stage1_pro.core.comparison.from_runs import contender_of, demand_ready, shared_cases
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run

MEMORY = {"peak_gpu_mib": "GPU", "peak_rss_mib": "process"}
"""Column of metrics.csv, and whose largest memory it is: of the GPU's tensors, or of the training process."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What training took. images_per_second: median over epochs, of training steps; seconds: of all epochs, validation
    included; from_cache: the images had been turned into features before, which is not counted."""

    images_per_second: float
    seconds: float
    epochs: int
    peak_mib: float
    memory: str
    trainable: int
    from_cache: bool


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One trial that ended. figures: by name, NaN where undefined, FNR on exits among them."""

    trial: Trial
    contender: Contender
    figures: dict[str, float]
    fnr: dict[str, Any]
    cost: Cost

    def record(self) -> dict[str, Any]:
        certificate = self.contender.certificate
        return {
            "seed": self.trial.seed,
            "run_id": self.contender.name,
            "path": self.contender.path,
            "certified": certificate is not None,
            "fnr_upper_bound": certificate.bound if certificate else None,
            "calib_use_count": certificate.calib_uses if certificate else None,
            **{f"{name}_digest": digest for name, digest in self.contender.digests.items()},
            "fnr_on_exits": self.fnr,
            "figures": {name: None if np.isnan(value) else value for name, value in self.figures.items()},
            "cost": asdict(self.cost),
        }


def read_results(plan: Plan, failures: dict[str, str]) -> tuple[list[Result], SharedCases]:
    """The results of all trials that ended, in the plan's order, and the test cases that they share.

    failures: names of trials that did not end, and why; a trial that cannot be trusted is added to them. Raises
    UserError where none is left.
    """
    ended, confidence = [], plan.arms[0].config.bootstrap_confidence
    for trial in plan.trials():
        if trial.name not in failures:
            try:
                ended.append((trial, *_opened(trial, plan)))
            except UserError as problem:
                failures[trial.name] = str(problem)
    if not ended:
        raise UserError("no run of this test ended, so there is nothing to compare; see its logs.")
    cases = shared_cases([run for _, run, _ in ended])
    return [_result(trial, run, contender, cases, confidence) for trial, run, contender in ended], cases


def _opened(trial: Trial, plan: Plan) -> tuple[Run, Contender]:
    run, config = Run.open(str(trial.path)), trial.arm.config
    demand_equal_splits(run, plan)
    demand_ready(run)
    contender = contender_of(run, trial.name)
    if contender.promise != (run.risk(config.target_fnr_exit, config.fnr_confidence), False):
        raise UserError(f"{run.path} was certified for another promise than this test asks for. Remove that run.")
    return run, contender


def _result(trial: Trial, run: Run, contender: Contender, cases: SharedCases, confidence: float) -> Result:
    fnr = fnr_on_exits(contender, cases, confidence)
    rate = float("nan") if fnr["value"] is None else fnr["value"]
    return Result(trial, contender, {**measured(contender.decisions, cases), "fnr_on_exits": rate}, fnr, cost_of(run))


def cost_of(run: Run) -> Cost:
    """What a run's metrics.csv and environment.json say about the cost of its training."""
    epochs = pd.read_csv(run.metrics_path)
    made = artifacts.read_json(run.environment_path, "environment")
    column = next(name for name in MEMORY if name in epochs)
    return Cost(
        images_per_second=float(epochs["images_per_second"].median()),
        seconds=float(epochs["epoch_seconds"].sum()),
        epochs=len(epochs),
        peak_mib=float(epochs[column].max()),
        memory=MEMORY[column],
        trainable=made["parameters"]["trainable"],
        from_cache=run.config.reads_cached_features,
    )

"""Arms side by side: every figure's mean over seeds, and paired differences from the first arm."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.ab.plan import Arm, Plan
from stage1_pro.core.ab.results import Result
from stage1_pro.core.ab.statistics import PairedDifference, SeedMean, false_alarm, verdict
from stage1_pro.core.comparison.contender import MEASURES, SharedCases, paired_replicates
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.seeds import rng_of

FIGURES = ("right_exits", "utility", "coverage", "fnr_on_exits", "fpr_on_exits", "accuracy_on_exits", "augrc")


@dataclass(frozen=True, slots=True, eq=False)
class ArmStanding:
    """One arm: its results that ended, their means over seeds, and its differences from the first arm by measure, empty
    for the first arm itself. cost: means over seeds; time_ratio: its training time in units of the first arm's."""

    arm: Arm
    results: tuple[Result, ...]
    failures: Mapping[str, str]
    figures: Mapping[str, SeedMean]
    differences: Mapping[str, PairedDifference]
    cost: Mapping[str, float]
    time_ratio: float | None
    verdict: str
    """reference, incomplete, one seed, more, at a price, price unknown, less or like."""

    @property
    def refused(self) -> int:
        """Runs for which nothing was certified: they count as 0 right exits."""
        return sum(result.contender.certificate is None for result in self.results)

    def above(self, target: float) -> int:
        """Runs whose FNR on exits on the test split, itself an estimate, is above the target."""
        return sum(result.figures["fnr_on_exits"] > target for result in self.results)


@dataclass(frozen=True, slots=True, eq=False)
class ABTest:
    """All arms in the order given. jobs: trials that shared the machine while the newest of them were trained."""

    folder: str
    standings: tuple[ArmStanding, ...]
    cases: SharedCases
    seeds: tuple[int, ...]
    risk: Risk
    samples: int
    confidence: float
    jobs: int
    created_at: str

    @property
    def runs(self) -> int:
        """Runs that ended, each of which looked at the one val_calib."""
        return sum(len(one.results) for one in self.standings)

    @property
    def joint_confidence(self) -> float:
        """With this probability at least all certificates hold together, whichever run is then picked (union bound).

        Every trial that looked counts, a failed one too, and so do looks before the test.
        """
        return self.cases.joint_confidence([self.risk.delta] * self.runs)

    @property
    def false_alarm(self) -> float:
        """Largest chance that one interval of right exits or more misses 0 although no arm differs."""
        return false_alarm(len(self.standings) - 1, self.confidence)

    def record(self) -> dict[str, Any]:
        """The content of ab.json."""
        return {
            "schema_version": artifacts.SCHEMA_VERSION,
            "created_at": self.created_at,
            **self.cases.record(self.samples, self.confidence),
            "seeds": list(self.seeds),
            "target_fnr_exit": self.risk.target_fnr,
            "fnr_confidence": self.risk.confidence,
            "jobs": self.jobs,
            "joint_confidence": self.joint_confidence,
            "false_alarm": self.false_alarm,
            "arms": [_record(one, self.risk.target_fnr) for one in self.standings],
        }


def stand(plan: Plan, results: Sequence[Result], cases: SharedCases, failures: Mapping[str, str], jobs: int) -> ABTest:
    """Compare the arms on what ended; a failed trial leaves its pair out and its arm without a verdict."""
    config = plan.arms[0].config
    samples, confidence = config.bootstrap_samples, config.bootstrap_confidence
    rng = rng_of(config.seed, "bootstrap")
    drawn = paired_replicates([result.contender.decisions for result in results], cases, samples, rng)
    replicates = {result.trial.name: rows for result, rows in zip(results, drawn, strict=True)}
    standings: list[ArmStanding] = []
    for arm in plan.arms:
        own = tuple(result for result in results if result.trial.arm is arm)
        names = [trial.name for trial in plan.trials() if trial.arm is arm]
        failed = {name: failures[name] for name in names if name in failures}
        first = standings[0] if standings else None
        differences = _differences(own, first.results, replicates, confidence) if first else {}
        figures = {name: SeedMean.of([one.figures[name] for one in own], confidence) for name in FIGURES}
        found = verdict(differences, len(failed) + len(first.failures)) if first else "reference"
        ratio = _time_ratio(own, first.results) if first else None
        standings.append(ArmStanding(arm, own, failed, figures, differences, _mean_cost(own), ratio, found))
    risk = Risk(config.certified_level(), config.fnr_confidence)
    return ABTest(str(plan.folder), tuple(standings), cases, plan.seeds, risk, samples, confidence, jobs, utc_now())


def _differences(
    own: Sequence[Result],
    first: Sequence[Result],
    replicates: Mapping[str, Mapping[str, FloatArray]],
    confidence: float,
) -> dict[str, PairedDifference]:
    pairs = _pairs(own, first)
    found = {}
    for name, better in MEASURES.items():
        arm, reference = ([pair[side].figures[name] for pair in pairs] for side in (0, 1))
        resampled = [replicates[one.trial.name][name] - replicates[other.trial.name][name] for one, other in pairs]
        rows = np.stack(resampled) if pairs else np.empty((0, 0))
        found[name] = PairedDifference.between(arm, reference, rows, confidence, better)
    return found


def _pairs(own: Sequence[Result], first: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Results of one seed side by side, where both ended."""
    by_seed = {result.trial.seed: result for result in first}
    return [(result, by_seed[result.trial.seed]) for result in own if result.trial.seed in by_seed]


def _mean_cost(results: Sequence[Result]) -> dict[str, float]:
    names = ("images_per_second", "seconds", "epochs", "peak_mib", "trainable")
    return {name: fmean(getattr(one.cost, name) for one in results) for name in names} if results else {}


def _time_ratio(own: Sequence[Result], first: Sequence[Result]) -> float | None:
    pairs = _pairs(own, first)
    return sum(one.cost.seconds for one, _ in pairs) / sum(other.cost.seconds for _, other in pairs) if pairs else None


def _record(one: ArmStanding, target: float) -> dict[str, Any]:
    return {
        "name": one.arm.name,
        "changes": dict(one.arm.changes),
        "verdict": one.verdict,
        "nothing_certified": one.refused,
        "above_target": one.above(target),
        "failures": dict(one.failures),
        "figures": {name: asdict(mean) for name, mean in one.figures.items()},
        "differences": {name: asdict(difference) for name, difference in one.differences.items()},
        "cost": dict(one.cost),
        "time_ratio": one.time_ratio,
        "runs": [result.record() for result in one.results],
    }

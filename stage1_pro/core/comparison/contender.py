"""Runs measured on the same test cases and the same resamples of them, so that their figures may be subtracted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.bootstrap import Statistic, bootstrap_replicates, percentile_interval, point_values
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.metrics.risk import Risk, remaining_confidence
from stage1_pro.core.metrics.summary import decision_edges, decision_statistics, fnr_evidence
from stage1_pro.core.policies.base import ExitDecisions

MEASURES = {
    "right_exits": 1,
    "utility": 1,
    "coverage": 1,
    "fpr_on_exits": -1,
    "accuracy_on_exits": 1,
    "augrc": -1,
}
"""What is compared, and the sign of a difference for the better."""
HEADLINE = "right_exits"
"""The measure that decides a verdict: coverage can be bought by answering every case positive."""
PRICES = ("fpr_on_exits", "accuracy_on_exits")
"""What more right exits must not be paid with."""
BINOMIAL, IN_EXPECTATION = "binomial certificate", "in expectation"
"""What a promise is: true of this policy with the stated confidence, or on average over calibration splits, and then
of set loss, and of FNR on exits approximately."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedCases:
    """The cases that all runs are measured on.

    labels: (N,) int; index: (N,) number of each case's group; independent: (N,) bool, what counts as evidence
    about FNR on exits; splits_digest: of the splits that they belong to; prices: of a false alarm and of a miss on
    exits, in deferrals, by which all runs' utility is measured; looks: confidences of all looks so far that share the
    positives of their val_calib, also those of runs that are not shown.
    """

    labels: IntArray
    index: IntArray
    independent: BoolArray
    splits_digest: str
    prices: tuple[float, float] = (5.0, 0.0)
    looks: tuple[float, ...] = ()

    @property
    def groups(self) -> int:
        return int(self.index.max(initial=-1)) + 1

    @property
    def unit(self) -> str:
        """What a resample draws."""
        return "group" if self.groups < len(self.labels) else "case"

    def joint_confidence(self, deltas: Iterable[float]) -> float:
        """Return the least probability that the certificates of all looks hold, whichever is picked (union bound).

        deltas: of the runs that are shown, some of which may have looked from elsewhere.
        """
        shown = max(0.0, 1 - sum(deltas))
        return min(shown, remaining_confidence(self.looks)) if self.looks else shown

    def record(self, samples: int, confidence: float) -> dict[str, Any]:
        """What a result of `samples` resamples says of the cases that it was found on."""
        return {
            "split": "val_test",
            "splits_digest": self.splits_digest,
            "cases": len(self.labels),
            "positives": int(np.count_nonzero(self.labels == 1)),
            "prices": dict(zip(("false_alarm", "miss"), self.prices, strict=True)),
            "bootstrap": {"samples": samples, "confidence": confidence, "unit": self.unit},
        }


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a run's calibration promises: FNR on exits at most `bound`; calib_uses: looks at val_calib by then; kind:
    BINOMIAL or IN_EXPECTATION; scrc_variant: of an SCRC policy."""

    bound: float
    calib_uses: int
    kind: str = BINOMIAL
    scrc_variant: str | None = None
    remaining: float | None = None
    """Confidence that the looks leave; None in older files, which do not record it."""


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """One run as a comparison sees it: what it promises and what it decides on the test cases.

    risk: the promise that was sought; certificate: None where nothing was certified, and then no case exits;
    ranked_by: words for decisions.scores; digests: of model, policy and scores.
    """

    name: str
    path: str
    phase: int
    exit_policy: str
    seed: int
    risk: Risk
    certificate: Certificate | None
    decisions: ExitDecisions
    ranked_by: str
    digests: Mapping[str, str | None]

    @property
    def in_expectation(self) -> bool:
        """Whether its promise is one in expectation; what certified nothing promises nothing."""
        return self.certificate is not None and self.certificate.kind == IN_EXPECTATION

    @property
    def promise(self) -> tuple[Risk, bool]:
        """What must be equal for coverages to compare."""
        return self.risk, self.in_expectation


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; None where it is undefined, as FPR on exits where none exits."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(
        cls, value: float, replicates: FloatArray, confidence: float, edge: tuple[float, float] | None = None
    ) -> "Estimate":
        """edge: the interval where resampling knows nothing; None: that of the replicates."""
        return cls(*(known(number) for number in (value, *(edge or percentile_interval(replicates, confidence)))))


def paired_replicates(
    decisions: Sequence[ExitDecisions], cases: SharedCases, samples: int, rng: np.random.Generator
) -> list[dict[str, FloatArray]]:
    """For each of the decisions its figures (samples,) by name, all on the same resamples: entry r of every
    array belongs to resample r, so that entries may be subtracted, or averaged over seeds first."""

    def named(position: int, decided: ExitDecisions) -> list[Statistic]:
        def renamed(statistic: Statistic) -> Statistic:
            return lambda weights: {f"{position} {name}": values for name, values in statistic(weights).items()}

        own = decision_statistics(cases.index, cases.labels, decided, cases.prices)
        return [renamed(statistic) for statistic in own]

    statistics = [statistic for position, decided in enumerate(decisions) for statistic in named(position, decided)]
    replicates = bootstrap_replicates(statistics, cases.index, samples, rng)
    return [
        {name.split(" ")[1]: values for name, values in replicates.items() if name.startswith(f"{position} ")}
        for position in range(len(decisions))
    ]


def measured(decisions: ExitDecisions, cases: SharedCases) -> dict[str, float]:
    """The figures of decisions by name; NaN where one is undefined."""
    return point_values(decision_statistics(cases.index, cases.labels, decisions, cases.prices), cases.index)


def edges(contender: Contender, cases: SharedCases, confidence: float) -> dict[str, tuple[float, float]]:
    """Intervals of the figures of which resampling knows nothing; that a run without a policy exits none, it knows."""
    if contender.certificate is None:
        return {}
    return decision_edges(cases.index, cases.labels, contender.decisions, cases.prices, confidence)


def fnr_on_exits(contender: Contender, cases: SharedCases, confidence: float) -> dict[str, Any]:
    """Counts, rate and exact interval of FNR on exits; None where no positive exits."""
    decided, kept, risk = contender.decisions, cases.independent, contender.risk
    counts = count_decisions(decided.exits[kept], decided.predictions[kept], cases.labels[kept])
    evidence = fnr_evidence(counts, risk.target_fnr, risk.delta, confidence)
    if evidence["exited_positives"]:
        return evidence
    return {**evidence, **dict.fromkeys(("value", "low", "high", "upper_bound", "p_value"))}


def known(number: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(number) else float(number)

"""Runs side by side on the same test cases, and their differences from the first of them.

A difference is taken within each bootstrap resample, on the same cases for both runs, so that what is hard for
both of them cancels. The intervals speak of the draw of the test cases alone: another training seed or another
calibration split would move the figures too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.comparison.contender import (
    BINOMIAL,
    HEADLINE,
    MEASURES,
    PRICES,
    Contender,
    Estimate,
    SharedCases,
    edges,
    fnr_on_exits,
    known,
    measured,
    paired_replicates,
)
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.metrics.bootstrap import percentile_interval
from stage1_pro.core.records.provenance import utc_now


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A run's figure minus the first run's."""

    sense: int = 0
    """1 where the interval holds better values only, -1 worse only, else 0: within chance, or undefined."""

    @classmethod
    def between(cls, value: float, replicates: FloatArray, confidence: float, better: int) -> "Difference":
        """value, replicates: differences already; better: the sign of an improvement."""
        low, high = percentile_interval(replicates, confidence)
        sense = better * (int(low > 0) - int(high < 0))  # NaN is neither
        return cls(known(value), known(low), known(high), sense)


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One row of a comparison. fnr: counts, rate and exact interval of FNR on exits; differences: from the first
    run, by measure; empty for the first run itself."""

    letter: str
    contender: Contender
    fnr: dict[str, Any]
    figures: dict[str, Estimate]
    differences: dict[str, Difference]
    verdict: str
    """first, uncertified, other promise, more, more at a price, less or like."""

    @property
    def promise_held(self) -> bool | None:
        """Whether the test rate meets the target; None where no positive exits."""
        return None if self.fnr["value"] is None else self.fnr["value"] <= self.contender.risk.target_fnr


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All runs in the order given, the first one being what the others are measured against."""

    standings: tuple[Standing, ...]
    cases: SharedCases
    samples: int
    confidence: float
    created_at: str

    @property
    def promises_differ(self) -> bool:
        """Coverage under one target, confidence or kind of promise says nothing about coverage under another."""
        return len({standing.contender.promise for standing in self.standings}) > 1

    @property
    def joint_confidence(self) -> float | None:
        """With this probability at least every binomial certificate here is true, whichever run is chosen; None where
        there is none.

        Union bound over the looks at their val_calib: those that certified nothing are counted too, since which ones
        would fail was not known before, and those of runs that are not shown.
        """
        tried = [one.contender for one in self.standings if not one.contender.in_expectation]
        if all(contender.certificate is None for contender in tried):
            return None
        return self.cases.joint_confidence(contender.risk.delta for contender in tried)

    def record(self) -> dict[str, Any]:
        """The content of comparison.json."""
        return {
            "schema_version": artifacts.SCHEMA_VERSION,
            "created_at": self.created_at,
            **self.cases.record(self.samples, self.confidence),
            "groups": self.cases.groups,
            "promises_differ": self.promises_differ,
            "joint_confidence": self.joint_confidence,
            "runs": [_record(standing) for standing in self.standings],
        }


def compare(
    contenders: Sequence[Contender], cases: SharedCases, *, samples: int, confidence: float, rng: np.random.Generator
) -> Comparison:
    """Measure all contenders on the same cases and resamples. The first one is the measure of the others.

    samples: bootstrap resamples of groups; confidence: of every interval, bootstrap or exact.
    """
    figures = [measured(contender.decisions, cases) for contender in contenders]
    drawn = paired_replicates([contender.decisions for contender in contenders], cases, samples, rng)
    standings = []
    for position, contender in enumerate(contenders):
        points, replicates, at_edge = figures[position], drawn[position], edges(contender, cases, confidence)
        differences = {
            name: Difference.between(
                points[name] - figures[0][name], replicates[name] - drawn[0][name], confidence, better
            )
            for name, better in MEASURES.items()
            if position
        }
        standings.append(
            Standing(
                letter=_letter(position),
                contender=contender,
                fnr=fnr_on_exits(contender, cases, confidence),
                figures={
                    name: Estimate.of(points[name], replicates[name], confidence, at_edge.get(name))
                    for name in MEASURES
                },
                differences=differences,
                verdict=_verdict(contender, contenders[0], differences),
            )
        )
    return Comparison(tuple(standings), cases, samples, confidence, utc_now())


def _verdict(contender: Contender, first: Contender, differences: Mapping[str, Difference]) -> str:
    """What the differences amount to, in one word; words for people are the report's."""
    if contender.certificate is None:
        return "uncertified"
    if contender is first:
        return "first"
    if contender.promise != first.promise:
        return "other promise"
    paid = any(differences[name].sense < 0 for name in PRICES)
    return {1: "more at a price" if paid else "more", -1: "less", 0: "like"}[differences[HEADLINE].sense]


def _letter(position: int) -> str:
    """A, B, … Z, AA, AB, …: shorter in a figure than the name of a run."""
    before, last = divmod(position, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + last)


def _record(standing: Standing) -> dict[str, Any]:
    contender, certificate = standing.contender, standing.contender.certificate
    return {
        "letter": standing.letter,
        "run_id": contender.name,
        "path": contender.path,
        "phase": contender.phase,
        "exit_policy": contender.exit_policy,
        "seed": contender.seed,
        "certified": certificate is not None and certificate.kind == BINOMIAL,
        "promise_kind": certificate.kind if certificate else None,
        "scrc_variant": certificate.scrc_variant if certificate else None,
        "target_fnr_exit": contender.risk.target_fnr,
        "fnr_confidence": contender.risk.confidence,
        "fnr_upper_bound": certificate.bound if certificate else None,
        "calib_use_count": certificate.calib_uses if certificate else None,
        "promise_held": standing.promise_held,
        "ranked_by": contender.ranked_by,
        **{f"{name}_digest": digest for name, digest in contender.digests.items()},
        "fnr_on_exits": standing.fnr,
        **{name: asdict(estimate) for name, estimate in standing.figures.items()},
        "differences": {name: asdict(difference) for name, difference in standing.differences.items()},
        "verdict": standing.verdict,
    }

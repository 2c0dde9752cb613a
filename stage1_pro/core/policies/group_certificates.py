"""Certificates for several groups at once, such as cameras or sites: thresholds of their own, an equal part of delta
each.

One threshold that is certified for all groups together breaks the target for some group nearly always, since their
misses differ. So each group has the ordinary procedure on its own cases of val_select and val_calib, at delta / k for k
groups (Bonferroni). Groups that val_select predicts to fail at their part always defer, which is fixed before val_calib
is read, and leave it to the others. The maps of a policy, and where answers stand, are the same for all groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.errors import NothingCertified
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.metrics.binomial import minimum_positives
from stage1_pro.core.metrics.error_budget import group_delta
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidate_pairs import picked
from stage1_pro.core.policies.certification import Calibration, Family, split_metrics
from stage1_pro.core.policies.fixed_sequence import predicted_p
from stage1_pro.core.policies.independence import counted_positives
from stage1_pro.core.records.scores import Scores

OF_A_ROW = ("coverage", "exited_positives", "misses", "fnr_on_exits", "fnr_upper_bound", "certified")
"""What the sweep of a group keeps of each candidate, beside its thresholds."""
OF_A_GROUP = ("exited_positives", "misses", "fnr_upper_bound", "fnr_on_exits", "coverage", "exit_accuracy")
LISTED = 10
POOLED = "one threshold, certified for the mix of all groups: some group breaks the target in nearly all draws"


@dataclass(frozen=True, slots=True)
class Deferred:
    """A group of which every case defers. delta: what its test spent, 0 where it had none; positives: independent ones
    of val_calib; why: in words."""

    delta: float
    positives: int
    why: str

    def record(self) -> dict[str, Any]:
        return {"delta": self.delta, "positives": self.positives, "why": self.why}


@dataclass(frozen=True, slots=True, eq=False)
class GroupCalibration(Calibration):
    """A certificate for each group. The candidates that it has itself are single thresholds for all groups, none of
    which is certified for each.

    parts: the groups that were tested, by name, each at its part of delta; untested: those that val_select predicted to
    fail; independent: how many positives of val_calib count.
    """

    parts: dict[str, Calibration]
    untested: dict[str, Deferred]
    independent: int

    @property
    def passed(self) -> dict[str, Calibration]:
        """The certified groups, by name."""
        return {name: part for name, part in sorted(self.parts.items()) if part.certified}

    @property
    def certified(self) -> bool:
        return bool(self.passed)

    @property
    def reached_end(self) -> bool:
        """Whether in every certified group the last candidate is the certified one."""
        return all(part.reached_end for part in self.passed.values())

    @property
    def deferred(self) -> dict[str, Deferred]:
        """The groups of which every case defers, by name."""
        failed = {name: _failed(part) for name, part in self.parts.items() if not part.certified}
        return dict(sorted({**self.untested, **failed}.items()))

    def chosen(self) -> dict[str, float]:
        """The strictest of the groups' thresholds, for people: a case is decided by that of its group."""
        self._demand_any()
        chosen = [part.chosen() for part in self.passed.values()]
        return {name: max(one[name] for one in chosen) for name in chosen[0]}

    def summary(self) -> dict[str, Any]:
        record = self.record()
        kept = {name: record[name] for name in OF_A_GROUP if name != "exit_accuracy"}
        return {**self.chosen(), **kept, "right_exits": record["val_calib_metrics"]["right_exits"], "certified": True}

    def record(self) -> dict[str, Any]:
        """The fields of the policy file: of each group, and over all of them where one threshold has its counts."""
        self._demand_any()
        groups = {name: _group_record(part) for name, part in self.passed.items()}
        misses, exited = (sum(group[name] for group in groups.values()) for name in ("misses", "exited_positives"))
        metrics = split_metrics(_exits_of(self.passed.values(), self.every), self.groups, self.independent, 0)
        return {
            "exited_positives": exited,
            "misses": misses,
            "fnr_upper_bound": max(group["fnr_upper_bound"] for group in groups.values()),
            "fnr_on_exits": misses / exited if exited else None,
            "coverage": metrics["coverage"],
            "exit_accuracy": metrics["accuracy_on_exits"],
            "exit_rule": self.rule_name,
            "sweep_results": [{**self.row(at), "certified": False} for at in range(len(self.parameters))],
            "val_calib_metrics": metrics,
            "diagnostics": {**self.diagnostics(), "baselines": {"one threshold": self._pooled()}},
            "groups": groups,
            "groups_deferred": {name: one.record() for name, one in self.deferred.items()},
        }

    def diagnostics(self) -> dict[str, Any]:
        """Of one threshold for all groups, which is not what was certified."""
        found = Calibration.diagnostics(self)
        kept = {name: value for name, value in found.items() if name not in self.found.facts}
        return {**kept, "naive": {**found["naive"], "certified": False}}

    def _pooled(self) -> dict[str, Any]:
        if self.walk.answer is None:
            return {"certified": False, "note": "nothing could be certified with one threshold for all groups"}
        unused = ("p_value", "fpr_on_exits", "accuracy_on_exits")
        row = {name: value for name, value in self.row(self.walk.answer).items() if name not in unused}
        return {**row, "certified": False, "note": POOLED}

    def _demand_any(self) -> None:
        """Raise NothingCertified with the evidence of each group, and the remedies, where none is certified."""
        if not self.certified:
            raise NothingCertified("\n".join(self._refusal()))

    def _refusal(self) -> Iterator[str]:
        target, confidence = self.risk.target_fnr, self.risk.confidence
        yield f"nothing certified: no group shows FNR on exits <= {target:g} at its part of confidence {confidence:g}."
        told = [f"{name}: {one.why}" for name, one in self.deferred.items()]
        yield from (f"  {line}" for line in told[:LISTED])
        if len(told) > LISTED:
            yield f"  … and {len(told) - LISTED} more groups"
        yield (
            "  Remedies: more calibration positives of each group; fewer and larger groups in the column; "
            f"{self.risk.remedies()}a better model."
        )


def certify_family(family: Family, select: Scores, calib: Scores, risk: Risk, warnings: list[str]) -> Calibration:
    """Certify the thresholds of a policy: one for all cases, or where the scores name certificate groups one for each.

    In both cases: with probability >= 1 - delta over the draw of val_calib, what is certified keeps the target; of
    groups that is said of all of them at once.
    """
    whole = family.calibrate(select, calib, risk, warnings)
    if select.certificate_group is None:
        return whole
    own = dict(_in_groups(select, calib))
    names = np.array(list(own))
    first = Risk(risk.target_fnr, 1 - risk.delta / max(1, len(names)))
    kept, each = group_delta([_least_p(family, *own[name], first) for name in names], risk.delta)
    shared = Risk(risk.target_fnr, 1 - each)
    return GroupCalibration(
        found=whole.found,
        every=whole.every,
        groups=whole.groups,
        parameters=whole.parameters,
        risk=risk,
        warnings=warnings,
        parts={name: family.calibrate(*own[name], shared, []) for name in names[kept].tolist()},
        untested={name: _untested(*own[name], first) for name in names[~kept].tolist()},
        independent=counted_positives(calib),
    )


def _in_groups(select: Scores, calib: Scores) -> Iterator[tuple[str, tuple[Scores, Scores]]]:
    """Each group that a split holds, by name, with its cases of both."""
    named = [np.asarray(split.certificate_group).tolist() for split in (select, calib)]
    names = sorted({*named[0], *named[1]})
    places = [_places(own, names) for own in named]
    for name, chosen_on, certified_on in zip(names, *places, strict=True):
        if name:
            yield name, (select.take(chosen_on), calib.take(certified_on))


def _places(named: Sequence[str], names: Sequence[str]) -> list[IntArray]:
    """Positions of each name's cases. One pass over the cases, not one a name."""
    codes = np.fromiter(map({name: at for at, name in enumerate(names)}.__getitem__, named), np.int64, len(named))
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, len(names))))


def _least_p(family: Family, select: Scores, calib: Scores, risk: Risk) -> float:
    """The smallest p-value that val_select predicts for a group; NaN without a candidate. Of val_calib only its number
    of positives is used."""
    chosen_on, positives = family.ranked(select), counted_positives(calib)
    candidates, _ = family.proposed(chosen_on, positives, risk)
    if not len(candidates) or not select.positives:
        return np.nan
    return float(predicted_p(chosen_on.counts(candidates, chosen_on.independent), positives, risk.target_fnr).min())


def _untested(select: Scores, calib: Scores, risk: Risk) -> Deferred:
    at_hand, needed = counted_positives(calib), minimum_positives(risk.target_fnr, risk.delta)
    if not select.positives:
        why = "val_select holds none of its positives, so no threshold can be chosen"
    elif at_hand < needed:
        why = f"val_calib holds {at_hand} of its positives that count, and {needed} must exit without a miss"
    else:
        why = f"val_select predicts that its {at_hand} positives of val_calib would not do"
    return Deferred(0.0, at_hand, why)


def _failed(part: Calibration) -> Deferred:
    best = int(np.argmin(part.walk.upper_bounds))
    misses, exited = (int(counts[best]) for counts in (part.walk.calib.misses, part.walk.calib.exited_positives))
    at_hand = part.walk.calib.positives
    why = f"tested and not certified: at best {misses} of {exited} exited positives missed, of {at_hand} that count"
    return Deferred(part.risk.delta, at_hand, why)


def _group_record(part: Calibration) -> dict[str, Any]:
    """What the policy file says of one group: as a file of its own would, but for what is the same for all."""
    record, kept = part.record(), (*OF_A_ROW, *part.chosen())
    return {
        **part.chosen(),
        "delta": part.risk.delta,
        **{name: record[name] for name in OF_A_GROUP},
        "val_calib_metrics": record["val_calib_metrics"],
        "diagnostics": part.found.facts,
        "sweep_results": [{name: row[name] for name in kept} for row in record["sweep_results"]],
    }


def _exits_of(certified: Iterable[Calibration], every: ExitCounts) -> ExitCounts:
    """Counts (1,) over all cases of val_calib, those of other groups deferring."""
    found = [picked(part.every, slice(part.demand_certified(), part.demand_certified() + 1)) for part in certified]

    def total(name: str) -> IntArray:
        return np.sum([getattr(counts, name) for counts in found], axis=0)

    return ExitCounts(
        exited=total("exited"),
        exited_positives=total("exited_positives"),
        misses=total("misses"),
        exited_negatives=total("exited_negatives"),
        false_alarms=total("false_alarms"),
        cases=every.cases,
        positives=every.positives,
    )

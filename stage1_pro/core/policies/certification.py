"""From a walk over candidates to the record in a policy file, the same for every policy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray, share
from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.exit_rules import Certified, ExitRule
from stage1_pro.core.policies.fixed_sequence import Walk, refusal
from stage1_pro.core.policies.independence import counted_positives, independence
from stage1_pro.core.policies.promise import promise
from stage1_pro.core.records.scores import Scores


class Countable(Protocol):
    """One split as a policy ranks it. labels: (N,); independent: (N,) bool, the cases that count as evidence;
    groups: number of groups; counts: exits at each of J candidates, of all cases or of those kept."""

    @property
    def labels(self) -> IntArray: ...
    @property
    def independent(self) -> BoolArray: ...
    @property
    def groups(self) -> int: ...
    def counts(self, candidates: FloatArray, kept: BoolArray | None = None) -> ExitCounts: ...


End = Callable[[ExitCounts], int]
"""From counts (J,) on all cases of val_select to the last candidate that may be certified."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One split as a policy ranks it. scores: (N,) float64; answers, labels: (N,), the answers as they count;
    independent: (N,) bool, the cases that count as evidence; groups: number of groups."""

    scores: FloatArray
    answers: IntArray
    labels: IntArray
    independent: BoolArray
    groups: int

    @classmethod
    def of(cls, split: Scores, scores: FloatArray, answers: IntArray) -> "Ranked":
        return cls(scores, split.counted(answers), split.labels, *independence(split))

    def counts(self, candidates: FloatArray, kept: BoolArray | None = None) -> ExitCounts:
        """Exits at each threshold (J,), of all cases or of those kept."""
        if kept is None or kept.all():
            return count_exits(self.scores, self.answers, self.labels, candidates)
        return count_exits(self.scores[kept], self.answers[kept], self.labels[kept], candidates)


@dataclass(frozen=True, slots=True)
class Family:
    """A policy whose maps val_select has fixed, so that only its thresholds are left to certify.

    ranked: a split as the policy ranks it; candidates: (val_select's ranking, how many positives val_calib counts,
    risk) → thresholds (J,), or (J, F) of F each, in the order of growing coverage; names: of these in a sweep; end: the
    last candidate that may be certified.
    """

    ranked: Callable[[Scores], Any]
    candidates: Callable[[Any, int, Risk], FloatArray]
    names: tuple[str, ...]
    rule: ExitRule
    end: End | None = None

    def proposed(self, select: Countable, positives: int, risk: Risk) -> tuple[FloatArray, list[dict[str, float]]]:
        """Candidates, and each of them as a row of the sweep names it."""
        found = ended(select, self.candidates(select, positives, risk), self.end)
        rows = found.reshape(len(found), len(self.names)).tolist()
        return found, [dict(zip(self.names, row, strict=True)) for row in rows]

    def calibrate(self, select: Scores, calib: Scores, risk: Risk, warnings: list[str]) -> "Calibration":
        """Certify one of the candidates of `select` on `calib`."""
        chosen_on = self.ranked(select)
        # of val_calib only the number of its positives is known here; from the next line on it is read
        proposed = self.proposed(chosen_on, counted_positives(calib), risk)
        return calibrate(chosen_on, self.ranked(calib), *proposed, risk, self.rule, warnings)

    def predicted(self, select: Scores, positives: int, risk: Risk) -> "Predicted":
        """Predict what is certified. positives: how many val_calib counts, all that is used of it."""
        ranked = self.ranked(select)
        return predicted(ranked, self.proposed(ranked, positives, risk)[0], positives, risk, self.rule)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The evidence of one calibration. Candidates stand in the order in which they were tested.

    found: over the independent cases of val_calib, which the certificate counts; every: all of its
    cases, which coverage, FPR and accuracy are of; parameters: one dict per candidate.
    """

    found: Certified
    every: ExitCounts
    groups: int
    parameters: list[dict[str, float]]
    risk: Risk
    warnings: list[str]

    @property
    def walk(self) -> Walk:
        """The evidence for every candidate."""
        return self.found.walk

    @property
    def certified(self) -> bool:
        return self.walk.answer is not None

    def demand_certified(self) -> int:
        """Index of the certified candidate. Raises NothingCertified with the evidence and the remedies."""
        if self.walk.answer is None:
            names = [", ".join(f"{name} {value:.6g}" for name, value in row.items()) for row in self.parameters]
            raise NothingCertified(refusal(self.walk, self.risk.target_fnr, self.risk.confidence, names))
        return self.walk.answer

    @property
    def reached_end(self) -> bool:
        """Whether the last candidate is the certified one."""
        return self.walk.answer == len(self.parameters) - 1

    def chosen(self) -> dict[str, float]:
        """The certified thresholds by name. Raises NothingCertified."""
        return self.parameters[self.demand_certified()]

    def summary(self) -> dict[str, Any]:
        """The row of the certified candidate. Raises NothingCertified."""
        return self.row(self.demand_certified())

    def row(self, index: int) -> dict[str, Any]:
        """One candidate: coverage, FPR and accuracy over all calibration cases, the rest as certified."""
        counted, every = self.walk.calib, self.every
        return {
            **self.parameters[index],
            "coverage": float(every.coverage[index]),
            "right_exits": float(every.right_exits[index]),
            "exited_positives": int(counted.exited_positives[index]),
            "misses": int(counted.misses[index]),
            "fnr_on_exits": share(counted.fnr[index]),
            "fnr_upper_bound": self.walk.upper_bound(index),
            "fpr_on_exits": share(every.fpr[index]),
            "accuracy_on_exits": share(every.accuracy[index]),
            "p_value": float(self.walk.p_values[index]),
            "certified": bool(self.walk.certified[index]),
        }

    @property
    def rule_name(self) -> str:
        """`exit_rule` of the policy file."""
        return "one_sided" if self.found.method == "one_sided" else "symmetric"

    def record(self) -> dict[str, Any]:
        """The fields of the policy file that show why it may be trusted. Demands a certified candidate."""
        index = self.demand_certified()
        row = self.row(index)
        certified = {
            name: row[name] for name in ("exited_positives", "misses", "fnr_upper_bound", "fnr_on_exits", "coverage")
        }
        return {
            **certified,
            "exit_rule": self.rule_name,
            "exit_accuracy": row["accuracy_on_exits"],
            "guarantee": promise(self.risk, self.found.method, grouped=self.groups < self.every.cases),
            "sweep_results": [self.row(j) for j in range(len(self.parameters))],
            "val_calib_metrics": {
                **split_metrics(self.every, self.groups, self.walk.calib.positives, index),
                "fnr_upper_bound": row["fnr_upper_bound"],
                "p_value": row["p_value"],
            },
            "diagnostics": self.diagnostics(),
        }

    def diagnostics(self) -> dict[str, Any]:
        """How the certificate was found, and what a threshold without one would do."""
        return {
            "candidates": len(self.parameters),
            "start": {"index": self.walk.start, "coverage": float(self.every.coverage[self.walk.start])},
            **self.found.facts,
            "naive": self._naive(),
            "warnings": self.warnings,
        }

    def _naive(self) -> dict[str, Any]:
        """Largest coverage whose empirical FNR meets the target: near a coin toss, shown for comparison only."""
        met = np.flatnonzero(self.walk.calib.fnr <= self.risk.target_fnr)
        if not met.size:
            return {"certified": False, "note": "no candidate meets the target even empirically"}
        row = self.row(int(met[-1]))
        unused = ("p_value", "fpr_on_exits", "accuracy_on_exits")
        kept = {name: value for name, value in row.items() if name not in unused}
        return {
            **kept,
            "note": "largest coverage with empirical FNR at the target; breaks it in about half of all draws",
        }


def calibrate(
    select: Countable,
    calib: Countable,
    candidates: FloatArray,
    parameters: list[dict[str, float]],
    risk: Risk,
    rule: ExitRule,
    warnings: list[str],
) -> Calibration:
    """Certify one of the candidates, which stand in the order of growing val_select coverage."""
    (seen, chosen_on), (every, evidence) = (_every_and_independent(split, candidates) for split in (select, calib))
    found = rule.certify(chosen_on, evidence, seen.coverage, risk)
    return Calibration(found, every, calib.groups, parameters, risk, warnings)


def _every_and_independent(split: Countable, candidates: FloatArray) -> tuple[ExitCounts, ExitCounts]:
    every = split.counts(candidates)
    return every, every if split.independent.all() else split.counts(candidates, split.independent)


def ended(select: Countable, candidates: FloatArray, end: End | None) -> FloatArray:
    """Return the candidates (J, …) up to the one where the certification is to end, which val_select alone says."""
    if end is None or not len(candidates):
        return candidates
    return candidates[: end(select.counts(candidates)) + 1]


@dataclass(frozen=True, slots=True)
class Predicted:
    """What would be certified if val_calib were like val_select: all 0 where nothing would be."""

    coverage: float = 0.0
    right_exits: float = 0.0
    fpr: float = 0.0


def predicted(select: Countable, candidates: FloatArray, positives: int, risk: Risk, rule: ExitRule) -> Predicted:
    """Predict what a rule certifies. positives: how many val_calib counts, all that is used of it."""
    return predicted_of(*_every_and_independent(select, candidates), positives, risk, rule)


def predicted_of(counts: ExitCounts, evidence: ExitCounts, positives: int, risk: Risk, rule: ExitRule) -> Predicted:
    """Predict from counts (J,) on all cases of val_select and on its independent ones."""
    if not counts.exited.size:
        return Predicted()
    end, certified = rule.predict(evidence, positives, risk)
    if not certified:
        return Predicted(fpr=float(np.nan_to_num(counts.fpr[end])))
    return Predicted(float(counts.coverage[end]), float(counts.right_exits[end]), float(np.nan_to_num(counts.fpr[end])))


def split_metrics(counts: ExitCounts, groups: int, positive_groups: int, index: int) -> dict[str, Any]:
    """val_calib_metrics: what the chosen candidate does to all cases of val_calib."""
    return {
        "cases": counts.cases,
        "positives": counts.positives,
        "negatives": counts.cases - counts.positives,
        "groups": groups,
        "positive_groups": positive_groups,
        "exited": int(counts.exited[index]),
        "coverage": float(counts.coverage[index]),
        "right_exits": float(counts.right_exits[index]),
        "exited_positives": int(counts.exited_positives[index]),
        "misses": int(counts.misses[index]),
        "fnr_on_exits": share(counts.fnr[index]),
        "exited_negatives": int(counts.exited_negatives[index]),
        "false_alarms": int(counts.false_alarms[index]),
        "fpr_on_exits": share(counts.fpr[index]),
        "precision_on_exits": share(counts.precision[index]),
        "accuracy_on_exits": share(counts.accuracy[index]),
    }


def demand_binary(split: Scores) -> None:
    """Raise UserError for scores that no exit policy can be certified on."""
    classes = split.logits.shape[1]
    if classes != 2:
        raise UserError(
            f"exit policies are binary, and this run has {classes} classes: begin a new run with positive_class and "
            "dataset_params.rest: true."
        )
    if not split.positives:
        raise UserError(
            f"{split.split} holds no positives, so nothing can be certified. Begin a new run with other splits."
        )

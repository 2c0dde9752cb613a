"""From a walk over candidates to the record in a policy file, the same for every policy."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core.errors import NothingCertified, UserError, raise_problems
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.binomial import fnr_upper_bound, p_value
from stage1_pro.core.metrics.exits import ExitCounts, count_decisions, count_exits
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.certify import GUARANTEE, Walk, certify, refusal
from stage1_pro.core.run import Risk
from stage1_pro.core.scores import Scores

DEMANDED = (
    *("schema_version", "run_id", "created_at", "target_fnr_exit", "fnr_confidence", "guarantee", "exited_positives"),
    *("misses", "fnr_upper_bound", "calib_use_count", "model_digest", "splits_digest", "diagnostics"),
)

PARAMETERS = ("threshold", "lambda1", "lambda2")
"""What a candidate may be made of, as rows of the sweep name it."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One split as a policy ranks it. scores: (N,) float64; answers, labels: (N,); independent: (N,) bool,
    the cases that count as evidence; groups: number of groups."""

    scores: FloatArray
    answers: IntArray
    labels: IntArray
    independent: BoolArray
    groups: int

    @classmethod
    def of(cls, split: Scores, scores: FloatArray, answers: IntArray) -> "Ranked":
        ungrouped = bool((split.group == split.case_id).all())
        groups = len(split) if ungrouped else len(np.unique(split.group.astype(str)))
        independent = np.ones(len(split), dtype=bool) if ungrouped else one_case_per_group(split)
        return cls(scores, answers, split.labels, independent, groups)

    def counts(self, thresholds: FloatArray, kept: BoolArray | None = None) -> ExitCounts:
        """Exits at each threshold, of all cases or of those kept."""
        if kept is None or kept.all():
            return count_exits(self.scores, self.answers, self.labels, thresholds)
        return count_exits(self.scores[kept], self.answers[kept], self.labels[kept], thresholds)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The evidence of one calibration. Candidates stand in the order in which they were tested.

    walk: over the independent cases of val_calib, which the certificate counts; every: all of its
    cases, which coverage, FPR and accuracy are of; parameters: one dict per candidate.
    """

    walk: Walk
    every: ExitCounts
    groups: int
    parameters: list[dict[str, float]]
    risk: Risk
    warnings: list[str]

    def demand_certified(self) -> int:
        """Index of the certified candidate. Raises NothingCertified with the evidence and the remedies."""
        if self.walk.answer is None:
            names = [", ".join(f"{name} {value:.6g}" for name, value in row.items()) for row in self.parameters]
            raise NothingCertified(refusal(self.walk, self.risk.target_fnr, self.risk.confidence, names))
        return self.walk.answer

    def row(self, index: int) -> dict[str, Any]:
        """One candidate: coverage, FPR and accuracy over all calibration cases, the rest as certified."""
        counted, every = self.walk.calib, self.every
        return {
            **self.parameters[index],
            "coverage": float(every.coverage[index]),
            "exited_positives": int(counted.exited_positives[index]),
            "misses": int(counted.misses[index]),
            "fnr_on_exits": _share(counted.fnr[index]),
            "fnr_upper_bound": float(self.walk.upper_bounds[index]),
            "fpr_on_exits": _share(every.fpr[index]),
            "accuracy_on_exits": _share(every.accuracy[index]),
            "p_value": float(self.walk.p_values[index]),
            "certified": bool(self.walk.certified[index]),
        }

    def record(self) -> dict[str, Any]:
        """The fields of the policy file that show why it may be trusted. Demands a certified candidate."""
        index = self.demand_certified()
        row = self.row(index)
        certified = {
            name: row[name] for name in ("exited_positives", "misses", "fnr_upper_bound", "fnr_on_exits", "coverage")
        }
        return {
            **certified,
            "exit_accuracy": row["accuracy_on_exits"],
            "guarantee": self._guarantee(),
            "sweep_results": [self.row(j) for j in range(len(self.parameters))],
            "val_calib_metrics": self._metrics(index),
            "diagnostics": {
                "candidates": len(self.parameters),
                "start": {"index": self.walk.start, "coverage": float(self.every.coverage[self.walk.start])},
                "naive": self._naive(),
                "warnings": self.warnings,
            },
        }

    def _guarantee(self) -> dict[str, str]:
        words = GUARANTEE.format(confidence=self.risk.confidence, target=self.risk.target_fnr)
        if self.groups < self.every.cases:
            words += (
                " Cases of one group are not independent, so one positive drawn from each group was counted: the "
                "promise is about a case drawn at random from a new group."
            )
        return {
            "words": words,
            "method": "Learn-then-Test: split fixed-sequence testing with exact binomial p-values",
            "source": "Angelopoulos et al., arXiv 2110.01052",
        }

    def _metrics(self, index: int) -> dict[str, Any]:
        every = self.every
        return {
            "cases": every.cases,
            "positives": every.positives,
            "negatives": every.cases - every.positives,
            "groups": self.groups,
            "positive_groups": self.walk.calib.positives,
            "exited": int(every.exited[index]),
            "coverage": float(every.coverage[index]),
            "exited_positives": int(every.exited_positives[index]),
            "misses": int(every.misses[index]),
            "fnr_on_exits": _share(every.fnr[index]),
            "fnr_upper_bound": float(self.walk.upper_bounds[index]),
            "exited_negatives": int(every.exited_negatives[index]),
            "false_alarms": int(every.false_alarms[index]),
            "fpr_on_exits": _share(every.fpr[index]),
            "precision_on_exits": _share(every.precision[index]),
            "accuracy_on_exits": _share(every.accuracy[index]),
            "p_value": float(self.walk.p_values[index]),
        }

    def _naive(self) -> dict[str, Any]:
        """Largest coverage whose empirical FNR meets the target: near a coin toss, shown for comparison only."""
        met = np.flatnonzero(self.walk.calib.fnr <= self.risk.target_fnr)
        if not met.size:
            return {"certified": False, "note": "no candidate meets the target even empirically"}
        row = self.row(int(met[-1]))
        kept = {
            name: value for name, value in row.items() if name not in ("p_value", "fpr_on_exits", "accuracy_on_exits")
        }
        return {
            **kept,
            "note": "largest coverage with empirical FNR at the target; breaks it in about half of all draws",
        }


def calibrate_threshold(
    select: Ranked, calib: Ranked, thresholds: FloatArray, risk: Risk, warnings: list[str]
) -> Calibration:
    """Certify one threshold of a score. thresholds: (J,) candidates from val_select, high to low."""
    every = calib.counts(thresholds)
    evidence = every if calib.independent.all() else calib.counts(thresholds, calib.independent)
    # of val_select the walk reads its positives only
    walk = certify(select.counts(thresholds, select.labels == 1), evidence, risk.target_fnr, risk.delta)
    parameters = [{"threshold": float(threshold)} for threshold in thresholds]
    return Calibration(walk, every, calib.groups, parameters, risk, warnings)


def one_case_per_group(split: Scores) -> BoolArray:
    """(N,) the cases that count as independent evidence: of each group's positives one, all negatives.

    Frames of one track are not independent: counted as if they were, 22 % of certificates were false
    at a nominal 10 %. Which positive stands for its group is drawn by a hash of the ids, before any score
    is seen: the first frame of a track would not do, since it may be easier than the others.
    """
    independent = np.ones(len(split), dtype=bool)
    positives = np.flatnonzero(split.labels == 1)
    draws = [blake2b(str(case).encode(), digest_size=8).digest() for case in split.case_id[positives]]
    positives = positives[np.argsort(np.array(draws, dtype="S8"), kind="stable")]
    first = np.unique(split.group[positives].astype(str), return_index=True)[1]
    independent[positives] = False
    independent[positives[first]] = True
    return independent


def demand_consistent(policy: dict[str, Any], where: Path) -> None:
    """Raise UserError unless the file is complete and its counts really certify its target."""
    missing = [f"$.{name} is missing" for name in DEMANDED if name not in policy]
    raise_problems(
        f"{where}: incomplete, so nothing shows that it was certified:", missing, "Calibrate the run with our script."
    )
    misses, exited, delta = policy["misses"], policy["exited_positives"], 1 - policy["fnr_confidence"]
    if misses > exited or p_value(misses, exited, policy["target_fnr_exit"]) > delta:
        raise UserError(
            f"{where}: {misses} misses of {exited} exited positives do not certify target_fnr_exit "
            f"{policy['target_fnr_exit']:g} at confidence {policy['fnr_confidence']:g}: the file has been altered."
        )
    certified = [row for row in policy["sweep_results"] if row.get("certified")]
    chosen = certified[-1] if certified else {}
    stored = {"threshold": policy.get("exit_threshold", policy.get("gate_threshold")), **policy}
    parameters = {name: stored.get(name) for name in PARAMETERS if name in chosen}
    counts = {name: policy[name] for name in ("misses", "exited_positives", "fnr_upper_bound", "coverage")}
    bound = float(fnr_upper_bound(misses, exited, delta))
    differs = any(chosen.get(name) != value for name, value in {**parameters, **counts}.items())
    if differs or policy["fnr_upper_bound"] < bound - 1e-9:
        raise UserError(
            f"{where}: its threshold is not the last one that its sweep certified: the file has been altered."
        )


def demand_reproduced(policy: dict[str, Any], decisions: ExitDecisions, calib: Scores, where: Path) -> None:
    """Raise UserError unless the policy, applied to val_calib again, gives the counts that certified it."""
    kept = one_case_per_group(calib)
    counts = count_decisions(decisions.exits[kept], decisions.predictions[kept], calib.labels[kept])
    found = int(counts.misses[0]), int(counts.exited_positives[0])
    if found != (policy["misses"], policy["exited_positives"]):
        raise UserError(
            f"{where}: on val_calib it gives {found[0]} misses of {found[1]} exited positives, not the "
            f"{policy['misses']} of {policy['exited_positives']} that it records: file or scores have been altered."
        )


def demand_binary(split: Scores) -> None:
    """Raise UserError for scores that no exit policy can be certified on."""
    classes = split.logits.shape[1]
    if classes != 2:
        raise UserError(
            f"exit policies are binary, and this run has {classes} classes: name the positive class against the rest."
        )
    if not split.positives:
        raise UserError(
            f"{split.split} holds no positives, so nothing can be certified. Begin a new run with other splits."
        )


def _share(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""SCRC-T: a cut and a set size chosen so that the expected loss is bounded (after arXiv 2512.12844, corrected).

Calibration cases and one new case are exchangeable, so a rule that treats all n + 1 alike errs on the new case as
often as on the others. The new case is selected iff it is among the k highest of them, which needs no
recomputation: iff its gate exceeds the k-th largest of val_calib. Ranked is the calibrated gate and not the raw
logit: it is a function fixed on val_select, so the cases stay exchangeable, and lambda1 keeps one meaning. Within
a group cases are not exchangeable with a new one, so one random case stands for each.

Two errors of the paper's code are not repeated: it allows ceil((m + 1) alpha) - 1 losses where floor is right
(alpha .02, m 74: a loss of .0267 against .0133), and set loss is not FNR on exits, hence the share rho.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, share
from stage1_pro.core.metrics.binomial import fnr_upper_bound
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidate_pairs import RankedPairs
from stage1_pro.core.policies.certification import split_metrics

SINGLETONS = 0.9
"""Share of selected positives that must keep a single answer, also at the largest lambda2."""
ROWS = 50
TIED = (
    "cases of val_calib tie at SCRC-T's cut, so it cannot tell which of them are selected. Calibrate with --calibrator "
    "quantile or --scrc_variant SCRC-I, or train a gate whose scores do not saturate."
)
WORDS = (
    "In expectation over the draw of the calibration set, at most {level:.4g} of the selected positives among new "
    "cases exchangeable with it have a prediction set without the positive class. Divided by the share of selected "
    "positives with a single answer, which val_select shows to be at least {share:.4g} with probability "
    "{confidence:g}, this is "
    "approximately FNR on exits (the share answered negative among positives that exit) of at most {target:g}."
)


@dataclass(frozen=True, slots=True)
class Selection:
    """What val_select fixes. selected of cases: the selection level; lambda2_max: the largest lambda2 at which enough
    selected positives keep a single answer; singleton_share: lower confidence bound on their share there."""

    selected: int
    cases: int
    lambda2_max: float
    singleton_share: float

    @property
    def level(self) -> float:
        return self.selected / max(1, self.cases)


def selection_of(select: RankedPairs, lambda1: float, delta: float) -> Selection:
    """The selection that val_select makes at lambda1, where SCRC-I's walk would start."""
    chosen = select.gate >= lambda1
    confidence = np.sort(select.confidence[chosen & (select.labels == 1) & select.independent])[::-1]
    if not confidence.size:
        return Selection(int(chosen.sum()), chosen.size, 0.5, 0.0)
    highest = float(confidence[math.ceil(SINGLETONS * confidence.size) - 1])
    lost = int(np.count_nonzero(confidence < highest))
    bound = 1 - float(fnr_upper_bound(lost, confidence.size, delta))  # Clopper-Pearson, one-sided
    return Selection(int(chosen.sum()), chosen.size, highest, bound)


def cut(gate: FloatArray, selection: Selection) -> float:
    """lambda1: the next float above the k-th largest of val_calib's gate (n,), k = ceil(level (n + 1)).

    Cases that are not finite rank last. NaN where the k-th largest ties with a neighbour.
    """
    rank = -(-selection.selected * (gate.size + 1) // selection.cases)
    ordered = np.sort(np.where(np.isfinite(gate), gate, -np.inf))[::-1]
    if rank > gate.size or ordered[rank - 1] == -np.inf:
        return 0.0  # every finite case is selected
    value = ordered[rank - 1]
    if np.count_nonzero(ordered[max(0, rank - 2) : rank + 1] == value) > 1:
        return math.nan
    return float(np.nextafter(value, np.inf))


def allowed_losses(selected: int, level: float) -> int:
    """How many of m selected positives may lose the positive class: floor((m + 1) level) - 1, perhaps -1."""
    return math.floor((selected + 1) * level) - 1


def least_lambda2(missed: FloatArray, allowed: int) -> float:
    """Smallest lambda2 >= ½ at which at most `allowed` losses remain. missed: (K,) confidence of the missed."""
    if missed.size <= allowed:
        return 0.5
    return max(0.5, float(np.nextafter(np.sort(missed)[::-1][allowed], np.inf)))


@dataclass(frozen=True, slots=True, eq=False)
class Transductive:
    """The evidence of one SCRC-T calibration; lambda2 is None where no set size keeps the loss.

    calib: val_calib as ranked; counted: (N,) bool, its exchangeable cases; selected: positives above the cut.
    """

    calib: RankedPairs
    counted: BoolArray
    selection: Selection
    lambda1: float
    lambda2: float | None
    selected: int
    losses: int
    """Selected positives that would be lost at lambda2_max."""
    risk: Risk
    warnings: list[str]

    @property
    def level(self) -> float:
        """The target for set loss: FNR on exits times the share of single answers."""
        return self.risk.target_fnr * self.selection.singleton_share

    @property
    def certified(self) -> bool:
        return self.lambda2 is not None

    def record(self) -> dict[str, Any]:
        """The fields of the policy file that show why it may be trusted.

        Raises UserError where cases tie at the cut, NothingCertified where no lambda2 keeps the loss.
        """
        if math.isnan(self.lambda1):
            raise UserError(TIED)
        if self.lambda2 is None:
            raise NothingCertified(self._refusal())
        pairs = self._pairs(self.lambda2)
        every, counted = self.calib.counts(pairs), self.calib.counts(pairs, self.counted)
        rows = [self._row(pairs[j], every, counted, j) for j in range(len(pairs))]
        chosen = rows[-1]
        return {
            "lambda1": self.lambda1,
            "lambda2": self.lambda2,
            **{name: chosen[name] for name in ("exited_positives", "misses", "fnr_on_exits", "coverage")},
            "fnr_upper_bound": self.risk.target_fnr,
            "exit_accuracy": chosen["accuracy_on_exits"],
            "guarantee": promise_in_expectation(
                self.risk, self.level, self.selection.singleton_share, grouped=not self.counted.all()
            ),
            "sweep_results": rows,
            "val_calib_metrics": split_metrics(every, self.calib.groups, counted.positives, len(pairs) - 1),
            "diagnostics": {"candidates": len(pairs), "warnings": self.warnings},
            "transductive": {
                "selected_of_select": self.selection.selected,
                "cases_of_select": self.selection.cases,
                "positives_selected": self.selected,
                "alpha_prime": self.level,
                "allowed_losses": allowed_losses(self.selected, self.level),
                "lambda2_max": self.selection.lambda2_max,
                "singleton_share_lower_bound": self.selection.singleton_share,
            },
        }

    def _pairs(self, lambda2: float) -> FloatArray:
        """(J, 2) from the largest lambda2 down to the chosen one: what the choice was made along."""
        levels = np.unique(np.linspace(lambda2, max(lambda2, self.selection.lambda2_max), ROWS))[::-1]
        return np.column_stack([np.full(levels.size, self.lambda1), levels])

    def _row(self, pair: FloatArray, every: ExitCounts, counted: ExitCounts, index: int) -> dict[str, Any]:
        return {
            "lambda1": float(pair[0]),
            "lambda2": float(pair[1]),
            "coverage": float(every.coverage[index]),
            "exited_positives": int(counted.exited_positives[index]),
            "misses": int(counted.misses[index]),
            "fnr_on_exits": share(counted.fnr[index]),
            "fpr_on_exits": share(every.fpr[index]),
            "accuracy_on_exits": share(every.accuracy[index]),
            "certified": True,  # all down to the smallest lambda2 meet the rule
        }

    def _refusal(self) -> str:
        allowed, level = allowed_losses(self.selected, self.level), self.level
        head = (
            f"nothing certified: SCRC-T finds no prediction sets with an expected loss of at most {level:.4g} "
            f"({self.risk.target_fnr:g} times the share {self.selection.singleton_share:.4g} of single answers)."
        )
        if not level:
            missing = "  No positive of val_select is selected, so nothing is known about single answers."
        elif allowed < 0:
            needed = math.ceil(1 / level - 1e-9) - 1
            missing = f"  {self.selected} positives of val_calib are selected, and at least {needed} are needed."
        else:
            missing = (
                f"  Of {self.selected} selected positives of val_calib {allowed} may be lost, and {self.losses} are "
                f"answered negative even at the largest lambda2, {self.selection.lambda2_max:.6g}."
            )
        remedies = (
            f"  Remedies: more calibration positives; {self.risk.remedies(confidence=False)}--scrc_variant SCRC-I, "
            "whose promise holds with the stated confidence; a better model."
        )
        return "\n".join([head, missing, remedies])


def promise_in_expectation(
    risk: Risk, level: float, singleton_share: float, *, grouped: bool, looks: int = 1
) -> dict[str, str]:
    """Return the `guarantee` of an SCRC-T file.

    level: alpha'; grouped: whether one case of each group counts; looks: at the same positives, this one included.
    """
    words = WORDS.format(level=level, share=singleton_share, confidence=risk.confidence, target=risk.target_fnr)
    if grouped:
        words += (
            " Cases of one group are not exchangeable with a new case, so one case drawn from each group was "
            "counted: the promise is about a case drawn at random from a new group."
        )
    if looks > 1:
        words += (
            f" This calibration set was looked at {looks} times. The expectation is that of a single look; no number "
            "covers a choice among several."
        )
    return {
        "words": words,
        "method": "SCRC-T: transductive selection, conformal risk control with floor((m + 1) alpha') - 1 losses",
        "source": "arXiv 2512.12844, corrected",
        "label": "Set loss: exact, in expectation. FNR on exits: approximate",
    }


def calibrate_transductive(
    calib: RankedPairs, counted: BoolArray, selection: Selection, risk: Risk, warnings: list[str]
) -> Transductive:
    """Choose lambda1 and lambda2 on val_calib. counted: (N,) bool, one random case of each group."""
    if not selection.selected:
        return Transductive(calib, counted, selection, 1.0, None, 0, 0, risk, warnings)
    lambda1 = cut(calib.gate[counted], selection)
    selected = counted & (calib.gate >= lambda1) & (calib.labels == 1)
    missed = calib.confidence[selected & (calib.answers == 0)]
    size, most = int(selected.sum()), selection.lambda2_max
    allowed = allowed_losses(size, risk.target_fnr * selection.singleton_share)
    lambda2 = least_lambda2(missed, allowed) if allowed >= 0 else math.inf
    losses = int(np.count_nonzero(missed >= most))
    found = lambda2 if lambda2 <= most else None
    return Transductive(calib, counted, selection, lambda1, found, size, losses, risk, warnings)

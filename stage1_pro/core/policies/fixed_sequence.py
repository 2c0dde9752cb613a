"""Split fixed-sequence testing: one function that certifies every kind of exit policy.

FNR on exits is a ratio and not monotone in a threshold, so conformal risk control does not apply.
Learn-then-Test does (arXiv 2110.01052): for a candidate fixed before the labels of val_calib are
looked at, misses given exited positives are Binomial(m, FNR on exits) exactly. Testing candidates
one after the other in a fixed order, and stopping at the first failure, keeps the error of the whole
walk at delta without a correction.
"""

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.errors import counted
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray
from stage1_pro.core.metrics.binomial import bound_text, fnr_upper_bound, minimum_positives, p_value
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk

GUARANTEE = (
    "With probability at least {confidence:g} over the draw of the calibration set, FNR on exits (the share answered "
    "negative among positives that exit) is at most {target:g} on new cases exchangeable with it."
)
NO_CONFIDENCE = (
    "No confidence remains that FNR on exits (the share answered negative among positives that exit) is at most "
    "{target:g}."
)
ALL_DRAWS = (
    " That probability is over all draws, refused ones included: where most attempts fail, a larger share of the "
    "issued certificates may be false."
)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What certification returns: the evidence for every candidate, and which ones it certified.

    p_values: (J,) on val_calib; certified: (J,) bool; start: where the walk began; delta: of a single test.
    """

    calib: ExitCounts
    start: int
    p_values: FloatArray
    certified: BoolArray
    delta: float

    @property
    def answer(self) -> int | None:
        """Index of the last certified candidate; None where nothing was certified."""
        return int(np.flatnonzero(self.certified)[-1]) if self.certified.any() else None

    @property
    def upper_bounds(self) -> FloatArray:
        """(J,) exact upper bounds on FNR on exits, each for its candidate alone; inverted where they are asked for."""
        return fnr_upper_bound(self.calib.misses, self.calib.exited_positives, self.delta)

    def upper_bound(self, index: int) -> float:
        """The upper bound of one candidate."""
        return float(fnr_upper_bound(self.calib.misses[index], self.calib.exited_positives[index], self.delta))


def certify(select: ExitCounts, calib: ExitCounts, target_fnr: float, delta: float) -> Walk:
    """Certify "FNR on exits <= target_fnr" at error `delta` for as much coverage as the evidence carries.

    select, calib: counts of the same J candidates on val_select and val_calib. The candidates must
    stand in the order of growing val_select coverage and be fixed before val_calib was read; of
    val_calib only its number of positives enters the start of the walk.
    """
    if not select.exited.size:
        return Walk(calib, 0, np.zeros(0), np.zeros(0, dtype=bool), delta)
    start = power_aware_start(select, calib.positives, target_fnr)
    p = p_value(calib.misses, calib.exited_positives, target_fnr)
    passed = p[start:] <= delta
    certified = np.zeros(p.shape, dtype=bool)
    certified[start:] = np.logical_and.accumulate(passed)
    return Walk(calib, start, p, certified, delta)


def power_aware_start(select: ExitCounts, calib_positives: int, target_fnr: float) -> int:
    """The candidate most likely to pass, judged by val_select alone.

    The strictest candidate would be a bad start: below the minimum number of exited positives nothing
    can pass, and the walk would end where it began.
    """
    return int(np.argmin(predicted_p(select, calib_positives, target_fnr)))


def predicted_p(select: ExitCounts, calib_positives: int, target_fnr: float) -> FloatArray:
    """(J,) p-values that val_calib would give if its rates were those of val_select."""
    scale = calib_positives / max(1, select.positives)
    exited = np.maximum(1, np.round(scale * select.exited_positives)).astype(np.int64)
    misses = np.minimum(exited, np.round(scale * select.misses).astype(np.int64))
    return p_value(misses, exited, target_fnr)


def predicted_end(select: ExitCounts, calib_positives: int, target_fnr: float, delta: float) -> tuple[int, bool]:
    """Where the walk would end if val_calib's rates were those of val_select, and whether that would be certified.

    Where nothing would be, the end is the start. Of val_calib only its number of positives is used.
    """
    p = predicted_p(select, calib_positives, target_fnr)
    start = int(np.argmin(p))
    passed = int(np.logical_and.accumulate(p[start:] <= delta).sum())
    return start + max(0, passed - 1), passed > 0


def refusal(walk: Walk, target_fnr: float, confidence: float, names: list[str]) -> str:
    """Say why nothing was certified and what would help. names: (J,) words for the candidates."""
    delta, at_hand = 1 - confidence, walk.calib.positives
    head = f"nothing certified: no candidate shows FNR on exits <= {target_fnr:g} at confidence {confidence:g}."
    if not names:
        return f"{head} No case of val_select has a finite score."
    shown = _telling_candidate(walk, target_fnr)
    misses, exited = int(walk.calib.misses[shown]), int(walk.calib.exited_positives[shown])
    hopeless = bool(exited) and misses / exited >= target_fnr  # at any confidence from 0.5 on, with however many
    more = "" if hopeless else "more calibration positives; "
    lines = [
        head,
        f"  val_calib holds {counted(at_hand, 'independent positive')}; the best candidate tested ({names[shown]}) "
        f"lets {exited} of them exit with {misses} missed: FNR on exits <= {bound_text(walk.upper_bound(shown))}.",
        _needed(misses, exited, at_hand, target_fnr, delta),
        f"  Remedies: {more}{Risk(target_fnr, confidence).remedies(confidence=not hopeless)}a better model.",
    ]
    return "\n".join(lines)


def _telling_candidate(walk: Walk, target_fnr: float) -> int:
    """The candidate whose evidence a refusal shows: the lowest bound, as long as it is above the target.

    Where a candidate that the walk never reached is below, it is luck and not evidence: then the
    first one tested, where the walk ended.
    """
    bounds = walk.upper_bounds
    best = int(np.argmin(bounds))
    return best if bounds[best] > target_fnr else walk.start


def _needed(misses: int, exited: int, at_hand: int, target_fnr: float, delta: float) -> str:
    if not exited:
        return f"  At least {minimum_positives(target_fnr, delta)} positives must exit, even without one miss."
    if misses / exited >= target_fnr:
        return f"  More positives would not help: the observed rate {misses / exited:.4f} is not below the target."
    needed = _exited_needed(misses / exited, target_fnr, delta)
    more = max(1, int(np.ceil(needed * at_hand / exited)) - at_hand)
    return f"  At the observed rate {misses / exited:.4f} about {more} more calibration positives are needed."


def _exited_needed(rate: float, target_fnr: float, delta: float) -> int:
    """Fewest exited positives that pass when misses grow at `rate`."""
    sizes = np.unique(np.geomspace(1, 1e8, 4000).astype(np.int64))
    passed = p_value(np.floor(sizes * rate).astype(np.int64), sizes, target_fnr) <= delta
    return int(sizes[np.argmax(passed)]) if passed.any() else int(sizes[-1])

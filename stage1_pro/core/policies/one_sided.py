"""One test at the full delta for exit sets along which FNR on exits can only grow: one-sided exits.

Every answer 1 exits, an answer 0 exits where its score reaches the threshold. So along the candidates the exited
positives are those answered 1, always the same ones, plus the misses, which only become more. FNR on exits grows with
coverage, and so does the p-value P(Bin(hits + misses, target) <= misses). A false certificate therefore needs the first
candidate whose FNR is above the target to pass its own exact test, which has probability at most delta: no start, no
order, and no correction for the number of candidates.
"""

import numpy as np

from stage1_pro.core.metrics.binomial import p_value
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.policies.fixed_sequence import Walk


def certify_one_sided(calib: ExitCounts, target_fnr: float, delta: float) -> Walk:
    """Certify "FNR on exits <= target_fnr" at error `delta`: the last candidate with p <= delta is the answer.

    calib: counts (J,) on the independent positives of val_calib, candidates in the order of growing coverage and fixed
    before val_calib was read, as is where the answers stand. Certified are the answer and all stricter candidates.
    With probability >= 1 - delta over the draw of val_calib all of them keep the target, if its positives are
    exchangeable with those met later. Raises AssertionError for exit sets that are not one-sided.
    """
    hits = calib.exited_positives - calib.misses
    assert (hits == hits[:1]).all(), "the positives answered 1 that exit differ between candidates"
    assert (np.diff(calib.misses) >= 0).all(), "candidates do not stand in the order of growing coverage"
    p = p_value(calib.misses, calib.exited_positives, target_fnr)
    return Walk(calib, 0, p, _until_last(p <= delta), delta)


def _until_last(passed: np.ndarray) -> np.ndarray:
    """Return (J,) bool: True up to the last True. In exact arithmetic p grows and this changes nothing."""
    return np.logical_or.accumulate(passed[::-1])[::-1]

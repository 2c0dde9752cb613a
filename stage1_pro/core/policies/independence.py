"""Which cases of a split count as independent evidence, where cases come in groups."""

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, IntArray
from stage1_pro.core.metrics.hashing import hash64
from stage1_pro.core.records.scores import Scores


def independence(split: Scores) -> tuple[BoolArray, int]:
    """(N,) the cases that count as independent evidence, and the number of groups."""
    if (split.group == split.case_id).all():
        return np.ones(len(split), dtype=bool), len(split)
    return one_case_per_group(split), len(set(split.group.tolist()))


def counted_positives(split: Scores) -> int:
    """How many positives of a split count as independent evidence: all that may be known of val_calib in advance."""
    return int(np.count_nonzero(independence(split)[0] & (split.labels == 1)))


def one_case_per_group(split: Scores) -> BoolArray:
    """(N,) the cases that count as independent evidence: of each group's positives one, all negatives.

    Frames of one track are not independent: counted as if they were, 22 % of certificates were false
    at a nominal 10 %. Which positive stands for its group is drawn by a hash of the ids, before any score
    is seen: the first frame of a track would not do, since it may be easier than the others.
    """
    independent = np.ones(len(split), dtype=bool)
    positives = np.flatnonzero(split.labels == 1)
    independent[positives] = False
    independent[_representatives(split, positives)] = True
    return independent


def any_case_per_group(split: Scores) -> BoolArray:
    """(N,) one case drawn from each group, whatever its label: then all cases of a split are exchangeable."""
    if (split.group == split.case_id).all():
        return np.ones(len(split), dtype=bool)
    drawn = np.zeros(len(split), dtype=bool)
    drawn[_representatives(split, np.arange(len(split)))] = True
    return drawn


def _representatives(split: Scores, members: IntArray) -> IntArray:
    """Of these positions (K,) the one of each group whose id hashes lowest."""
    members = members[np.argsort(hash64(split.case_id[members]), kind="stable")]
    lowest_last = members[::-1]  # of each group the last one is kept
    unit = split.group[lowest_last].tolist()
    if split.certificate_group is not None:  # each of them is certified by itself, also where a patient visits two
        unit = zip(split.certificate_group[lowest_last].tolist(), unit, strict=True)
    return np.array(list(dict(zip(unit, lowest_last, strict=True)).values()), np.int64)

"""Which positives a look at val_calib has seen, as hashes, so that looks at overlapping splits know each other.

The digest of a whole split is another one after a ratio of .331 instead of .33, fifty images less or a prefix in the
ids, although nearly all positives are the same ones. Only independent positives spend confidence, so only they count.
"""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stage1_pro.core import artifacts
from stage1_pro.core.records.scores import Scores, hashes

HashArray = npt.NDArray[np.uint64]
SHARED = 0.1
"""Share of the smaller set above which two looks are looks at the same positives."""
NO_GROUP = 0


def positives_of(scores: Scores) -> HashArray | None:
    """Return (K, 2) uint64 of the K independent positives: hash of the image content, hash of the group id.

    A group is one positive. Its content is the least hash of its positives, which neither a prefix in the ids nor
    another draw of its representative changes; a case without a group has the group NO_GROUP. None for scores without
    contents, which older versions wrote.
    """
    if scores.content is None:
        return None
    positive = scores.labels == 1
    names, index = np.unique(scores.group[positive].astype(str), return_inverse=True)
    contents = np.full(len(names), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(contents, index, scores.content[positive])
    alone = np.ones(len(names), dtype=bool)
    np.logical_and.at(alone, index, scores.group[positive] == scores.case_id[positive])
    return np.column_stack([contents, np.where(alone, np.uint64(NO_GROUP), hashes(names))]).astype(np.uint64)


def overlap(one: HashArray, other: HashArray) -> bool:
    """Return whether two sets (K, 2) share more than a tenth of the smaller one, by content or by group."""
    few, many = sorted((one, other), key=len)
    same_group = (few[:, 1] != NO_GROUP) & np.isin(few[:, 1], many[:, 1])
    return bool(np.count_nonzero(np.isin(few[:, 0], many[:, 0]) | same_group) > SHARED * len(few))


def write_positives(path: Path, positives: HashArray) -> None:
    """Write (K, 2) as a .npy file, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, positives, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_bytes(path, buffer.getvalue())


def read_positives(path: Path) -> HashArray | None:
    """Read such a file; None where it is missing or damaged."""
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and found.shape[1] == 2 and found.dtype == np.uint64 else None

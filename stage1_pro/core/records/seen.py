"""seen.json: which images a run has trained, chosen or certified with, as hashes, so that a later calibration of its
bundle can leave them out.

The hashes do not hide membership: whoever has an image can tell whether it was among them.
"""

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.records.splits import Splits

if TYPE_CHECKING:  # a bundle is verified without it
    import pandas as pd

SEEN = "seen.json"
SEEING = ("train", "val_select", "val_calib")
"""The splits whose cases shaped the model, its policy or its certificate."""


def seen_record(frame: "pd.DataFrame", splits: Splits, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of seen.json.

    frame: the case table that the splits index; before: the record of the bundle that these splits calibrate anew,
    whose hashes stay.
    """
    indices = [index for split in SEEING for index in splits.indices(split)]
    salt = before["salt"] if before else splits.digest[:16]
    known = before["hashes"] if before else []
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "salt": salt,
        "hashes": sorted({*known, *(_hash(salt, content) for content in frame["content"].iloc[indices])}),
    }


def seen_among(frame: "pd.DataFrame", record: dict[str, Any]) -> np.ndarray:
    """Return (N,) bool: the cases whose image content is in the record."""
    known, salt = set(record["hashes"]), record["salt"]
    return np.array([_hash(salt, content) in known for content in frame["content"]], dtype=bool)


def read_seen(folder: Path) -> dict[str, Any] | None:
    """The record in a run or bundle; None where it has none."""
    path = folder / SEEN
    return artifacts.read_json(path, "seen") if path.exists() else None


def _hash(salt: str, content: str) -> str:
    return blake2b(content.encode(), digest_size=8, salt=salt.encode()).hexdigest()

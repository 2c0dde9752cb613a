"""The ledger of certification attempts: every look at a val_calib split, over all runs.

Repeated looks at one split spend its confidence again, so an attempt is written down before its
outcome is used, also one that certified nothing.
"""

import csv
import fcntl
import io
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

NUMBERS = ("target_fnr_exit", "fnr_confidence")
NOTHING_CERTIFIED = "nothing certified"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of runs/calibrations.csv."""

    time: str
    val_calib_digest: str
    run: str
    policy: str
    target_fnr_exit: float
    fnr_confidence: float
    outcome: str


def read(path: Path) -> list[Entry]:
    """Every whole row, in order; none where there is no ledger yet."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        entries = [_entry(row) for row in csv.DictReader(file)]
    return [entry for entry in entries if entry is not None]


def append(path: Path, entry: Entry) -> int:
    """Append one row, whole or not at all; returns the number of rows with its val_calib digest."""
    with open(path, "a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two calibrations may end at the same moment
        file.seek(0)
        written = file.read()
        earlier = list(csv.DictReader(io.StringIO(written, newline="")))
        row = io.StringIO(newline="")
        if written and not written.endswith("\n"):
            row.write("\n")  # an earlier writer was cut off: its fragment must not swallow this row
        writer = csv.writer(row, lineterminator="\n")
        if not written:
            writer.writerow([field.name for field in fields(Entry)])
        writer.writerow(astuple(entry))
        file.write(row.getvalue())
        file.flush()
        os.fsync(file.fileno())
    return 1 + sum(other.get("val_calib_digest") == entry.val_calib_digest for other in earlier)


def _entry(row: dict[str, str]) -> Entry | None:
    """One row, or None for the fragment of a writer that was cut off."""
    try:
        return Entry(**{**row, **{name: float(row[name]) for name in NUMBERS}})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return None

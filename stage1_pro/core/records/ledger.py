"""The ledger of certification attempts: every look at a val_calib split, over all runs.

Reusing a split weakens its guarantee, so an attempt is written down before its
outcome is used, also one that certified nothing.
"""

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stage1_pro.core import artifacts

NUMBERS = ("target_fnr_exit", "fnr_confidence")
NOTHING_CERTIFIED = "nothing certified"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of runs/calibrations.csv. run_path: relative to the ledger's folder, since runs in different folders
    may have one name; model_digest: a later run in the same place has other weights. Both are empty in rows of
    before they were recorded."""

    time: str
    val_calib_digest: str
    run: str
    policy: str
    target_fnr_exit: float
    fnr_confidence: float
    outcome: str
    run_path: str = ""
    model_digest: str = ""


COLUMNS = [field.name for field in fields(Entry)]


def read(path: Path) -> list[Entry]:
    """Every whole row, in order; none where there is no ledger yet."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        entries = [_entry(row) for row in csv.DictReader(file)]
    return [entry for entry in entries if entry is not None]


def append(path: Path, entry: Entry) -> int:
    """Append one row, whole or not at all; returns the number of rows with its val_calib digest.

    A ledger that lacks a column is written anew with it, so that it stays one table.
    """
    path = path.resolve()  # a link stays a link
    with _locked(path):
        written = artifacts.read_bytes(path).decode() if path.exists() else ""
        table = csv.DictReader(io.StringIO(written, newline=""))
        earlier, found = list(table), list(table.fieldnames or [])
        if lacking := [name for name in COLUMNS if name not in found]:
            columns = found + lacking
            artifacts.write_bytes(path, (",".join(columns) + "\n" + _text([*earlier, asdict(entry)], columns)).encode())
        else:
            # an earlier writer may have been cut off: its fragment must not swallow this row
            _add(path, ("" if written.endswith("\n") else "\n") + _text([asdict(entry)], found))
    return 1 + sum(other.get("val_calib_digest") == entry.val_calib_digest for other in earlier)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The ledger for this process alone: two calibrations may end at the same moment.

    The lock is a file of its own: Windows neither reads nor replaces a file that another process has locked.
    """
    from filelock import FileLock  # deferred: who only reads the ledger takes no lock

    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


def _add(path: Path, text: str) -> None:
    with open(path, "a", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _text(rows: list[dict], columns: list[str]) -> str:
    """Lines of CSV; a column that a row does not know is empty."""
    return artifacts.csv_text([{name: row.get(name) for name in columns} for row in rows], columns, header=False)


def _entry(row: dict[str, str]) -> Entry | None:
    """One row, or None for the fragment of a writer that was cut off."""
    try:
        return Entry(**{**row, **{name: float(row[name]) for name in NUMBERS}})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return None

"""The ledger of certification attempts: every look at a val_calib split, over all runs.

Repeated looks at the same positives spend confidence again, so a look is written down before its outcome is used, also
one that certified nothing or crashed.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts

NUMBERS = ("target_fnr_exit", "fnr_confidence")
BEGUN = "begun"
"""Outcome of a calibration that was cut off; it counts."""
CERTIFIED = "certified"
NOTHING_CERTIFIED = "nothing certified"
USELESS = "useless"
"""Certified, and refused for being worth nothing."""
NOT_READ = "val_calib not read"
"""Ended before val_calib was read; it does not count."""
MEASURED = "measured"
"""A certified bundle measured on labelled cases; it counts for a later certificate on them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of runs/calibrations.csv.

    run_path: relative to the ledger's folder, since runs in different folders may have one name; model_digest: a later
    run in the same place has other weights; look: names looks/<look>.npy, the positives that were seen; test: digest of
    all that determines the outcome; repeated: how often the same test was made again, which spends nothing. These are
    empty in older rows.
    """

    time: str
    val_calib_digest: str
    run: str
    policy: str
    target_fnr_exit: float
    fnr_confidence: float
    outcome: str
    run_path: str = ""
    model_digest: str = ""
    look: str = ""
    test: str = ""
    repeated: int = 0


COLUMNS = [field.name for field in fields(Entry)]
Row = dict[str, Any]


def read(path: Path) -> list[Entry]:
    """Every whole row, in order; none where there is no ledger yet."""
    return [entry for row in rows_of(path) if (entry := entry_of(row)) is not None]


def append(path: Path, entry: Entry) -> list[Row]:
    """Append one row, whole or not at all; returns the rows before it, the fragments of crashed writers too.

    A ledger that lacks a column is written anew with it, so that it stays one table.
    """
    path = path.resolve()  # a link stays a link
    with _locked(path):
        written = artifacts.read_bytes(path).decode() if path.exists() else ""
        table = csv.DictReader(io.StringIO(written, newline=""))
        earlier, found = list(table), list(table.fieldnames or [])
        if lacking := [name for name in COLUMNS if name not in found]:
            _rewrite(path, [*earlier, asdict(entry)], found + lacking)
        else:
            # an earlier writer may have been cut off: its fragment must not swallow this row
            _add(path, ("" if written.endswith("\n") else "\n") + _text([asdict(entry)], found))
    return earlier


def change(path: Path, look: str, changed: Callable[[Entry], Row]) -> None:
    """Change the row of a look. changed: from its entry to the fields that become others."""
    path = path.resolve()
    with _locked(path):
        rows = rows_of(path)
        for row in rows:
            if row.get("look") == look and (entry := entry_of(row)):
                row.update(changed(entry))
                _rewrite(path, rows, [*dict.fromkeys([*filter(None, rows[0]), *COLUMNS])])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The ledger for this process alone: two calibrations may end at the same moment.

    The lock is a file of its own: Windows neither reads nor replaces a file that another process has locked.
    """
    from filelock import FileLock  # deferred: who only reads the ledger takes no lock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


def rows_of(path: Path) -> list[Row]:
    """Every row as it stands, the fragments of crashed writers too."""
    if not path.exists():
        return []
    return list(csv.DictReader(io.StringIO(artifacts.read_bytes(path).decode(), newline="")))


def _rewrite(path: Path, rows: list[Row], columns: list[str]) -> None:
    artifacts.write_bytes(path, (",".join(columns) + "\n" + _text(rows, columns)).encode())


def _add(path: Path, text: str) -> None:
    with open(path, "a", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _text(rows: list[Row], columns: list[str]) -> str:
    """Lines of CSV; a column that a row does not know is empty."""
    return artifacts.csv_text([{name: row.get(name) for name in columns} for row in rows], columns, header=False)


def entry_of(row: Row) -> Entry | None:
    """One row, or None for the fragment of a writer that was cut off. Columns of a later version are left alone."""
    known = {name: row[name] for name in COLUMNS if row.get(name) is not None}
    try:
        numbers = {name: float(row[name]) for name in NUMBERS}
        return Entry(**{**known, **numbers, "repeated": int(row.get("repeated") or 0)})
    except (KeyError, TypeError, ValueError):
        return None

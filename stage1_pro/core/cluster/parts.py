"""OUTDIR: part-000000.parquet and, once that is whole, done-000000.json; job.json says of what they speak.

Stores of objects cannot rename, so a part counts when its marker is there. Parts are as many rows of INPUT each, so
whoever decides one, and whenever, writes the same bytes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.cluster.folder import Folder
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.jobs import demand_same
from stage1_pro.core.inference.tables import Tally

JOB, LOCK = "job.json", ".lock"
AGAIN = "Remove the folder and run again."


def part_name(part: int) -> str:
    return f"part-{part:06d}.parquet"


def marker_name(part: int) -> str:
    return f"done-{part:06d}.json"


def mark(rows: pd.DataFrame, content: bytes) -> bytes:
    """The marker of a part: its size and digest, and the counts that the closing lines add up."""
    tally = Tally()
    list(tally.counting([rows]))
    return artifacts.json_bytes(
        {
            "schema_version": artifacts.SCHEMA_VERSION,
            "rows": tally.images,
            "exits": dict(tally.exits),
            "unreadable": tally.unreadable,
            "audited": tally.audited,
            **({"uncovered": dict(tally.uncovered)} if tally.uncovered else {}),
            "bytes": len(content),
            "sha256": artifacts.digest_bytes(content),
        },
        "part",
        marker_name(0),
    )


def counted_parts(out: Folder, parts: Iterable[int], tally: Tally) -> None:
    """Add up the counts of these parts. Raises UserError for a marker that is not whole."""
    found = [marker_name(part) for part in parts]
    for name, content in zip(found, out.read_all(found), strict=True):
        marker = parsed(content, "part", out.place(name), "Remove this file and run again.")
        tally.images += marker["rows"]
        tally.exits += Counter(marker["exits"])
        tally.unreadable += marker["unreadable"]
        tally.audited += marker["audited"]
        tally.uncovered += Counter(marker.get("uncovered", {}))


def whole_parts(out: Folder, count: int) -> set[int]:
    """The parts that are there with their markers, of so many; a part that lost its file is decided again."""
    sizes = out.sizes()
    return {part for part in range(count) if part_name(part) in sizes and marker_name(part) in sizes}


def opened_job(out: Folder, record: dict[str, Any]) -> dict[str, Any]:
    """The record that the job in this folder began with: this one where it is new.

    Raises UserError where the folder holds another job.
    """
    if JOB in out.sizes():
        known = parsed(out.read(JOB), "job", out.place(JOB), AGAIN)
        demand_same(known, record, out.name, "Finish it with its own command, or name another OUTDIR.")
        return known
    out.write(JOB, artifacts.json_bytes(record, "job", out.place(JOB)))
    return record


def demand_no_strays(out: Folder) -> None:
    """Raise UserError where the folder holds files of others: not even the lock is written there, since a bundle with
    one file more is no bundle."""
    names = out.sizes()
    if JOB not in names and (strays := sorted(name for name in names if not name.startswith("."))):
        raise UserError(f"{out.name} holds {strays[0]} and no {JOB}. Name another OUTDIR.")


@contextmanager
def alone(out: Folder) -> Iterator[None]:
    """Within the block no other process of this machine works on the folder; a store has no such lock, and needs none
    for what two processes would write alike. Raises UserError where one does."""
    if out.local is None:
        yield
        return
    from filelock import FileLock, Timeout

    try:
        with FileLock(out.local / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(f"{out.name}: another process is at work on it. Wait for it, or name another OUTDIR.") from None


def remove_leftovers(out: Folder) -> None:
    """Remove the temporary files of actors that were killed as they wrote."""
    for name in out.local.glob(".part-*") if out.local else ():
        name.unlink(missing_ok=True)
    for name in out.local.glob(".done-*") if out.local else ():
        name.unlink(missing_ok=True)


def parsed(content: bytes, schema: str, place: str, way_out: str) -> dict[str, Any]:
    return artifacts.parse_json(content, schema, place, way_out)

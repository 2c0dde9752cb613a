"""A job of decisions beside the file that it is to become: OUT.parts/ holds what is decided, until OUT is whole.

A job that is killed at any moment goes on where it stopped: a part is there whole or not at all, and job.json says of
which bundle and which images the parts speak.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.data.image_files import shown
from stage1_pro.core.errors import UserError, first_line
from stage1_pro.core.inference.tables import Tally, write_table

ROWS = 1024
"""Images of a part: what a kill costs at most, and what is held in memory."""

LOCK = "lock"

DIFFERENCES = {
    "bundle": "another bundle",
    "inputs": "other images, or images that have changed",
    "device": "another kind of device",
    "rows_per_part": "parts of another size",
    "audit_share": "another audit share, or none",
    "audit_kind": "another kind of audit",
    "salt_digest": "another audit salt",
    "groups": "other groups",
    "monitor": "another monitor, or none",
}
"""What job.json pins, and how a difference is told."""


@dataclass(frozen=True, slots=True)
class Job:
    """Decisions on these images, in parts of ROWS.

    out: the regular file that they become; paths: the images, or names of groups, in the order of the rows.
    """

    out: Path
    paths: Sequence[str]

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def missing(self) -> list[range]:
        """Positions of the images of each part that is not there."""
        return [at for at in self._ranges() if not self._file(at).exists()]

    def parts(self) -> Iterator[pd.DataFrame]:
        """The rows of all parts, in order. Raises UserError for a part that is not whole."""
        for at in self._ranges():
            yield _read_part(self._file(at), len(at))

    def keep(self, at: range, rows: pd.DataFrame) -> None:
        """Write one part, whole or not at all."""
        content = io.BytesIO()
        write_table([rows], content, "parquet")
        artifacts.write_bytes(self._file(at), content.getvalue())

    @contextmanager
    def begun(self, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The folder of parts, for this process alone within the block, which gets the record that the job began with.

        record: what job.json pins. Raises UserError where the folder holds parts of another job.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.folder}: another process is at work on it. Wait for it, or name another --out."
            ) from None
        try:
            yield self._same(record)
        finally:
            lock.release()

    def finish(self, format: str, overwrite: bool, tally: Tally) -> None:
        """Put the parts together as OUT, which appears whole, and count their rows in `tally`.

        Raises UserError where OUT exists with other content, unless it is to be overwritten.
        """
        whole = self.folder / "whole"
        with artifacts.naming(whole), open(whole, "wb") as stream:
            write_table(tally.counting(self.parts()), stream, format)
            stream.flush()
            os.fsync(stream.fileno())
        # equal content: the process before this one was killed after OUT was there
        if self.out.exists() and not overwrite and artifacts.digest_file(self.out) != artifacts.digest_file(whole):
            raise already_there(self.out)
        os.replace(whole, self.out)

    def remove(self) -> None:
        """Remove the folder of parts."""
        shutil.rmtree(self.folder)

    def _ranges(self) -> list[range]:
        count = len(self.paths)
        return [range(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]

    def _file(self, at: range) -> Path:
        return self.folder / f"part-{at.start // ROWS:06d}.parquet"

    def _same(self, record: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / "job.json"
        if not path.exists():
            # a process that was killed leaves its lock, and temporary files that begin with a dot
            found = (file.name for file in self.folder.iterdir())
            if strays := sorted(name for name in found if name != LOCK and not name.startswith(".")):
                raise UserError(f"{self.folder} holds {strays[0]} and no job.json. Name another --out.")
            artifacts.write_json(path, record, "job")
            return record
        known = artifacts.read_json(path, "job")
        demand_same(
            known, record, self.folder, "Finish it with its own command, name another --out, or remove the folder."
        )
        return known


def demand_same(known: Mapping[str, Any], record: Mapping[str, Any], where: object, way_out: str) -> None:
    """Raise UserError where job.json, as it is known, and this record pin something else."""
    if different := [words for key, words in DIFFERENCES.items() if known.get(key) != record.get(key)]:
        raise UserError(f"{where} holds parts of another job: {', '.join(different)}. {way_out}")


def job_record(bundle: Path, paths: Iterable[str], device: str, audit: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what job.json pins: digests of the bundle and of the images' names, sizes and times of change.

    audit: what the columns of an audit are made with.
    """
    return record_of(bundle, _inputs_digest(paths), device, ROWS, audit)


def record_of(bundle: Path, inputs: str, device: str, rows: int, audit: dict[str, Any] | None) -> dict[str, Any]:
    """Return the content of job.json. inputs: digest of what is decided; rows: of a part."""
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "bundle": artifacts.digest_file(bundle / "bundle.json"),
        "inputs": inputs,
        "device": device,
        "rows_per_part": rows,
        **(audit or {}),
    }


def already_there(out: Path) -> UserError:
    """The error for a finished file that nobody said to overwrite."""
    return UserError(f"{out} exists. Add --overwrite to replace it, or name another --out.")


def _inputs_digest(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{shown(path)}\0{_state(path)}\0".encode())
    return digest.hexdigest()


def _state(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a missing image is a row too
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def _read_part(path: Path, rows: int) -> pd.DataFrame:
    try:
        part = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise UserError(f"{path}: not a whole part ({first_line(error)}). Remove this file and run again.") from None
    if len(part) != rows:
        raise UserError(f"{path}: {len(part)} rows instead of {rows}. Remove this file and run again.")
    return part

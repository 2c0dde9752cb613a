"""Tables of decisions, part after part: written as csv, jsonl or parquet, and counted on the way."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.inference.records import UNCOVERED

STANDARD_OUTPUT = "-"


@dataclass(slots=True)
class Tally:
    """Counts of decisions, of images or, as unit says, of groups. exits: answer → those that exit with it; unreadable:
    those that could not be read; uncovered: those of groups without a certificate, by group; audited: those whose
    labels are wanted; certificate: what the rows say of it."""

    images: int = 0
    exits: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    uncovered: Counter[str] = field(default_factory=Counter)
    audited: int = 0
    certificate: str | None = None
    unit: str = "image"

    @property
    def total(self) -> str:
        """All of them, as 3 images."""
        return counted(self.images, self.unit)

    @property
    def unreadable_words(self) -> str:
        """What is said at the end where some could not be read."""
        return f"{self.unreadable} of {self.total} could not be read: deferred, each with its reason."

    def counting(self, parts: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Pass the parts on, and count their rows."""
        for rows in parts:
            self.images += len(rows)
            self.exits.update(rows.loc[rows["decision"] == "exit", "answer"])
            self.unreadable += int((rows["answer"] == "").sum())
            if "certificate_group" in rows:
                self.uncovered.update(rows.loc[rows["reason"] == UNCOVERED, "certificate_group"])
            if "audit" in rows:
                self.audited += int((rows["audit"] == True).sum())  # noqa: E712 (None: nothing is audited)
                self.certificate = rows["certificate"].iloc[0]
            yield rows


@dataclass(frozen=True, slots=True)
class Output:
    """Where decisions go, and as what.

    path: the file itself, links followed, or a device or pipe that is written through; None: standard output. format:
    a key of WRITERS. regular: whether it is, or is to become, a regular file.
    """

    path: Path | None
    format: str
    regular: bool

    def __str__(self) -> str:
        return STANDARD_OUTPUT if self.path is None else str(self.path)

    def talk_elsewhere(self):
        """Within the block lines for people go to standard error where standard output takes the decisions."""
        return redirect_stdout(sys.stderr) if self.path is None else nullcontext()

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The stream of a device, a pipe or standard output."""
        sys.stdout.flush()
        named = artifacts.naming(self.path or Path("standard output"))
        with named, os.fdopen(os.dup(1), "wb") if self.path is None else open(self.path, "wb") as stream:
            yield stream


def output_of(name: str | None, format: str | None) -> Output:
    """Find out what `--out NAME --format FORMAT` means; without a name it is decisions.<format>.

    Raises UserError for a folder, for a suffix that is no format, and for one that contradicts `format`.
    """
    if name == STANDARD_OUTPUT:
        return Output(None, format or "csv", regular=False)
    name = name or f"decisions.{format or 'csv'}"
    path = Path(os.path.realpath(name))
    try:
        found = os.stat(name)  # of the name: the real path of a pipe's descriptor leads nowhere
    except (FileNotFoundError, NotADirectoryError):
        return Output(path, _format(path, format), regular=True)
    if S_ISDIR(found.st_mode):
        raise UserError(f"--out {name} is a folder. Name a file in it, as in --out {Path(name) / 'decisions.csv'}.")
    if _is_standard_output(found):
        return Output(None, format or "csv", regular=False)
    if S_ISREG(found.st_mode):
        return Output(path, _format(path, format), regular=True)
    return Output(Path(name), format or "csv", regular=False)


def write_table(parts: Iterable[pd.DataFrame], stream: BinaryIO, format: str) -> None:
    """Write the parts as one table, each as soon as it comes."""
    WRITERS[format](parts, stream)


def _format(path: Path, format: str | None) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in WRITERS and format not in (None, suffix):
        raise UserError(f"--out {path.name} is for {suffix}, and --format says {format}. Leave --format out.")
    if suffix not in WRITERS and format is None:
        kinds = ", ".join(f".{name}" for name in WRITERS)
        raise UserError(f"--out {path.name}: the suffix chooses the format, one of {kinds}. Or say --format.")
    return format or suffix


def _is_standard_output(found: os.stat_result) -> bool:
    """Whether a file is what standard output leads to: opened anew, /dev/stdout of `> file` would be cut off."""
    try:
        return os.path.samestat(found, os.fstat(1)) and not os.path.samestat(found, os.stat(os.devnull))
    except OSError:  # standard output is closed
        return False


def _write_csv(parts: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    for number, rows in enumerate(parts):
        stream.write(rows.to_csv(index=False, header=number == 0, lineterminator="\n").encode())
        stream.flush()


def _write_jsonl(parts: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    for rows in parts:
        text = rows.to_json(orient="records", lines=True, force_ascii=False, double_precision=15)
        stream.write(text.encode())
        stream.flush()


def _write_parquet(parts: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer = None
    try:
        for rows in parts:
            table = pyarrow.Table.from_pandas(rows, schema=_arrow_schema(rows), preserve_index=False)
            writer = writer or ParquetWriter(stream, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _arrow_schema(rows: pd.DataFrame) -> Any:
    """Types that do not depend on the rows: a part without any answer has the types of the others."""
    import pyarrow

    number = pyarrow.float64()
    kinds = {"probability": number, "score": number, "audit_probability": number, "audit": pyarrow.bool_()}
    kinds |= {"frames": pyarrow.int64(), "views": pyarrow.int64()}
    return pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in rows.columns])


WRITERS: dict[str, Callable[[Iterable[pd.DataFrame], BinaryIO], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}

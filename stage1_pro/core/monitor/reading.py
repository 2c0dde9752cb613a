"""Files of decisions and of labels, as the tables that a monitor takes: csv, jsonl or parquet, by their suffix.

Only the columns that are needed are read, so that a million decisions fit beside everything else. A last line without
its end is left out: the server is still writing it, or was killed while it did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.monitor.intake import some
from stage1_pro.core.monitor.tables import Decisions, Labels, joined
from stage1_pro.core.schemas import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

TEXT, NUMBER, YES_NO = "string", "float64", "bool"
DECISIONS = {
    "id": TEXT,
    "group": TEXT,
    "time": TEXT,
    "answer": TEXT,
    "probability": NUMBER,
    "decision": TEXT,
    "audit": YES_NO,
    "audit_probability": NUMBER,
    "bundle": TEXT,
}
"""Columns of a decision that a monitor reads, as 60 and 70 write them."""
CERTIFIED = "certificate_group"
"""The column of what has a certificate of its own, where the bundle certifies cameras or sites by themselves."""
LABELS = {"id": TEXT, "label": TEXT, "label_time": TEXT}
"""Columns of a label. A fourth one, source, is for people."""
FIRST = ("id", "label", "decision", "bundle")
"""Columns without which a file is another one, whatever else it has."""
SUFFIXES = (".csv", ".jsonl", ".parquet")
AHEAD_S = 300
"""Seconds that a row may lie ahead of the reading: a server goes on writing while its log is read, and clocks of two
machines differ. No day is closed before its rows lie in the past."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What the values of the files mean. bundle: SHA-256 of bundle.json; class_names: the positive one last; now:
    moment of the reading, seconds since 1970; streams: names of the groups that have a certificate each, () where one
    holds for all cases."""

    bundle: str
    class_names: tuple[str, ...]
    now: int
    streams: tuple[str, ...] = ()

    def both(self, decisions: Sequence[str], labels: Sequence[str]) -> tuple[tuple[Decisions, int], tuple[Labels, int]]:
        """What `decisions` and `labels` return. Raises UserError with the problems of the files of both."""
        rows, given, told = None, None, []
        try:
            rows = self.decisions(decisions)
        except UserError as problem:
            told.append(str(problem))
        try:
            given = self.labels(labels)
        except UserError as problem:
            told.append(str(problem))
        if rows is None or given is None:
            raise UserError("\n".join([*told, "Nothing was written."]))
        return rows, given

    def decisions(self, files: Sequence[str]) -> tuple[Decisions, int]:
        """The decisions of this bundle in these files, and how many of other bundles are left out.

        Raises UserError with the problems of all files.
        """
        parts, problems, others, read = [], [], 0, 0
        for file in files:
            try:
                table = _columns(Path(file), {**DECISIONS, **({CERTIFIED: TEXT} if self.streams else {})})
            except UserError as problem:
                problems.append(str(problem))
                continue
            read += len(table)
            mine = _equal(table["bundle"], self.bundle)
            others += int((~mine).sum())
            table = table.filter(mine)
            found, told = self._decisions(table)
            problems += [f"{file}: {line}" for line in told]
            parts.append(found)
        if read and others == read and not problems:
            problems.append(f"all {read} decisions are of other bundles than this one ({self.bundle[:12]}…)")
        raise_problems("these decisions cannot be read:", problems)
        return joined(parts, Decisions), others

    def certificate_groups(self, files: Sequence[str]) -> tuple[str, ...]:
        """The streams and all other certified groups that these files name, sorted; those of a file that cannot be
        read are left out."""
        found = set(self.streams)
        for file in files:
            with suppress(UserError):  # `decisions` says what is wrong with the file
                found.update(_columns(Path(file), {CERTIFIED: TEXT})[CERTIFIED].unique().to_pylist())
        return tuple(sorted(found - {None, ""}))

    def labels(self, files: Sequence[str]) -> tuple[Labels, int]:
        """The labels in these files, and how many rows have none yet. Raises UserError with the problems of all."""
        parts, problems, blank = [], [], 0
        for file in files:
            try:
                table = _columns(Path(file), LABELS)
            except UserError as problem:
                problems.append(str(problem))
                continue
            given = ~_equal(table["label"], "")
            blank += int((~given).sum())
            table = table.filter(given)
            time, told = self._times(table["label_time"], "label_time")
            told += [*_without_id(table["id"]), *self._unknown(table["label"])]
            problems += [f"{file}: {line}" for line in told]
            parts.append(Labels(_texts(table["id"]), _equal(table["label"], self.class_names[-1]), time))
        raise_problems("these labels cannot be read:", problems)
        return joined(parts, Labels), blank

    def _decisions(self, table: Table) -> tuple[Decisions, list[str]]:
        ids, groups = _texts(table["id"]), _texts(table["group"])
        time, told = self._times(table["time"], "time")
        groups = ids if not (groups != "").any() else np.where(groups == "", ids, groups)
        exits, defers = _equal(table["decision"], "exit"), _equal(table["decision"], "defer")
        if not (exits | defers).all():
            told.append(f"{(~(exits | defers)).sum()} rows whose decision is neither exit nor defer")
        audited = table["audit"].to_numpy(zero_copy_only=False)
        return Decisions(
            ids,
            groups,
            time,
            _equal(table["answer"], self.class_names[-1]),
            exits,
            _numbers(table["probability"]),
            np.array(audited == True, dtype=bool),  # noqa: E712 (null is no audit)
            _numbers(table["audit_probability"]),
            self._stream_of(table),
        ), [*told, *_without_id(table["id"])]

    def _stream_of(self, table: Table) -> np.ndarray:
        """(N,) position of each case's certified group among the streams, -1 for another; 0 where all are one."""
        if not self.streams:
            return np.zeros(len(table), dtype=np.int64)
        return pd.Index(self.streams).get_indexer(pd.Index(_texts(table[CERTIFIED]))).astype(np.int64)

    def _times(self, column: Any, name: str) -> tuple[np.ndarray, list[str]]:
        """(N,) seconds since 1970, UTC; a time without an offset is UTC."""
        values = column.to_pandas()
        times = pd.to_datetime(values, utc=True, format="ISO8601", errors="coerce")
        told, unknown = [], times.isna().to_numpy()
        if unknown.any():
            shown = some(values[unknown].fillna("nothing").to_numpy())
            told.append(f"{unknown.sum()} rows whose {name} is no time such as 2026-03-01T12:00:00Z ({shown})")
        seconds = times.to_numpy(dtype="datetime64[s]").astype(np.int64)
        later = ~unknown & (seconds > self.now + AHEAD_S)
        if later.any():
            now = np.datetime64(self.now, "s")
            told.append(f"{later.sum()} rows whose {name} lies more than {AHEAD_S} s after {now}Z, this reading")
        return seconds, told

    def _unknown(self, labels: Any) -> list[str]:
        counts = Counter(labels.to_pylist())
        strange = [name for name in counts if name not in self.class_names]
        if not strange:
            return []
        hint = did_you_mean(str(strange[0]), list(self.class_names))
        wrong, allowed = sum(counts[name] for name in strange), ", ".join(self.class_names)
        return [f"{wrong} labels are none of {allowed}: {some(np.array(strange))}{hint}"]


class Table:
    """Columns of one file, by name."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name)

    def filter(self, rows: np.ndarray) -> Table:
        import pyarrow

        return self if rows.all() else Table(self.table.filter(pyarrow.array(rows)))


def _columns(path: Path, wanted: dict[str, str]) -> Table:
    """The wanted columns of a file. Raises UserError where it cannot be read or lacks one."""
    import pyarrow as pa

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: the suffix says the format, one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = READERS[suffix](path, wanted)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:160]}") from None
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        hints = [f"{name}{did_you_mean(name, table.column_names)}" for name in missing]
        raise UserError(f"{path}: no column {', '.join(hints)}")
    return Table(table)


def _csv(path: Path, wanted: dict[str, str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    types = {name: pa.type_for_alias(kind) for name, kind in wanted.items()}
    with pa.memory_map(str(path)) as file:
        if file.size() == 0:
            raise UserError(f"{path}: an empty file; one without rows still has its header")
        parse = csv.ParseOptions(delimiter=_delimiter(file.read(1 << 12)))
        file.seek(0)
        names = csv.open_csv(file, csv.ReadOptions(block_size=1 << 16), parse).schema.names
        present = [name for name in wanted if name in names]
        if len(present) < len(wanted):
            return pa.table({name: [] for name in names})
        file.seek(0)
        convert = csv.ConvertOptions(include_columns=present, column_types=types)
        return csv.read_csv(file, parse_options=parse, convert_options=convert)


def _delimiter(start: bytes) -> str:
    """What parts the columns of a header: in many countries a spreadsheet saves a file of commas with semicolons."""
    header = start.split(b"\n", 1)[0]
    return "," if b"," in header else next((mark for mark in ";\t" if mark.encode() in header), ",")


def _jsonl(path: Path, wanted: dict[str, str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in wanted.items()])
    with pa.memory_map(str(path)) as file:
        whole = _whole_lines(file)
        if not whole:
            return schema.empty_table()
        file.seek(0)
        options = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        table = json.read_json(pa.BufferReader(file.read_buffer(whole)), parse_options=options)
    # a field that no line has is a column of nulls
    return table.drop_columns([name for name in FIRST if name in wanted and table[name].null_count == len(table)])


def _whole_lines(file: Any) -> int:
    """Bytes up to the end of the last whole line."""
    end = file.size()
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _parquet(path: Path, wanted: dict[str, str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    names = parquet.read_schema(path).names
    table = parquet.read_table(path, columns=[name for name in wanted if name in names])
    for at, name in enumerate(table.column_names):
        kind = pa.type_for_alias(wanted[name])
        if not (pa.types.is_timestamp(table.schema.field(at).type) and kind == pa.string()):
            table = table.set_column(at, name, table.column(at).cast(kind))
    return table


READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _equal(column: Any, value: str) -> np.ndarray:
    """(N,) bool; a null equals the empty text."""
    from pyarrow import compute

    same = compute.call_function("equal", [compute.fill_null(column, ""), value])
    return same.to_numpy(zero_copy_only=False).astype(bool)


def _texts(column: Any) -> np.ndarray:
    """(N,) objects; a null is the empty text."""
    from pyarrow import compute

    return compute.fill_null(column, "").to_numpy(zero_copy_only=False).astype(object)


def _numbers(column: Any) -> np.ndarray:
    """(N,) float64; a null is NaN."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def _without_id(column: Any) -> list[str]:
    nameless = int(_equal(column, "").sum())
    return [f"{nameless} rows without an id, which names one case for good"] if nameless else []

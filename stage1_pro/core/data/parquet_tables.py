"""Parquet tables of labelled images: with paths, or with the bytes of the images, as the Hugging Face Hub has them."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stage1_pro.core.config.sections import Source
from stage1_pro.core.console import bar
from stage1_pro.core.data.label_tables import COLUMNS, WHOLE, LabelTable, More, our_columns, tidied
from stage1_pro.core.data.store import kept
from stage1_pro.core.errors import UserError

MAGIC = b"PAR1"
ROWS = 256
"""Rows that are in memory at once with the bytes of their images."""


def is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # whoever reads it says why
        return False


def read_parquet(
    path: Path,
    source: Source,
    folder: Path,
    names: dict[str, list[str]] | None = None,
    more: More = MappingProxyType({}),
) -> LabelTable:
    """Return the rows of a Parquet file. Raises UserError for one without our columns, or that is damaged.

    A path is a string; or it is binary, or a struct with a field `bytes`, which hold the content of an image. Contents
    are copied to files below `folder`. names: column → names of its classes, where the file itself does not tell them;
    more: columns that are kept beside ours.
    """
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        ours, found = our_columns([name.lower() for name in schema.names], source, path, more)
        if ours is None:
            raise UserError(
                f"{path}: the columns {','.join(schema.names)} hold no path and label. {WHOLE}; "
                f"sources[{source.name}].columns names others."
            )
        columns = {name: theirs for name, theirs in zip(ours, schema.names, strict=True) if name in (*COLUMNS, *more)}
        labels = {**(names or {}), **_class_names(schema)}.get(columns["label"])
        parts = []
        with bar(f"reading {path.name}", brief=True) as progress:
            for batch in file.iter_batches(ROWS, columns=list(columns.values())):
                parts.append(_strings(batch, columns, labels, path, folder, sum(map(len, parts))))
                progress(sum(map(len, parts)), file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]}).") from None
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
    found.frame = tidied(frame.set_axis(frame.index + 1), path, found, "row")
    return found


def _strings(
    batch: pa.RecordBatch, columns: dict[str, str], labels: list[str] | None, path: Path, folder: Path, before: int
) -> pd.DataFrame:
    """The rows of a batch as strings under our names; before: rows of the file above it."""
    cells = {name: batch.column(theirs).to_pylist() for name, theirs in columns.items()}
    if not pa.types.is_string(batch.column(columns["path"]).type) and "case_id" not in cells:
        cells["case_id"] = [f"{path.stem}/{before + at}" for at in range(len(batch))]
    cells["path"] = [_file(cell, folder) for cell in cells["path"]]
    if labels:
        cells["label"] = [_named(cell, labels) for cell in cells["label"]]
    return pd.DataFrame({name: [_text(cell) for cell in column] for name, column in cells.items()}, dtype=object)


def _file(cell: Any, folder: Path) -> str:
    """Where the image of a cell lies: its path, or the copy of its content."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    return str(kept(folder, cell)) if isinstance(cell, bytes) else _text(cell)


def _named(cell: Any, labels: list[str]) -> Any:
    # the Hub writes -1 where the label is kept secret, as in a test split
    return (labels[cell] if 0 <= cell < len(labels) else "") if isinstance(cell, int) else cell


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():  # whole numbers beside a gap became floats
        cell = int(cell)
    return str(cell).strip()


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column → names of its classes, as the library `datasets` keeps them in a file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}

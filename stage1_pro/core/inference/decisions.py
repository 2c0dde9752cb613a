"""Decisions on image files as a table, one row an image."""

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.console import bar
from stage1_pro.core.data.image_files import Listing, list_images, shown
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.predictor import RawOutputs, Stage1Predictor


def find_images(names: list[str]) -> Listing:
    """Files as named, and the images below the folders named, in the order of the names.

    A name without a file stays among the others, to be deferred. Raises UserError where no name leads to an image.
    """
    parts = [list_images(name) if os.path.isdir(name) else Listing((name,), 0, Counter()) for name in names]
    found = Listing(
        tuple(path for part in parts for path in part.paths),
        sum(part.hidden for part in parts),
        sum((part.others for part in parts), Counter()),
    )
    words = ", ".join(map(shown, names))
    if not any(os.path.lexists(name) for name in names):
        raise UserError(f"{words}: no such image or folder.")
    if not found.paths:
        raise UserError(f"{words}: no images there" + (f" ({found.left_out()})." if found.left_out() else "."))
    return found


def decide_files(
    predictor: Stage1Predictor, paths: Sequence[str], *, batch_size: int | None, workers: int
) -> pd.DataFrame:
    """Decide every file: columns id (its path, as `shown` writes it), answer, probability, decision, score, reason,
    and prediction_set (the classes that remain possible) where the policy has such sets.

    An unreadable file has no answer and is deferred.
    """
    frames, done = [], 0
    with bar("deciding") as progress:
        for outputs in predictor.outputs(paths, batch_size=batch_size, workers=workers):
            frames.append(_rows(predictor, outputs, paths[done : done + len(outputs)]))
            done += len(outputs)
            progress(done, len(paths))
    return pd.concat(frames, ignore_index=True)


def write_decisions(decisions: pd.DataFrame, path: Path, format: str) -> None:
    """Write the table atomically as csv, jsonl or parquet."""
    if format == "parquet":
        buffer = io.BytesIO()
        decisions.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    elif format == "jsonl":
        content = decisions.to_json(orient="records", lines=True, force_ascii=False, double_precision=15).encode()
    else:
        content = decisions.to_csv(index=False).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_bytes(path, content)


def _rows(predictor: Stage1Predictor, outputs: RawOutputs, paths: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame([asdict(record) for record in predictor.records(outputs)])
    table.insert(0, "id", list(map(shown, paths)))
    if table["prediction_set"].isna().all():
        return table.drop(columns="prediction_set")
    table["prediction_set"] = table["prediction_set"].map("|".join)
    return table

"""The one door for files: JSON by its schema on write and on load, CSV, folders; atomic, exact.

An artifact on disk is either the whole previous version or the whole new one, and a number read
back is the number that was written: thresholds keep every bit.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.schemas import schema_problems

SCHEMA_VERSION = 1


MENDS = {
    "config": "Restore this file from a copy, or train a new run with 20_train.py.",
    "splits": "Run 00_make_splits.py for a new run.",
    "thresholds": "Run 25_threshold_sweep.py again for this run.",
    "gateparams": "Run 33_calibrate_gate.py again for this run.",
    "scrcparams": "Run 36_calibrate_scrc.py again for this run.",
    "eval": "Run 40_eval_selective.py again for this run.",
    "comparison": "Run 40_eval_selective.py --compare again for these runs.",
    "cascade": "Run 45_cascade.py again for this run.",
    "ab": "Run 43_ab_test.py again for this folder.",
    "bundle": "Remove this bundle, then run 50_export_bundle.py again for its run.",
    "state": "Run 20_train.py --resume {folder} --restore_state, which puts the checkpoint's copy back.",
    "backbone": "Run 10_explora_pretrain.py again in a new folder.",
    "pretraining": "Begin anew with 10_explora_pretrain.py in a new folder.",
    "calib_scores": "Remove this bundle, then run 50_export_bundle.py again for its run.",
    "seen": "Export the bundle again, with --without_seen.",
    "environment": "Run 20_train.py again in a new run.",
    "monitor": "Take the last whole copy of the folder, or start a new monitor with 65_monitor.py BUNDLE --out NEW "
    "--audit_share SHARE.",
    "tracking": "Remove this file: what is tracked then goes under a new MLflow run.",
    "job": "Remove the folder that it lies in and run again.",
    "part": "Remove this file and run again.",
}
"""What to do where a file is missing or damaged; each works when it is followed to the letter."""

NEVER_OVERWRITTEN = ("thresholds", "gateparams", "scrcparams")
"""Files that have to go before their script runs again."""


def mend(schema: str, path: Path) -> str:
    """Return how an artifact at this path comes back.

    >>> mend("state", Path("runs/a/state.json"))
    "Run 20_train.py --resume runs/a --restore_state, which puts the checkpoint's copy back."
    """
    return MENDS[schema].format(folder=path.parent)


def write_json(path: Path, data: dict[str, Any], schema: str) -> None:
    """Validate `data` against `schema` and write it atomically: sorted keys, shortest exact floats."""
    write_bytes(path, json_bytes(data, schema, path))


def json_bytes(data: dict[str, Any], schema: str, where: Path | str) -> bytes:
    """Validate `data` against `schema` and return the content of its file; `where` is only named in messages."""
    raise_problems(f"{where}: refused to write", list(schema_problems(data, schema)))
    text = json.dumps(data, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def read_json(path: Path, schema: str, way_out: str | None = None) -> dict[str, Any]:
    """Load an artifact, or raise a UserError that says what is wrong and how to fix it.

    way_out: in place of the one in MENDS, for a file that lies elsewhere than in its run.
    """
    return parse_json(read_bytes(path, way_out or mend(schema, path)), schema, path, way_out)


def parse_json(content: bytes, schema: str, path: Path | str, way_out: str | None = None) -> dict[str, Any]:
    """Parse and validate the bytes of an artifact; `path` is only named in messages."""
    way_out = way_out or ("Remove this file. " if schema in NEVER_OVERWRITTEN else "") + mend(schema, Path(path))
    try:
        data = json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error}). {way_out}") from None
    refuse_newer(data, path)
    problems = list(schema_problems(data, schema))
    if len(problems) == 1:
        raise UserError(f"{path}: {problems[0]}. {way_out}")
    raise_problems(f"{path}: {len(problems)} problems", problems, way_out)
    return data


def refuse_newer(data: Any, where: Path | str) -> None:
    """Raise UserError where the artifact names a schema version that this code does not know yet."""
    found = data.get("schema_version") if isinstance(data, dict) else None
    if type(found) is int and found > SCHEMA_VERSION:
        raise UserError(
            f"{where} was written by a newer version of stage1_pro "
            f"(schema {found}; this one reads up to {SCHEMA_VERSION}). Upgrade stage1_pro."
        )


def read_bytes(path: Path, mend: str = "") -> bytes:
    """Return the content of a file. Raises UserError, with `mend` as the remedy, where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {mend}".rstrip()) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {mend}".rstrip()) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Temporary file in the same directory, fsync, rename: a reader never sees half a file."""
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """The same of what is written to the file within the block, piece by piece."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path):
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the content does
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an OSError without a file, as a full disk raises it, is one of this file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table atomically, with a header; a column that a row does not have is empty."""
    write_bytes(path, csv_text(rows, columns).encode())


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], header: bool = True) -> str:
    """Return the lines of a table. Raises ValueError where a row has a column that the table does not."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`, which it becomes at the end of the block; what is interrupted leaves nothing.

    target: does not exist, or is an empty folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield building
        os.chmod(building, 0o777 & ~0o022)  # mkdtemp makes private folders
        os.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def digest_bytes(content: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(data: Any) -> str:
    """SHA-256 of the canonical JSON text of a value."""
    return digest_bytes(json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":")).encode())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return data


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number that an artifact may hold")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

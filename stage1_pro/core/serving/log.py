"""The decision log: whole lines of JSON, appended before the answer is sent, rotated by size."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stage1_pro.core.errors import UserError

BEGIN = b'{"id": '
"""How every row begins, also one that a killed server left without its end."""
_BLOCK = 4096


def demand_log(name: str, max_bytes: float) -> None:
    """Raise UserError for a file that cannot be a log, or holds other things: from its end a torn line is cut."""
    path = Path(name)
    if max_bytes < 1:
        raise UserError(f"--log_max_bytes {max_bytes:g}: must be 1 or more.")
    if name == "-" or (path.exists() and not path.is_dir() and not path.is_file()):
        raise UserError(f"--log {name}: rows are kept in a regular file, which is rotated and read again. Name one.")
    if not path.parent.is_dir():
        raise UserError(f"--log {path}: {path.parent} is not a folder. Make it, or name another file.")
    if path.is_dir() or name.endswith(os.sep):
        raise UserError(f"--log {name} is a folder. Name a file in it.")
    if path.is_file():
        with open(path, "rb") as stream:
            if not BEGIN.startswith(stream.read(len(BEGIN))):
                raise UserError(f"--log {path} holds other things than decisions. Name another file.")


class DecisionLog:
    """Rows appended to one file, which one server owns.

    At max_bytes the file is renamed to NAME.<time>.jsonl and a new one begun; nothing is ever deleted, since these rows
    are the evidence on the promise. A line is written by one call and taken back where the disk takes only a part of
    it; there is no fsync, so a power cut may cost the last seconds.
    """

    def __init__(self, path: Path, max_bytes: int):
        self.path, self.max_bytes = path, max_bytes
        self._lock = FileLock(path.parent / f".{path.name}.lock")
        try:
            self._file = self._opened()  # first: a lock says nothing of why its file cannot be made
            self._lock.acquire(timeout=0)
        except Timeout:
            os.close(self._file)
            raise UserError(f"--log {path}: another server writes it. Name another file.") from None
        except OSError as error:
            raise UserError(f"--log {path}: {error.strerror}. Name another file.") from None
        self._size = _drop_torn_line(self._file)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows. Raises OSError, and then the file is as before."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        self._make_room(text)
        self._append(text)
        self._size += len(text)

    def check(self) -> None:
        """Raise OSError where `write` would: a block is written, and taken back."""
        blank = BEGIN.ljust(_BLOCK)
        self._make_room(blank)
        self._append(blank)
        os.ftruncate(self._file, self._size)

    def close(self) -> None:
        os.close(self._file)
        self._lock.release()

    def _make_room(self, text: bytes) -> None:
        self._follow()
        if self._size and self._size + len(text) > self.max_bytes:
            self._rotate()

    def _append(self, text: bytes) -> None:
        try:
            if os.write(self._file, text) < len(text):
                raise OSError(28, "the disk took only a part of a line", str(self.path))
        except OSError:
            os.ftruncate(self._file, self._size)
            raise

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)

    def _follow(self) -> None:
        """Begin anew where somebody else has moved the file away, as logrotate does, and may pack or delete it."""
        held = os.fstat(self._file)
        self._size = held.st_size  # or emptied it
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), held):
                return
        self._begin()

    def _rotate(self) -> None:
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
        self.path.rename(self.path.with_name(f"{self.path.stem}.{stamp}{self.path.suffix}"))
        self._begin()

    def _begin(self) -> None:
        """Go over to the file of this name. Where it cannot be opened the former one stays."""
        opened = self._opened()
        os.close(self._file)
        self._file, self._size = opened, os.fstat(opened).st_size


def _drop_torn_line(file: int) -> int:
    """Cut a line that a killed server left without its end, whose answer was never sent; returns the size."""
    size = os.fstat(file).st_size
    whole = size
    while whole and os.pread(file, 1, whole - 1) != b"\n":
        whole -= 1
    if whole < size:
        os.ftruncate(file, whole)
    return whole

"""Files in a folder that fsspec reaches: a local one, s3://, gs://, az://. Names are flat, contents are small."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, first_line

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol → package that reads it."""


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Within the block whatever a store raises is the user's to fix, and names the place; a local OSError stays."""
    try:
        yield
    except UserError:
        raise
    except ImportError:
        package = PACKAGES.get(place.partition("://")[0], "the package of fsspec that reads it")
        raise UserError(f"{place}: {package} is not installed. pip install {package}") from None
    except OSError as error:
        if "://" not in place and error.filename is not None:
            raise
        raise _unreached(place, error) from None
    except Exception as error:  # each store has errors of its own, which nothing common derives from
        if "://" not in place:
            raise
        raise _unreached(place, error) from None


def filesystem(place: str) -> tuple[Any, str]:
    """The file system of a place and the path within it; a local path comes back absolute."""
    from fsspec.core import url_to_fs

    with reaching(place):
        return url_to_fs(place, use_listings_cache=False)  # other processes write there too


def is_local(files: Any) -> bool:
    """Whether a file system is this machine's."""
    return "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder under a name that a user gave. files: its file system; root: the path within it."""

    name: str
    files: Any
    root: str

    @classmethod
    def at(cls, name: str) -> "Folder":
        """Raises UserError for a place that no installed package reads."""
        files, root = filesystem(name)
        return cls(name.rstrip("/"), files, root.rstrip("/"))

    @property
    def local(self) -> Path | None:
        """Its path where it is this machine's."""
        return Path(self.root) if is_local(self.files) else None

    def make(self) -> None:
        """Make the folder, where the store has folders. Raises UserError where a file has that name."""
        if self.local is not None:
            if self.local.exists() and not self.local.is_dir():
                raise UserError(f"{self.name} is a file. Name a folder for the parts.")
            self.local.mkdir(parents=True, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """Names of the files in it and their sizes in bytes; empty where there is no such folder."""
        with reaching(self.name):
            try:
                found = self.files.ls(self.root, detail=True)
            except FileNotFoundError:
                return {}
            return {Path(entry["name"]).name: entry["size"] for entry in found if entry["type"] == "file"}

    def read(self, name: str) -> bytes:
        with reaching(self.place(name)):
            return self.files.cat_file(f"{self.root}/{name}")

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """The contents of several files, in the order of the names, fetched side by side."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(16) as pool:
            yield from pool.map(self.read, names)

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is there whole or not at all: stores put objects so, a local one is renamed."""
        if self.local is not None:
            artifacts.write_bytes(self.local / name, content)
            return
        with reaching(self.place(name)):
            self.files.pipe_file(f"{self.root}/{name}", content)

    def place(self, name: str) -> str:
        return f"{self.name}/{name}"


def _unreached(place: str, error: Exception) -> UserError:
    return UserError(f"{place}: {type(error).__name__}: {first_line(error)}. Fix this and run again.")

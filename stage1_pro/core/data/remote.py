"""Sources behind a URL, such as s3://bucket/folder: mirrored into a local folder, and only what has changed again.

fsspec knows how to reach them; the package for each kind (s3fs, gcsfs, …) is installed by whoever needs it.
"""

import errno
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.console import bar
from stage1_pro.core.data.image_files import HEAD, HIDDEN, SUFFIXES, Listing, sniff
from stage1_pro.core.errors import UserError

THREADS = 16
STATE = ".mirror.json"
"""File of a mirror: relative path → digest of what the server said of the file when it was copied."""


def is_url(place: str | None) -> bool:
    return place is not None and "://" in place


def parent_url(url: str) -> str:
    return url.rpartition("/")[0]


def mirrored_file(url: str, folder: Path) -> Path:
    """Return a local copy of one file. Raises UserError where it cannot be had."""
    return Mirror(parent_url(url), folder).files([url.rpartition("/")[2]]) / url.rpartition("/")[2]


def mirrored_paths(paths: list[str], folder: Path) -> list[str]:
    """Return paths with local copies in place of URLs; the URL of a file that is not there stays, and is missing."""
    urls = [path for path in dict.fromkeys(paths) if is_url(path)]
    by_host: dict[str, list[str]] = {}
    for url in urls:
        by_host.setdefault("/".join(url.split("/")[:3]), []).append(url)
    local: dict[str, str] = {}
    for some in by_host.values():
        parents = [parent_url(url).split("/") for url in some]
        shared = "/".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, zip(*parents, strict=False)))
        copies = Mirror(shared, folder).files([url[len(shared) + 1 :] for url in some])
        local |= {url: str(copies / url[len(shared) + 1 :]) for url in some}
    return [path if path not in local or not os.path.exists(local[path]) else local[path] for path in paths]


def mirrored_tree(url: str, folder: Path) -> tuple[Path, Listing]:
    """Return the local folder of copies, and a listing of the images below it, as `list_images` makes one."""
    return Mirror(url, folder).tree()


class Mirror:
    """A folder of copies of what lies below a URL."""

    def __init__(self, url: str, folder: Path):
        import fsspec

        self.url = url.rstrip("/")
        self.local = (folder / "remote" / blake2b(self.url.encode(), digest_size=8).hexdigest()).absolute()
        with _reaching(url):
            self.system, self.root = fsspec.url_to_fs(self.url)
        self.state: dict[str, str] = self._known()

    def files(self, names: Iterable[str]) -> Path:
        """Copy these files, by their paths below the URL; one that is not there stays missing. Returns the folder."""
        wanted = [name for name in dict.fromkeys(names) if _inside(name)]
        listed = self._listed_if_it_can(wanted)
        if not listed:  # a server of single files: what is here already is taken for what is there
            self._copy({name: "" for name in wanted if len(wanted) == 1 or not (self.local / name).exists()})
        else:
            self._copy({name: listed[name] for name in wanted if name in listed})
        return self.local

    def tree(self) -> tuple[Path, Listing]:
        """Copy every image below the URL; what is not there any more is removed from the copies."""
        versions = self._listed()
        if not versions:
            raise UserError(f"{self.url}: holds no files. Name a folder that holds one folder per class.")
        wanted, hidden, others = {}, set(), Counter[str]()
        for name, version in versions.items():
            parts = PurePosixPath(name).parts
            at = next((n for n, part in enumerate(parts) if part.startswith(".") or part in HIDDEN), None)
            if at is not None:
                hidden.add(parts[: at + 1])
            elif PurePosixPath(name).suffix.lower() in SUFFIXES or self._holds_image(name):
                wanted[name] = version
            else:
                others[PurePosixPath(name).suffix.lower()] += 1
        for name in set(self.state) - set(wanted):
            (self.local / name).unlink(missing_ok=True)
            del self.state[name]
        self._copy(wanted)
        paths = sorted(str(self.local / name) for name in wanted)
        return self.local, Listing(tuple(paths), len(hidden), others)

    def _listed(self) -> dict[str, str]:
        """Relative path → version of each file below the URL."""
        try:
            with _reaching(self.url):
                found: Any = self.system.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        names = {path: path[len(self.root) :].lstrip("/") for path in found}
        return {name: _version(found[path]) for path, name in names.items() if _inside(name)}

    def _listed_if_it_can(self, wanted: list[str]) -> dict[str, str]:
        """The same where it is worth it; nothing of a server that cannot list, since its files may be there all the
        same: fetching them says what is wrong."""
        try:
            return self._listed() if len(wanted) > 1 else {}
        except UserError:
            return {}

    def _holds_image(self, name: str) -> bool:
        with _reaching(f"{self.url}/{name}"):
            return sniff(self.system.cat_file(f"{self.root}/{name}", start=0, end=HEAD)) is not None

    def _copy(self, versions: dict[str, str]) -> None:
        """Copy the files that are not here in this version."""
        new = {
            name: version
            for name, version in versions.items()
            if not version or self.state.get(name) != version or not (self.local / name).exists()
        }
        if not new:
            return
        self.local.mkdir(parents=True, exist_ok=True)
        try:
            with ThreadPoolExecutor(THREADS) as pool, bar(f"copying from {self.url}") as progress:
                for done, name in enumerate(pool.map(self._fetch, new), 1):
                    if name is not None:
                        self.state[name] = new[name]
                    progress(done, len(new))
        finally:
            artifacts.write_bytes(self.local / STATE, json.dumps(self.state).encode())

    def _fetch(self, name: str) -> str | None:
        """Copy one file, whole or not at all; None where it is not there."""
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")
        os.close(handle)
        try:
            with _reaching(f"{self.url}/{name}"):
                self.system.get_file(f"{self.root}/{name}", temporary)
            os.replace(temporary, target)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return None
        finally:
            Path(temporary).unlink(missing_ok=True)
        return name

    def _known(self) -> dict[str, str]:
        try:
            return json.loads((self.local / STATE).read_text())
        except (OSError, ValueError):
            return {}


def _inside(name: str) -> bool:
    """Whether a path stays below the folder that it is relative to."""
    return bool(name) and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def _version(info: dict[str, Any]) -> str:
    return blake2b(repr(sorted(info.items(), key=str)).encode(), digest_size=8).hexdigest()


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Within the block a server that cannot be reached is the user's to fix; a file that is not there is left alone."""
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except ImportError as error:
        raise UserError(f"{url}: {str(error).splitlines()[0].rstrip('.')}, with pip, and run again.") from None
    except Exception as error:  # each kind of server has errors of its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # this disk, not that server
            raise
        words = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{url}: {type(error).__name__} ({words}). Check the address, the credentials and the network."
        ) from None

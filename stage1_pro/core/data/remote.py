"""Sources behind a URL, such as s3://bucket/folder: mirrored into a local folder, and only what has changed again.

fsspec knows how to reach them; the package for each kind (s3fs, gcsfs, …) is installed by whoever needs it.
"""

import errno
import filecmp
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
from urllib.parse import unquote

from stage1_pro.core import artifacts
from stage1_pro.core.console import bar
from stage1_pro.core.data.image_files import HEAD, HIDDEN, NOTHING, SUFFIXES, BadImage, Listing, is_url, sniff
from stage1_pro.core.errors import UserError

THREADS = 16
FEW = 64
"""Images to decide that are asked for one by one: a bucket may have to list millions of names for a few of them."""
LONGEST = 200
"""Bytes of a name that every file system takes, with room for what a temporary file adds."""
CHECK = "Check the address, the credentials and the network."
STATE = ".mirror.json"
"""File of a mirror: relative path → digest of what the server said of the file when it was copied."""


def parent_url(url: str) -> str:
    return url.rpartition("/")[0]


def mirrored_file(url: str, folder: Path) -> Path:
    """Return a local copy of one file. Raises UserError where it cannot be had."""
    mirror, name = Mirror(parent_url(url), folder), url.rpartition("/")[2]
    mirror.files([name])
    return mirror.place(name)


def mirrored_paths(paths: list[str], folder: Path) -> list[str]:
    """Return paths with local copies in place of URLs; the URL of a file that is not there stays, and is missing."""
    copies = _copies(paths, folder, lenient=False)
    return [str(copies.get(path, path)) for path in paths]


def mirrored_tree(url: str, folder: Path) -> tuple[Path, Listing]:
    """Return the local folder of copies, and a listing of the images below it, as `list_images` makes one."""
    mirror = Mirror(url, folder)
    names, hidden, others = mirror.tree()
    paths = sorted(str(mirror.place(name)) for name in names)
    return mirror.local, Listing(tuple(paths), hidden, others)


def images_behind(
    urls: list[str], folder: Path, also: tuple[str, ...] = ()
) -> tuple[dict[str, Listing], dict[str, str | BadImage]]:
    """Copy images that are to be decided, from URLs of files and of folders.

    also: suffixes of files that are inputs too. Returns a listing for each URL, whose paths are URLs, and the local
    copy of each of these, or the reason why there is none. A copy is taken for current only where the server says so.
    Raises UserError for a folder that cannot be listed.
    """
    listings, copies = {}, {}
    for url in dict.fromkeys(urls):
        if not _is_folder(url):
            listings[url] = Listing((url,), 0, Counter())
            continue
        mirror = Mirror(url, folder, lenient=True)
        names, hidden, others = mirror.tree(also)
        addresses = {name: mirror.address(name) for name in sorted(names)}
        listings[url] = Listing(tuple(addresses.values()), hidden, others)
        copies |= {address: mirror.failed.get(name) or str(mirror.place(name)) for name, address in addresses.items()}
    files = [path for listing in listings.values() for path in listing.paths if path not in copies]
    return listings, copies | _copies(files, folder, lenient=True)


def _is_folder(url: str) -> bool:
    """Whether a URL leads to a folder: one that ends in a slash, or that the server lists."""
    if url.endswith("/") or PurePosixPath(url.partition("?")[0]).suffix.lower() in SUFFIXES:
        return url.endswith("/")
    import fsspec

    with _reaching(url):
        system, path = fsspec.url_to_fs(url)
        return system.isdir(path)


def _copies(urls: list[str], folder: Path, lenient: bool) -> dict[str, str | BadImage]:
    """URL → its local copy, or the reason why there is none; nothing for a file that is not there."""
    by_host: dict[str, list[str]] = {}
    for url in filter(is_url, dict.fromkeys(urls)):
        by_host.setdefault("/".join(url.split("/")[:3]), []).append(url)
    copies: dict[str, str | BadImage] = {}
    for some in by_host.values():
        parents = [parent_url(url).split("/") for url in some]
        shared = "/".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, zip(*parents, strict=False)))
        mirror = Mirror(shared, folder, lenient)
        names = {url: url[len(shared) + 1 :] for url in some}
        mirror.files(names.values())
        copies |= {url: mirror.failed[name] for url, name in names.items() if name in mirror.failed}
        local = ((url, mirror.place(name)) for url, name in names.items() if url not in copies and _inside(name))
        copies |= {url: str(path) for url, path in local if path.exists()}
    return copies


class Mirror:
    """A folder of copies of what lies below a URL.

    lenient: a file that is not delivered has its reason in `failed` and does not end the rest; and where the server
    does not say whether a file has changed, it is copied again.
    """

    def __init__(self, url: str, folder: Path, lenient: bool = False):
        import fsspec

        self.url, self.lenient = url.rstrip("/"), lenient
        self.local = (folder / "remote" / blake2b(self.url.encode(), digest_size=8).hexdigest()).absolute()
        with _reaching(url):
            self.system, self.root = fsspec.url_to_fs(self.url)
        self.state: dict[str, str] = self._known()
        self.failed: dict[str, BadImage] = {}
        self.remote: dict[str, str] = {}
        """Path below the URL → path as the server lists it, which may be quoted."""

    def place(self, name: str) -> Path:
        """The local file of a path below the URL; signatures in an address are longer than names of files may be."""
        if max(len(os.fsencode(part)) for part in name.split("/")) > LONGEST:
            return self.local / blake2b(name.encode(), digest_size=16).hexdigest()
        return self.local / name

    def address(self, name: str) -> str:
        """The URL of a path below this one."""
        listed = self.remote.get(name)
        return listed if is_url(listed) else f"{self.url}/{name}"

    def files(self, names: Iterable[str]) -> None:
        """Copy these files, by their paths below the URL, to their places; one that is not there stays missing."""
        wanted = [name for name in dict.fromkeys(names) if _inside(name)]
        listed = self._listed_if_it_can(wanted)

        def taken_as_it_is(name: str) -> bool:
            """What is here already is taken for what is there, of a server that says nothing of it."""
            unknown = not listed or listed.get(name) == ""
            return unknown and not self.lenient and len(wanted) > 1 and self.place(name).exists()

        self._copy({name: listed.get(name, "") for name in wanted if not taken_as_it_is(name)})

    def tree(self, also: tuple[str, ...] = ()) -> tuple[list[str], int, Counter[str]]:
        """Copy every image below the URL; what is not there any more is removed from the copies.

        also: suffixes of files that are copied whatever they hold. Returns paths below the URL, how many files and
        folders are hidden, and suffix → number of files without an image.
        """
        versions = self._listed()
        if not versions:
            raise UserError(f"{self.url}: holds no files. Name a folder that holds images.")
        shown, hidden = {}, set()
        for name, version in versions.items():
            parts = PurePosixPath(name).parts
            at = next((n for n, part in enumerate(parts) if part.startswith(".") or part in HIDDEN), None)
            if at is None:
                shown[name] = version
            else:
                hidden.add(parts[: at + 1])
        others = self._without_image([name for name in shown if not _claims(name, also)])
        wanted = {name: version for name, version in shown.items() if name not in others}
        for name in set(self.state) - set(wanted):
            self.place(name).unlink(missing_ok=True)
            del self.state[name]
        kept = () if self.lenient else (name for name in wanted if not wanted[name] and self.place(name).exists())
        self._copy({name: wanted[name] for name in wanted.keys() - set(kept)})
        return list(wanted), len(hidden), Counter(PurePosixPath(name).suffix.lower() for name in others)

    def _listed(self) -> dict[str, str]:
        """Path below the URL → version of each file, "" where the server does not tell one from another."""
        try:
            with _reaching(self.url):
                found: Any = self.system.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        listed = {}
        for path, info in found.items():
            name = path[len(self.root) :].lstrip("/")
            name = unquote(name) if is_url(path) else name
            # an index page also links to itself, sorted in another way
            if _inside(name) and not PurePosixPath(name).name.startswith("?"):
                listed[name], self.remote[name] = _version(info), path
        return listed

    def _listed_if_it_can(self, wanted: list[str]) -> dict[str, str]:
        """The same where it is worth it; nothing of a server that cannot list, since its files may be there all the
        same: fetching them says what is wrong."""
        try:
            return self._listed() if len(wanted) > (FEW if self.lenient else 1) else {}
        except UserError:
            return {}

    def _without_image(self, names: list[str]) -> set[str]:
        """Those of the files whose content is no image's."""
        without = set()
        with ThreadPoolExecutor(THREADS) as pool, bar(f"looking at {self.url}", brief=True) as progress:
            for done, (name, found) in enumerate(zip(names, pool.map(self._holds_image, names), strict=True), 1):
                if not found:
                    without.add(name)
                progress(done, len(names))
        return without

    def _holds_image(self, name: str) -> bool:
        with _reaching(self.address(name)):
            return sniff(self.system.cat_file(self._path(name), start=0, end=HEAD)) is not None

    def _path(self, name: str) -> str:
        return self.remote.get(name, f"{self.root}/{name}")

    def _copy(self, versions: dict[str, str]) -> None:
        """Copy the files that are not here in this version."""
        new = {
            name: version
            for name, version in versions.items()
            if not version or self.state.get(name) != version or not self.place(name).exists()
        }
        if not new:
            return
        self.local.mkdir(parents=True, exist_ok=True)
        try:
            with ThreadPoolExecutor(THREADS) as pool, bar(f"copying from {self.url}") as progress:
                for done, (name, outcome) in enumerate(zip(new, pool.map(self._fetched, new), strict=True), 1):
                    if outcome is True:
                        self.state[name] = new[name]
                    elif isinstance(outcome, BadImage):
                        self.failed[name] = outcome
                    progress(done, len(new))
        finally:
            artifacts.write_bytes(self.local / STATE, json.dumps(self.state).encode())

    def _fetched(self, name: str) -> bool | BadImage:
        """Copy one file, whole or not at all: whether it is there, or what kept it from being copied."""
        try:
            return self._fetch(name)
        except UserError as error:
            if not self.lenient:
                raise
            return BadImage("io_error", _named(error.__cause__ or error))

    def _fetch(self, name: str) -> bool:
        target = self.place(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")
        os.close(handle)
        try:
            with _reaching(self.address(name)):
                self.system.get_file(self._path(name), temporary)
            # an equal copy stays what it is: a job goes on only while its files have not changed
            if not (target.exists() and filecmp.cmp(temporary, target, shallow=False)):
                os.replace(temporary, target)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return False
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True

    def _known(self) -> dict[str, str]:
        try:
            return json.loads((self.local / STATE).read_text())
        except (OSError, ValueError):
            return {}


def _claims(name: str, also: tuple[str, ...]) -> bool:
    """Whether a file claims to be an image, or another input, by its suffix."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES or name.lower().endswith(also or NOTHING)


def _inside(name: str) -> bool:
    """Whether a path stays below the folder that it is relative to."""
    return bool(name) and not name.startswith("/") and ".." not in PurePosixPath(name).parts and "\0" not in name


def _version(info: dict[str, Any]) -> str:
    """Digest of what a server says of a file; "" where that is a name and no more."""
    if all(info[key] is None for key in info if key not in ("name", "type")):
        return ""
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
        raise UserError(f"{url}: {_named(error)}. {CHECK}") from error


def _named(error: BaseException) -> str:
    words = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__} ({words[:200]})"

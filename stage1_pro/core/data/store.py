"""Copies of images that lie in no local file, so that everything after the case table reads files."""

import os
import tempfile
from pathlib import Path

from stage1_pro.core import artifacts
from stage1_pro.core.data.image_files import content_digest


def cache_folder(named: str | None) -> Path:
    """Return the folder of the copies: the one that is named, or one in the user's cache folder; users without a home,
    as containers have them, have one of temporary files."""
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(tempfile.gettempdir() if cache.startswith("~") else cache) / "stage1_pro"


def kept(folder: Path, content: bytes) -> Path:
    """Return the file of this content below the folder, written where it is not there: equal contents are one file."""
    name = content_digest(content)
    file = folder / "images" / name[:2] / name
    if not (file.exists() and file.stat().st_size == len(content)):
        file.parent.mkdir(parents=True, exist_ok=True)
        # not through the door of artifacts: to wait for the disk with each of many small copies would take hours, and
        # whoever reads one hashes it
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with artifacts.naming(file), os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(temporary, file)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return file.absolute()

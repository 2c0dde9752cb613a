"""Sources of images for a predictor out of the rows of a table: local paths as they are, other places fetched."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from stage1_pro.core.cluster.folder import filesystem, is_local
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.errors import UserError, first_line

FETCHERS = 16
"""Images fetched side by side: a store answers one in tens of milliseconds."""
AHEAD = 128
"""Images fetched before they are decided; a multiple of every usual forward_batch."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_REFUSALS = {FileNotFoundError: "missing", IsADirectoryError: "not_a_file", PermissionError: "no_access"}


def sources(paths: Sequence[str | None], contents: Sequence[bytes | None], base: str) -> Iterator[list[Any]]:
    """Yield what `Stage1Predictor.outputs` takes: all images at once where none is fetched; else AHEAD at a time, and
    the next are fetched while these are decided.

    paths, contents: one of them for each image, bytes before a path; base: folder that relative paths start from. An
    image that is not there is a BadImage. Raises UserError where a store does not answer: that is no image's fault.
    """
    if not any(path and _URL.match(path) for path, content in zip(paths, contents, strict=True) if content is None):
        yield [source(path, content, base) for path, content in zip(paths, contents, strict=True)]
        return
    with ThreadPoolExecutor(FETCHERS) as pool:
        ahead: list[Future] = []
        for start in range(0, len(paths), AHEAD):
            ready, ahead = (
                ahead,
                [
                    pool.submit(source, path, content, base)
                    for path, content in zip(paths[start : start + AHEAD], contents[start : start + AHEAD], strict=True)
                ],
            )
            if ready:
                yield [one.result() for one in ready]
        if ahead:
            yield [one.result() for one in ahead]


def source(path: str | None, content: bytes | None, base: str) -> Any:
    """One image: its bytes, its local path, or why it cannot be had."""
    if content is not None:
        return content
    if not path:
        return BadImage("missing")
    if not _URL.match(path):
        return os.path.join(base, path)
    files, inner = filesystem(path)
    return inner if is_local(files) else fetched(files, inner, path)


def fetched(files: Any, inner: str, path: str) -> bytes | BadImage:
    """The content of an image in a store, or the BadImage that says why there is none."""
    try:
        return files.cat_file(inner)
    except tuple(_REFUSALS) as error:
        return BadImage(next(code for kind, code in _REFUSALS.items() if isinstance(error, kind)))
    except Exception as error:  # each store has errors of its own, which nothing common derives from
        raise UserError(
            f"{path} could not be fetched: {type(error).__name__}: {first_line(error)}. Fix this and give the same "
            "command again: it goes on with this part."
        ) from None

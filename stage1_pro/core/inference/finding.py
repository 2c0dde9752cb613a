"""The images that a command line names: files, what lies below folders, and copies of what lies behind URLs."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stage1_pro.core.data.image_files import BadImage, Listing, is_url, list_images, shown
from stage1_pro.core.data.remote import CHECK, images_behind
from stage1_pro.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Copies:
    """Where the images behind URLs lie: URL → local copy, or why there is none. A URL that is not among them leads to
    no file."""

    of: Mapping[str, str | BadImage] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """The file to read for an image as it was named; for one that was not copied the name, which is no file."""
        found = self.of.get(name, name)
        return name if isinstance(found, BadImage) else found

    def told(self, names: Sequence[str], unreadable: Mapping[int, str]) -> dict[int, str]:
        """Reasons by position, with those of the images that were not delivered."""
        found = {at: self.of.get(names[at]) for at in unreadable}
        return {at: str(bad) if isinstance(bad := found[at], BadImage) else why for at, why in unreadable.items()}


NO_COPIES = Copies()


def find_images(
    names: list[str], store: Path, also: tuple[str, ...] = (), files_of: Callable[[str], list[str]] | None = None
) -> tuple[Listing, Copies]:
    """Files and URLs as named, and the images below the folders named, in the order of the names.

    store: folder for copies of what lies behind URLs; also: suffixes of files that are inputs too; files_of: name → the
    files of that input, where it may have several.

    A name without a file stays among the others, to be deferred. Raises UserError where no name leads to an image.
    """
    behind, copied = images_behind(list(filter(is_url, names)), store, also)
    copies = Copies(copied)
    parts = [behind[name] if is_url(name) else _found(name, also) for name in names]
    found = Listing(
        tuple(path for part in parts for path in part.paths),
        sum(part.hidden for part in parts),
        sum((part.others for part in parts), Counter()),
    )
    words = ", ".join(map(shown, names))
    files = names if files_of is None else [file for name in names for file in files_of(name)]
    if not any(isinstance(copy, str) for copy in copied.values()) and not any(map(os.path.lexists, files)):
        for url, bad in copied.items():
            raise UserError(f"{url}: {bad}. {CHECK}")
        if not any(behind[url].left_out() for url in behind):
            raise UserError(f"{words}: no such image or folder.")
    if not found.paths:
        raise UserError(f"{words}: no images there" + (f" ({found.left_out()})." if found.left_out() else "."))
    return found, copies


def _found(name: str, also: tuple[str, ...]) -> Listing:
    return list_images(name, also) if os.path.isdir(name) else Listing((name,), 0, Counter())

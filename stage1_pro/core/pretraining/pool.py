"""The unlabelled images: found, checked, and cleared of everything that certifies or reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable, inspect_files
from stage1_pro.core.data.image_files import SUFFIXES, list_images
from stage1_pro.core.errors import UserError, counted, first_few
from stage1_pro.core.records.splits import Splits

PROTECTED = ("val_calib", "val_test")
LEAST = 2


@dataclass(frozen=True, slots=True)
class Pool:
    """Images to learn from, each content once, in the order of their digests.

    excluded: split → images left out because the split holds the same file.
    """

    paths: list[str]
    contents: list[str]
    excluded: dict[str, int]
    duplicates: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """Digest of the contents; where the files lie and what they are called does not enter it."""
        return artifacts.digest_bytes("\n".join(self.contents).encode())

    def describe(self) -> None:
        found = len(self) + sum(self.excluded.values()) + self.duplicates + self.unreadable
        out = [f"{count} of {split}" for split, count in self.excluded.items()]
        say(
            f"pool        {len(self)} of {found} images; excluded by content: {', '.join(out)}; "
            f"{self.duplicates} duplicates, {self.unreadable} unreadable left out"
        )


def protected_contents(cases: CaseTable, splits: Splits) -> dict[str, str]:
    """Content digest → split, of the images that no training may see, without labels neither."""
    return {content: split for split in PROTECTED for content in cases.frame["content"].iloc[splits.indices(split)]}


def find_pool(source: str, protected: Mapping[str, str], on_bad_image: str) -> Pool:
    """The images of a folder, or those that a CSV file names, less the protected ones under whatever name.

    Raises UserError where nothing is left to learn from, for files that are missing, and for images that cannot be
    read unless `on_bad_image` is skip.
    """
    paths = pd.Series(_listed(Path(source)), dtype=object)
    digests, unreadable = inspect_files(paths, decode=True)
    frame = pd.DataFrame({"path": paths, "content": digests, "reason": unreadable})
    _demand_readable(frame, source, on_bad_image)
    readable = frame[frame["reason"].isna()]
    split = readable["content"].map(dict(protected))  # without labels too, a test image that was learnt from is spent
    kept = readable[split.isna()].drop_duplicates("content").sort_values("content", kind="stable")
    excluded = {name: int((split == name).sum()) for name in PROTECTED}
    if len(kept) < LEAST:
        raise UserError(
            f"{source}: {len(kept)} of {counted(len(frame), 'image')} left ({sum(excluded.values())} belong to "
            f"{' or '.join(PROTECTED)}); learning needs {LEAST} at least. Name a folder with other images."
        )
    duplicates = int(split.isna().sum()) - len(kept)
    return Pool(list(kept["path"]), list(kept["content"]), excluded, duplicates, len(frame) - len(readable))


def _demand_readable(frame: pd.DataFrame, source: str, on_bad_image: str) -> None:
    missing, bad = frame["content"] == "missing", frame["reason"].notna()
    wrong = frame[missing | bad] if on_bad_image == "error" else frame[missing]
    if wrong.empty:
        return
    names = [
        f"{path} ({'missing' if reason is None else reason})"
        for path, reason in zip(
            wrong["path"], wrong["reason"].astype(object).where(wrong["reason"].notna(), None), strict=True
        )
    ]
    mend = "" if missing.any() else " dataset_params.on_bad_image skip leaves them out."
    raise UserError(
        f"{source}: {len(wrong)} of {counted(len(frame), 'image')} cannot be read: {first_few(names)}.{mend}"
    )


def _listed(source: Path) -> list[str]:
    if source.is_dir():
        listing = list_images(source)
        left_out = listing.left_out()
        if not listing.paths:
            raise UserError(f"--images {source}: no images in this folder" + (f" ({left_out})." if left_out else "."))
        if left_out:
            say(f"left out of {source}: {left_out}")
        return list(listing.paths)
    if source.suffix.lower() in SUFFIXES:
        raise UserError(f"--images {source}: name a folder of images, or a CSV file with a column 'path'.")
    return _from_csv(source)


def _from_csv(source: Path) -> list[str]:
    """Column `path` of a CSV file with a header, relative to the file; other columns are not looked at."""
    artifacts.read_bytes(source, "Name a folder of images, or a CSV file with a column 'path', with --images.")
    try:
        rows = pd.read_csv(source, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: no images could be read from it ({' '.join(str(error).split())}).") from None
    columns = {str(name).strip().lower(): name for name in rows.columns}
    if "path" not in columns:
        raise UserError(f"{source}: the header {','.join(map(str, rows.columns))} has no column 'path'.")
    if rows.empty:
        raise UserError(f"{source}: names no images.")
    return [str(source.parent / path.strip()) for path in rows[columns["path"]]]

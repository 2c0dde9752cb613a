"""Images that are decided together: which group each belongs to, and which of them a bundle looks at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.data.image_files import folder_of, shown
from stage1_pro.core.errors import UserError, counted, first_few, raise_problems
from stage1_pro.core.metrics.views import Views

FOLDER = "folder"
NO_ORDER = (
    "file names give no order (frame_10 sorts before frame_2): name a .csv or .parquet file with the columns id, group "
    "and order"
)


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """One group. size: its images; seen: paths of those that are looked at."""

    name: str
    size: int
    seen: tuple[str, ...]


def groups_of_images(paths: Sequence[str], option: str | None, views: Views) -> list[ImageGroup]:
    """The groups of these images, in the order in which their first images stand.

    option: "folder" or None for one group a folder, or a table with the columns id (the image as it was named), group,
    and order where the bundle looks at a part of a group. Raises UserError with all problems.
    """
    ids = list(map(shown, paths))
    if option in (None, FOLDER):
        if views.count is not None:
            raise UserError(f"this bundle looks at {views.words}, and {NO_ORDER} with --groups.")
        frame = pd.DataFrame({"path": list(paths), "group": list(map(folder_of, ids)), "order": 0.0})
    else:
        frame = _from_table(Path(option), list(paths), ids, views)
    groups = []
    for name, members in frame.groupby("group", sort=False):
        images = members.sort_values("order", kind="stable")["path"].tolist()
        groups.append(ImageGroup(str(name), len(images), tuple(images[at] for at in views.positions(len(images)))))
    return groups


def group_words(groups: Sequence[ImageGroup], views: Views) -> str:
    """How many groups there are, and how many of them hold fewer images than the bundle looks at."""
    words = f"{counted(len(groups), 'group')} of {counted(sum(group.size for group in groups), 'image')}"
    short = sum(views.count is not None and group.size < views.count for group in groups)
    if not short:
        return words
    return f"{words}; {short} of them have fewer than {views.count}: all of theirs are looked at"


def digest_words(groups: Iterable[ImageGroup]) -> Iterable[str]:
    """What pins a job on these groups: their names, and the images that are looked at."""
    return (word for group in groups for word in (group.name, *group.seen))


def _from_table(table: Path, paths: list[str], ids: list[str], views: Views) -> pd.DataFrame:
    if table.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"--groups {table}: 'folder', or a .csv or .parquet file with the columns id, group and order.")
    rows = read_rows(table, "Name a file with the columns id, group and order, or 'folder'.")
    needed = ("id", "group", *(("order",) if views.count is not None else ()))
    missing = [f"no column {name}" for name in needed if name not in rows.columns]
    raise_problems(f"{table}:", missing, f"It needs the columns {', '.join(needed)}.")
    rows = rows.astype({"id": str, "group": str})
    twice = rows["id"][rows["id"].duplicated()]
    known = rows.drop_duplicates("id").set_index("id").reindex(ids)
    order = known["order"] if "order" in known else pd.Series(0.0, known.index)
    frame = pd.DataFrame({"id": ids, "path": paths, "group": known["group"].to_numpy()})
    frame["order"] = pd.to_numeric(order, errors="coerce").to_numpy()
    raise_problems(f"{table}:", list(_problems(frame, twice, views)), "Give every image one row.")
    return frame


def _problems(frame: pd.DataFrame, twice: pd.Series, views: Views) -> Iterable[str]:
    if len(twice):
        yield f"{counted(len(twice), 'id')} more than once: {first_few(twice)}"
    missing = frame["id"][frame["group"].isna() | (frame["group"] == "")]
    if len(missing):
        yield f"no group for {len(missing)} of {len(frame)} images: {first_few(missing)}"
    if views.count is None:
        return
    strange = frame["id"][frame["order"].isna() & frame["group"].notna()]
    if len(strange):
        yield f"no number in order for {counted(len(strange), 'image')}: {first_few(strange)}"
    tied = frame["id"][frame["order"].notna() & frame.duplicated(["group", "order"], keep=False)]
    if len(tied):
        yield f"{counted(len(tied), 'image')} with an order that another one of the group has: {first_few(tied)}"


def read_rows(table: Path, mend: str) -> pd.DataFrame:
    """Return a .parquet file, or one of commas, as a table. Raises UserError where there is none, with this mend."""
    content = artifacts.read_bytes(table, mend)
    try:
        if table.suffix.lower() == ".parquet":
            return pd.read_parquet(BytesIO(content))
        return pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{table}: not text in UTF-8. Save it as CSV in UTF-8, not packed.") from None
    except ValueError as error:  # pandas' and pyarrow's own errors are of this kind
        raise UserError(f"{table}: {str(error).splitlines()[0][:120]}. Fix this and run again.") from None

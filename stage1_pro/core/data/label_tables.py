"""Tables of labelled images as people write them: any usual delimiter and header, and what is left out is said."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.errors import UserError

COLUMNS = ("path", "label", "case_id", "group", "split")
MASK_COLUMNS = ("path", "mask", "case_id", "group", "split")
OTHER_NAMES = {
    "path": ("filename", "file_name", "filepath", "file_path", "file", "image", "image_path", "img"),
    "label": ("class", "class_name", "target", "category"),
    "mask": ("mask_path", "mask_file", "label", "label_path", "segmentation", "seg", "annotation"),
}
"""Names that other tools write; taken for ours where ours is absent."""
DEPENDENT = ("patient", "subject", "person", "site", "video", "track", "scene", "sequence", "camera", "study", "series")
"""A column that begins so probably says which cases depend on each other."""
MOST_NAMED = 8


@dataclass(slots=True, eq=False)
class LabelTable:
    """Rows (N, 5) of strings under COLUMNS or MASK_COLUMNS, with what is said of the table."""

    frame: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_table(path: Path, source: str, columns: tuple[str, ...] = COLUMNS) -> LabelTable:
    """Return the rows of a CSV with or without a header. Raises UserError for a table that cannot be understood.

    path: the file; source: the name under which the config lists it; columns: the first two are needed. Commas,
    semicolons and tabs part the columns.
    """
    needed = columns[:2]
    text = _text(artifacts.read_bytes(path, f"Name an existing CSV in sources[{source}].labels."), path)
    rows = _rows(text, path, columns)
    head = [str(cell).strip().lower() for cell in rows.iloc[0]]
    named = _our_names(head, needed)
    found = LabelTable(rows)
    if set(needed) & set(named):
        missing = [name for name in needed if name not in named]
        if missing or len({name for name in named if name}) < sum(map(bool, named)):
            what = f"has no column '{missing[0]}'" if missing else "names a column twice"
            raise UserError(f"{path}: the header {','.join(head)} {what}. Columns: {','.join(COLUMNS)}.")
        _demand_no_near_miss(named, path, columns)
        taken = [f"{ours} from '{theirs}'" for ours, theirs in zip(named, head, strict=True) if ours != theirs]
        found.notes += [f"{path}: {', '.join(taken)}"] if taken else []
        found.warnings += _ignored([name for name in named if name and name not in columns], "group" in named, path)
        rows = rows.iloc[1:].set_axis(named, axis=1)
        rows = rows[[name for name in columns if name in named]]
    elif len(head) in range(2, len(columns) + 1):
        rows = rows.set_axis(columns[: len(head)], axis=1)
    else:
        raise UserError(
            f"{path}: {len(head)} columns and no header. Columns: {','.join(COLUMNS)}; the last three may be absent."
        )
    if rows.empty:
        raise UserError(f"{path}: holds no cases. Columns: {','.join(COLUMNS)}.")
    rows = rows.reindex(columns=list(columns), fill_value="").reset_index(drop=True)
    found.frame = rows.apply(lambda column: column.str.strip())
    return found


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        guess = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1 or Windows-1252"
        raise UserError(f"{path}: is not UTF-8, but looks like {guess}. Save it as UTF-8.") from None


def _rows(text: str, path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    first = text.split("\n", 1)[0]
    delimiter = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    try:
        # all strings, none a gap: `NA` is a label and `007` an id
        return pd.read_csv(
            io.StringIO(text), sep=delimiter, header=None, dtype=str, keep_default_na=False, skipinitialspace=True
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(
            f"{path}: no cases could be read ({' '.join(str(error).split())}). Columns: {','.join(columns)}."
        ) from None


def _our_names(head: list[str], needed: tuple[str, ...]) -> list[str]:
    """The header with other tools' names for ours. Only a header that holds both is one: `image` may be a label."""
    ours = list(head)
    for name in needed:
        others = OTHER_NAMES[name]
        if name not in ours:
            first = next((other for other in others if other in ours), None)
            ours = [name if cell == first else cell for cell in ours] if first else ours
    return ours if set(needed) <= set(ours) else head


def _demand_no_near_miss(head: list[str], path: Path, columns: tuple[str, ...]) -> None:
    """Other columns are welcome, but `groups` is a `group` that would be left out, and groups would leak."""
    for name in head:
        hint = schemas.did_you_mean(name, list(columns), cutoff=0.8)
        if name not in columns and hint:
            raise UserError(f"{path}: the header's '{name}' is not one of our columns{hint}. Rename it.")


def _ignored(names: list[str], grouped: bool, path: Path) -> list[str]:
    """Warnings: the columns that are not read, and those of them that look like groups where no group is given."""
    if not names:
        return []
    shown = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
    found = [f"{path}: columns that are not read: {shown}"]
    likely = [name for name in names if name.startswith(DEPENDENT)]
    if likely and not grouped:
        found.append(
            f"{path}: '{likely[0]}' looks like what makes cases depend on each other. Rename it to 'group' if it does: "
            "without groups, images of one patient or track land on both sides of a split, and the certificate counts "
            "them as independent"
        )
    return found

"""Tables of labelled images as people write them: any usual delimiter and header, and what is left out is said."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import pandas as pd

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.config.sections import Source
from stage1_pro.core.data.image_files import SUFFIXES
from stage1_pro.core.data.table_files import DELIMITERS, delimited_rows
from stage1_pro.core.errors import UserError, counted, first_few

COLUMNS = ("path", "label", "case_id", "group", "split")
ORDER, CERTIFICATE_GROUP = "$order", "$certificate_group"
"""Columns that settings name, under names that no table has."""
SETTINGS = {
    ORDER: ("dataset_params.order", "orders the images of a group"),
    CERTIFICATE_GROUP: ("certificate_groups", "names the camera or site that has a certificate of its own"),
}
"""By such a name: the setting, and what the column does."""
More = Mapping[str, str]
"""Such a name → the column that its setting names."""
OTHER_NAMES = {
    "path": ("filename", "file_name", "filepath", "file_path", "file", "image", "image_path", "img"),
    "label": ("class", "class_name", "target", "category"),
}
"""Names that other tools write; taken for ours where ours is absent."""
DEPENDENT = ("patient", "subject", "person", "site", "video", "track", "scene", "sequence", "camera", "study", "series")
"""A column that begins so probably says which cases depend on each other."""
MOST_NAMED = 8
WHOLE = "Columns: " + ",".join(COLUMNS)


@dataclass(slots=True, eq=False)
class LabelTable:
    """Rows (N, 5) of strings under COLUMNS, with what is said of the table.

    questions: what must be answered before splits are drawn of it; problems: why no run can use it.
    """

    frame: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_table(path: Path, source: Source, more: More = MappingProxyType({})) -> LabelTable:
    """Return the rows of a delimited table with or without a header. Raises UserError for one that has no meaning.

    path: the file; source: the one of the config that it belongs to; more: columns that are kept beside ours.
    Commas, semicolons, tabs and | part the columns.
    """
    rows = delimited_rows(artifacts.read_bytes(path, f"Name an existing CSV in sources[{source.name}].labels."), path)
    frame = pd.DataFrame(rows.cells, index=pd.Index(rows.lines), dtype=object)
    head = [cell.lower() for cell in rows.cells[0]]
    names, found = our_columns(head, source, path, more)
    if names is not None:
        frame = frame.iloc[1:].set_axis(names, axis=1)
    elif more:
        named = " and ".join(f"{SETTINGS[name][0]} its column '{column}'" for name, column in more.items())
        raise UserError(f"{path}: has no header, and the config names as {named}. Add a header.")
    else:
        _demand_no_header(rows.cells, source, path)
        frame = _without_row_numbers(frame, path, found)
        if frame.shape[1] not in range(2, len(COLUMNS) + 1):
            marks = ", ".join(DELIMITERS.values())
            raise UserError(
                f"{path}: {counted(frame.shape[1], 'column')} and no header. {WHOLE}; the last three may be absent. "
                f"They are parted by one of: {marks}."
            )
        frame = frame.set_axis(COLUMNS[: frame.shape[1]], axis=1)
    found.frame = tidied(frame, path, found)
    return found


def our_columns(
    head: list[str], source: Source, path: Path, more: More = MappingProxyType({})
) -> tuple[list[str] | None, LabelTable]:
    """Return our names for the columns of a header, None where it is none, and what is said of them.

    head: the cells in lower case. A column that is not read keeps its own name. Raises UserError for a header that
    lacks a column, or has one twice.
    """
    found = LabelTable(pd.DataFrame())
    named = _our_names(head, source.columns or {}, source, path)
    if not {"path", "label"} & set(named):
        return None, found
    missing = [name for name in ("path", "label") if name not in named]
    if missing or len({name for name in named if name}) < sum(map(bool, named)):
        what = f"has no column '{missing[0]}'" if missing else "names a column twice"
        raise UserError(
            f"{path}: the header {','.join(head)} {what}. {WHOLE}; sources[{source.name}].columns names others."
        )
    _demand_no_near_miss(named, source, path)
    taken = [f"{ours} from '{theirs}'" for ours, theirs in zip(named, head, strict=True) if ours != theirs and ours]
    found.notes += [f"{path}: {', '.join(taken)}"] if taken else []
    named = _with_more(named, head, more, path)
    ignored = [name for name in named if name and name not in (*COLUMNS, *SETTINGS)]
    found.warnings += _not_read(ignored, path)
    if "group" not in named and "group" not in (source.columns or {}):
        found.questions += _likely_groups(ignored, source, path)
    return named, found


def _with_more(named: list[str], head: list[str], more: More, path: Path) -> list[str]:
    """The header with the names of settings for the columns that these name."""
    others = [name for name in named if name and name not in COLUMNS]
    for name, column in more.items():
        setting, what = SETTINGS[name]
        if column.lower() not in others:
            taken = dict(zip(head, named, strict=True)).get(column.lower())
            why = f", since it is read as {taken}" if taken else schemas.did_you_mean(column.lower(), others)
            raise UserError(f"{path}: has no column '{column}' ({setting}), which {what}{why}.")
        named = [name if cell == column.lower() else cell for cell in named]
    return named


def _our_names(head: list[str], given: Mapping[str, str | None], source: Source, path: Path) -> list[str]:
    """The header with ours for the names that the config gives, and for those of other tools.

    Only a header that holds both is one: `image` may be a label.
    """
    ours = list(head)
    for name, theirs in given.items():
        if theirs is not None and theirs.lower() not in head:
            raise UserError(
                f"{path}: sources[{source.name}].columns names '{theirs}', which the header {','.join(head)} does not "
                f"have{schemas.did_you_mean(theirs.lower(), head)}."
            )
        # what the config does not name for this column is another one, whatever it is called
        ours = ["" if cell == name else cell for cell in ours]
        if theirs is not None:
            ours[head.index(theirs.lower())] = name
    for name, others in OTHER_NAMES.items():
        if name not in ours:
            first = next((other for other in others if other in ours), None)
            ours = [name if cell == first else cell for cell in ours] if first else ours
    return ours if {"path", "label"} <= set(ours) else head


def _demand_no_near_miss(head: list[str], source: Source, path: Path) -> None:
    """Other columns are welcome, but `groups` is a `group` that would be left out, and groups would leak."""
    for name in head:
        near = [] if name in COLUMNS else difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        if near and near[0] not in (source.columns or {}):
            raise UserError(
                f"{path}: the header's '{name}' is not one of our columns (did you mean '{near[0]}'?). Rename it, or "
                f"write columns: {{{near[0]}: {name}}} into sources[{source.name}], with null for {name} if it is none."
            )


def _not_read(names: list[str], path: Path) -> list[str]:
    return [f"{path}: columns that are not read: {first_few(names, MOST_NAMED)}"] if names else []


def _likely_groups(names: list[str], source: Source, path: Path) -> list[str]:
    """The question on a column that looks like groups, where no group is given: only the user knows."""
    likely = next((name for name in names if name.startswith(DEPENDENT)), None)
    if likely is None:
        return []
    return [
        f"{path}: '{likely}' looks like what makes cases depend on each other, and no column 'group' is given. Without "
        "groups, images of one patient or track land on both sides of a split, and the certificate counts them as "
        f"independent. Write columns: {{group: {likely}}} into sources[{source.name}], or columns: {{group: null}} if "
        "the cases do not depend on each other"
    ]


def _demand_no_header(cells: list[list[str]], source: Source, path: Path) -> None:
    """Ask about a first row that is unlike all others: as a case it would be one more file that is missing."""
    first, rest = cells[0], cells[1:]
    column = next((at for at in range(len(first)) if rest and all(_like_file(row[at]) for row in rest)), None)
    if column is None or _like_file(first[column]) or not all(any(map(str.isalpha, cell)) for cell in first):
        return
    example = ", ".join(f"{ours}: {theirs}" for ours, theirs in zip(("path", "label"), first, strict=False))
    raise UserError(
        f"{path}: the first row {','.join(first)} looks like a header whose names are not ours. {WHOLE}. Rename them, "
        f"or write columns: {{{example}}} into sources[{source.name}]; if it is a case, put the line path,label,… "
        "above it."
    )


def _like_file(cell: str) -> bool:
    return PurePosixPath(cell.replace("\\", "/")).suffix.lower() in SUFFIXES


def _without_row_numbers(frame: pd.DataFrame, path: Path, found: LabelTable) -> pd.DataFrame:
    """Drop a first column that only counts the rows, as pandas' own index does, where files stand beside it."""
    first = frame[0].tolist()
    counts = [[str(start + at) for at in range(len(first))] for start in (0, 1)]
    if frame.shape[1] < 3 or len(first) < 2 or first not in counts or not _like_file(frame[1].iloc[0]):
        return frame
    found.notes.append(f"{path}: the first column counts the rows, and is not read")
    return frame.iloc[:, 1:]


def tidied(frame: pd.DataFrame, path: Path, found: LabelTable, unit: str = "line") -> pd.DataFrame:
    """Return the rows under COLUMNS, each once; what is left out is said. frame: indexed by unit of the file."""
    if frame.empty:
        raise UserError(f"{path}: holds no cases. {WHOLE}.")
    columns = [*COLUMNS, *(name for name in SETTINGS if name in frame.columns)]
    frame = frame[[name for name in columns if name in frame.columns]].reindex(columns=columns, fill_value="")
    nameless = frame.index[frame["path"] == ""]
    if len(nameless):
        found.problems.append(f"{path}: {counted(len(nameless), 'row')} without a path: {_numbered(nameless, unit)}")
    repeated = frame.duplicated()
    if repeated.any():
        rows = counted(int(repeated.sum()), "row")
        found.warnings.append(
            f"{path}: {rows} left out that repeat another one exactly: {_numbered(frame.index[repeated], unit)}"
        )
    return frame[~repeated & (frame["path"] != "")].reset_index(drop=True)


def _numbered(numbers: pd.Index, unit: str) -> str:
    return f"{unit}{'s' if len(numbers) > 1 else ''} {first_few(numbers)}"

"""One source of labelled images: a table, or folders of classes, as rows that name local files."""

from pathlib import Path

import pandas as pd

from stage1_pro.core.config.settings import DatasetParams, Source
from stage1_pro.core.data.given_splits import WORDS
from stage1_pro.core.data.image_files import list_images, shown
from stage1_pro.core.data.label_tables import COLUMNS, LabelTable, read_table
from stage1_pro.core.errors import UserError, counted, first_few

NO_CLASSES = frozenset(["images", "image", "imgs", "img", "masks", "mask", "labels", "annotations", "annotation"])
"""Folders, in lower case, that hold the parts of a data set and not its classes."""


def read_source(source: Source, params: DatasetParams) -> LabelTable:
    """One source; ids and groups carry its name where there are several."""
    read = read_table(Path(source.labels), source) if source.labels else _read_folders(source, params)
    frame = read.frame
    root = Path(source.root) if source.root else Path(source.labels or ".").parent
    _read_backslashes(read, root)
    inside = [shown(_relative(path, root)) for path in frame["path"]]
    frame["case_id"] = frame["case_id"].where(frame["case_id"] != "", pd.Series(inside, index=frame.index))
    if len(params.sources) > 1:
        frame["case_id"] = f"{source.name}/" + frame["case_id"]
        frame["group"] = frame["group"].where(frame["group"] == "", f"{source.name}/" + frame["group"])
    # as objects: pandas' own strings cannot hold a name that is not UTF-8
    frame["path"] = pd.Series([str(root / path) for path in frame["path"]], index=frame.index, dtype=object)
    return read


def _read_backslashes(read: LabelTable, root: Path) -> None:
    """Take backslashes for what they are on Windows, where the file is found so and not as it is written."""
    frame = read.frame
    written = frame["path"][frame["path"].str.contains("\\", regex=False)]
    turned = {path: path.replace("\\", "/") for path in written.unique()}
    turned = {path: other for path, other in turned.items() if not (root / path).exists() and (root / other).exists()}
    if turned:
        frame["path"] = frame["path"].replace(turned)
        read.notes.append(f"{root}: backslashes in {counted(len(turned), 'path')} are read as slashes")


def _relative(path: str, root: Path) -> str:
    """A case id that does not tell where the images lie, if they lie below their root."""
    absolute = Path(path)
    if absolute.is_absolute() and absolute.is_relative_to(root.absolute()):
        return absolute.relative_to(root.absolute()).as_posix()
    return path


def _read_folders(source: Source, params: DatasetParams) -> LabelTable:
    """The images below the folders of the classes, which may lie below folders of splits."""
    if source.columns:
        raise UserError(f"sources[{source.name}].columns is set, and folders have no columns: name a table in labels.")
    root = Path(source.root or ".")
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder. Set sources[{source.name}].root to a folder that holds one folder per class."
        )
    listing = list_images(root)
    every = [Path(path).relative_to(root) for path in listing.paths]
    relative = [path for path in every if len(path.parts) > 1 or (root / path).is_dir()]  # or a folder nobody may enter
    if not relative:
        raise UserError(
            f"{root}: no images in class folders. Set sources[{source.name}].root to a folder that holds one folder "
            "per class, or name a CSV in labels."
        )
    notes, splits = [], _split_folders(root, relative, params)
    if splits:
        relative = [path for path in relative if len(path.parts) > 2 or (root / path).is_dir()]
        notes = [f"{root}: the folders {', '.join(splits)} are taken as splits, those below them as classes"]
    columns = {
        "path": [path.as_posix() for path in relative],
        "label": [shown(path.parts[min(bool(splits), len(path.parts) - 1)]) for path in relative],
        "split": [splits.get(path.parts[0], "") for path in relative],
    }
    frame = pd.DataFrame(columns, dtype=object)
    kept = set(relative)
    beside = [shown(path) for path in every if path not in kept]
    warnings = [f"{root}: left out {listing.left_out()}"] if listing.left_out() else []
    if beside:
        lie = "image lies" if len(beside) == 1 else "images lie"
        warnings.append(f"{root}: {len(beside)} {lie} outside the class folders: {first_few(beside)}; left out")
    return LabelTable(frame.reindex(columns=list(COLUMNS), fill_value=""), notes, warnings)


def _split_folders(root: Path, relative: list[Path], params: DatasetParams) -> dict[str, str]:
    """Folder → split where all folders are named like splits; else none. Raises UserError for folders that are no
    classes, unless `class_names` says that they are."""
    tops = sorted({path.parts[0] for path in relative})
    if set(tops) & set(params.class_names or ()):
        return {}
    if len(tops) > 1 and {top.lower() for top in tops} <= NO_CLASSES:
        raise UserError(
            f"{root}: the folders {', '.join(tops)} are no classes. Name a CSV of path,label in labels, or set "
            f"class_names: [{', '.join(tops)}] if they are."
        )
    if not {top.lower() for top in tops} <= set(WORDS):
        return {}
    if not any(len(path.parts) > 2 for path in relative):
        raise UserError(
            f"{root}: the folders {', '.join(tops)} are named like splits and hold no folders of classes. Put one "
            f"folder per class into each, name a CSV in labels, or set class_names: "
            f"[{', '.join(tops)}] if they are classes."
        )
    return {top: WORDS[top.lower()] for top in tops}

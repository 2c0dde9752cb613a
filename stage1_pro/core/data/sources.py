"""One source of labelled images: a table, or folders of classes, as rows that name local files."""

from pathlib import Path
from types import MappingProxyType

import pandas as pd

from stage1_pro.core.config.sections import DatasetParams, Source
from stage1_pro.core.data.given_splits import WORDS
from stage1_pro.core.data.hub import hub_folder, hub_tables, is_hub
from stage1_pro.core.data.image_files import Listing, is_url, list_images, shown
from stage1_pro.core.data.label_tables import COLUMNS, SETTINGS, LabelTable, More, read_table
from stage1_pro.core.data.moved import MovedSource
from stage1_pro.core.data.parquet_tables import is_parquet, read_parquet
from stage1_pro.core.data.remote import mirrored_file, mirrored_paths, mirrored_tree, parent_url
from stage1_pro.core.data.store import cache_folder
from stage1_pro.core.errors import UserError, counted, first_few

NO_CLASSES = frozenset(["images", "image", "imgs", "img", "masks", "mask", "labels", "annotations", "annotation"])
"""Folders, in lower case, that hold the parts of a data set and not its classes."""


def read_source(source: Source, params: DatasetParams, more: More = MappingProxyType({})) -> LabelTable:
    """One source; ids and groups carry its name where there are several. more: columns that are kept beside ours."""
    read, root = _read(source, params, more)
    for name, column in more.items():
        if name not in read.frame:
            raise UserError(
                f"sources[{source.name}] has no column '{column}' ({SETTINGS[name][0]}): it is read from a table that "
                "`labels` names."
            )
    frame = read.frame
    if isinstance(source, MovedSource):
        frame["path"] = pd.Series([_relative(path, Path(source.was)) for path in frame["path"]], frame.index, object)
    _read_backslashes(read, root)
    inside = [shown(_relative(path, root)) for path in frame["path"]]
    frame["case_id"] = frame["case_id"].where(frame["case_id"] != "", pd.Series(inside, index=frame.index))
    if len(params.sources) > 1:
        frame["case_id"] = f"{source.name}/" + frame["case_id"]
        frame["group"] = frame["group"].where(frame["group"] == "", f"{source.name}/" + frame["group"])
    # as objects: pandas' own strings cannot hold a name that is not UTF-8
    paths = [path if is_url(path) else str(root / path) for path in frame["path"]]
    if any(map(is_url, paths)):
        paths = mirrored_paths(paths, cache_folder(params.cache_folder))
    frame["path"] = pd.Series(paths, index=frame.index, dtype=object)
    return read


def _read(source: Source, params: DatasetParams, more: More) -> tuple[LabelTable, Path]:
    """The rows of a source, and the folder that relative paths in them start from."""
    store, root, labels = cache_folder(params.cache_folder), source.root, source.labels
    if is_hub(root) or is_hub(labels):
        return _read_hub(source, params, store)
    if labels:
        path = mirrored_file(labels, store) if is_url(labels) else Path(labels)
        read = read_parquet(path, source, store, more=more) if is_parquet(path) else read_table(path, source, more)
        start = root or (parent_url(labels) if is_url(labels) else None)
        if is_url(start):
            read.frame["path"] = [_joined(str(start), name) for name in read.frame["path"]]
            return read, path.parent
        return read, Path(start) if start else path.parent
    if is_url(root):
        folder, listing = mirrored_tree(str(root), store)
        return _read_folders(folder, str(root), listing, source, params), folder
    folder = Path(root or ".")
    if not folder.is_dir():
        raise UserError(
            f"{folder} is {_no_folder(folder)}. Set sources[{source.name}].root to a folder that holds one folder per "
            "class."
        )
    return _read_folders(folder, str(folder), list_images(folder), source, params), folder


def _no_folder(path: Path) -> str:
    if not path.exists():
        return "not there" + ("" if path.is_absolute() else f", looked for in {Path.cwd()}")
    if not path.is_file():
        return "not a folder"
    if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        return "an archive: unpack it"
    return "a file: a table of path,label goes into labels, not into root"


def _read_hub(source: Source, params: DatasetParams, store: Path) -> tuple[LabelTable, Path]:
    if source.labels or not source.root:
        raise UserError(f"sources[{source.name}]: write the hf: name into root, and no labels beside it.")
    folder = hub_folder(source.root)
    table = hub_tables(folder, source.root, source, store)
    if table is None:
        table = _read_folders(folder, source.root, list_images(folder), source, params)
    return table, folder


def _joined(root: str, name: str) -> str:
    """The URL of a path below a URL; an absolute path, or a URL of its own, stays what it is."""
    return name if is_url(name) or name.startswith("/") else f"{root.rstrip('/')}/{name}"


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


def _read_folders(root: Path, name: str, listing: Listing, source: Source, params: DatasetParams) -> LabelTable:
    """The images below the folders of the classes, which may lie below folders of splits. name: of root, in messages"""
    if source.columns:
        raise UserError(f"sources[{source.name}].columns is set, and folders have no columns: name a table in labels.")
    every = [Path(path).relative_to(root) for path in listing.paths]
    relative = [path for path in every if len(path.parts) > 1 or (root / path).is_dir()]  # or a folder nobody may enter
    if not relative:
        raise UserError(
            f"{name}: no images in class folders. Set sources[{source.name}].root to a folder that holds one folder "
            "per class, or name a CSV in labels."
        )
    notes, splits = [], _split_folders(root, relative, params)
    if splits:
        relative = [path for path in relative if len(path.parts) > 2 or (root / path).is_dir()]
        notes = [f"{name}: the folders {', '.join(splits)} are taken as splits, those below them as classes"]
    columns = {
        "path": [path.as_posix() for path in relative],
        "label": [shown(path.parts[min(bool(splits), len(path.parts) - 1)]) for path in relative],
        "split": [splits.get(path.parts[0], "") for path in relative],
    }
    frame = pd.DataFrame(columns, dtype=object)
    kept = set(relative)
    beside = [shown(path) for path in every if path not in kept]
    warnings = [f"{name}: left out {listing.left_out()}"] if listing.left_out() else []
    if beside:
        lie = "image lies" if len(beside) == 1 else "images lie"
        warnings.append(f"{name}: {len(beside)} {lie} outside the class folders: {first_few(beside)}; left out")
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

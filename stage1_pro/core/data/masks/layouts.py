"""How data sets with masks lie on disk: a CSV, nnU-Net's and MSD's dataset.json, or two folders of equal stems."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.config.sections import Source
from stage1_pro.core.config.tasks import TASKS
from stage1_pro.core.data.image_files import Listing, claims_image, shown
from stage1_pro.core.data.label_tables import OTHER_NAMES, read_table
from stage1_pro.core.data.masks.files import CHANNELS, case_stem, channel_files
from stage1_pro.core.data.table_files import delimited_rows
from stage1_pro.core.errors import UserError, counted, first_few

FOLDERS = (("images", "masks"), ("imagesTr", "labelsTr"), ("images", "labels"), ("image", "mask"), ("img", "mask"))
"""Names of the folder of the images and that of the masks."""
MASK_NAMES = ("mask", "mask_path", "mask_file", "segmentation", "seg", "annotation", "label", "label_path")
"""Names of the column of masks in a CSV."""
PATH_NAMES = ("path", *OTHER_NAMES["path"])
MASK_COLUMNS = ("path", "mask", "case_id", "group", "split")
CHANNEL = re.compile(r"(.+)_(\d{4})$")
"""nnU-Net's name of a channel: CASE_0000."""


@dataclass(slots=True, eq=False)
class Layout:
    """What one source holds.

    frame: rows of strings under MASK_COLUMNS, paths as they can be opened; classes: value → name, where the data set
    says it; ignore_label: value of what nobody has decided; ct: whether the images are said to be CT.
    """

    frame: pd.DataFrame
    classes: dict[int, str] | None = None
    ignore_label: int | None = None
    ct: bool = False
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)


def read_layout(source: Source) -> Layout:
    """Find the cases of a source. Raises UserError where no layout is recognised."""
    if source.labels:
        return _table(source)
    root = Path(source.root or ".")
    where = f"sources[{source.name}].root"
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Set {where} to one with images and masks, or name a CSV in labels.")
    record = root / "dataset.json"
    if record.is_file():
        return _with_record(root, record)
    for images, masks in FOLDERS:
        if (root / images).is_dir() and (root / masks).is_dir():
            return _paired(root / images, root / masks, case_stem)
    known = ", ".join(f"{images}/ and {masks}/" for images, masks in FOLDERS[:3])
    raise UserError(
        f"{root}: no images with masks found. {where} must hold {known}, or a dataset.json of nnU-Net or MSD; or name "
        "a CSV of path,mask in labels."
    )


def _table(source: Source) -> Layout:
    path = Path(str(source.labels))
    read = read_table(path, replace(source, columns=_columns(source, path)))
    frame = read.frame.rename(columns={"label": "mask"})
    root = Path(source.root) if source.root else path.parent
    notes = [note for note in read.notes if "label from" not in note]  # the mask takes the label's place
    written = [cell for name in ("path", "mask") for cell in frame[name] if "\\" in cell]
    for name in ("path", "mask"):
        frame[name] = [_below(root, cell) for cell in frame[name]]
    if turned := [cell for cell in written if "\\" not in _below(root, cell)]:
        notes.append(f"{root}: backslashes in {counted(len(turned), 'path')} are read as slashes")
    layout = Layout(frame, notes=notes, warnings=read.warnings, problems=read.problems, questions=read.questions)
    layout.problems += _listed(frame["path"][frame["mask"] == ""], "image has no mask", "images have no mask")
    layout.frame = _named(frame[frame["mask"] != ""].reset_index(drop=True), root)
    return layout


def _columns(source: Source, path: Path) -> dict[str, str | None]:
    """Our columns under the table's names; that of masks takes the place of a label.

    Raises UserError for a header that has none of masks.
    """
    given = dict(source.columns or {})
    if "label" in given:
        return given
    content = artifacts.read_bytes(path, f"Name an existing CSV in sources[{source.name}].labels.")
    head = [cell.lower() for cell in delimited_rows(content, path).cells[0]]
    found = next((name for name in MASK_NAMES if name in head), None)
    if found is None and {*PATH_NAMES, (given.get("path") or "path").lower()} & set(head):
        raise UserError(
            f"{path}: the header {','.join(head)} has no column 'mask'. Columns: {','.join(MASK_COLUMNS)}; "
            f"sources[{source.name}].columns names others, and {{label: …}} in it that of the masks."
        )
    return given if found in (None, "label") else {**given, "label": found}


def _below(root: Path, cell: str) -> str:
    if not cell:
        return ""
    whole = str(root / cell)
    if os.path.lexists(whole):
        return whole
    return CHANNELS.join(_there(root, part) for part in channel_files(cell))


def _there(root: Path, part: str) -> str:
    """The path of a file, whose backslashes are slashes where it is found so: Windows writes it."""
    slashed = str(root / part.replace("\\", "/"))
    return slashed if os.path.lexists(slashed) else str(root / part)


def _named(frame: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The frame with an id for each case without one: its stem, or its whole path where stems are not unique."""
    stems = [case_stem(Path(channel_files(path)[0])) for path in frame["path"]]
    if len(set(stems)) < len(stems):
        stems = [shown(_relative(channel_files(path)[0], root)) for path in frame["path"]]
    frame["case_id"] = frame["case_id"].where(frame["case_id"] != "", pd.Series(stems, index=frame.index))
    return frame


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


def _with_record(root: Path, path: Path) -> Layout:
    try:
        record = json.loads(artifacts.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(record, dict) or not isinstance(record.get("labels"), dict):
        raise UserError(f"{path}: has no 'labels', so it is no dataset.json of nnU-Net or MSD. Remove or restore it.")
    layout = _msd(root, path, record) if "training" in record else _nnunet(root, path)
    names, regions = _label_names(record["labels"])
    if regions:
        raise UserError(f"{path}: labels {', '.join(regions)} are regions of several values, which are not supported.")
    ignored = [value for value, name in names.items() if name == "ignore"]
    layout.ignore_label = ignored[0] if ignored else None
    layout.classes = {value: name for value, name in sorted(names.items()) if value not in ignored}
    modalities = record.get("channel_names") or record.get("modality") or {}
    said = list(modalities.values()) if isinstance(modalities, dict) else [modalities]
    layout.ct = bool(said) and all(str(one).lower() == "ct" for one in said)
    return layout


def _label_names(labels: dict[str, Any]) -> tuple[dict[int, str], list[str]]:
    """(value → name, names of regions): nnU-Net writes name: value, MSD "value": name."""
    regions = [name for name, value in labels.items() if isinstance(value, list)]
    plain = {name: value for name, value in labels.items() if name not in regions}
    if plain and all(isinstance(value, int) for value in plain.values()):
        return {value: name for name, value in plain.items()}, regions
    return {int(value): str(name) for value, name in plain.items() if value.isdecimal()}, regions


def _nnunet(root: Path, record: Path) -> Layout:
    for name in ("imagesTr", "labelsTr"):
        if not (root / name).is_dir():
            raise UserError(f"{record}: {root / name} is not there. Restore it, or remove dataset.json.")
    return _paired(root / "imagesTr", root / "labelsTr", _case_of_channel)


def _msd(root: Path, path: Path, record: dict[str, Any]) -> Layout:
    try:
        rows = [{"path": str(root / row["image"]), "mask": str(root / row["label"])} for row in record["training"]]
    except (TypeError, KeyError):
        raise UserError(f"{path}: 'training' must be a list of {{image, label}}.") from None
    return Layout(_named(_frame(rows), root)) if rows else Layout(_frame(rows), problems=[f"{path}: holds no cases"])


def _paired(images: Path, masks: Path, case_of: Callable[[Path], str]) -> Layout:
    """Cases of two folders: an image belongs to the mask of its stem."""
    pictures, drawn = _files(images), _files(masks)
    found: dict[str, list[str]] = {}
    for path in pictures.paths:
        found.setdefault(case_of(Path(path)), []).append(path)
    true: dict[str, list[str]] = {}
    for path in drawn.paths:
        true.setdefault(case_stem(Path(path)), []).append(path)
    parted = sorted(case for case, paths in found.items() if len(paths) > 1 and CHANNELS in "".join(paths))
    both = sorted(found.keys() & true.keys() - set(parted))
    if not both and not parted:
        sides = (images, pictures, sorted(found)), (masks, drawn, sorted(true))
        return Layout(_frame([]), problems=[f"{images}: {_no_pairs(*sides)}"])
    rows = [{"path": CHANNELS.join(found[case]), "mask": true[case][0], "case_id": shown(case)} for case in both]
    layout = Layout(_frame(rows))
    for folder, listing in ((images, pictures), (masks, drawn)):
        layout.warnings += [f"{folder}: left out {listing.left_out()}"] if listing.others else []
    words = f"'{CHANNELS}', which parts the files of a case's channels: rename"
    layout.problems += _listed(pd.Series(parted), f"path holds {words} it", f"paths hold {words} them")
    lacking, alone = pd.Series(sorted(found.keys() - true.keys())), pd.Series(sorted(true.keys() - found.keys()))
    layout.problems += _listed(lacking, f"image without a mask in {masks}", f"images without a mask in {masks}")
    layout.problems += _listed(alone, f"mask without an image in {images}", f"masks without an image in {images}")
    several = pd.Series([case for case in both if len(true[case]) > 1])
    layout.problems += _listed(several, "stem has several masks", "stems have several masks")
    if case_of is case_stem:
        several = pd.Series([case for case in both if len(found[case]) > 1])
        layout.problems += _listed(several, "stem has several images", "stems have several images")
    return layout


def _no_pairs(*sides: tuple[Path, Listing, Sequence[str]]) -> str:
    """Why no image has a mask: a folder is empty, holds folders or other files, or names differ.

    sides: folder, files and stems of the images, then of the masks.
    """
    table = "or name both files in a CSV of path,mask in labels"
    for folder, listing, stems in sides:
        if not stems:
            deeper = sorted(path.name for path in folder.iterdir() if path.is_dir())
            holds = f"holds folders ({first_few(deeper)}), which are not read" if deeper else "holds no files"
            if listing.others:
                return f"no image has a mask, since {folder} holds {listing.left_out()}: write PNG, TIFF, BMP or NIfTI"
            return f"no image has a mask, since {folder} {holds}: put the files there, {table}"
    (_, _, found), (masks, _, true) = sides
    return (
        f"no image has a mask: the stems are {first_few(found, 3)} here and {first_few(true, 3)} in {masks}. Give each "
        f"mask the name of its image, {table}"
    )


def _frame(rows: list[dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, dtype=object).reindex(columns=list(MASK_COLUMNS), fill_value="")


def _files(folder: Path) -> Listing:
    """The images and volumes that lie in a folder, not below it."""
    there = sorted(str(path) for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    claims = [claims_image(path, TASKS["segmentation"].suffixes) for path in there]
    others = Counter(Path(path).suffix.lower() for path, claim in zip(there, claims, strict=True) if not claim)
    return Listing(tuple(path for path, claim in zip(there, claims, strict=True) if claim), 0, others)


def _case_of_channel(path: Path) -> str:
    matched = CHANNEL.match(case_stem(path))
    return matched[1] if matched else case_stem(path)


def _listed(names: pd.Series, one: str, many: str) -> list[str]:
    if not len(names):
        return []
    return [f"{len(names)} {one if len(names) == 1 else many}: {first_few(names)}"]

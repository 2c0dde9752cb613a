"""The case table of a segmentation: every image and its mask, checked before anything is trained on them.

To splits, certificate and bundle a case is what it is to a classification: positive where its true mask holds the
positive class. What the masks are is in `CaseTable.masks`.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count

import numpy as np
import pandas as pd

from stage1_pro.core.config.sections import DatasetParams
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar
from stage1_pro.core.data.cases import (
    CaseTable,
    content_problems,
    independent_groups,
    listed,
    split_problems,
)
from stage1_pro.core.data.classes import as_yaml
from stage1_pro.core.data.decoding import turned
from stage1_pro.core.data.given_splits import division_notes, pooled_sources, split_words
from stage1_pro.core.data.image_files import BadImage, read_file
from stage1_pro.core.data.masks.files import channel_files, labels_of, picture_of, read_contents
from stage1_pro.core.data.masks.layouts import Layout, read_layout
from stage1_pro.core.errors import UserError, counted, first_few, raise_problems
from stage1_pro.core.records.splits import SPLITS
from stage1_pro.core.schemas import did_you_mean

ANY = "any"
"""positive_class of masks: every class but the background."""
EIGHT_BIT_ONE = 255
MOST_CLASSES = 256
"""More classes than this are taken for a mask that counts objects."""
UNNAMED = "class {}"
NUMBERED = "; where values number the objects, write one value for all of a class"


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What all cases of a data set share.

    class_names: of the values 0 … C − 1, background first; positives: values of the positive class; ignore_label:
    value of what nobody has decided; from_255: whether 255 stands for 1; dims: 2 or 3; channels: of the images; joint:
    whether they are colours of one file; ct: whether the data set says that the images are CT.
    """

    class_names: tuple[str, ...]
    positives: tuple[int, ...]
    ignore_label: int | None
    from_255: bool
    dims: int
    channels: int
    joint: bool
    ct: bool

    def coded(self, values: np.ndarray) -> np.ndarray:
        """Return class codes int64 of a mask's values; −1 is what nobody has decided."""
        codes = values.astype(np.int64)
        if self.ignore_label is not None:
            codes[values == self.ignore_label] = -1
        if self.from_255:
            codes[values == EIGHT_BIT_ONE] = 1
        return codes


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """One case as it was found. reason: why it cannot be used, then the rest is empty; counts: value → voxels; turned:
    whether EXIF turns the image, and not its mask."""

    content: str = ""
    image: str = ""
    counts: tuple[tuple[int, int], ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    channels: int = 0
    joint: bool = False
    missing: tuple[str, ...] = ()
    differs: str = ""
    turned: bool = False
    reason: str | None = None


def masked_cases(config: Stage1ProConfig, *, decode: bool) -> CaseTable:
    """Read every source and check it; all problems come in one UserError.

    decode: also decode each image; masks always are, since they say which cases are positive.
    """
    params = config.dataset_params
    if not params.sources:
        raise UserError(
            "dataset_params.sources is empty. Name your data in a YAML file, and that file with --config: "
            "dataset_params: {sources: [{root: FOLDER}]}, where FOLDER holds images/ and masks/ of equal stems; "
            "labels: TABLE in place of root names a CSV of path,mask."
        )
    layouts = [read_layout(source) for source in params.sources]
    frame, problems = _pooled(layouts, params), [text for layout in layouts for text in layout.problems]
    if frame.empty:
        raise_problems("no case can be used:", problems)
    found = inspected(frame, decode)
    frame = frame.assign(**{name: _column(found, name) for name in ("content", "image", "counts", "shape", "spacing")})
    problems += _file_problems(frame, found)
    bad = pd.Series([one.reason is not None for one in found], index=frame.index)
    unusable = _by_reason(frame["case_id"], found)
    warnings = [warning for layout in layouts for warning in layout.warnings]
    if bad.all() or (params.on_bad_image == "error" and bad.any()):
        skip = "" if bad.all() else "; on_bad_image: skip leaves them out"
        problems.append(f"{counted(int(bad.sum()), 'case')} cannot be read: {unusable}{skip}")
    elif bad.any():
        warnings.append(f"{counted(int(bad.sum()), 'unreadable case')} left out: {unusable}")
    usable = [one for one in found if one.reason is None and not one.missing]
    turns = [case for case, one in zip(frame["case_id"], found, strict=True) if one.turned]
    if turns:
        warnings.append(
            f"turned by EXIF, unlike the mask: {counted(len(turns), 'image')} ({first_few(turns)}). Where such a mask "
            "was drawn on the image as it is stored, remove EXIF from the image"
        )
    facts, notices = _facts(layouts, usable, params, problems)
    frame = frame[~bad].reset_index(drop=True)
    warnings += _code(frame, facts, config.segmentation_params.min_positive_voxels)
    problems += [*split_problems(frame), *content_problems(frame), *_mask_problems(frame, facts, params)]
    raise_problems(f"{counted(len(found), 'case')}: {counted(len(problems), 'problem')}", problems)
    grouped, splits = bool((frame["group"] != "").any()), bool((frame["split"] != "").any())
    frame["group"] = independent_groups(frame)
    notes = [note for layout in layouts for note in layout.notes]
    notes += division_notes(set(frame["split"])) if splits else []
    warnings += notices if splits else [*notices, *pooled_sources(params.sources)]
    positive = _positive_name(facts)
    return CaseTable(
        frame,
        (f"without {positive}", positive),
        grouped,
        splits,
        tuple(warnings),
        (*_questions(facts, params), *(question for layout in layouts for question in layout.questions)),
        tuple(notes),
        demanded=(positive,),
        masks=facts,
    )


def _pooled(layouts: Sequence[Layout], params: DatasetParams) -> pd.DataFrame:
    """The cases of all sources, sorted; ids and groups carry the name of the source where there are several."""
    frames = []
    for layout, source in zip(layouts, params.sources, strict=True):
        frame = layout.frame
        if len(params.sources) > 1:
            frame["case_id"] = f"{source.name}/" + frame["case_id"]
            frame["group"] = frame["group"].where(frame["group"] == "", f"{source.name}/" + frame["group"])
        frames.append(frame)
    frame = pd.concat(frames)
    frame["split"] = split_words(frame["split"])
    return frame.sort_values("case_id", kind="stable", ignore_index=True)


def inspected(frame: pd.DataFrame, decode: bool) -> list[Inspected]:
    """Look at the files of every case (columns path, mask), in parallel threads."""
    rows, results = list(zip(frame["path"], frame["mask"], strict=True)), []
    with ThreadPoolExecutor() as pool, bar("reading images and masks", brief=True) as progress:
        for one in pool.map(lambda row: _inspect(row[0], row[1], decode), rows):
            results.append(one)
            progress(len(results), len(rows))
    return results


def _inspect(path: str, mask: str, decode: bool) -> Inspected:
    missing = tuple(name for name in (*channel_files(path), mask) if _missing(name))
    if missing:
        return Inspected(content="missing", missing=missing)
    try:
        contents = read_contents(path)
    except BadImage as bad:
        return Inspected(reason=f"image: {bad}")
    image = blake2b(digest_size=16)
    for content in contents:
        image.update(content)
    try:
        stored = read_file(mask)
        values, grid = labels_of(stored)
    except BadImage as bad:
        return Inspected(reason=f"mask: {bad}")
    whole = image.copy()
    whole.update(stored)
    kinds, counts = np.unique(values, return_counts=True)
    found = Inspected(
        content=whole.hexdigest(),
        image=image.hexdigest(),
        counts=tuple(zip(kinds.tolist(), counts.tolist(), strict=True)),
        shape=grid.shape,
        spacing=grid.spacing,
    )
    try:
        picture = picture_of(contents)
    except BadImage as bad:
        return Inspected(reason=f"image: {bad}")
    if decode and not np.isfinite(picture.values).all():
        return Inspected(reason=f"image: {BadImage('not_finite')}")
    size, place = picture.grid.shape, picture.grid.same_place(grid)
    differs = "" if size == grid.shape else f"image {_size(size)}, mask {_size(grid.shape)}"
    differs = differs or ("" if place else "other affines")
    turns = any(map(turned, contents)) and not turned(stored)
    differs += ", turned by EXIF" if turns and differs else ""
    return replace(found, channels=len(picture.values), joint=picture.joint, differs=differs, turned=turns)


def _by_reason(cases: pd.Series, found: Sequence[Inspected]) -> str:
    """The cases that cannot be used, those of one reason side by side."""
    members: dict[str, list[str]] = {}
    for case, one in zip(cases, found, strict=True):
        if one.reason is not None:
            members.setdefault(one.reason, []).append(case)
    return first_few(f"{first_few(names)} ({reason})" for reason, names in members.items())


def _missing(name: str) -> bool:
    try:
        with open(name, "rb"):
            return False
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _column(found: Sequence[Inspected], name: str) -> pd.Series:
    return pd.Series([getattr(one, name) for one in found], dtype=object)


def _file_problems(frame: pd.DataFrame, found: Sequence[Inspected]) -> Iterator[str]:
    ids = frame["case_id"]
    yield from listed(ids[ids.duplicated()], "case id occurs more than once", "case ids occur more than once")
    missing = pd.Series([name for one in found for name in one.missing], dtype=object)
    yield from listed(missing, "file is missing", "files are missing")
    differing = [f"{case} ({one.differs})" for case, one in zip(ids, found, strict=True) if one.differs]
    yield from listed(
        pd.Series(differing, dtype=object), "mask does not fit its image", "masks do not fit their images"
    )
    usable = [(case, one) for case, one in zip(ids, found, strict=True) if one.channels]
    for what, of in (("dimensions", lambda one: len(one.shape)), ("channels", _channels)):
        kinds = pd.Series([of(one) for _, one in usable]).value_counts()
        if len(kinds) > 1:
            odd = pd.Series([f"{case} ({of(one)})" for case, one in usable if of(one) != kinds.index[0]], dtype=object)
            words = f"of other {what} than most, which have {kinds.index[0]}"
            yield from listed(odd, f"case is {words}", f"cases are {words}")


def _channels(one: Inspected) -> str:
    """How many, and whether they are the colours of one file; a grey file has three of them, and is not three files."""
    return f"{one.channels} in one file" if one.joint else f"{one.channels}"


def _facts(
    layouts: Sequence[Layout], usable: Sequence[Inspected], params: DatasetParams, problems: list[str]
) -> tuple[MaskFacts, list[str]]:
    """What all cases share, and warnings; what contradicts itself is added to the problems."""
    ignore = params.ignore_label
    if ignore is None:
        ignore = next((layout.ignore_label for layout in layouts if layout.ignore_label is not None), None)
    values = {value for one in usable for value, _ in one.counts} - {ignore}
    said = [layout.classes for layout in layouts if layout.classes]
    if any(other != said[0] for other in said[1:]):
        problems.append("the sources' dataset.json name different classes: name one class list in class_names")
    names = params.class_names or _names_said(said[0] if said else None, problems)
    from_255 = values <= {0, EIGHT_BIT_ONE} and EIGHT_BIT_ONE in values and len(names or (0, 1)) == 2
    if names is not None and len(names) > MOST_CLASSES:
        problems.append(f"dataset_params.class_names has {len(names)} names, and a mask holds {MOST_CLASSES} at most")
    if names is None:
        top = 1 if from_255 else max(1, _classes_without_gap(values) - 1)
        names = ("background", "foreground") if top == 1 else ("background", *map(UNNAMED.format, range(1, top + 1)))
    warnings = ["the masks hold 0 and 255, which is read as 0 and 1"] if from_255 else []
    first = usable[0] if usable else Inspected(shape=(0, 0), channels=1)
    facts = MaskFacts(
        class_names=tuple(names),
        positives=_positives(tuple(names), params, problems),
        ignore_label=ignore,
        from_255=from_255,
        dims=len(first.shape),
        channels=first.channels,
        joint=first.joint,
        ct=bool(layouts) and all(layout.ct for layout in layouts),
    )
    return facts, warnings


def _classes_without_gap(values: Collection[int]) -> int:
    """How many classes 0, 1, 2, … the values have before one is missing; what lies beyond is an error of the masks."""
    return next(value for value in count(1) if value not in values or value == MOST_CLASSES)


def _names_said(classes: dict[int, str] | None, problems: list[str]) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if sorted(classes) != list(range(len(classes))) or len(classes) < 2:
        problems.append(f"dataset.json: its labels have the values {', '.join(map(str, classes))}, not 0, 1, 2, …")
        return None
    return tuple(classes[value] for value in range(len(classes)))


def _positives(names: tuple[str, ...], params: DatasetParams, problems: list[str]) -> tuple[int, ...]:
    """Values of the positive class; all but the background where it is not named, which a question asks for."""
    if params.positives in ((), (ANY,)) and ANY not in names:
        return tuple(range(1, len(names)))
    unknown = [name for name in params.positives if name not in names[1:]]
    if unknown:
        hint = did_you_mean(unknown[0], list(names[1:]))
        known = ", ".join(names[1:])
        problems.append(f"dataset_params.positive_class is '{unknown[0]}'{hint}; classes: {known}, or any")
    return tuple(names.index(name) for name in params.positives if name not in unknown)


def _positive_name(facts: MaskFacts) -> str:
    if len(facts.positives) > 1 and len(facts.positives) == len(facts.class_names) - 1:
        return "any class"
    return " or ".join(facts.class_names[value] for value in facts.positives)


def _questions(facts: MaskFacts, params: DatasetParams) -> Iterator[str]:
    if not params.positives and len(facts.class_names) > 2:
        first = facts.class_names[1]
        yield (
            "dataset_params.positive_class is not set: which class must not be missed? The classes are "
            f"{first_few(facts.class_names[1:])}. Write, for example, positive_class: {as_yaml(first)} below "
            "dataset_params, or positive_class: any for all of them"
            f"{NUMBERED if first == UNNAMED.format(1) else ''}."
        )


def _code(frame: pd.DataFrame, facts: MaskFacts, least: int) -> list[str]:
    """Add the columns label (1: the mask holds the positive class) and stratum (the rarest class in the mask).

    Returns warnings of other classes that so few masks hold that a split has none.
    """
    present = np.zeros((len(frame), len(facts.class_names)), dtype=np.int64)
    for row, counts in enumerate(frame["counts"]):
        for value, voxels in counts:
            code = 1 if facts.from_255 and value == EIGHT_BIT_ONE else value
            if value != facts.ignore_label and 0 <= code < len(facts.class_names):
                present[row, code] += voxels
    frame["label"] = (present[:, list(facts.positives)].sum(axis=1) >= least).astype(np.int64)
    held = present[:, 1:] > 0
    # the rarest of several classes: a first stage must have seen each
    order = np.argsort(held.sum(axis=0), kind="stable")
    frame["stratum"] = np.where(held.any(axis=1), order[held[:, order].argmax(axis=1)] + 1, 0)
    named = zip(range(1, len(facts.class_names)), facts.class_names[1:], held.sum(axis=0).tolist(), strict=True)
    rare = [f"{name} ({n})" for code, name, n in named if n < len(SPLITS) and facts.positives != (code,)]
    of = counted(len(frame), "mask")
    told = f"classes that too few of {of} hold for every split, so that no figure says how well they are drawn: "
    return [told + first_few(rare)] if rare else []


def _mask_problems(frame: pd.DataFrame, facts: MaskFacts, params: DatasetParams) -> Iterator[str]:
    top = len(facts.class_names) - 1
    allowed = {*range(top + 1), facts.ignore_label, *([EIGHT_BIT_ONE] if facts.from_255 else [])}
    strange = [
        f"{case} ({', '.join(map(str, wrong[:3]))}{', …' if len(wrong) > 3 else ''})"
        for case, counts in zip(frame["case_id"], frame["counts"], strict=True)
        if (wrong := [value for value, _ in counts if value not in allowed])
    ]
    numbered = any(len({value for value, _ in counts} - allowed) > 1 for counts in frame["counts"])
    words = "" if facts.ignore_label is None else f" and {facts.ignore_label}, which is ignored"
    yield from listed(
        pd.Series(strange, dtype=object),
        f"mask holds values outside 0 to {top}{words}",
        f"masks hold values outside 0 to {top}{words}",
        "; write class numbers, name all classes in class_names, or set ignore_label" + (NUMBERED if numbered else ""),
    )
    if facts.ignore_label is not None:
        blank = [{value for value, _ in counts} == {facts.ignore_label} for counts in frame["counts"]]
        words = f"nothing but {facts.ignore_label}, which is ignored"
        yield from listed(
            frame["case_id"][blank], f"mask holds {words}", f"masks hold {words}", "; leave these cases out"
        )
    if len(frame) and not (frame["label"] == 1).any():
        yield f"no mask holds the positive class ({_positive_name(facts)})"
    if params.patch_size is not None and len(params.patch_size) != facts.dims:
        numbers = len(params.patch_size)
        yield f"dataset_params.patch_size has {numbers} numbers, and the cases have {facts.dims} dimensions"
    if params.target_spacing is not None and facts.dims == 2:
        yield "dataset_params.target_spacing is set, and the images are flat files without a spacing: leave it out"
    same = frame[frame["image"] != ""].groupby("image")["content"].transform("nunique") > 1
    mixed = frame["case_id"][same[same].index]
    yield from listed(mixed, "image occurs with different masks", "identical images have different masks")

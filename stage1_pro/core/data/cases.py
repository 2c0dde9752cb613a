"""The case table: every labelled image of a run, checked before anything is trained on it."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.config.sections import DatasetParams
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar
from stage1_pro.core.data.classes import Classes, classes_of, with_counts
from stage1_pro.core.data.decoding import decode as decode_image
from stage1_pro.core.data.given_splits import VALIDATION, WORDS, divided, division_notes, pooled_sources, split_words
from stage1_pro.core.data.image_files import BadImage, content_digest, read_file
from stage1_pro.core.data.label_tables import CERTIFICATE_GROUP, ORDER, LabelTable
from stage1_pro.core.data.sources import read_source
from stage1_pro.core.errors import UserError, counted, first_few, raise_problems
from stage1_pro.core.records.splits import SPLITS

if TYPE_CHECKING:
    from stage1_pro.core.data.masks.table import MaskFacts

TASK = 64
"""Files that a thread reads before it says so."""


@dataclass(frozen=True)
class CaseTable:
    """Cases sorted by case id.

    frame: one row a case with `case_id, path, label` (index into class_names), `group`, `split` (""
    where it is for us to draw) and `content` (digest of the image file). In a binary task the
    positive class is number 1. questions: what must be answered before splits are drawn of these cases; a run that has
    its splits has answered them. merged: names of groups that were joined since they share an identical image. Where
    dataset_params.order names a column, the frame has it as `order`, NaN where it holds no number; where
    certificate_groups does, as `certificate_group`, "" where a case has none.
    """

    frame: pd.DataFrame
    class_names: tuple[str, ...]
    group_column: bool
    split_column: bool
    warnings: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    demanded: tuple[str, ...] | None = None
    """Classes that every split must hold; None: all of them."""
    masks: "MaskFacts | None" = None
    """What is known of the masks of a segmentation; there the classes say whether a case holds the positive one."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def positive_class(self) -> str:
        return self.class_names[-1]

    @property
    def stratum(self) -> np.ndarray:
        """(N,) int64, what the first stage of an incremental training is drawn by."""
        return self.frame["label" if self.masks is None else "stratum"].to_numpy()

    @property
    def strata(self) -> int:
        """How many values `stratum` may have."""
        return len(self.class_names) if self.masks is None else len(self.masks.class_names)

    @cached_property
    def digest(self) -> str:
        """Digest of ids, labels, groups and image contents; where the files lie does not enter it."""
        return rows_digest(self.frame)


def rows_digest(frame: pd.DataFrame) -> str:
    """Digest of a case table's rows: what decides the splits and the labels, and not where the files lie."""
    names = [
        "case_id",
        "label",
        "group",
        "content",
        *(name for name in ("order", "certificate_group") if name in frame),
    ]
    columns = [frame[name].astype(str).tolist() for name in names]
    return artifacts.digest_bytes("\n".join(map("\t".join, zip(*columns, strict=True))).encode())


def labelled_cases(config: Stage1ProConfig, *, decode: bool) -> CaseTable:
    """The case table of a classification, as `load_cases` reads it."""
    return load_cases(config.dataset_params, decode=decode, certificate_groups=config.certificate_groups)


def load_cases(
    params: DatasetParams, *, decode: bool, partial: bool = False, certificate_groups: str | None = None
) -> CaseTable:
    """Read every source and check it; all problems come in one UserError.

    decode: also decode each image, which finds the damaged ones. Without it files are only hashed,
    enough to recognise a table that was checked before. partial: the classes are known, and some may have no cases;
    certificate_groups: column that the frame has as `certificate_group`.
    """
    if not params.sources:
        raise UserError(
            "dataset_params.sources is empty. Name your images in a YAML file, and that file with --config: "
            "dataset_params: {sources: [{root: FOLDER}], positive_class: NAME}, where FOLDER holds one folder per "
            "class; labels: TABLE in place of root names a table of path,label."
        )
    read = _read_sources(params, certificate_groups)
    frame, notes = _sorted_frame(read, params, certificate_groups), [note for source in read for note in source.notes]
    warnings = [warning for source in read for warning in source.warnings]
    if certificate_groups is not None:
        warnings += _uncovered(frame, certificate_groups)
    classes, labels = classes_of(frame["label"], params, partial), frame["label"]
    frame["label"] = classes.codes
    warnings += classes.warnings
    frame["content"], unreadable = inspect_files(frame["path"], decode)
    problems = [problem for source in read for problem in source.problems]
    problems += [*_table_problems(frame, labels, classes, params, partial), *content_problems(frame[unreadable.isna()])]
    found, left_out = _unreadable(frame["case_id"], unreadable, params.on_bad_image)
    problems, warnings = problems + found, warnings + left_out
    raise_problems(f"{counted(len(frame), 'case')}: {counted(len(problems), 'problem')}", problems)
    frame = frame[unreadable.isna()].reset_index(drop=True)
    given = frame["group"]
    frame["group"] = independent_groups(frame)
    splits = bool((frame["split"] != "").any())
    if splits:
        notes += division_notes(set(frame["split"]))
    else:
        warnings += pooled_sources(params.sources)
    return CaseTable(
        frame,
        classes.names,
        group_column=bool((given != "").any()),
        split_column=splits,
        warnings=tuple(warnings),
        questions=(*classes.questions, *(question for source in read for question in source.questions)),
        notes=tuple(notes),
        merged=tuple(sorted(given[(given != "") & (given != frame["group"])].unique())),
    )


def _read_sources(params: DatasetParams, certificate_groups: str | None) -> list[LabelTable]:
    settings = {ORDER: params.order, CERTIFICATE_GROUP: certificate_groups}
    more = {name: column for name, column in settings.items() if column is not None}
    return [read_source(source, params, more) for source in params.sources]


def _sorted_frame(read: list[LabelTable], params: DatasetParams, certificate_groups: str | None) -> pd.DataFrame:
    """The rows of all sources by case id, with the words of `split` and the columns that settings name as ours."""
    frame = pd.concat([source.frame for source in read])
    if certificate_groups is not None:
        frame["certificate_group"] = frame.pop(CERTIFICATE_GROUP).str.strip()
    if params.order is not None:
        frame["order"] = pd.to_numeric(frame.pop(ORDER), errors="coerce").astype(np.float64)
    frame["split"] = split_words(frame["split"])
    return frame.sort_values("case_id", kind="stable", ignore_index=True)


def _uncovered(frame: pd.DataFrame, column: str) -> Iterable[str]:
    without = frame["case_id"][frame["certificate_group"] == ""]
    yield from listed(
        without, f"case has no '{column}' and always defers", f"cases have no '{column}' and always defer"
    )


def _unreadable(ids: pd.Series, reasons: pd.Series, on_bad_image: str) -> tuple[list[str], list[str]]:
    """(problems, warnings) of images that cannot be read. ids, reasons: (N,); a reason is None for a sound image."""
    named = zip(ids[reasons.notna()], reasons.dropna(), strict=True)
    bad = pd.Series([f"{case_id} ({reason})" for case_id, reason in named], dtype=object)
    if not len(bad):
        return [], []
    if on_bad_image == "error":
        words = listing(bad, "image cannot be read", "images cannot be read")
        return [f"{words}; on_bad_image: skip leaves them out"], []
    return [], [listing(bad, "unreadable image left out", "unreadable images left out")]


def _table_problems(
    frame: pd.DataFrame, labels: pd.Series, classes: Classes, params: DatasetParams, partial: bool
) -> Iterable[str]:
    ids = frame["case_id"]
    if len(classes.names) < 2:
        yield f"all labels are '{', '.join(classes.names)}': a classifier needs at least two classes"
    missing = frame["path"][frame["content"] == "missing"]
    yield from listed(missing, "file is missing", "files are missing", _other_machine(missing))
    yield from listed(ids[ids.duplicated()], "case id occurs more than once", "case ids occur more than once")
    strange = labels[(frame["label"] < 0) & (labels != "")]
    if len(strange):
        kinds = counted(strange.nunique(), "label")
        allowed = ", ".join(params.class_names or classes.names)
        yield f"{kinds} outside the classes, with cases: {with_counts(strange)}; classes: {allowed}"
    yield from listed(ids[labels == ""], "case has no label", "cases have no label")
    if not partial:
        empty = [name for code, name in enumerate(classes.names) if not (frame["label"] == code).any()]
        yield from listed(pd.Series(empty), "class has no cases", "classes have no cases")
    yield from split_problems(frame)


def split_problems(frame: pd.DataFrame) -> Iterable[str]:
    """Say what is wrong with the column `split`: unknown words, and cases without one beside cases with one."""
    ids = frame["case_id"]
    strange = frame["split"][~frame["split"].isin(["", VALIDATION, *SPLITS])]
    if len(strange):
        allowed = ", ".join(dict.fromkeys([*SPLITS, *WORDS]))
        yield f"{counted(strange.nunique(), 'unknown split')}, with cases: {with_counts(strange)}; splits: {allowed}"
    if divided(set(frame["split"])).get(VALIDATION) == ():
        yield f"split '{VALIDATION}' stands beside val_select and val_calib: write one of these for its cases"
    undecided = ids[frame["split"] == ""]
    if 0 < len(undecided) < len(frame):
        yield from listed(
            undecided, "case has no split", "cases have no split", "; give a split to all cases or to none"
        )


def _other_machine(missing: pd.Series) -> str:
    """A hint where paths that are missing look like those of Windows."""
    if not missing.str.contains("\\", regex=False).any():
        return ""
    return "; write paths as they are below root, with / between folders"


def content_problems(frame: pd.DataFrame) -> Iterable[str]:
    """Identical images that contradict each other, and groups or images that cross given splits."""
    real = frame[frame["content"] != "missing"]
    for column, words in (("label", "under different labels"), ("split", "in different splits")):
        mixed = real.groupby("content")[column].transform("nunique") > 1
        yield from listed(real["case_id"][mixed], f"image occurs {words}", f"identical images occur {words}")
    grouped = real[real["group"] != ""]
    mixed = grouped.groupby("group")["split"].transform("nunique") > 1
    yield from listed(grouped["group"][mixed].drop_duplicates(), "group crosses splits", "groups cross splits")


def inspect_files(paths: pd.Series, decode: bool) -> tuple[list[str], pd.Series]:
    """(content digests, reasons why an image cannot be read or None), in parallel threads."""
    names, results = list(paths), []
    # many to a task: one a file costs more than it takes to hash a small one
    tasks = [names[start : start + TASK] for start in range(0, len(names), TASK)]
    with ThreadPoolExecutor() as pool, bar("reading images", brief=True) as progress:
        for part in pool.map(lambda task: [_inspect_one(path, decode) for path in task], tasks):
            results += part
            progress(len(results), len(names))
    return [digest for digest, _ in results], pd.Series(
        [reason for _, reason in results], index=paths.index, dtype=object
    )


def _inspect_one(path: str, decode: bool) -> tuple[str, str | None]:
    try:
        content = read_file(path)
    except BadImage as bad:
        return ("missing", None) if bad.code == "missing" else ("unreadable", str(bad))
    reason = None
    if decode:
        try:
            decode_image(content)
        except BadImage as bad:
            reason = str(bad)
    return content_digest(content), reason


def independent_groups(frame: pd.DataFrame) -> pd.Series:
    """Group of each case, so that no image is in two groups: its own id where it has no group, and
    groups that share an identical image are one."""
    # the same image in two splits would be trained on and certified on, whatever the column says
    group = frame["group"].where(frame["group"] != "", frame["case_id"])
    shared = frame["content"].duplicated(keep=False)
    if not shared.any():
        return group
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups, names = pd.factorize(group, sort=True)
    contents, _ = pd.factorize(frame["content"])
    size = len(names) + int(contents.max()) + 1
    links = coo_matrix((np.ones(len(frame)), (groups, len(names) + contents)), shape=(size, size))
    component = connected_components(links, directed=False)[1][: len(names)]
    first = pd.Series(names).groupby(component).transform("first")
    return pd.Series(first.to_numpy()[groups], index=frame.index)


def listed(names: pd.Series, one: str, many: str, after: str = "") -> Iterable[str]:
    """One problem that lists these names, as `listing` words it; nothing where there are none."""
    if len(names):
        yield listing(names, one, many) + after


def listing(names: pd.Series, one: str, many: str) -> str:
    """`3 files are missing: a, b, c`, at most the first ten by name."""
    return f"{len(names)} {one if len(names) == 1 else many}: {first_few(names)}"

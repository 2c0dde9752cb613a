"""Pictures of labelled cases in a report: what stage 1 got wrong, what it was least sure of, what it handed on."""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from stage1_pro.core.console import bar
from stage1_pro.core.data.decoding import decode
from stage1_pro.core.data.image_files import BadImage, content_digest, read_file
from stage1_pro.core.metrics.arrays import BoolArray, IntArray
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.records.scores import Scores, hashes

EACH = 12
"""Pictures of a sheet at most."""
SIDE = 224
"""Pixels of the longer side of a thumbnail: twice the size at which pages show it, for dense screens."""
SHOWN = 14
"""Letters of an id below a picture: what the narrowest column holds."""
SMALL = 64
"""Pixels up to which an image is kept as it is, every pixel of it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One thumbnail. uri: data URI of the image; small: an image of few pixels, which are to be seen as such."""

    uri: str
    small: bool
    case_id: str
    words: str

    @property
    def short_id(self) -> str:
        """The end of the id, which tells cases apart where paths are long."""
        return self.case_id if len(self.case_id) <= SHOWN else "…" + self.case_id[1 - SHOWN :]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Pictures of one kind. total: cases of this kind; absent: of those chosen, how many have no image to show."""

    title: str
    caption: str
    total: int
    pictures: tuple[Picture, ...]
    absent: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of sheets.

    members: (N,) bool from labels and decisions; order: the cases of this kind, those to show first at the front.
    """

    title: str
    caption: str
    members: Callable[[IntArray, ExitDecisions], BoolArray]
    order: Callable[[IntArray, ExitDecisions, np.random.Generator], IntArray]


def _surest(cases: IntArray, decisions: ExitDecisions, _: np.random.Generator) -> IntArray:
    return cases[np.argsort(-decisions.probabilities[cases], kind="stable")]


def _least_sure(cases: IntArray, decisions: ExitDecisions, _: np.random.Generator) -> IntArray:
    return cases[np.argsort(decisions.probabilities[cases], kind="stable")]


def _drawn(cases: IntArray, _: ExitDecisions, rng: np.random.Generator) -> IntArray:
    return rng.permutation(cases)


KINDS = (
    Kind(
        "Missed positives",
        "They exit with a negative answer: what FNR on exits counts. The surest answers first.",
        lambda labels, decided: decided.exits & (labels == 1) & (decided.predictions != 1),
        _surest,
    ),
    Kind(
        "False alarms",
        "Negatives that exit with a positive answer, the surest answers first.",
        lambda labels, decided: decided.exits & (labels == 0) & (decided.predictions == 1),
        _surest,
    ),
    Kind(
        "The least sure exits",
        "Rightly answered, and the nearest to a wrong answer.",
        lambda labels, decided: decided.exits & (labels == decided.predictions),
        _least_sure,
    ),
    Kind(
        "Deferred",
        "Handed on to stage 2, whatever stage 1 would have answered; drawn at random.",
        lambda labels, decided: ~decided.exits,
        _drawn,
    ),
)
"""In the order of the page: the costly errors first."""


def picture_sheets(
    scores: Scores,
    decisions: ExitDecisions,
    paths: Mapping[str, str],
    class_names: Sequence[str],
    rng: np.random.Generator,
) -> list[Sheet]:
    """One sheet for each kind that has cases.

    decisions: of the cases of scores; paths: case id → image file. An image is shown only if its content is the one
    that was scored. Groups that get one decision each have no one picture: no sheets.
    """
    if scores.lengths is not None:
        return []
    labels = scores.labels.astype(np.int64)
    found = [(kind, np.flatnonzero(kind.members(labels, decisions))) for kind in KINDS]
    chosen = [(kind, cases.size, kind.order(cases, decisions, rng)[:EACH]) for kind, cases in found if cases.size]
    with bar("pictures", brief=True) as progress:
        wanted, sheets = sum(len(cases) for _, _, cases in chosen), []
        for kind, total, cases in chosen:
            pictures = tuple(_pictures(cases, scores, decisions, paths, class_names))
            sheets.append(Sheet(kind.title, kind.caption, int(total), pictures, len(cases) - len(pictures)))
            progress(sum(len(sheet.pictures) + sheet.absent for sheet in sheets), wanted)
    return sheets


def _pictures(
    cases: IntArray, scores: Scores, decisions: ExitDecisions, paths: Mapping[str, str], class_names: Sequence[str]
) -> Iterator[Picture]:
    for case in cases:
        name = str(scores.case_id[case])
        image = _image(paths.get(name), None if scores.content is None else int(scores.content[case]))
        if image is None:
            continue
        answer, label = class_names[int(decisions.predictions[case])], class_names[int(scores.labels[case])]
        done = "answered" if decisions.exits[case] else "would be answered"
        sure = decisions.probabilities[case]
        words = f"{label}, {done} {answer}" + (f" at {sure:.1%}" if np.isfinite(sure) else "")
        small = max(image.size) <= SMALL
        yield Picture(data_uri(image, small), small, name, words)


def _image(path: str | None, content: int | None) -> Image.Image | None:
    """The upright image, or None where the file is gone, unreadable or another one than was scored."""
    if path is None:
        return None
    try:
        found = read_file(path)
        return decode(found) if content in (None, int(hashes([content_digest(found)])[0])) else None
    except BadImage:
        return None


def data_uri(image: Image.Image, small: bool) -> str:
    """The image as a page holds it; small: every pixel of it, else a thumbnail."""
    buffer = BytesIO()
    if small:
        image.save(buffer, "PNG")
    else:
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, "JPEG", quality=82, subsampling=0)  # thin coloured lines stay what they are
    return f"data:image/{'png' if small else 'jpeg'};base64,{b64encode(buffer.getvalue()).decode()}"

"""Pictures of cases with masks in a report: the true outline and the predicted one on the image itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.report.common import style
from stage1_pro.core.report.run.pictures import EACH, SIDE, Picture, Sheet, data_uri

SLOPE, DASH = (2, 3), 12
"""Stripes that part the predicted outline into dashes: oblique, so that outlines along the grid of a small image, which
most of these are, are parted too."""
OUTLINES = "The true outline is green, the predicted one dashed and pink."


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of sheets. members: (N,) bool; first: (N,) of which the least are shown first, None: drawn
    at random."""

    title: str
    caption: str
    members: Callable[[Scores, ExitDecisions], BoolArray]
    first: Callable[[Scores, ExitDecisions], FloatArray] | None


def _missed(scores: Scores) -> IntArray:
    assert scores.masks is not None
    return scores.masks.missed


def _dice(scores: Scores, _: ExitDecisions) -> FloatArray:
    assert scores.masks is not None
    return np.nan_to_num(scores.masks.dice, nan=-1.0)


KINDS = (
    Kind(
        "Missed on exits",
        "Positives that exit and whose mask fails the miss rule: what FNR on exits counts. The poorest masks first.",
        lambda scores, decided: decided.exits & (_missed(scores) == 1),
        _dice,
    ),
    Kind(
        "False alarms",
        "Cases without the positive class that exit with a mask of it, the surest first.",
        lambda scores, decided: decided.exits & (scores.labels == 0) & (decided.predictions == 1),
        lambda _, decided: -decided.scores,
    ),
    Kind(
        "The least sure exits",
        "Neither missed nor a false alarm, and the nearest to being deferred.",
        lambda scores, decided: decided.exits & (_missed(scores) != 1) & (scores.labels == decided.predictions),
        lambda _, decided: decided.scores,
    ),
    Kind(
        "Deferred",
        "Handed on to stage 2, whatever stage 1 would have drawn; chosen at random.",
        lambda _, decided: ~decided.exits,
        None,
    ),
)
"""In the order of the page: the costly errors first."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Cases of one kind. total: how many there are; positions: of those that are shown, in their order."""

    kind: Kind
    total: int
    positions: tuple[int, ...]

    def sheet(self, pictures: dict[int, Picture]) -> Sheet:
        shown = tuple(pictures[at] for at in self.positions)
        return Sheet(self.kind.title, f"{self.kind.caption} {OUTLINES}", self.total, shown, 0)


def chosen_cases(scores: Scores, decisions: ExitDecisions, rng: np.random.Generator) -> list[Chosen]:
    """At most EACH cases of each kind that has some. scores: with masks; decisions: of the same cases."""
    chosen = []
    for kind in KINDS:
        cases = np.flatnonzero(kind.members(scores, decisions))
        order = rng.permutation(len(cases)) if kind.first is None else kind.first(scores, decisions)[cases].argsort()
        chosen.append(Chosen(kind, len(cases), tuple(cases[order[:EACH]].tolist())))
    return [row for row in chosen if row.total]


def picture(case_id: str, words: str, image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> Picture:
    """A thumbnail with both outlines. image: (H, W) or (H, W, 3) in 0 to 1; truth, mask: (H, W) class codes."""
    height, width = truth.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = Image.fromarray((255 * np.atleast_3d(image)).astype(np.uint8).squeeze())
    near = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    pixels = np.array(shown.convert("RGB").resize(size, near))
    stripes = np.tensordot(SLOPE, np.indices(pixels.shape[:2]), axes=1)
    dashes = stripes // DASH % 2 == 0
    for codes, colour, where in ((truth, style.GREEN, True), (mask, style.PINK, dashes)):
        pixels[_outline(codes, size) & where] = _rgb(colour)
    return Picture(data_uri(Image.fromarray(pixels), small=False), False, case_id, words)


def _outline(codes: np.ndarray, size: tuple[int, int]) -> BoolArray:
    """(H, W) bool: the border of the classes at this (width, height), three pixels wide."""
    grown = np.asarray(Image.fromarray(np.clip(codes, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    border = (grown > 0) & np.any([grown != other for other in _around(grown)], axis=0)
    return border | np.any(_around(border), axis=0)


def _around(pixels: np.ndarray) -> list[np.ndarray]:
    """The neighbours of each pixel, (H, W) each; at the edge the pixel itself."""
    wide = np.pad(pixels, 1, mode="edge")
    return [wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))

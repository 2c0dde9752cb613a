"""How compared figures are called and written, on every page that puts runs beside each other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

UNDEFINED = "–"


DIGEST_SHOWN = 12


Form = Callable[[float | None], str]


def percent(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.2%}"


def percent_up(value: float | None) -> str:
    """As percent, rounded up: a bound must not look tighter than it is."""
    return percent(None if value is None else np.ceil(round(value * 1e4, 6)) / 1e4)


def thousands(value: int) -> str:
    return f"{value:,}"


def number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4g}"


def short(digest: str | None) -> str:
    return UNDEFINED if digest is None else digest[:DIGEST_SHOWN]


@dataclass(frozen=True, slots=True)
class Cell:
    """value, the interval and a note on lines below it, and the tone of a class of the page: good, bad or none."""

    value: str
    interval: str = ""
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One row of a table: a measure and its cell for each run."""

    name: str
    meaning: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Measure:
    """How a compared figure is written: its value, and a difference of two of them."""

    name: str
    meaning: str
    form: Callable[[float | None], str]
    change: Callable[[float | None], str]
    higher: tuple[str, str]
    """Words for a positive and for a negative difference."""


def points(value: float | None) -> str:
    """A difference of two shares, in percentage points."""
    return UNDEFINED if value is None else _signed(f"{100 * value:+.2f}")


def area(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.5f}"


def area_change(value: float | None) -> str:
    return UNDEFINED if value is None else _signed(f"{value:+.5f}")


def _signed(text: str) -> str:
    """With a minus as wide as the plus, and none before a zero."""
    return text[1:] if float(text) == 0 else text.replace("-", "−", 1)


MEASURES = {
    "coverage": Measure("Coverage", "of all cases, those that exit", percent, points, ("more", "less")),
    "fpr_on_exits": Measure(
        "FPR on exits", "of the negatives that exit, those answered positive", percent, points, ("higher", "lower")
    ),
    "accuracy_on_exits": Measure(
        "Accuracy on exits", "of the cases that exit, those answered rightly", percent, points, ("higher", "lower")
    ),
    "augrc": Measure("AUGRC", "how well scores rank; lower is better", area, area_change, ("higher", "lower")),
}

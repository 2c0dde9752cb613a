"""How compared figures are called and written, on every page that puts runs beside each other."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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


def bracket(low: float | None, high: float | None, form: Form) -> str:
    """An interval in the unit of the value before it, which is not said again; nothing where it is undefined."""
    return "" if low is None or high is None else f"[{form(low)}, {form(high)}]".replace("%", "")


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
    form: Form
    change: Form
    higher: tuple[str, str]
    """Words for a positive and for a negative difference."""


def measure_rows(
    measures: Mapping[str, Measure], subjects: Iterable[Any], cell: Callable[[Any, str], Cell]
) -> list[MeasureRow]:
    """A row for each measure, and in it what `cell` makes of each subject and the measure's key."""
    shown = list(subjects)
    return [MeasureRow(row.name, row.meaning, [cell(one, key) for one in shown]) for key, row in measures.items()]


def points(value: float | None) -> str:
    """A difference of two shares, in percentage points."""
    return UNDEFINED if value is None else _signed(f"{100 * value:+.2f}")


def gain(value: float | None) -> str:
    """Utility, in deferrals a case."""
    return UNDEFINED if value is None else _minus(f"{value:.3f}")


def gain_change(value: float | None) -> str:
    return UNDEFINED if value is None else _signed(f"{value:+.3f}")


def area(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.5f}"


def area_change(value: float | None) -> str:
    return UNDEFINED if value is None else _signed(f"{value:+.5f}")


def _signed(text: str) -> str:
    """With a minus as wide as the plus, and none before a zero."""
    return text[1:] if float(text) == 0 else _minus(text)


def _minus(text: str) -> str:
    return text.replace("-", "−", 1)


FNR = Measure("FNR on exits", "of the positives that exit, those answered negative", percent, points, ("", ""))
MEASURES = {
    "right_exits": Measure(
        "Right exits", "of all cases, those that exit and are answered rightly", percent, points, ("more", "fewer")
    ),
    "utility": Measure(
        "Utility", "coverage less the price of wrong exits, a case", gain, gain_change, ("higher", "lower")
    ),
    "coverage": Measure("Coverage", "of all cases, those that exit", percent, points, ("more", "less")),
    "fpr_on_exits": Measure(
        "FPR on exits", "of the negatives that exit, those answered positive", percent, points, ("higher", "lower")
    ),
    "accuracy_on_exits": Measure(
        "Accuracy on exits", "of the cases that exit, those answered rightly", percent, points, ("higher", "lower")
    ),
    "augrc": Measure("AUGRC", "how well scores rank; lower is better", area, area_change, ("higher", "lower")),
}
"""What is compared; differences are of these."""
SHOWN = {
    name: FNR if name == "fnr_on_exits" else MEASURES[name]
    for name in ("right_exits", "utility", "coverage", "fnr_on_exits", "fpr_on_exits", "accuracy_on_exits", "augrc")
}
"""What is shown of each run: FNR on exits too, which the promise holds down in all of them."""
TONES = {1: "good", -1: "bad", 0: ""}
"""Of a difference for the better, for the worse, within chance."""

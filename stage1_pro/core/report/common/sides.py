"""The page that puts runs, or arms of a test, side by side: what it shows, and how it is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1_pro.core import artifacts
from stage1_pro.core.report.common.cells import MeasureRow
from stage1_pro.core.report.common.template import fill

if TYPE_CHECKING:  # matplotlib is imported where a page is written
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure of the page. height: in inches, of the number of runs."""

    name: str
    title: str
    caption: str
    height: Callable[[int], float]
    draw: "Callable[[Figure, Any], None]"


@dataclass(frozen=True, slots=True)
class Card:
    """The answer about one run. id: unique on the page; error: after the words right exits, or nothing."""

    id: str
    letter: str
    name: str
    label: str
    tone: str
    verdict: str
    right_exits: str
    error: str
    sentence: str


@dataclass(frozen=True, slots=True)
class SidesPage:
    """What the page says. tables: (title, heads of the columns, rows); facts: (name, value)."""

    title: str
    words: str
    date: str
    warnings: Sequence[str]
    cards: Sequence[Card]
    lead: str
    tables: Sequence[tuple[str, Sequence[str], Sequence[MeasureRow]]]
    remarks: Sequence[str]
    facts: Sequence[tuple[str, str]]
    command: str

    def html(self, charts: Sequence[tuple[Chart, str]]) -> str:
        """The page. charts: (figure, its SVG element)."""
        from markupsafe import Markup

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return fill("sides.html", **values, charts=[(chart, Markup(svg)) for chart, svg in charts])


def draw_charts(charts: Sequence[Chart], shown: Any, count: int, folder: Path) -> list[tuple[Chart, str]]:
    """Write figures/*.png of `shown`, which has `count` runs, into a folder; returns (chart, its SVG element)."""
    from stage1_pro.core.report.common.style import render

    (folder / "figures").mkdir(exist_ok=True)
    drawn = []
    for chart in charts:
        rendering = render(lambda figure, chart=chart: chart.draw(figure, shown), chart.height(count), chart.name)
        artifacts.write_bytes(folder / "figures" / f"{chart.name}.png", rendering.png)
        drawn.append((chart, rendering.svg))
    return drawn

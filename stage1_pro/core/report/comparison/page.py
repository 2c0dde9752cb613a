"""One self-contained page about several runs, with its figures and its numbers."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stage1_pro.core import artifacts
from stage1_pro.core.comparison.compare import Comparison
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.paths import unused_name
from stage1_pro.core.report.common.template import fill
from stage1_pro.core.report.comparison import tables

if TYPE_CHECKING:  # matplotlib is imported where a page is written
    from matplotlib.figure import Figure

PAGE, NUMBERS = "comparison.html", "comparison.json"


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure of the page. height: in inches, of the number of runs."""

    name: str
    title: str
    caption: str
    height: Callable[[int], float]
    draw: "Callable[[Figure, Comparison], None]"


def free_folder(out: str | None) -> Path:
    """Where a comparison goes: the folder named, or runs/compare-<UTC time>. Raises UserError where it is in use."""
    folder = Path(out) if out else unused_name("compare")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists, and comparisons are never overwritten. Name another folder with --out.")
    return folder


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write figures/*.png, comparison.json and comparison.html beside a new or empty folder, and rename them to it:
    what is interrupted leaves nothing. Returns the page's path."""
    with artifacts.new_folder(folder.resolve()) as building:  # a link to an empty folder stays a link
        _write(comparison, building)
    return folder / PAGE


def _write(comparison: Comparison, folder: Path) -> None:
    from stage1_pro.core.report.common.style import render

    (folder / "figures").mkdir()
    charts = []
    for chart in _charts():
        height = chart.height(len(comparison.standings))
        rendering = render(lambda figure, chart=chart: chart.draw(figure, comparison), height, chart.name)
        artifacts.write_bytes(folder / "figures" / f"{chart.name}.png", rendering.png)
        charts.append((chart, rendering.svg))
    artifacts.write_json(folder / NUMBERS, comparison.record(), "comparison")
    artifacts.write_bytes(folder / PAGE, page(comparison, charts).encode())


def page(comparison: Comparison, charts: list[tuple[Chart, str]]) -> str:
    """The HTML. charts: (figure, its SVG element)."""
    from markupsafe import Markup

    paths = [one.contender.path for one in comparison.standings]
    return fill(
        "comparison.html",
        comparison=comparison,
        standings=[
            (one, *tables.VERDICTS[one.verdict], tables.sentence(comparison, one)) for one in comparison.standings
        ],
        label=tables.label,
        figures=tables.figure_rows(comparison),
        differences=tables.difference_rows(comparison),
        warnings=tables.warnings(comparison),
        remarks=tables.remarks(comparison),
        charts=[(chart, Markup(svg)) for chart, svg in charts],
        command=f"python stage1_pro/scripts/40_eval_selective.py --compare {shlex.join(paths)}",
    )


def _charts() -> tuple[Chart, ...]:
    from stage1_pro.core.report.comparison import figures as drawings

    return (
        Chart(
            "standings",
            "Coverage and FNR on exits",
            "On the test split. FNR on exits is promised to stay left of the target; the bound comes from "
            "val_calib, the interval from the test cases alone.",
            drawings.standings_height,
            drawings.draw_standings,
        ),
        Chart(
            "differences",
            "Differences from the first run",
            "In percentage points, AUGRC as it is. Paired: each resample of the test cases measures both runs. Better "
            "is right of zero for coverage and accuracy, left of it for FPR and AUGRC.",
            drawings.differences_height,
            drawings.draw_differences,
        ),
        Chart(
            "curves",
            "FNR on exits against coverage",
            "How many positives would be missed among those that exit, were each threshold moved. The promise is made "
            "for the marked points alone.",
            lambda runs: 3.2 + 0.2 * (runs // 4),
            drawings.draw_curves,
        ),
    )

"""One self-contained page about an A/B test, with its figures and its numbers."""

from pathlib import Path

from stage1_pro.core import artifacts
from stage1_pro.core.ab.outcome import ABTest
from stage1_pro.core.report.ab import tables
from stage1_pro.core.report.common.template import fill

PAGE, NUMBERS = "ab.html", "ab.json"


def write_test(test: ABTest, folder: Path, command: str) -> Path:
    """Write ab.json, figures/*.png and ab.html over those of an earlier look; returns the page's path."""
    from stage1_pro.core.report.ab import figures as drawings
    from stage1_pro.core.report.common.style import render

    artifacts.write_json(folder / NUMBERS, test.record(), "ab")
    arms, charts = len(test.standings), []
    for name, title, caption, height, draw in (
        ("arms", "Coverage and FNR on exits", ARMS, drawings.arms_height(arms), drawings.draw_arms),
        (
            "differences",
            "Differences from the reference",
            CHANGES,
            drawings.differences_height(arms),
            drawings.draw_differences,
        ),
        ("cost", "Coverage against training time", COST, 3.0 + 0.2 * (arms // 3), drawings.draw_cost),
    ):
        rendering = render(lambda figure, draw=draw: draw(figure, test), height, name)
        (folder / "figures").mkdir(exist_ok=True)
        artifacts.write_bytes(folder / "figures" / f"{name}.png", rendering.png)
        charts.append((name, title, caption, rendering.svg))
    artifacts.write_bytes(folder / PAGE, page(test, charts, command).encode())
    return folder / PAGE


ARMS = (
    "On the test split, at the certified threshold of each run. A run for which nothing was certified counts as "
    "coverage 0."
)
CHANGES = (
    "Paired by seed, in percentage points, AUGRC as it is. Better is right of zero for coverage and accuracy, left of "
    "it for FPR and AUGRC."
)
COST = "Bars are standard errors over seeds. Time is that of the epochs, validation included."


def page(test: ABTest, charts: list[tuple[str, str, str, str]], command: str) -> str:
    """The HTML. charts: (name, title, caption, SVG element); command: the one that makes the page again."""
    from markupsafe import Markup

    return fill(
        "ab.html",
        test=test,
        standings=[(one, *tables.VERDICTS[one.verdict], tables.sentence(test, one)) for one in test.standings],
        settings=tables.settings,
        names=[one.arm.name for one in test.standings],
        figures=tables.figure_rows(test),
        differences=tables.difference_rows(test),
        costs=tables.cost_rows(test),
        warnings=tables.warnings(test),
        remarks=tables.remarks(test),
        charts=[(name, title, caption, Markup(svg)) for name, title, caption, svg in charts],
        command=command,
    )

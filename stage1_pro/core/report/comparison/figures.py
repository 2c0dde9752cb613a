"""A comparison, drawn: one line a run, in the order given, by its letter and as much of its name as fits."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stage1_pro.core.comparison.compare import Comparison, Standing
from stage1_pro.core.comparison.contender import BINOMIAL, IN_EXPECTATION, Certificate, Estimate
from stage1_pro.core.metrics.exits import fnr_coverage_curve
from stage1_pro.core.report.common import interval_rows as panels
from stage1_pro.core.report.common import style
from stage1_pro.core.report.common.cells import MEASURES

BOUNDS = {
    BINOMIAL: ("D", style.GREEN, "bound at the threshold alone"),
    IN_EXPECTATION: ("v", style.PINK, "bound in expectation"),
}
LINES = [(colour, dashes) for dashes in ("-", ":", "-.") for colour in style.RUN_COLOURS]


def draw_standings(figure: Figure, comparison: Comparison) -> None:
    """Right exits, and FNR on exits with its target and the bound at the threshold alone, run by run."""
    right, fnr = figure.subplots(2, sharey=True)
    for row, standing in enumerate(comparison.standings):
        panels.interval(right, row, standing.figures["right_exits"], style.BLUE, "test, with interval")
        panels.interval(fnr, row, _fnr(standing), style.BLUE, "test, with interval")
        if standing.contender.certificate is not None:
            _promise(fnr, row, standing.contender.risk.target_fnr, standing.contender.certificate)
        else:
            fnr.text(0.02, row, "nothing certified", transform=fnr.get_yaxis_transform(), va="center", color=style.RED)
    panels.name_rows(right, [f"{one.letter}  {panels.shortened(one.contender.name)}" for one in comparison.standings])
    least = min(one.figures["right_exits"].low or 0.0 for one in comparison.standings)
    start = max(0.0, 1.25 * least - 0.27)
    right.set_xlim(start - 0.02 * (1 - start), 1 + 0.02 * (1 - start))
    fnr.set_xlim(-0.02 * fnr.get_xlim()[1], fnr.get_xlim()[1])
    style.percent_axis(right.xaxis, "right exits (%)")
    style.percent_axis(fnr.xaxis, "FNR on exits (%)")
    style.legend(figure, right, fnr)


def draw_differences(figure: Figure, comparison: Comparison) -> None:
    """Every measure of the other runs minus that of the first one."""
    first, *others = comparison.standings
    for axes, (key, measure) in zip(figure.subplots(3, 2, sharey=True).flat, MEASURES.items(), strict=True):
        axes.axvline(0, color=style.INK, linewidth=0.9)
        for row, standing in enumerate(others):
            difference = standing.differences[key]
            colour, words = panels.SENSE_COLOURS[difference.sense]
            panels.interval(axes, row, difference, colour, words)
            if difference.value is None:
                axes.text(0, row, " undefined", va="center", fontsize=8, color=style.MUTED)
        panels.change_axis(axes, measure.name, shares=key not in ("utility", "augrc"))
    panels.name_rows(axes, [f"{one.letter} − {first.letter}" for one in others])
    style.legend(figure, *figure.axes, columns=3)


def draw_curves(figure: Figure, comparison: Comparison) -> None:
    """FNR on exits at every coverage, were each threshold moved, and where each policy stands."""
    axes = figure.subplots()
    points, targets = [], {one.contender.risk.target_fnr for one in comparison.standings}
    for standing, (colour, dashes) in zip(comparison.standings, _lines(), strict=False):
        decided = standing.contender.decisions
        curve = fnr_coverage_curve(decided.scores, decided.predictions, comparison.cases.labels)
        axes.plot(curve.coverage, curve.fnr, color=colour, linestyle=dashes, linewidth=1.5, label=standing.letter)
        coverage, fnr = standing.figures["coverage"].value, standing.fnr["value"]
        if coverage is not None and fnr is not None:  # no case exits where nothing was certified
            style.mark(axes, (coverage, fnr), "o", colour, "")
            points.append(fnr)
    for target in sorted(targets):
        style.target_line(axes, target)
    style.coverage_axis(axes)
    axes.set_xlim(0, 1.02)
    style.fnr_axis(axes, max(targets), *points)
    style.legend(figure, axes, columns=4)


def standings_height(runs: int) -> float:
    return 2.0 + 0.5 * runs


def differences_height(runs: int) -> float:
    return 3.2 + 0.66 * (runs - 1)


def _promise(axes: Axes, row: int, target: float, certificate: Certificate) -> None:
    axes.plot([target] * 2, [row - 0.35, row + 0.35], color=style.RED, linewidth=1.6, label="target")
    style.mark(axes, (certificate.bound, row), *BOUNDS[certificate.kind])


def _fnr(standing: Standing) -> Estimate:
    return Estimate(*(standing.fnr[name] for name in ("value", "low", "high")))


def _lines() -> Iterator[tuple[str, str]]:
    while True:
        yield from LINES

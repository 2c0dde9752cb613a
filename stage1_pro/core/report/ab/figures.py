"""An A/B test, drawn: one line an arm, in the order given."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from stage1_pro.core.ab.outcome import ABTest
from stage1_pro.core.ab.statistics import PairedDifference, SeedMean
from stage1_pro.core.comparison.contender import Estimate
from stage1_pro.core.report.common import interval_rows as panels
from stage1_pro.core.report.common import style
from stage1_pro.core.report.common.cells import MEASURES

CASES_BELOW = 0.24
"""How far under an arm's line its interval over test cases lies."""


def draw_arms(figure: Figure, test: ABTest) -> None:
    """Right exits and FNR on exits: every seed, and the mean with its interval over seeds."""
    right, fnr = figure.subplots(2, sharey=True)
    for row, one in enumerate(test.standings):
        for axes, key in ((right, "right_exits"), (fnr, "fnr_on_exits")):
            _seeds(axes, row, [result.figures[key] for result in one.results])
            panels.interval(axes, row, _estimate(one.figures[key]), style.BLUE, "mean, with interval over seeds")
    fnr.axvline(test.risk.target_fnr, color=style.RED, linewidth=1.4, label="target")
    panels.name_rows(right, [panels.shortened(one.arm.name) for one in test.standings])
    # an interval of few seeds may leave the frame; the seeds may not
    shown = [result.figures["right_exits"] for one in test.standings for result in one.results]
    low, high = min(shown), max(shown)
    room = max(0.02, 0.3 * (high - low))
    start, end, reach = max(0.0, low - room), min(1.0, high + room), _fnr_reach(test)
    right.set_xlim(start - 0.02 * (end - start), end + 0.02 * (end - start))
    fnr.set_xlim(-0.02 * reach, reach)
    style.percent_axis(right.xaxis, "right exits (%)")
    style.percent_axis(fnr.xaxis, "FNR on exits (%)")
    style.legend(figure, right, fnr)


def draw_differences(figure: Figure, test: ABTest) -> None:
    """Every measure of the other arms less that of the first."""
    others = test.standings[1:]
    for axes, (key, measure) in zip(figure.subplots(3, 2, sharey=True).flat, MEASURES.items(), strict=True):
        axes.axvline(0, color=style.INK, linewidth=0.9)
        for row, one in enumerate(others):
            _difference(axes, row, one.differences[key])
        panels.change_axis(axes, measure.name, shares=key not in ("utility", "augrc"))
    panels.name_rows(axes, [panels.shortened(one.arm.name) for one in others])
    style.legend(figure, *figure.axes, columns=2)


def draw_cost(figure: Figure, test: ABTest) -> None:
    """Right exits against training time, arm by arm."""
    axes = figure.subplots()
    ended = [one for one in test.standings if one.cost and one.figures["right_exits"].value is not None]
    for row, one in enumerate(ended):
        colour = style.RUN_COLOURS[row % len(style.RUN_COLOURS)]
        mean, seconds = one.figures["right_exits"], one.cost["seconds"]
        axes.errorbar([seconds], [mean.value or 0.0], yerr=[mean.error or 0.0], color=colour, elinewidth=1.4)
        style.mark(axes, (seconds, float(mean.value or 0.0)), "osD^v"[row % 5], colour, panels.shortened(one.arm.name))
    axes.set_xscale("log")
    axes.set_xlim(0.5 * min(one.cost["seconds"] for one in ended), 2 * max(one.cost["seconds"] for one in ended))
    ticks = _ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training time (seconds, mean over seeds)")
    style.percent_axis(axes.yaxis, "right exits (%)")
    style.legend(figure, axes, columns=3)


def arms_height(arms: int) -> float:
    return 2.2 + 0.5 * arms


def differences_height(arms: int) -> float:
    return 3.3 + 0.9 * (arms - 1)


def _seeds(axes: Axes, row: int, values: list[float]) -> None:
    looks = {"color": style.MUTED, "markersize": 3.5, "linestyle": "none", "alpha": 0.75}
    axes.plot(values, [row + 0.22] * len(values), "o", label="one seed", **looks)


def _difference(axes: Axes, row: int, one: PairedDifference) -> None:
    if one.value is None:
        axes.text(0, row, " undefined", va="center", fontsize=8, color=style.MUTED)
        return
    colour, words = panels.SENSE_COLOURS[one.sense]
    panels.interval(axes, row, _estimate(one), colour, f"{words} (over seeds)")
    if one.low is None:
        axes.plot([one.value], [row], "o", color=colour, markersize=5, label="one seed")
    if one.case_low is not None and one.case_high is not None:
        axes.plot(
            [one.case_low, one.case_high],
            [row + CASES_BELOW] * 2,
            color=style.MUTED,
            linewidth=3,
            alpha=0.55,
            label="over test cases",
        )


def _estimate(mean: SeedMean) -> Estimate:
    return Estimate(mean.value, mean.low, mean.high)


def _fnr_reach(test: ABTest) -> float:
    rates = [result.figures["fnr_on_exits"] for one in test.standings for result in one.results]
    return style.headroom(1.3, test.risk.target_fnr, *(rate for rate in rates if not np.isnan(rate)))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the limits."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]

"""A run at prices, drawn."""

import numpy as np
from matplotlib.figure import Figure

from stage1_pro.core.cascade.economy import Cascade, Row
from stage1_pro.core.report.common import style

REACH = 10.0
"""How far the price of a miss is varied, up and down."""
LOOKS = {"certified": ("o", style.INK), "cheapest": ("D", style.PINK), "all_exit": ("s", style.MUTED)}


def draw_cost(figure: Figure, cascade: Cascade) -> None:
    """Cost against coverage, with the ways of the table marked."""
    axes = figure.subplots()
    coverage, low, high = cascade.curve.T
    if np.ptp(np.nan_to_num(high - low)) > 0:
        axes.fill_between(coverage, low, high, color=style.BLUE, alpha=0.15, linewidth=0, label="range of stage 2")
    axes.plot(coverage, (low + high) / 2, color=style.BLUE, label="were the threshold moved")
    for key, (marker, colour) in LOOKS.items():
        _point(axes, cascade.rows[key], marker, colour)
    alone = cascade.rows["stage2_alone"].measured
    if alone is not None:
        axes.axhline(alone.cost[0], color=style.RED, linewidth=1.3, linestyle=(0, (5, 3)), label="all to stage 2")
    if cascade.capacity is not None:
        axes.axvline(cascade.capacity.floor, color=style.GREEN, linewidth=1.3, linestyle=":", label="capacity's floor")
    style.coverage_axis(axes)
    axes.set_ylim(0, None)
    axes.set_ylabel("cost per 1,000 cases")
    style.legend(figure, axes)


def _point(axes, row: Row, marker: str, colour: str) -> None:
    if row.measured is None:
        return
    value, low, high = row.measured.cost
    error = np.maximum([[value - low], [high - value]], 0)
    axes.errorbar([row.coverage], [value], yerr=error, color=colour, elinewidth=1.2)
    style.mark(axes, (row.coverage, value), marker, colour, row.name.lower())


def draw_net_benefit(figure: Figure, cascade: Cascade) -> None:
    """What each way saves against stage 2 alone, were a miss cheaper or dearer."""
    axes = figure.subplots()
    alone, price = cascade.rows["stage2_alone"].measured, cascade.prices.miss
    if alone is None or price == 0:
        style.note(axes, "not known for these predictions" if price else "a miss costs nothing")
        return
    factors = np.geomspace(1 / REACH, REACH, 81)
    for key, (_, colour) in LOOKS.items():
        one = cascade.rows[key].measured
        if one is not None:
            # per 1,000 cases a miss more or less costs its price: savings are linear in it
            saved = one.saved[0] + price * (factors - 1) * (alone.misses - one.misses)
            axes.plot(price * factors, saved, color=colour, label=cascade.rows[key].name.lower())
    axes.axhline(0, color=style.RED, linewidth=1.3, linestyle=(0, (5, 3)), label="all to stage 2")
    axes.axvline(price, color=style.INK, linewidth=0.8, linestyle=":", label="stated price")
    axes.set(xscale="log", xlabel="price of a miss", ylabel="saved per 1,000 cases")
    certified = cascade.certified.saved[0]
    most = max(abs(certified), 0.5 * alone.cost[0])
    axes.set_ylim(-1.2 * most, 1.2 * max(most, certified))
    style.legend(figure, axes)

"""Panels with one line a run: what the drawings of a comparison and of an A/B test share."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stage1_pro.core.comparison.contender import Estimate
from stage1_pro.core.report.common import style

NAME_SHOWN = 16
SENSE_COLOURS = {1: (style.GREEN, "better"), 0: (style.MUTED, "within chance"), -1: (style.RED, "worse")}


def shortened(name: str) -> str:
    """The two ends of a long name: they tell runs apart."""
    half = (NAME_SHOWN - 1) // 2
    return name if len(name) <= NAME_SHOWN else f"{name[:half]}…{name[-half:]}"


def interval(axes: Axes, row: int, estimate: Estimate, colour: str, label: str) -> None:
    """A point with its interval on the line of a run; nothing where one of them is undefined."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return
    error = np.maximum([[estimate.value - estimate.low], [estimate.high - estimate.value]], 0)
    looks = {"color": colour, "marker": "o", "markersize": 5, "elinewidth": 1.6, "linestyle": "none"}
    axes.errorbar([estimate.value], [row], xerr=error, label=label, **looks)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """The first run on top. For all panels that share the axis."""
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def change_axis(axes: Axes, name: str, shares: bool) -> None:
    """An axis of differences, with 0 in the middle. shares: in percentage points."""
    low, high = axes.get_xlim()
    reach = 1.05 * max(-low, high, 0.001)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], symmetric=True))
    if shares:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}"))
    axes.set_xlabel(f"{name} (points)" if shares else name)

"""The figure of a calibration: every candidate and what became of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.report.common import style


def draw_sweep(figure: Figure, policy: dict[str, Any]) -> None:
    """FNR on exits and its bound over the candidates above, FPR and accuracy on exits below; then lambda1 and
    lambda2, where candidates are pairs."""
    rows = policy["sweep_results"]
    pairs = "lambda2" in rows[0] if rows else False
    top, *panels = figure.subplots(4 if pairs else 3, sharex=True, height_ratios=[3.2, 1, 1, *([1] if pairs else [])])
    _sweep_fnr(top, policy)
    for axes, column, label in zip(panels, ("fpr_on_exits", "accuracy_on_exits"), ("FPR", "accuracy"), strict=False):
        axes.plot(_column(rows, "coverage"), _column(rows, column), color=style.INK, linewidth=1.4)
        style.percent_axis(axes.yaxis, f"{label}\non exits")
        style.clamp(axes, 0, 1)
    if pairs:
        _sweep_pairs(panels[-1], rows)
    for axes in panels:
        axes.axvline(policy["coverage"], color=style.GREEN, linewidth=1.2)
        axes.yaxis.set_major_locator(MaxNLocator(3))
    style.coverage_axis(panels[-1])
    figure.align_ylabels()
    style.legend(figure, top, *([panels[-1]] if pairs else []))


def _sweep_pairs(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Where the second threshold is used it stands above ½."""
    for column, colour, words in (("lambda1", style.BLUE, "λ1, gate"), ("lambda2", style.PINK, "λ2, class")):
        axes.plot(_column(rows, "coverage"), _column(rows, column), color=colour, linewidth=1.4, label=words)
    axes.set_ylabel("λ1, λ2")
    style.clamp(axes, 0, 1)


def _sweep_fnr(axes: Axes, policy: dict[str, Any]) -> None:
    """The candidates in the order in which they were tested, whatever their parameters are.

    Where each certificate group has a threshold of its own, the lines are of one threshold for all of them.
    """
    rows, target = policy["sweep_results"], policy["target_fnr_exit"]
    coverage, bound, fnr = (_column(rows, name) for name in ("coverage", "fnr_upper_bound", "fnr_on_exits"))
    certified = np.array([row.get("certified", False) for row in rows], dtype=bool)
    words = "one threshold" if "groups" in policy else "FNR on exits"
    axes.plot(coverage, fnr, color=style.BLUE, label=words)
    if np.isfinite(bound).any():  # a promise in expectation has no bound at each candidate
        axes.plot(coverage, bound, color=style.MUTED, linewidth=1.2, label="pointwise bound")
    if certified.any() and np.isfinite(bound).any():
        axes.plot(coverage[certified], bound[certified], "o", color=style.GREEN, markersize=3.2, label="certified")
    style.target_line(axes, target)
    for mark in _sweep_marks(policy):
        style.mark(axes, *mark)
    naive = policy.get("diagnostics", {}).get("naive", {})
    style.fnr_axis(axes, target, policy["fnr_upper_bound"], naive.get("fnr_upper_bound"))


def _sweep_marks(policy: dict[str, Any]) -> list[tuple[tuple[float, float], str, str, str]]:
    """(place, marker, colour, label) of the candidates that have a name."""
    rows, diagnostics = policy["sweep_results"], policy.get("diagnostics", {})
    start, naive = diagnostics.get("start"), diagnostics.get("naive", {})
    walked = policy.get("exit_rule", "symmetric") == "symmetric" and "boundary" not in diagnostics
    marks = []
    if walked and start is not None:
        row = rows[start["index"]]
        marks.append(((row["coverage"], row["fnr_upper_bound"]), ">", style.INK, "start of the walk"))
    if "groups" in policy:
        chosen = [(group["coverage"], group["fnr_upper_bound"]) for group in policy["groups"].values()]
        # matplotlib leaves a label that begins with an underscore out of the legend
        marks += [(place, "D", style.GREEN, "_" * bool(number) + "each group") for number, place in enumerate(chosen)]
    else:
        marks.append(((policy["coverage"], policy["fnr_upper_bound"]), "D", style.GREEN, "chosen"))
    if naive.get("fnr_upper_bound") is not None and not naive.get("certified"):
        marks.append(((naive["coverage"], naive["fnr_upper_bound"]), "X", style.RED, "naive (not certified)"))
    return marks


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    """One field of sweep rows, NaN where it is null or missing."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)

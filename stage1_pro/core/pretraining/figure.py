"""The course of a self-supervised adaptation, drawn: loss, probe, and measures of collapse."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stage1_pro.core.report.common import style


def draw_pretraining(figure: Figure, rows: list[dict[str, float]]) -> None:
    """rows: one a probe, the first of step 0."""
    loss, probe, collapse = figure.subplots(3, sharex=True)
    trained = [row for row in rows if math.isfinite(row.get("train_loss", math.nan))]
    _line(loss, trained, "train_loss", style.PINK, "loss")
    if not trained:
        style.note(loss, "the loss was never finite")
    loss.set_ylabel("loss")
    _line(probe, rows, "knn", style.BLUE, "kNN probe")
    probe.axhline(rows[0]["knn"], color=style.RED, linewidth=1.3, linestyle=(0, (5, 3)), label="at step 0")
    kept = max((row for row in rows[1:] if row["feature_std"]), key=lambda row: row["knn"], default=None)
    if kept:
        style.mark(probe, (kept["step"], kept["knn"]), "D", style.GREEN, "best after step 0")
    style.percent_axis(probe.yaxis, "balanced accuracy (%)")
    shares = [
        {**row, **{name: row[name] / (rows[0][name] or 1) for name in ("feature_std", "effective_rank")}}
        for row in rows
    ]
    _line(collapse, shares, "feature_std", style.BLUE, "feature std")
    _line(collapse, shares, "effective_rank", style.GREEN, "effective rank")
    collapse.set(xlabel="step", ylabel="relative to step 0", ylim=(0, 1.05 * collapse.get_ylim()[1]))
    collapse.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in (probe, collapse):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.0, handlelength=1.3)


def _line(axes: Axes, rows: list[dict[str, float]], name: str, colour: str, label: str) -> None:
    steps, values = [row["step"] for row in rows], [row[name] for row in rows]
    axes.plot(steps, values, color=colour, marker="o", markersize=3, label=label)

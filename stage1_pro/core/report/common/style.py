"""One look for every figure: paper for PNG files, theme variables for the page's inline SVG."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's colours, distinct to colour-blind readers; the page maps each name to a CSS variable.
PALETTE = {
    "ink": "#1b2631",
    "muted": "#61707f",
    "grid": "#dfe5eb",
    "paper": "#fefefe",
    "blue": "#0072b2",
    "red": "#d55e00",
    "green": "#009e73",
    "pink": "#cc79a7",
}
INK, MUTED, GRID, PAPER, BLUE, RED, GREEN, PINK = PALETTE.values()
RUN_COLOURS = (BLUE, PINK, GREEN, INK, MUTED)  # red is the target's
WIDTH = 4.0  # inches at 10 points: as wide as a phone, so that text stays readable there
DPI = 200
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "stage1_pro",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@dataclass(frozen=True, slots=True)
class Rendering:
    """One figure, twice: a PNG on paper, and an SVG element without colours of its own."""

    png: bytes
    svg: str


def render(draw: Callable[[Figure], None], height: float, name: str) -> Rendering:
    """Draw once, save twice. `height` in inches; `name` keeps the ids of one page's SVGs apart."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=DPI, facecolor=PAPER)
        figure.set_layout_engine("none")  # the room is shared out already, which takes a third of the time
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Rendering(png.getvalue(), themed(svg.getvalue(), name))


def themed(svg: str, name: str) -> str:
    """Matplotlib's SVG file as an element for the page: no prologue, own ids, the page's colours and width."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    for colour, value in PALETTE.items():
        body = body.replace(value, f"var(--fig-{colour})")
    return f'<svg {view_box[0] if view_box else ""} role="img" aria-labelledby="title-{name}">{body}'


def percent_axis(axis, label: str) -> None:
    """Shares as percent, no more decimals than needed."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.axes.set(**{f"{axis.axis_name}label": label})


def coverage_axis(axes: Axes) -> None:
    """Coverage from nothing to everything along x."""
    axes.set_xlim(0, 1)
    percent_axis(axes.xaxis, "coverage (% of cases that exit)")


def legend(figure: Figure, *panels: Axes, columns: int = 2) -> None:
    """One legend under the panels, each label once."""
    named = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in named}
    look = {"ncols": columns, "columnspacing": 1.4, "handlelength": 1.8}
    figure.legend(entries.values(), entries.keys(), loc="outside lower left", **look)


def mark(axes: Axes, place: tuple[float, float], marker: str, colour: str, label: str) -> None:
    """One marked point, in front of the lines."""
    look = {"color": colour, "markersize": 8, "markeredgecolor": PAPER, "linestyle": "none", "zorder": 5}
    axes.plot(*place, marker, label=label, **look)


def note(axes: Axes, words: str) -> None:
    """Words in the middle of a panel that has nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def target_line(axes: Axes, target: float) -> None:
    """The promise, as a line."""
    axes.axhline(target, color=RED, linewidth=1.3, linestyle=(0, (5, 3)), label=f"target {target:g}")


def operating_point(axes: Axes, coverage: float | None, value: float | None) -> None:
    """Where the policy stands; nothing where a share is undefined."""
    if coverage is not None and value is not None:
        axes.axvline(coverage, color=INK, linewidth=0.8, linestyle=":")
        mark(axes, (coverage, value), "o", INK, "operating point")


def fnr_axis(axes: Axes, target: float, *shown: float | None) -> None:
    """Twice the target, or more where a marked point asks for it; the rest of a curve may leave the frame."""
    axes.set_ylim(0, min(1.0, max(2 * target, headroom(1.25, *shown))))
    percent_axis(axes.yaxis, "FNR on exits (%)")


def clamp(axes: Axes, low: float, high: float) -> None:
    """Keep the margins of an axis within what its quantity can be, but for the width of a line."""
    bottom, top = axes.get_ylim()
    slack = 0.02 * (top - bottom)
    axes.set_ylim(max(bottom, low - slack), min(top, high + slack))


def headroom(factor: float, *shown: float | None) -> float:
    """The largest of the known values, and some room above it."""
    return factor * max([0.01, *(value for value in shown if value is not None)])


def compact(number: int) -> str:
    """1234 -> 1.23k."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)

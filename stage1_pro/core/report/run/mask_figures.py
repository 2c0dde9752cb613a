"""The figures of masks: single cases, Dice by class, soft Dice against Dice, volumes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stage1_pro.core.report.common import style
from stage1_pro.core.report.run.evidence import Evidence

COLUMNS, ROW, LEGEND = 3, 1.6, 0.3
"""Cases side by side, and the height of a row of them and of the legend in inches."""


def has_masks(evidence: Evidence) -> bool:
    return evidence.masks is not None


def draw_overlays(figure: Figure, evidence: Evidence) -> None:
    """Cases with the outline of the true mask and of the predicted one."""
    assert evidence.masks is not None
    overlays = evidence.masks.overlays
    rows = -(-len(overlays) // COLUMNS)
    figure.set_figheight(rows * ROW + LEGEND)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, overlay in zip(grid, overlays, strict=False):
        axes.imshow(overlay.image, cmap="gray", interpolation="nearest", extent=_extent(overlay.truth))
        for codes, colour, dashes in ((overlay.truth, style.GREEN, "solid"), (overlay.mask, style.PINK, "dashed")):
            # with a border around it, so that outlines close at the edge and a case may be one pixel wide
            places = [np.arange(-1, size + 1) for size in reversed(codes.shape)]
            for code in [code for code in np.unique(codes) if code > 0]:
                inside = np.pad(codes == code, 1)
                axes.contour(*places, inside, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=dashes)
        axes.set(xlim=_extent(overlay.truth)[:2], ylim=_extent(overlay.truth)[2:])
        axes.set_title(overlay.title, fontsize=9)
    for axes in grid:
        axes.set_axis_off()
    lines = [
        Line2D([], [], color=style.GREEN, label="true"),
        Line2D([], [], color=style.PINK, ls="--", label="predicted"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2)


def _extent(codes: np.ndarray) -> tuple[float, float, float, float]:
    """Of the mask's grid: an image on another grid is laid over it."""
    return -0.5, codes.shape[1] - 0.5, codes.shape[0] - 0.5, -0.5


def draw_mask_dice(figure: Figure, evidence: Evidence) -> None:
    """Dice of each case, by class and as the mean of its classes."""
    masks = evidence.masks
    assert masks is not None
    columns = [masks.case_dice, *masks.dice.T] if len(masks.class_names) > 1 else [masks.case_dice]
    names = ["case", *masks.class_names][: len(columns)]
    axes = figure.subplots()
    known = [column[np.isfinite(column)] for column in columns]
    axes.boxplot(known, orientation="horizontal", widths=0.6, showfliers=True, flierprops={"markersize": 3})
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("Dice")


def draw_soft_dice(figure: Figure, evidence: Evidence) -> None:
    """Confidence of each case against its Dice: what deferral by it can and cannot sort out."""
    masks = evidence.masks
    assert masks is not None
    axes = figure.subplots()
    axes.plot(masks.confidence, masks.case_dice, "o", color=style.BLUE, markersize=3, alpha=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # its values are close together, and their labels long
    axes.set_xlabel("SDC, from the network alone")
    axes.set_ylabel("Dice with the true mask")
    axes.set_ylim(-0.02, 1.02)


def draw_volumes(figure: Figure, evidence: Evidence) -> None:
    """Predicted volume of the positive class against the true one."""
    masks = evidence.masks
    assert masks is not None
    axes = figure.subplots()
    top = max(1.0, float(masks.true.max(initial=0)), float(masks.predicted.max(initial=0))) * 1.05
    axes.plot([0, top], [0, top], color=style.MUTED, linewidth=1)
    axes.plot(masks.true, masks.predicted, "o", color=style.BLUE, markersize=3, alpha=0.6)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel(f"true ({masks.unit})")
    axes.set_ylabel(f"predicted ({masks.unit})")

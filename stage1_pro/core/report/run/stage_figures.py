"""The stages of an incremental training, drawn: their course, how scores were distributed, and whom they admitted."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stage1_pro.core.incremental.machine import Stage, State
from stage1_pro.core.incremental.state import why
from stage1_pro.core.report.common import style
from stage1_pro.core.report.run.evidence import Staged

if TYPE_CHECKING:  # which holds a Staged
    from stage1_pro.core.report.run.evidence import Evidence


SHOWN_STAGES, SHOWN_IMAGES = 8, 5


SHOWN_SUSPECTS = 15


THUMBNAIL = 96


ROW_HEIGHT = 0.95


def draw_stages(figure: Figure, evidence: "Evidence") -> None:
    """Cases in training and the monitor by epoch, with the end of each stage."""
    shown, columns = _of(evidence), evidence.epochs
    top, bottom = figure.subplots(2, sharex=True)
    epochs = columns.get("epoch", np.zeros(0)) + 1
    top.step(epochs, columns.get("active_cases", np.full(epochs.size, np.nan)), where="mid", color=style.BLUE)
    top.set(ylabel="cases in training", ylim=(0, None))
    values = columns.get(shown.monitor, np.full(epochs.size, np.nan))
    bottom.plot(epochs, values, color=style.PINK, marker="o", markersize=2.5, label=shown.monitor)
    best = [(stage.best_epoch + 1, stage.best_metric) for stage in shown.state.stages if stage.best_epoch is not None]
    if best:
        bottom.plot(
            *zip(*best, strict=True), "D", color=style.GREEN, markersize=5, linestyle="none", label="stage's best"
        )
    for axes in (top, bottom):
        for stage in shown.state.stages[1:]:
            axes.axvline(stage.first_epoch + 0.5, color=style.MUTED, linewidth=0.7, linestyle=":")
    bottom.set(xlabel="epoch", ylabel=shown.monitor)
    bottom.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.legend(figure, bottom)


def draw_stage_scores(figure: Figure, evidence: "Evidence") -> None:
    """How difficult and uncertain the candidates were at each scoring."""
    scorings = _spread([stage for stage in _of(evidence).state.stages if stage.scored])
    panels = figure.subplots(2)
    for axes, name in zip(panels, ("difficulty", "uncertainty"), strict=True):
        for index, stage in enumerate(scorings):
            counts = np.array(getattr(stage.scored, f"{name}_histogram"), dtype=np.float64)
            shade = 0.25 + 0.75 * (index + 1) / len(scorings)
            edges = np.linspace(0, 1, counts.size + 1)
            label = f"after stage {stage.number}"
            axes.stairs(
                counts / max(1.0, counts.sum()), edges, color=style.BLUE, alpha=shade, label=label, linewidth=1.5
            )
        axes.set_xlabel(name)
        style.percent_axis(axes.yaxis, "candidates (%)")
    if not scorings:
        style.note(panels[0], "no scoring")
    style.legend(figure, *panels)


def draw_admitted(figure: Figure, evidence: "Evidence") -> None:
    """The first images that each stage admitted, with their components."""
    shown = _of(evidence)
    scorings = _spread([stage for stage in shown.state.stages if stage.scored and stage.scored.picks])
    grid = _sheet(figure, len(scorings))
    for row, stage in zip(grid, scorings, strict=False):
        picks = stage.scored.picks if stage.scored else ()
        for axes, pick in zip(row, picks, strict=False):
            words = f"{pick.difficulty:.2f} {pick.uncertainty:.2f} {pick.diversity:.2f}"
            _thumbnail(axes, shown.paths.get(pick.case_id), words)
        row[0].set_ylabel(f"stage {stage.number}", fontsize=8)
    _clean(grid)


def draw_suspects(figure: Figure, evidence: "Evidence") -> None:
    """The cases whose labels may be wrong, each with the probability of its label, the worst first."""
    shown = _of(evidence)
    suspects = _suspects(shown.state)[:SHOWN_SUSPECTS]
    grid = _sheet(figure, -(-len(suspects) // SHOWN_IMAGES))
    for axes, suspect in zip(grid.flat, suspects, strict=False):
        _thumbnail(axes, shown.paths.get(suspect.case_id), f"{why(suspect)} {suspect.dice:.2f}")
    _clean(grid)


def has_stages(evidence: "Evidence") -> bool:
    return evidence.stages is not None


def has_picks(evidence: "Evidence") -> bool:
    return _shows_images(evidence) and any(stage.scored and stage.scored.picks for stage in _of(evidence).state.stages)


def has_suspects(evidence: "Evidence") -> bool:
    return _shows_images(evidence) and bool(_suspects(_of(evidence).state))


def _shows_images(evidence: "Evidence") -> bool:
    return evidence.stages is not None and bool(evidence.stages.paths)


def _suspects(state: State):
    scorings = [stage.scored for stage in state.stages if stage.scored]
    return scorings[-1].suspects if scorings else ()


def _of(evidence: "Evidence") -> Staged:
    assert evidence.stages is not None
    return evidence.stages


def _spread(stages: Sequence[Stage]) -> list[Stage]:
    """At most SHOWN_STAGES of them, evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(stages) - 1, min(len(stages), SHOWN_STAGES)).round().astype(int))
    return [stages[place] for place in places] if stages else []


def _sheet(figure: Figure, rows: int) -> np.ndarray:
    """A contact sheet as high as it has rows."""
    figure.set_figheight(ROW_HEIGHT * max(1, rows))
    return figure.subplots(max(1, rows), SHOWN_IMAGES, squeeze=False)


def _thumbnail(axes: Axes, path: str | None, words: str) -> None:
    from stage1_pro.core.data.decoding import decode
    from stage1_pro.core.data.image_files import BadImage

    with suppress(BadImage):  # a file that has gone or changed leaves a gap
        if path is not None:
            image = decode(path)
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            axes.imshow(np.asarray(image))
    axes.set_title(words, fontsize=6, pad=2)


def _clean(grid: np.ndarray) -> None:
    """Pictures have no axes."""
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)

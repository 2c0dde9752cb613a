"""The courses of a training, drawn: what metrics.csv says, epoch by epoch."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stage1_pro.core.report.common import style
from stage1_pro.core.report.run.evidence import Evidence


def draw_training(figure: Figure, evidence: Evidence) -> None:
    """Loss, accuracy and AUGRC by epoch; a gap in the file is a gap in the line."""
    _by_epoch(figure, evidence, TRAINING)


def draw_gate_training(figure: Figure, evidence: Evidence) -> None:
    """What the gate did to the validation cases by epoch, and the constraint that held it."""
    _by_epoch(figure, evidence, GATE_TRAINING)


def draw_conformal_training(figure: Figure, evidence: Evidence) -> None:
    """How often the training threshold existed and moved, by epoch, and where it lay."""
    _by_epoch(figure, evidence, CONFORMAL_TRAINING)


def draw_sharpness(figure: Figure, evidence: Evidence) -> None:
    """Draw how much higher the loss was at the perturbed weights, by epoch, and how the gradients lay."""
    _by_epoch(figure, evidence, SHARPNESS)


def _by_epoch(figure: Figure, evidence: Evidence, content: "tuple[EpochPanel, ...]") -> None:
    panels = figure.subplots(len(content), sharex=True)
    epochs = evidence.epochs.get("epoch", np.zeros(0)) + 1
    for axes, (label, limits, columns) in zip(panels, content, strict=True):
        for column, colour, words in columns:
            if column in evidence.epochs:
                axes.plot(epochs, evidence.epochs[column], color=colour, marker="o", markersize=3, label=words)
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        style.clamp(axes, *limits)
        if evidence.chosen_epoch is not None:
            axes.axvline(epochs[evidence.chosen_epoch], color=style.GREEN, linewidth=1.2, label="checkpoint in use")
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.align_ylabels()
    if epochs.size:
        style.legend(figure, *panels, columns=3)
    else:
        style.note(panels[1], "metrics.csv holds no epochs")


EpochPanel = tuple[str, tuple[float, float], tuple[tuple[str, str, str], ...]]
"""(label of the axis, its limits, (column of metrics.csv, colour, words) of each line)."""

TRAINING: tuple[EpochPanel, ...] = (
    ("loss (nats)", (0, np.inf), (("train_loss", style.PINK, "train"), ("val_loss", style.BLUE, "val_select"))),
    ("accuracy (share)", (0, 1), (("val_accuracy", style.BLUE, "val_select"),)),
    ("AUGRC", (0, 0.5), (("val_augrc", style.BLUE, "val_select"),)),
)
GATE_TRAINING: tuple[EpochPanel, ...] = (
    (
        "soft coverage",
        (0, 1),
        (
            ("val_gate_soft_coverage_pos", style.RED, "positives"),
            ("val_gate_soft_coverage_neg", style.BLUE, "negatives"),
        ),
    ),
    ("FNR, g ≥ 0", (0, 1), (("val_gate_fnr", style.INK, "FNR on exits at g ≥ 0"),)),
    (
        "rank of right",
        (0, 1),
        (
            ("val_gate_auroc", style.GREEN, "AUROC for right answers"),
            ("val_gate_spearman", style.PINK, "Spearman with softmax"),
        ),
    ),
    (
        "constraint",
        (-np.inf, np.inf),
        (("gate_constraint", style.MUTED, "running constraint"), ("gate_multiplier", style.INK, "multiplier")),
    ),
)
CONFORMAL_TRAINING: tuple[EpochPanel, ...] = (
    (
        "thresholds",
        (0, 1),
        (
            ("conformal_infeasible_share", style.RED, "none feasible"),
            ("conformal_edge_share", style.PINK, "at the grid's end"),
            ("conformal_live_share", style.BLUE, "live share of the gradient"),
        ),
    ),
    (
        "λ̂ and T",
        (-np.inf, np.inf),
        (
            ("conformal_threshold", style.INK, "mean threshold (logits)"),
            ("conformal_temperature", style.MUTED, "temperature (std of g)"),
        ),
    ),
)
SHARPNESS: tuple[EpochPanel, ...] = (
    ("gap (nats)", (-np.inf, np.inf), (("sharpness_loss_gap", style.PINK, "loss gap"),)),
    ("norm", (0, np.inf), (("sharpness_gradient_norm", style.BLUE, "gradient norm"),)),
    ("cosine", (-1, 1), (("sharpness_cosine", style.INK, "cosine with average"),)),
)

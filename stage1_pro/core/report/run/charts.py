"""The figures of a run, as a table: where each stands, what it says, and the function that draws it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stage1_pro.core import artifacts
from stage1_pro.core.report.common.style import render
from stage1_pro.core.report.run.calibration_figure import draw_sweep
from stage1_pro.core.report.run.evaluation_figures import (
    draw_fnr_coverage,
    draw_fnr_uncertified,
    draw_gate_reliability,
    draw_reliability,
    draw_risk_coverage,
    draw_scores,
)
from stage1_pro.core.report.run.evidence import Evidence
from stage1_pro.core.report.run.mask_figures import (
    draw_mask_dice,
    draw_overlays,
    draw_soft_dice,
    draw_volumes,
    has_masks,
)
from stage1_pro.core.report.run.stage_figures import (
    draw_admitted,
    draw_stage_scores,
    draw_stages,
    draw_suspects,
    has_picks,
    has_stages,
    has_suspects,
)
from stage1_pro.core.report.run.training_figures import (
    draw_conformal_training,
    draw_gate_training,
    draw_sharpness,
    draw_training,
)

SWEEP_HEIGHT = 5.4


@dataclass(frozen=True, slots=True)
class Chart:
    """One row of the table of figures. height in inches; section: where the page shows it."""

    name: str
    section: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure, Evidence], None]
    shown: Callable[[Evidence], bool] = lambda evidence: True
    """Whether the run has what the figure shows."""
    of_cases: bool = False
    """Whether the figure shows images of cases."""


def sweep_figure(policy: dict[str, Any], path: Path) -> None:
    """Write the figure of a calibration: every candidate of a policy file and what became of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rendering = render(lambda figure: draw_sweep(figure, policy), SWEEP_HEIGHT, path.stem)
    artifacts.write_bytes(path, rendering.png)


MASK_CHARTS = (
    Chart(
        "mask_overlays",
        "masks",
        "Cases",
        "The true mask outlined in green, the predicted one dashed in pink, with the Dice of the case: the best, the "
        "median and the worst of the test split, the worst that exits and is missed, the worst that is deferred.",
        3.2,
        draw_overlays,
        has_masks,
        of_cases=True,
    ),
    Chart(
        "mask_dice",
        "masks",
        "Dice of the test cases",
        "Of a case the mean over the classes that either mask has; quartiles, and cases far from them.",
        2.4,
        draw_mask_dice,
        has_masks,
    ),
    Chart(
        "soft_dice",
        "masks",
        "Confidence against Dice",
        "SDC is computed without the true mask. Cases at the lower right are poor masks that the network is sure of: "
        "no threshold defers them.",
        3.0,
        draw_soft_dice,
        has_masks,
    ),
    Chart(
        "mask_volumes",
        "masks",
        "Volume of the positive class",
        "Predicted against true; on the line they agree.",
        3.0,
        draw_volumes,
        has_masks,
    ),
)


UNCERTIFIED_CHARTS = (
    *MASK_CHARTS,
    Chart(
        "fnr_coverage",
        "test",
        "FNR on exits against coverage",
        "How many positives would be missed among those that exit at each coverage.",
        3.3,
        draw_fnr_uncertified,
        lambda evidence: bool((evidence.labels == 1).any()),
    ),
)
"""Of a run with masks that has no policy."""


CHARTS = (
    *MASK_CHARTS,
    Chart(
        "fnr_coverage",
        "test",
        "FNR on exits against coverage",
        "How many positives would be missed among those that exit, were the threshold moved. The promise is made for "
        "the operating point alone; the band is the exact interval at each point by itself.",
        3.3,
        draw_fnr_coverage,
    ),
    Chart(
        "risk_coverage",
        "test",
        "Risk against coverage",
        "Wrong answers of either kind among the most confident cases (selective risk) and as a share of all cases "
        "(generalised risk; the area under it is AUGRC).",
        3.1,
        draw_risk_coverage,
    ),
    Chart(
        "reliability",
        "test",
        "Reliability",
        "On the diagonal the softmax probability, as it was before the answers were placed, means what it says. Below: "
        "how many test cases each bin holds.",
        3.5,
        draw_reliability,
        lambda evidence: evidence.masks is None,
    ),
    Chart(
        "gate_reliability",
        "test",
        "Reliability of the calibrated gate",
        "On the diagonal a score means that share of right answers; the quantile map gives the gate softmax's scale "
        "instead, and aims at its diagonal only. One map per answer, fitted on val_select; with one-sided exits "
        "only the negative answers are shown, about which it decides.",
        3.5,
        draw_gate_reliability,
        lambda evidence: "calibrator_params" in evidence.policy,
    ),
    Chart(
        "score_histogram",
        "test",
        "Scores by class",
        "Test cases by the score of the exit policy, on a logarithmic scale of cases. What is right of the threshold "
        "exits (with SCRC unless its prediction set holds both classes); with one-sided exits every positive answer "
        "stands at the right end. Orange there are the errors that stage 1 keeps, misses above and false alarms below.",
        3.5,
        draw_scores,
    ),
    Chart(
        "threshold_sweep",
        "calibration",
        "How the policy was certified",
        "Candidates were fixed on val_select and tested on val_calib; chosen is the certified one of the largest "
        "coverage. The guarantee above names the test. (SCRC-T instead takes the smallest prediction sets whose loss "
        "its rule allows.)",
        SWEEP_HEIGHT,
        lambda figure, evidence: draw_sweep(figure, evidence.policy),
    ),
    Chart(
        "training",
        "training",
        "Training",
        "One point an epoch. The checkpoint was chosen on val_select, which the certificate never reads.",
        4.2,
        draw_training,
    ),
    Chart(
        "gate_training",
        "training",
        "The gate in training",
        "On val_select, at soft exits σ(g) and at g ≥ 0. The multiplier grows while the running constraint is above 0. "
        "The gate in use may have been fitted again afterwards.",
        5.4,
        draw_gate_training,
        lambda evidence: "val_gate_augrc" in evidence.epochs,
    ),
    Chart(
        "sharpness",
        "training",
        "Sharpness in training",
        "Of the steps of an epoch, in the mean: how much higher the loss was at the worst weights nearby (flat weights "
        "have a small gap), the norm of the gradient before clipping, and how it lay to its running average.",
        4.2,
        draw_sharpness,
        lambda evidence: "sharpness_loss_gap" in evidence.epochs,
    ),
    Chart(
        "conformal_training",
        "training",
        "The conformal threshold in training (experimental)",
        "Of the thresholds of an epoch, one a head and batch: the share for which none was feasible, where "
        "SelectiveLoss stood in; the share at the grid's end, where the constraint was idle; and how much of the "
        "others' gradient came from the batch rather than from the bank. The policy uses none of them.",
        3.3,
        draw_conformal_training,
        lambda evidence: "conformal_infeasible_share" in evidence.epochs,
    ),
    Chart(
        "stages",
        "stages",
        "Stages over time",
        "Cases in training, and the monitor on the fixed val_select that alone decides when a stage ends. Dotted: "
        "where a stage began.",
        4.6,
        draw_stages,
        has_stages,
    ),
    Chart(
        "stage_scores",
        "stages",
        "Scores of the candidates",
        "Difficulty (1 - probability of the true class) and uncertainty (entropy / log C) of the cases that were not "
        "in training, at each scoring; later ones are darker.",
        4.6,
        draw_stage_scores,
        has_picks,
    ),
    Chart(
        "admitted",
        "stages",
        "Whom the stages admitted",
        "The first picks of each stage, with difficulty, uncertainty and diversity at the time of the pick. "
        "selections.csv has them all.",
        6.0,
        draw_admitted,
        has_picks,
    ),
    Chart(
        "suspects",
        "stages",
        "Suspect labels",
        "In training for two stages or more and still failing, or kept out by max_difficulty twice in a row; with the "
        "probability of the label, the worst first. Look at these labels; stage_suspects.csv has the whole list.",
        3.6,
        draw_suspects,
        has_suspects,
    ),
)

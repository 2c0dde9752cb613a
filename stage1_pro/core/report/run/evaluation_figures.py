"""What happened on the test split and in training, drawn.

Curves are thinned and histograms binned before they are drawn, so that a figure of ten million cases is
as light as one of a thousand.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.special import expit, logit

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.metrics.calibration import ReliabilityBins, reliability_bins
from stage1_pro.core.metrics.exits import count_exits, fnr_coverage_curve
from stage1_pro.core.metrics.selective import risk_coverage_curve
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.report.common import style
from stage1_pro.core.report.run.evidence import Evidence

CURVE_POINTS = 1000


HISTOGRAM_BINS = 40


LARGEST_LOGIT = 16.0  # a score of 1 - 1e-7; beyond it all scores are drawn alike


TICK_SCORES = np.array(
    [0.01, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999, 0.99999]
)


# The number that a policy compares its score with, by the field of its file.
THRESHOLDS = ("exit_threshold", "gate_threshold", "lambda1")


def draw_fnr_coverage(figure: Figure, evidence: Evidence) -> None:
    """FNR on exits at every coverage, with its exact interval and the operating point."""
    axes = figure.subplots()
    _fnr_curve(axes, evidence)
    policy, exits = evidence.policy, evidence.evaluation["exits"]
    coverage, fnr = exits["coverage"]["value"], exits["fnr_on_exits"]["value"]
    style.target_line(axes, policy["target_fnr_exit"])
    style.operating_point(axes, coverage, fnr)
    if coverage is not None:
        words = "bound in expectation" if in_expectation(policy) else "bound at this threshold alone"
        style.mark(axes, (coverage, policy["fnr_upper_bound"]), "v", style.GREEN, words)
    style.coverage_axis(axes)
    style.fnr_axis(axes, policy["target_fnr_exit"], policy["fnr_upper_bound"], fnr)
    style.legend(figure, axes)


def draw_fnr_uncertified(figure: Figure, evidence: Evidence) -> None:
    """The same of a run without a policy: no threshold is marked."""
    axes = figure.subplots()
    _fnr_curve(axes, evidence)
    style.target_line(axes, evidence.policy["target_fnr_exit"])
    style.coverage_axis(axes)
    positive = evidence.labels == 1
    style.fnr_axis(axes, evidence.policy["target_fnr_exit"], float(np.mean(evidence.answers[positive] == 0)))
    style.legend(figure, axes)


def _fnr_curve(axes: Axes, evidence: Evidence) -> None:
    counted = evidence.scores, evidence.answers, evidence.labels
    curve = fnr_coverage_curve(*counted, max_points=CURVE_POINTS)
    counts = count_exits(*counted, curve.thresholds)
    low, high = fnr_interval(counts.misses, counts.exited_positives, evidence.confidence_level)
    known = counts.exited_positives > 0
    band = curve.coverage[known], low[known], high[known]
    axes.fill_between(*band, color=style.BLUE, alpha=0.15, linewidth=0, label="pointwise interval")
    axes.plot(curve.coverage, curve.fnr, color=style.BLUE, label="FNR on exits, test")


def draw_risk_coverage(figure: Figure, evidence: Evidence) -> None:
    """Share of wrong answers among the most confident cases, and over all cases."""
    axes = figure.subplots()
    wrong = evidence.answers != evidence.labels
    curve = risk_coverage_curve(evidence.scores, wrong)
    kept = _thinned(curve.coverage.size)
    axes.plot(curve.coverage[kept], curve.selective_risk[kept], color=style.BLUE, label="selective risk")
    axes.plot(curve.coverage[kept], curve.generalised_risk[kept], "--", color=style.PINK, label="generalised risk")
    exits = evidence.evaluation["exits"]
    accuracy = exits["accuracy_on_exits"]["value"]
    risk = None if accuracy is None else 1 - accuracy
    style.operating_point(axes, exits["coverage"]["value"], risk)
    style.coverage_axis(axes)
    style.percent_axis(axes.yaxis, "wrong answers (%)")
    axes.set_ylim(0, style.headroom(1.3, wrong.mean() if wrong.size else None, risk))
    style.legend(figure, axes)


def draw_reliability(figure: Figure, evidence: Evidence) -> None:
    """Confidence against accuracy in bins of equal width, and how many cases each bin holds."""
    _reliability(figure, reliability_bins(evidence.confidence, evidence.correct), evidence.confidence_level)


def draw_gate_reliability(figure: Figure, evidence: Evidence) -> None:
    """The same of the calibrated gate: does a score of .9 mean nine right answers in ten?

    With one-sided exits of the negative answers alone: the gate does not decide about the others.
    """
    finite = np.isfinite(evidence.scores) & ~_always_exit(evidence)
    right = (evidence.answers == evidence.labels)[finite]
    _reliability(figure, reliability_bins(evidence.scores[finite], right), evidence.confidence_level)


def _reliability(figure: Figure, bins: ReliabilityBins, level: float) -> None:
    filled = np.flatnonzero(bins.count)
    width = 1 / bins.count.size
    first = filled[0] * width if filled.size else 0
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1.2])
    least = _bin_accuracies(upper, bins, filled, level)
    _bin_counts(lower, (filled + 0.5) * width, bins.count[filled], 0.9 * width)
    lower.set_xlim(first, 1.005)
    upper.set_ylim(min(first, least), 1.02)
    style.percent_axis(lower.xaxis, "confidence in the answer (%)")
    style.percent_axis(upper.yaxis, "right answers (%)")
    style.legend(figure, upper)


def _bin_accuracies(axes: Axes, bins: ReliabilityBins, filled: IntArray, level: float) -> float:
    """Returns the least accuracy within any bin's exact interval."""
    accuracy, count = bins.accuracy[filled], bins.count[filled]
    low, high = fnr_interval(np.round(accuracy * count).astype(np.int64), count, level)
    error = np.maximum([accuracy - low, high - accuracy], 0)
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    looks = {"color": style.BLUE, "marker": "o", "markersize": 5, "elinewidth": 1.2}
    axes.errorbar(bins.mean_confidence[filled], accuracy, error, label="test, with interval", **looks)
    return float(low.min(initial=1))


def _bin_counts(axes: Axes, places: np.ndarray, count: IntArray, width: float) -> None:
    bars = axes.bar(places, count, width, color=style.BLUE, alpha=0.75)
    axes.bar_label(bars, [style.compact(number) for number in count], fontsize=8, color=style.INK, padding=1)
    axes.set(ylim=(0, 1.35 * count.max(initial=1)), ylabel="cases", yticks=[])
    axes.grid(visible=False)


def draw_scores(figure: Figure, evidence: Evidence) -> None:
    """Histograms of the policy's score, positives above negatives, wrong answers in front."""
    panels = figure.subplots(2, sharex=True, sharey=True)
    finite = np.isfinite(evidence.scores)
    places, labels = _spread(evidence.scores[finite]), evidence.labels[finite]
    wrong, always = (evidence.answers != evidence.labels)[finite], _always_exit(evidence)[finite]
    threshold = _spread(np.array([next(evidence.policy[name] for name in THRESHOLDS if name in evidence.policy)]))
    if always.any():  # beside the others, whose scores fill the figure
        compared = np.append(places[~always], threshold)
        places = np.where(always, compared.max() + 0.12 * max(np.ptp(compared), 0.1), places)
    edges = _edges(np.append(places, threshold))
    for axes, label, words in zip(panels, (1, 0), ("positives", "negatives"), strict=True):
        members = labels == label
        _histogram(axes, places[members], edges, style.BLUE, 0.3, "all")
        _histogram(axes, places[members & wrong], edges, style.RED, 0.85, "answered wrongly")
        axes.axvline(threshold[0], color=style.INK, linewidth=1.4, label="threshold")
        axes.set_ylabel(f"{words}\n(cases)")
    _score_axes(panels[1], edges, np.histogram(places, edges)[0].max(initial=1))
    style.legend(figure, panels[0], columns=3)


def _histogram(axes: Axes, places: FloatArray, edges: FloatArray, colour: str, alpha: float, label: str) -> None:
    counts = np.histogram(places, edges)[0]
    axes.stairs(counts, edges, baseline=0.5, fill=True, color=colour, alpha=alpha, linewidth=0, label=label)


# ---- helpers


def _always_exit(evidence: Evidence) -> BoolArray:
    """(N,) cases whose exit no threshold decides: with one-sided exits the positive answers."""
    return (evidence.answers == 1) & (evidence.policy.get("exit_rule") == "one_sided")


def _thinned(points: int) -> IntArray:
    return np.linspace(0, points - 1, min(points, CURVE_POINTS)).round().astype(np.int64)


def _spread(scores: FloatArray) -> FloatArray:
    """Scores on the logit scale, which tells .99 from .999; the ends are drawn at ±LARGEST_LOGIT."""
    return np.clip(logit(scores), -LARGEST_LOGIT, LARGEST_LOGIT)


def _edges(places: FloatArray) -> FloatArray:
    return np.linspace(places.min(), max(places.max(), places.min() + 1e-3), HISTOGRAM_BINS + 1)


def _score_axes(axes: Axes, edges: FloatArray, most: int) -> None:
    """Cases on a log scale; ticks at round scores where three or more fit, else evenly spread."""
    axes.set(yscale="log", ylim=(0.7, 1.5 * most), xlabel="score of the exit policy (logit scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda cases, _: style.compact(round(cases))))
    places = [place for place in _spread(TICK_SCORES) if edges[0] - 0.05 <= place <= edges[-1]]
    kept = places[:1]
    for place in places:
        if place - kept[-1] >= (edges[-1] - edges[0]) / 6:
            kept.append(place)
    kept = kept if len(kept) > 2 else np.linspace(edges[0], edges[-1], 4).tolist()
    axes.set_xticks(kept, [f"{score:.5g}" for score in expit(kept)])

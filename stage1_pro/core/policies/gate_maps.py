"""Calibrators: from a gate logit to the probability that the answer is right, one map per answer.

A learned gate places predicted positives wrongly against predicted negatives, and one monotone map cannot
repair that. Maps are fitted on val_select by scikit-learn and kept as plain numbers: Platt's slope and
offset, or the knots of a piecewise linear map.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.selective import auroc

ANSWERS = ("answer_0", "answer_1")
LEAST_EVENTS = 10
SIGNIFICANT = 3.0
"""Standard errors below a half at which an AUROC is no chance."""
ENOUGH_FOR_ISOTONIC = 1000
MOST_KNOTS = 1000
UNUSED = {"platt": {"a": 1.0, "b": 0.0}, "isotonic": {"x": [0.0], "y": [1.0]}, "quantile": {"x": [0.0], "y": [1.0]}}
"""Map of an answer whose cases exit whatever the gate says, so that no threshold is ever compared with it."""
ADVICE = (
    "Train a new run with gate_refit: true, a larger gate_loss_weight or for fewer epochs, or with "
    "exit_policy: softmax."
)


@dataclass(frozen=True, slots=True)
class FittedCalibrator:
    """params: calibrator_params of gateparams.json; warnings: what its evidence was short of."""

    params: dict[str, Any]
    warnings: list[str]
    tilt: float = 0.0
    """How far predicted positives were pushed back, on the logit scale."""


def fit_calibrator(
    kind: str,
    gate: FloatArray,
    answers: IntArray,
    right: BoolArray,
    confidence: FloatArray,
    compares: tuple[int, ...] = (0, 1),
) -> FittedCalibrator:
    """Fit one map per answer on val_select. kind: platt, isotonic or quantile.

    gate, confidence: (N,) gate logit and softmax probability of the answer, NaN where not finite; answers, right: (N,);
    compares: answers whose exits a threshold decides; what the gate says of others is neither fitted nor judged.
    Raises UserError where the gate is constant or ranks wrong answers above right ones.
    """
    warnings: list[str] = []
    known = np.isfinite(gate) & np.isfinite(confidence)
    maps: dict[str, Any] = {}
    for answer, name in enumerate(ANSWERS):
        if answer not in compares:
            maps[name] = UNUSED[kind]
            continue
        cases = known & (answers == answer)
        demand_informative(gate[cases], right[cases], f"answer {answer}")
        fit = {"platt": _fit_platt, "isotonic": _fit_isotonic, "quantile": _fit_quantiles}[kind]
        maps[name] = fit(gate[cases], right[cases], confidence[cases], f"answer {answer}", warnings)
    return FittedCalibrator({"type": kind, **maps}, warnings)


def demand_informative(gate: FloatArray, right: BoolArray, name: str) -> None:
    """Raise UserError for a gate that is constant, or ranks wrong answers above right ones beyond chance.

    gate, right: (N,) of one answer. A monotone map of such a gate would be certified as well, and be of no use.
    """
    wins, losses = np.count_nonzero(right), np.count_nonzero(~right)
    if min(wins, losses) < LEAST_EVENTS:
        return
    if np.ptp(gate) == 0:
        raise UserError(f"the gate is constant ({name}), so it says nothing. {ADVICE}")
    found = auroc(gate, right)
    error = np.sqrt((wins + losses + 1) / (12 * wins * losses))  # of a gate that knows nothing
    if found < 0.5 - SIGNIFICANT * error:
        raise UserError(
            f"the gate is anti-informative ({name}): it scores wrong answers of val_select above right ones (AUROC "
            f"{found:.2f}). {ADVICE}"
        )


def calibrated(params: dict[str, Any], gate: np.ndarray, answers: IntArray) -> FloatArray:
    """(N,) float64 calibrated gate; NaN where the gate logit is not finite. gate, answers: (N,)."""
    gate = np.ascontiguousarray(gate, dtype=np.float64)
    gate = np.where(np.isfinite(gate), gate, np.nan)
    form = _apply_platt if params["type"] == "platt" else _apply_knots
    scores = np.empty(gate.size)
    for answer, name in enumerate(ANSWERS):
        own = answers == answer
        scores[own] = form(params[name], gate[own])
    return scores


def demand_matching(policy: dict[str, Any], name: str) -> None:
    """Raise UserError unless a policy file's calibrator is of the type it names, and sound. name: of its schema."""
    params = policy["calibrator_params"]
    if params["type"] != policy["calibrator_type"]:
        raise UserError(
            f"{name}.json: $.calibrator_type is {policy['calibrator_type']!r} and $.calibrator_params.type "
            f"{params['type']!r}: the file has been altered. {artifacts.MENDS[name]}"
        )
    demand_sound(params, name)


def demand_sound(params: dict[str, Any], name: str) -> None:
    """Raise UserError where knots are not what a schema cannot say: as many y as x, x rising, y not falling."""
    if params["type"] == "platt":
        return
    for answer in ANSWERS:
        x, y = params[answer]["x"], params[answer]["y"]
        if len(x) != len(y) or np.any(np.diff(x) <= 0) or np.any(np.diff(y) < 0):
            raise UserError(
                f"{name}.json: $.calibrator_params.{answer} is no rising map: x must rise, y must not fall, and both "
                f"be as long. {artifacts.MENDS[name]}"
            )


def _apply_platt(params: dict[str, float], gate: FloatArray) -> FloatArray:
    return expit(params["a"] * gate + params["b"])


def _apply_knots(params: dict[str, list[float]], gate: FloatArray) -> FloatArray:
    """Linear between the knots, constant beyond them."""
    return np.interp(gate, params["x"], params["y"])


def _fit_platt(gate: FloatArray, right: BoolArray, _: FloatArray, name: str, warnings: list[str]) -> dict[str, float]:
    """q = σ(a·g + b) with Platt's smoothed targets (Platt 1999). A slope needs events of both kinds."""
    targets = _smoothed(right)
    few = min(np.count_nonzero(right), np.count_nonzero(~right))
    if few < LEAST_EVENTS:
        warnings.append(
            f"{name}: {few} {'wrong' if right.mean() > 0.5 else 'right'} answers on val_select cannot tell the "
            "calibrator's slope; the gate's own scale is kept"
            if len(right)
            else f"{name}: never given on val_select; the gate's own scale is kept"
        )
        return {"a": 1.0, "b": _offset(gate, targets)}
    slope, offset = _logistic(gate, targets)
    if slope <= 0:
        raise UserError(
            f"the gate is anti-informative ({name}): it scores wrong answers of val_select above right ones "
            f"(Platt's slope is {slope:.3g}). {ADVICE}"
        )
    return {"a": slope, "b": offset}


def _smoothed(right: BoolArray) -> FloatArray:
    wins, losses = np.count_nonzero(right), np.count_nonzero(~right)
    return np.where(right, (wins + 1) / (wins + 2), 1 / (losses + 2))


def _logistic(gate: FloatArray, targets: FloatArray) -> tuple[float, float]:
    """Unpenalised slope and offset for soft targets: each case counts as both events, in their shares.

    The gate is standardised for the fit, so that its scale does not slow the solver.
    """
    from sklearn.linear_model import LogisticRegression

    mean, deviation = gate.mean(), gate.std()
    column = np.tile((gate - mean) / deviation, 2)[:, None]
    events = np.repeat([1, 0], len(gate))
    fitted = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8).fit(
        column, events, sample_weight=np.concatenate([targets, 1 - targets])
    )
    slope = float(fitted.coef_[0, 0] / deviation)
    return slope, float(fitted.intercept_[0] - slope * mean)


def _offset(gate: FloatArray, targets: FloatArray) -> float:
    """b that makes the mean of σ(g + b) that of the targets; 0 without cases."""
    from scipy.optimize import root_scalar  # deferred: whoever loads a policy fits nothing

    if not len(gate):
        return 0.0
    reach = 40 + float(np.abs(gate).max())
    found = root_scalar(lambda b: expit(gate + b).mean() - targets.mean(), bracket=(-reach, reach))
    return float(found.root)


def _fit_isotonic(
    gate: FloatArray, right: BoolArray, _: FloatArray, name: str, warnings: list[str]
) -> dict[str, list[float]]:
    """Pool adjacent violators; its thresholds are the knots."""
    from sklearn.isotonic import IsotonicRegression

    if len(gate) < ENOUGH_FOR_ISOTONIC:
        warnings.append(f"{name}: isotonic calibration fitted on {len(gate)} cases; it wants {ENOUGH_FOR_ISOTONIC}")
    if not len(gate):
        return {"x": [0.0], "y": [0.5]}
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(gate, right.astype(np.float64))
    return {"x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()}


def _fit_quantiles(
    gate: FloatArray, _: BoolArray, confidence: FloatArray, name: str, warnings: list[str]
) -> dict[str, list[float]]:
    """The rising map that gives the gate the softmax confidence's quantiles: each answer exits with softmax's share.

    It has no flat pieces, where cases would tie: equal confidences are one knot, and beyond the cases of val_select it
    goes on to 0 and 1 over as wide a range again.
    """
    if not len(gate):
        warnings.append(f"{name}: never given on val_select, so none of its cases exits before all others")
        return {"x": [0.0], "y": [0.5]}
    places = np.unique(np.linspace(0, len(gate) - 1, min(len(gate), MOST_KNOTS)).round().astype(np.int64))
    x, last = np.unique(np.sort(gate)[places][::-1], return_index=True)
    y = np.sort(confidence)[places][::-1][last]
    low, high = 2 * x[0] - x[-1], 2 * x[-1] - x[0]
    y, first, run = np.unique(y, return_index=True, return_counts=True)
    x = (x[first] + x[first + run - 1]) / 2
    if low < high:
        x, y = np.concatenate([[low], x, [high]]), np.concatenate([[0.0], y, [1.0]])
    return {"x": x.tolist(), "y": y.tolist()}

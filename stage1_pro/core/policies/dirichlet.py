"""Dirichlet calibration of class probabilities with ODIR, for two classes (Kull et al. 2019).

q = softmax(W ln p + b), loss = class-weighted NLL + mu / C sum b_j². For C = 2 the softmax makes the off-diagonal
penalty idle, so W is diagonal with entries >= 0, and the map is beta calibration: logit q = a ln p - c ln(1 - p) + d,
which rises in p. Tied, b = diag(W) ln 2, so that p = ½ stays ½ and the answers stay the model's own; fitted
freely the map moves answers, and coverage with them (-.05 on real images).
"""

from typing import Any

import numpy as np
from scipy.special import expit

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import FloatArray, IntArray

PENALTIES = 10.0 ** np.arange(-3, 4)
FOLDS = 5
WEIGHT = (1e-3, 20.0)
"""Range of W's diagonal: at 0 all cases of one answer would tie, and separable cases send it to infinity."""
LN2 = float(np.log(2))


def fit_dirichlet(kind: str, logits: np.ndarray, labels: IntArray, groups: np.ndarray, seed: int) -> dict[str, Any]:
    """dirichlet_params of the policy file, fitted on val_select. kind: tied, or free with mu chosen by K folds.

    logits: (N, 2), those not finite are left out; labels, groups: (N,).
    """
    z = class_margin(logits)
    known = np.isfinite(z)
    z, labels, groups = z[known], labels[known].astype(np.int64), groups[known]
    if kind == "tied":
        return _fit_tied(z, labels)
    mu = _best_penalty(z, labels, groups, seed)
    return {**_fit_free(z, labels, mu), "mu": mu}


def log_odds(params: dict[str, Any], logits: np.ndarray) -> FloatArray:
    """(N,) float64 calibrated log-odds of class 1; NaN where a logit is not finite. logits: (N, 2)."""
    negative, positive = _log_p(class_margin(logits))
    (w0, _), (_, w1) = params["W"]
    b0, b1 = params["b"]
    return (w1 * positive + b1) - (w0 * negative + b0)


def keeping_answers(params: dict[str, Any]) -> dict[str, Any]:
    """Return the map with its intercept moved so that p = ½ stays ½: placed answers stay where they were placed.

    Exactly so, as of a tied map: the sums cancel in floating point too.
    """
    (w0, _), (_, w1) = params["W"]
    return {**params, "b": [w0 * LN2, w1 * LN2]}


def class_margin(logits: np.ndarray) -> FloatArray:
    """(N,) float64 logit_1 - logit_0; NaN where a logit is not finite."""
    wide = np.asarray(logits, dtype=np.float64)
    finite = np.isfinite(wide).all(axis=1)
    return np.where(finite, np.where(finite, wide[:, 1], 0) - np.where(finite, wide[:, 0], 0), np.nan)


def demand_diagonal(params: dict[str, Any], where: str, mend: str) -> None:
    """Raise UserError where W is not a diagonal of rising maps, which a schema cannot say."""
    (w0, above), (below, w1) = params["W"]
    if above or below or min(w0, w1) <= 0:
        raise UserError(f"{where}: $.dirichlet_params.W is no diagonal with entries above 0. {mend}")


def class_weights(labels: IntArray) -> FloatArray:
    """(N,) total / (2 count_c), as in training: the answers are those of the class-weighted model."""
    counts = np.maximum(np.bincount(labels, minlength=2), 1)
    return (len(labels) / (2 * counts))[labels]


def _fit_tied(z: FloatArray, labels: IntArray) -> dict[str, Any]:
    negative, positive = _log_p(z)
    c, a = _minimise([-(negative + LN2), positive + LN2], labels, 0.0)
    return _params(c, a, c * LN2, a * LN2)


def _fit_free(z: FloatArray, labels: IntArray, mu: float) -> dict[str, Any]:
    """Only the difference d of the biases matters; mu wants it shared: b = (-d/2, d/2)."""
    negative, positive = _log_p(z)
    c, a, d = _minimise([-negative, positive, np.ones_like(z)], labels, mu)
    return _params(c, a, -d / 2, d / 2)


def _best_penalty(z: FloatArray, labels: IntArray, groups: np.ndarray, seed: int) -> float:
    """mu with the least NLL on folds that it was not fitted on; the largest where there are too few cases to tell."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(FOLDS, *np.bincount(labels, minlength=2).tolist(), len(np.unique(groups.astype(str))))
    if folds < 2:
        return float(PENALTIES[-1])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(z, labels, groups.astype(str)))
    weights = class_weights(labels)

    def loss(mu: float) -> float:
        return sum(_nll(_fit_free(z[fit], labels[fit], mu), z[out], labels[out], weights[out]) for fit, out in parts)

    return float(PENALTIES[int(np.argmin([loss(mu) for mu in PENALTIES]))])


def _minimise(columns: list[FloatArray], labels: IntArray, mu: float) -> list[float]:
    """Weights of a logistic model of 2 or 3 columns (N,), from the identity; the third is a bias with penalty mu / 4.

    Sums are numpy's and not BLAS's, which would depend on the number of threads.
    """
    from scipy.optimize import minimize  # deferred: whoever loads a policy fits nothing

    weights = class_weights(labels) / max(1, len(labels))
    penalty = np.array([0.0, 0.0, mu / 4])[: len(columns)]

    def objective(v: FloatArray) -> tuple[float, FloatArray]:
        u = sum(value * column for value, column in zip(v, columns, strict=True))
        residual = weights * (expit(u) - labels)
        loss = np.sum(weights * (np.logaddexp(0, u) - labels * u)) + np.sum(penalty * v**2)
        return float(loss), np.array([np.sum(column * residual) for column in columns]) + 2 * penalty * v

    start, bounds = [1.0, 1.0, 0.0], [WEIGHT, WEIGHT, (None, None)]
    size, exact = len(columns), {"ftol": 1e-14, "gtol": 1e-10, "maxiter": 1000}
    found = minimize(objective, start[:size], jac=True, bounds=bounds[:size], method="L-BFGS-B", options=exact)
    return [float(value) for value in found.x]


def _nll(params: dict[str, Any], z: FloatArray, labels: IntArray, weights: FloatArray) -> float:
    u = log_odds(params, np.column_stack([np.zeros_like(z), z]))
    return float(np.sum(weights * (np.logaddexp(0, u) - labels * u)))


def _params(c: float, a: float, b0: float, b1: float) -> dict[str, Any]:
    return {"W": [[c, 0.0], [0.0, a]], "b": [b0, b1]}


def _log_p(z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(ln p_0, ln p_1), exact at any |z|."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return -np.logaddexp(0, z), -np.logaddexp(0, -z)

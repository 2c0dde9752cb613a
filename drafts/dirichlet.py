"""Dirichlet calibration with ODIR for two classes (Kull et al. 2019), W diagonal and >= 0.

q = softmax(W ln p + b), loss = class-weighted NLL + (mu / 2) sum b_j^2. For C = 2 this is beta
calibration, logit q = a ln p - c ln(1 - p) + d. `keep_answers` ties b = diag(W) ln 2, so that
p = 1/2 stays 1/2: fitted freely the map moves the answers, and coverage with them (checked: -.05).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

PENALTIES = 10.0 ** np.arange(-3, 4)
FOLDS = 5
LEAST = 1e-3  # a weight of 0 would tie all cases of one answer


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """W = diag(weights), b = biases, in the order of the classes (0, 1)."""

    weights: tuple[float, float]
    biases: tuple[float, float]

    def logit(self, z: FloatArray) -> FloatArray:
        """(N,) calibrated log-odds of class 1 from z = logit_1 - logit_0."""
        negative, positive = _log_p(z)
        return self.weights[1] * positive + self.biases[1] - self.weights[0] * negative - self.biases[0]


def fit_dirichlet(z: FloatArray, labels: IntArray, seed: int, keep_answers: bool = True) -> Dirichlet:
    """z, labels: (N,) of val_select. mu by K-fold class-weighted NLL (no b is free where answers are kept)."""
    if keep_answers:
        return _anchored(z, labels)
    from sklearn.model_selection import StratifiedKFold

    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(z, labels))
    losses = [sum(_loss(_free(z[a], labels[a], mu), z[b], labels[b]) for a, b in folds) for mu in PENALTIES]
    return _free(z, labels, float(PENALTIES[int(np.argmin(losses))]))


def _anchored(z: FloatArray, labels: IntArray) -> Dirichlet:
    design = np.stack(_log_p(z), axis=1) + np.log(2)
    c, a = _minimise(design * [-1, 1], labels, 0.0, [1.0, 1.0], [(LEAST, None)] * 2)
    return Dirichlet((float(c), float(a)), (float(c * np.log(2)), float(a * np.log(2))))


def _free(z: FloatArray, labels: IntArray, mu: float) -> Dirichlet:
    negative, positive = _log_p(z)
    design = np.column_stack([-negative, positive, np.ones_like(z)])
    c, a, d = _minimise(design, labels, mu, [1.0, 1.0, 0.0], [(LEAST, None)] * 2 + [(None, None)])
    return Dirichlet((float(c), float(a)), (float(-d / 2), float(d / 2)))


def _minimise(design: FloatArray, labels: IntArray, mu: float, start: list[float], bounds: list) -> FloatArray:
    weights = class_weights(labels) / len(labels)

    def objective(v: FloatArray) -> tuple[float, FloatArray]:
        u = design @ v
        residual = weights * (0.5 * (1 + np.tanh(u / 2)) - labels)
        loss, gradient = weights @ (np.logaddexp(0, u) - labels * u), design.T @ residual
        if len(v) == 3:  # b = (-d/2, d/2)
            loss, gradient[2] = loss + mu * v[2] ** 2 / 4, gradient[2] + mu * v[2] / 2
        return loss, gradient

    return minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B").x


def _loss(fit: Dirichlet, z: FloatArray, labels: IntArray) -> float:
    u = fit.logit(z)
    return float(np.average(np.logaddexp(0, u) - labels * u, weights=class_weights(labels)))


def class_weights(labels: IntArray) -> FloatArray:
    """(N,) total / (2 count_c), as in training: the answers are those of the class-weighted model."""
    counts = np.maximum(np.bincount(labels, minlength=2), 1)
    return (len(labels) / (2 * counts))[labels]


def _log_p(z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ln p_0, ln p_1; exact at any |z|."""
    return -np.logaddexp(0, z), -np.logaddexp(0, -z)

"""The gate head, refitted on val_select: a cross-fitted logistic of the label on [h, z, |z|]."""

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

FOLDS = 3
STRENGTH = 0.05  # scikit-learn's C


@dataclass(frozen=True, slots=True, eq=False)
class RefittedGate:
    """weight: (D + 2,), bias: a linear head on raw [h, z, |z|], the mean of the folds' heads.
    out_of_fold: (N,) logits of val_select's own cases, each by the fold that did not see it."""

    weight: FloatArray
    bias: float
    out_of_fold: FloatArray

    def logit(self, inputs: FloatArray) -> FloatArray:
        return inputs @ self.weight + self.bias


def gate_inputs(hidden: FloatArray, z: FloatArray) -> FloatArray:
    """(N, D + 2) what the gate head sees: hidden (N, D), z (N,) = logit_1 - logit_0, and |z|."""
    return np.column_stack([hidden, z, np.abs(z)])


def refit_gate(inputs: FloatArray, labels: IntArray, seed: int) -> RefittedGate:
    """Fit y on [h, z, |z|]; with an ensemble call once per member, average logits and out_of_fold.

    inputs: (N, D + 2) of val_select; labels: (N,). Inputs are standardised within each fold and the
    head is brought back to raw inputs, so that it stays one linear layer of the model file.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    heads, out_of_fold = [], np.empty(len(labels))
    for fitted, held_out in splitter.split(inputs, labels):
        mean, scale = inputs[fitted].mean(axis=0), inputs[fitted].std(axis=0)
        alive = scale > 1e-4  # a dead ReLU unit carries nothing
        scale = np.where(alive, scale, 1.0)
        model = LogisticRegression(C=STRENGTH, max_iter=1000)
        model.fit(np.where(alive, (inputs[fitted] - mean) / scale, 0.0), labels[fitted])
        weight = np.where(alive, model.coef_[0] / scale, 0.0)
        bias = float(model.intercept_[0] - weight @ mean)
        out_of_fold[held_out] = inputs[held_out] @ weight + bias
        heads.append((weight, bias))
    weights, biases = zip(*heads, strict=True)
    return RefittedGate(np.mean(weights, axis=0), float(np.mean(biases)), out_of_fold)


def gate_logit(z: FloatArray, refitted: FloatArray) -> FloatArray:
    """(N,) how sure the gate is of the model's own answer: (2ŷ − 1)(½z + ½ refitted). ŷ = 1{z >= 0}."""
    return np.where(z >= 0, 1.0, -1.0) * (0.5 * z + 0.5 * refitted)

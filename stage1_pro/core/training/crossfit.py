"""Cross-fitting: what a model says of cases that it was not fitted on.

A training case is nearly always answered rightly by the model that it trained, so "the answer is right" is
a constant there and teaches a gate nothing; a model of the other folds tells.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar
from stage1_pro.core.devices import isolated_seed
from stage1_pro.core.losses.cross_entropy import ClassLoss, balanced_weights
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.models.heads import SelectiveHeads, gate_inputs, margin, signed_gate
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.optim.schedule import parameter_groups, warmup_cosine
from stage1_pro.core.seeds import rng_of, seed_of

FOLDS = 3
MOST_EPOCHS = 10
CHUNK = 4096
REFIT_C = 0.05
LEAST_DEVIATION = 1e-4


def group_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> IntArray | None:
    """(N,) fold of each case, as `assigned_folds`; None where a fit without one of them would not see both labels."""
    fold = assigned_folds(labels, groups, seed)
    if fold is None:
        return None
    seen = (len(np.unique(labels[fold != number])) for number in range(FOLDS))
    return fold if min(seen) == 2 else None


def assigned_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> IntArray | None:
    """(N,) fold of each case: groups whole, each fold with its share of the cases of every label.

    None where there are fewer groups, or cases of every label, than folds. A pure function of seed, labels and groups,
    whatever the order of the cases.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names, index = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < FOLDS or np.bincount(labels, minlength=2).max() < FOLDS:
        return None
    order = np.argsort(index, kind="stable")
    # by groups it takes a third of a millisecond for each: minutes, where every case is a group of its own
    kind = StratifiedKFold if len(names) == len(labels) else StratifiedGroupKFold
    splitter = kind(FOLDS, shuffle=True, random_state=seed_of(seed, "folds"))
    fold = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a label with fewer cases than folds: the fits tell
        for number, (_, held_out) in enumerate(splitter.split(order, labels[order], index[order])):
            # cases stood by group name: the folds do not depend on the order in which the splits list them
            fold[order[held_out]] = number
    return fold


def out_of_fold_correct(
    features: np.ndarray,
    labels: np.ndarray,
    fold: IntArray,
    config: Stage1ProConfig,
    device: torch.device,
) -> Tensor:
    """(N,) float32, 1 where heads trained on the other folds answer the case rightly.

    fold: (N,) of `group_folds`. Its heads are trained side by side on features (N, D), each blind to its own fold, with
    class weights: their batches are not balanced, also where those of training are.
    """
    loss = ClassLoss(balanced_weights(np.bincount(labels, minlength=2)), config.label_smoothing).to(device)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64))
    folds = torch.from_numpy(fold)
    # training goes on as if no targets had been made: same dropout, same draws
    with isolated_seed(config.seed, "out of fold"):
        heads = SelectiveHeads(features.shape[1], 2, FOLDS, config.dropout).to(device).train()
        _train_blind(heads, inputs, targets, folds, loss, config)
    z = _margins(heads.eval(), inputs)
    answered = z[folds, torch.arange(len(folds))] >= 0
    return (answered == (targets == 1)).float()


@dataclass(frozen=True, slots=True, eq=False)
class GateTargets:
    """Where a gate's targets come from: features (N, D), labels (N,) and groups (N,) of the training split."""

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    config: Stage1ProConfig
    device: torch.device

    def of(self, active: IntArray) -> Tensor | None:
        """(N,) as `out_of_fold_correct`, from the active cases alone and for them; NaN elsewhere.

        active: (A,) positions in training. None where they are too few to leave a fold out.
        """
        features, labels, groups = (column[active] for column in (self.features, self.labels, self.groups))
        fold = group_folds(labels, groups, self.config.seed)
        if fold is None:
            return None
        targets = torch.full((len(self.labels),), torch.nan)
        targets[active] = out_of_fold_correct(features, labels, fold, self.config, self.device)
        return targets


def _train_blind(
    heads: SelectiveHeads, inputs: Tensor, targets: Tensor, fold: Tensor, loss: ClassLoss, config: Stage1ProConfig
) -> None:
    device, size = loss.of_label.device, config.batch_size
    optimizer = torch.optim.AdamW(parameter_groups(heads, config.lr_head, 0, config.weight_decay))
    epochs, steps = min(config.schedule_epochs, MOST_EPOCHS), -(-len(inputs) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps if epochs > 1 else 0, steps * epochs))
    draws = (
        taken
        for epoch in range(epochs)
        for taken in torch.from_numpy(rng_of(config.seed, "out of fold", epoch).permutation(len(inputs))).split(size)
    )
    with bar("targets of the gate", brief=True) as progress:
        for done, taken in enumerate(draws, 1):
            labels = targets[taken].to(device)
            seen = (fold[taken] != torch.arange(FOLDS)[:, None]).to(device)
            costs = loss.cases(heads(inputs[taken].to(device)).logits, labels)
            optimizer.zero_grad()
            ((costs * seen).sum(1) / seen.sum(1).clamp(min=1)).sum().backward()
            optimizer.step()
            schedule.step()
            progress(done, steps * epochs)


@torch.no_grad()
def _margins(heads: SelectiveHeads, inputs: Tensor) -> Tensor:
    """(M, N) z of each head, on the CPU."""
    device = heads.trunk.weight.device
    return torch.cat([margin(heads(part.to(device)).logits).cpu() for part in inputs.split(CHUNK)], dim=1)


@torch.no_grad()
def refit_gate(model: Stage1Model, features: Tensor, labels: np.ndarray, fold: IntArray) -> np.ndarray:
    """Fit the model's linear gate again, on val_select; returns (N,) out-of-fold gate logits, float32.

    Per head a logistic regression of the label on standardised [h, z, |z|], once without each fold; the
    mean of the folds' weights becomes the gate head. features: (N, D) of val_select, on the CPU; fold: (N,) of
    `group_folds`.
    """
    heads = model.heads
    assert heads is not None
    shift = model.answer_shift
    parts = [heads(part, shift) for part in features.split(CHUNK)]
    logits = torch.cat([part.logits for part in parts], dim=1)
    evidence = np.empty((heads.members, len(labels)))
    with bar("fitting the gate again", brief=True) as progress:
        for member in range(heads.members):
            hidden = torch.cat([part.hidden[member] for part in parts])
            inputs = gate_inputs(hidden, logits[member], shift).double().numpy()
            weights, biases = zip(*(_logistic(inputs[fold != k], labels[fold != k]) for k in range(FOLDS)), strict=True)
            for k in range(FOLDS):
                evidence[member, fold == k] = inputs[fold == k] @ weights[k] + biases[k]
            # a mean of linear maps is one: the gate stays a single head of a single file
            heads.gate.weight[member, :, 0] = torch.from_numpy(np.mean(weights, axis=0))
            heads.gate.bias[member] = float(np.mean(biases))
            progress(member + 1, heads.members)
    return signed_gate(logits.mean(dim=0), torch.from_numpy(evidence.mean(axis=0)), shift).numpy()


def _logistic(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias in terms of the raw inputs (N, P); a column that hardly varies gets no weight."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(deviation > LEAST_DEVIATION, 1 / np.maximum(deviation, LEAST_DEVIATION), 0.0)
    fitted = LogisticRegression(C=REFIT_C, max_iter=1000).fit((inputs - mean) * scale, labels)
    weights = fitted.coef_[0] * scale
    return weights, float(fitted.intercept_[0] - weights @ mean)

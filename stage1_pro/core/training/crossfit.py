"""Cross-fitting: what a model says of cases that it was not fitted on.

A training case is nearly always answered rightly by the model that it trained, so "the answer is right" is
a constant there and teaches a gate nothing; a model of the other folds tells.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.models.heads import SelectiveHeads, gate_inputs, margin, signed_gate
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.optim.schedule import parameter_groups, warmup_cosine
from stage1_pro.core.seeds import isolated_seed, rng_of

FOLDS = 3
MOST_EPOCHS = 10
CHUNK = 4096
REFIT_C = 0.05
LEAST_DEVIATION = 1e-4


def group_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> IntArray:
    """(N,) fold of each case: groups whole, each label's groups dealt out evenly.

    A group counts as positive where any of its cases is. A pure function of seed, labels and groups.
    """
    names, index = np.unique(groups.astype(str), return_inverse=True)
    positive = np.bincount(index, weights=labels == 1, minlength=len(names)) > 0
    shuffled = rng_of(seed, "folds").permutation(len(names))
    order = shuffled[np.argsort(positive[shuffled], kind="stable")]
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    return fold[index]


def out_of_fold_correct(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    config: Stage1ProConfig,
    device: torch.device,
) -> Tensor:
    """(N,) float32, 1 where heads trained on the other folds answer the case rightly.

    The folds' heads are trained side by side on features (N, D), each blind to its own fold, with class weights:
    their batches are not balanced, also where those of training are.
    """
    counts = np.bincount(labels, minlength=2)
    class_weights = torch.tensor(counts.sum() / (2 * np.maximum(counts, 1)), dtype=torch.float32)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64))
    fold = torch.from_numpy(group_folds(labels, groups, config.seed))
    with isolated_seed(config.seed, "out of fold"):
        heads = SelectiveHeads(features.shape[1], 2, FOLDS, config.dropout).to(device).train()
        _train_blind(heads, inputs, targets, fold, class_weights.to(device), config)
    z = _margins(heads.eval(), inputs)
    answered = z[fold, torch.arange(len(fold))] >= 0
    return (answered == (targets == 1)).float()


def stage_targets(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    active: np.ndarray,
    config: Stage1ProConfig,
    device: torch.device,
) -> Tensor | None:
    """(N,) as `out_of_fold_correct`, from the active cases alone and for them; 0 elsewhere, which nothing reads.

    active: (A,) positions in training. None where they are too few to leave a fold out.
    """
    if not can_refit(labels[active], groups[active], config.seed):
        return None
    taken = (features[active], labels[active], groups[active])
    targets = torch.zeros(len(labels))
    targets[active] = out_of_fold_correct(*taken, config, device)
    return targets


def _train_blind(
    heads: SelectiveHeads, inputs: Tensor, targets: Tensor, fold: Tensor, class_weights: Tensor, config: Stage1ProConfig
) -> None:
    device, size = class_weights.device, config.batch_size
    optimizer = torch.optim.AdamW(parameter_groups(heads, config.lr_head, 0, config.weight_decay))
    epochs, steps = min(config.schedule_epochs, MOST_EPOCHS), -(-len(inputs) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps if epochs > 1 else 0, steps * epochs))
    for epoch in range(epochs):
        rng = rng_of(config.seed, "out of fold", epoch)
        for taken in torch.from_numpy(rng.permutation(len(inputs))).split(size):
            labels = targets[taken].to(device)
            seen = (fold[taken] != torch.arange(FOLDS)[:, None]).to(device) * class_weights[labels]
            logits = heads(inputs[taken].to(device)).logits
            flat = cross_entropy(
                logits.flatten(0, 1),
                labels.repeat(FOLDS),
                reduction="none",
                label_smoothing=config.label_smoothing,
            )
            optimizer.zero_grad()
            ((flat.view(FOLDS, -1) * seen).sum(1) / seen.sum(1).clamp(min=1e-8)).sum().backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _margins(heads: SelectiveHeads, inputs: Tensor) -> Tensor:
    """(M, N) z of each head, on the CPU."""
    device = heads.trunk.weight.device
    return torch.cat([margin(heads(part.to(device)).logits).cpu() for part in inputs.split(CHUNK)], dim=1)


@torch.no_grad()
def refit_gate(model: Stage1Model, features: Tensor, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Fit the model's linear gate again, on val_select; returns (N,) out-of-fold gate logits, float32.

    Per head a logistic regression of the label on standardised [h, z, |z|], once without each fold; the
    mean of the folds' weights becomes the gate head. features: (N, D) of val_select, on the CPU.
    """
    heads = model.heads
    assert heads is not None
    fold = group_folds(labels, groups, seed)
    parts = [heads(part) for part in features.split(CHUNK)]
    logits = torch.cat([part.logits for part in parts], dim=1)
    evidence = np.empty((heads.members, len(labels)))
    for member in range(heads.members):
        hidden = torch.cat([part.hidden[member] for part in parts])
        inputs = gate_inputs(hidden, logits[member]).double().numpy()
        weights, biases = zip(*(_logistic(inputs[fold != k], labels[fold != k]) for k in range(FOLDS)), strict=True)
        for k in range(FOLDS):
            evidence[member, fold == k] = inputs[fold == k] @ weights[k] + biases[k]
        heads.gate.weight[member, :, 0] = torch.from_numpy(np.mean(weights, axis=0))
        heads.gate.bias[member] = float(np.mean(biases))
    return signed_gate(logits.mean(dim=0), torch.from_numpy(evidence.mean(axis=0))).numpy()


def can_refit(labels: np.ndarray, groups: np.ndarray, seed: int) -> bool:
    """Whether both classes remain in every fit when a fold is left out."""
    fold = group_folds(labels, groups, seed)
    return all(len(np.unique(labels[fold != k])) == 2 for k in range(FOLDS))


def _logistic(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias in terms of the raw inputs (N, P); a column that hardly varies gets no weight."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(deviation > LEAST_DEVIATION, 1 / np.maximum(deviation, LEAST_DEVIATION), 0.0)
    fitted = LogisticRegression(C=REFIT_C, max_iter=1000).fit((inputs - mean) * scale, labels)
    weights = fitted.coef_[0] * scale
    return weights, float(fitted.intercept_[0] - weights @ mean)

"""SelectiveLoss: class heads and gates trained together under a constraint on FNR on exits.

    minimise    Σ s·CE / Σ s + aux_weight·CE(aux) − κ·½(log φ₁ + log φ₀) + gate_loss_weight·BCE(g, correct)
    subject to  E[s·(f − α_t) | y = 1] <= 0

s = σ(g) is the soft exit, φ_c its mean over class c, f = 1{z < 0} the miss. f is hard and carries no
gradient: a soft one would move the classifier toward answering 1. The constraint, equivalent to soft FNR
on exits <= α_t, is met by an augmented Lagrangian. There is no target coverage: both classes' coverage
is rewarded by its logarithm, so that neither can be given up.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stage1_pro.core.models.heads import Members, margin, signed_gate

LEAST_COVERAGE = 1e-4


@dataclass(frozen=True, slots=True)
class SelectiveSettings:
    """The numbers of the loss. target: α_t; penalty: ρ; largest_multiplier: μ_max; memory: what an
    optimizer step keeps of the running constraint."""

    target: float
    aux_weight: float = 0.5
    coverage_reward: float = 0.3
    gate_loss_weight: float = 1.0
    label_smoothing: float = 0.0
    penalty: float = 1.0
    largest_multiplier: float = 10.0
    memory: float = 0.95


class BatchTerms(NamedTuple):
    """What one batch contributes, before the heads are averaged; each (M,)."""

    loss: Tensor
    violation: Tensor
    """Sum of s·(f − α_t) over the batch's positives."""


class SelectiveLoss(nn.Module):
    """The loss of M heads, each under a constraint of its own; its mean over the heads is returned.

    class_weights: (2,). The state (multipliers and running constraint) is in buffers, and so in the
    checkpoint; it moves in `dual_step`, which is to be called once an optimizer step, so that accumulated
    batches count as one.
    """

    class_weights: Tensor
    multiplier: Tensor
    violation: Tensor
    positives: Tensor
    pending_violation: Tensor
    pending_positives: Tensor

    def __init__(self, members: int, class_weights: Tensor, settings: SelectiveSettings):
        super().__init__()
        self.settings = settings
        self.register_buffer("class_weights", class_weights.float(), persistent=False)
        for name in ("multiplier", "violation", "pending_violation"):
            self.register_buffer(name, torch.zeros(members))
        for name in ("positives", "pending_positives"):
            self.register_buffer(name, torch.zeros(()))

    @property
    def constraint(self) -> Tensor:
        """(M,) running mean of s·(f − α_t) over recent positives; 0 before the first."""
        return self.violation / self.positives.clamp(min=1e-12)

    def forward(self, members: Members, labels: Tensor, correct: Tensor | None = None, warm: bool = False) -> Tensor:
        """Mean loss over the heads, in float32 whatever autocast is in force.

        labels: (B,); correct: (B,) 1 where an out-of-fold model is right, None to use the heads' own answers.
        warm: class and auxiliary loss only.
        """
        with torch.autocast(labels.device.type, enabled=False):
            logits, aux = members.logits.float(), members.aux.float()
            gate = signed_gate(logits, members.evidence)
            weights = self.class_weights[labels]
            auxiliary = (self._cross_entropy(aux, labels)).sum(1) / weights.sum()
            if warm:
                plain = self._cross_entropy(logits, labels).sum(1) / weights.sum()
                idle = 0.0 * gate.sum(1)  # under DDP every parameter needs a gradient
                return (plain + self.settings.aux_weight * auxiliary + idle).mean()
            exits = gate.sigmoid()
            selective = (exits * self._cross_entropy(logits, labels)).sum(1) / (exits * weights).sum(1).clamp(min=1e-8)
            anchor = self._anchor(logits, gate, labels, weights, correct)
            total = selective + self.settings.aux_weight * auxiliary + self.settings.gate_loss_weight * anchor
            return (total + self._by_class(exits, logits, labels)).mean()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(M, B) weighted, smoothed cross entropy."""
        flat = cross_entropy(
            logits.flatten(0, 1),
            labels.repeat(len(logits)),
            self.class_weights,
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )
        return flat.view(logits.shape[:2])

    def _anchor(self, logits: Tensor, gate: Tensor, labels: Tensor, weights: Tensor, correct: Tensor | None) -> Tensor:
        """(M,) class-weighted cross entropy of the gate with "the answer is right"."""
        own = ((margin(logits) >= 0) == (labels == 1)).float().detach()
        target = own if correct is None else correct.float().expand_as(gate)
        return (binary_cross_entropy_with_logits(gate, target, reduction="none") * weights).sum(1) / weights.sum()

    def _by_class(self, exits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """(M,) coverage reward and constraint. A class that the batch lacks is left out."""
        total = torch.zeros_like(exits[:, 0])
        for label in (0, 1):
            if bool((labels == label).any()):
                share = exits[:, labels == label].mean(1).clamp(min=LEAST_COVERAGE)
                total = total - 0.5 * self.settings.coverage_reward * share.log()
        positive = labels == 1
        if not bool(positive.any()):
            return total
        misses = (margin(logits) < 0).float().detach()
        terms = (exits * (misses - self.settings.target))[:, positive]
        if self.training:
            self.pending_violation += terms.detach().sum(1)
            self.pending_positives += positive.sum()
        return total + self._lagrangian(terms)

    def _lagrangian(self, terms: Tensor) -> Tensor:
        """(M,) (max(0, μ + ρĈ)² − μ²) / 2ρ. Ĉ has the value of the running mean, this batch included, and the
        batch's gradient: a batch's few positives alone would say too little."""
        recent = self.settings.memory * self.violation + terms.detach().sum(1)
        value = recent / (self.settings.memory * self.positives + terms.shape[1])
        batch = terms.mean(1)
        constraint = value + batch - batch.detach()
        rho = self.settings.penalty
        return ((self.multiplier + rho * constraint).clamp(min=0) ** 2 - self.multiplier**2) / (2 * rho)

    @torch.no_grad()
    def dual_step(self) -> None:
        """Take the batches since the last step into the running constraint and move the multipliers."""
        if not bool(self.pending_positives > 0):
            return
        self.violation.mul_(self.settings.memory).add_(self.pending_violation)
        self.positives.mul_(self.settings.memory).add_(self.pending_positives)
        moved = self.multiplier + self.settings.penalty * self.constraint
        self.multiplier.copy_(moved.clamp(0, self.settings.largest_multiplier))
        self.pending_violation.zero_()
        self.pending_positives.zero_()

    def state(self) -> dict[str, Any]:
        """The figures of metrics.csv: mean over the heads of constraint and multiplier."""
        return {
            "gate_constraint": float(self.constraint.mean()),
            "gate_multiplier": float(self.multiplier.mean()),
        }

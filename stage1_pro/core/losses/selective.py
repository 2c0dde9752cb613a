"""SelectiveLoss: class heads that learn from every case, and gates under a constraint on FNR on exits.

    minimise    CE + aux_weight·CE(aux)                                                        the answers
                + Σ s·CE / Σ s − κ·½(log φ₁ + log φ₀) + gate_loss_weight·BCE(g, correct)       the gate
    subject to  E[s·(f − α_t) | y = 1] <= 0

s = σ(g) is the soft exit, φ_c its mean over class c, f = 1{z < 0} the miss. The gate's terms carry no gradient into
the answers: f is hard, its CE and its inputs are detached. Where selective risk trained the class heads as well,
they learnt less of the cases that do not exit and answered 1 more often: FPR on exits rose by .007 to .017 on real
images (frozen features), accuracy fell as much. The constraint, equivalent to soft FNR on exits <= α_t, is met by
an augmented Lagrangian. There is no target coverage: both classes' coverage is rewarded by its logarithm, so that
neither can be given up.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

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


class Parts(NamedTuple):
    """What a batch gives every loss of this family, float32; (M, B) where nothing else is said."""

    gate: Tensor
    """g, log-odds that the answer is right."""
    risk: Tensor
    """Class-weighted, smoothed cross entropy of the answer; no gradient."""
    missed: Tensor
    """f, 1 where the answer is 0; no gradient."""
    weights: Tensor
    """(B,) class weight of each case."""
    positive: Tensor
    """(B,) 1 where the label is 1."""
    answers: Tensor
    """(M,) loss of the class and auxiliary heads, over all cases."""
    anchor: Tensor
    """(M,) cross entropy of the gate with "the answer is right", weighted."""


class SelectiveLoss(nn.Module):
    """The losses of M heads, (M,), each under a constraint of its own.

    class_weights: (2,). The state (multipliers and running constraint) is in buffers, and so in the
    checkpoint; it moves in `dual_step`, which is to be called once an optimizer step on every rank, so
    that accumulated batches count as one.
    """

    class_weights: Tensor
    multiplier: Tensor
    violation: Tensor
    positives: Tensor
    pending: Tensor

    def __init__(self, members: int, class_weights: Tensor, settings: SelectiveSettings):
        super().__init__()
        self.settings = settings
        self.register_buffer("class_weights", class_weights.float(), persistent=False)
        for name in ("multiplier", "violation", "positives"):
            self.register_buffer(name, torch.zeros(members))
        self.register_buffer("pending", torch.zeros(2, members))  # violation and positives since the last step

    @property
    def constraint(self) -> Tensor:
        """(M,) running mean of s·(f − α_t) over recent positives; 0 before the first."""
        return self.violation / self.positives.clamp(min=1e-12)

    def forward(self, members: Members, labels: Tensor, correct: Tensor | None = None, warm: bool = False) -> Tensor:
        """(M,) loss of each head, in float32 whatever autocast is in force.

        labels: (B,); correct: (B,) 1 where an out-of-fold model is right, None to use the heads' own answers.
        warm: class and auxiliary loss only.
        """
        with torch.autocast(labels.device.type, enabled=False):
            parts = self.parts(members, labels, correct)
            if warm:
                return parts.answers + 0.0 * parts.anchor  # under DDP every parameter needs a gradient
            return self.of(parts)

    def of(self, parts: Parts) -> Tensor:
        """(M,) loss after the warm-up: at the soft exits σ(g), of every case, under the constraint."""
        exits = parts.gate.sigmoid()
        every = torch.ones_like(parts.positive)
        return parts.answers + self.selective(exits, parts, every) + self.penalty(exits, parts) + parts.anchor

    def parts(self, members: Members, labels: Tensor, correct: Tensor | None) -> Parts:
        z, auxiliary = margin(members.logits.float()), margin(members.aux.float())
        positive, weights = (labels == 1).float(), self.class_weights[labels]
        answers = (z.detach() >= 0).float()
        right = (answers == positive).float() if correct is None else correct.float()
        gate = signed_gate(members.logits, members.evidence)
        anchor = ((softplus(-gate) + (1 - right) * gate) * weights).sum(1) / weights.sum()
        risk, auxiliary_risk = self._cross_entropy(z, positive), self._cross_entropy(auxiliary, positive)
        return Parts(
            gate,
            risk.detach(),
            1 - answers,
            weights,
            positive,
            (risk + self.settings.aux_weight * auxiliary_risk).sum(1) / weights.sum(),
            self.settings.gate_loss_weight * anchor,
        )

    def _cross_entropy(self, z: Tensor, positive: Tensor) -> Tensor:
        """(M, B) weighted, smoothed cross entropy of a margin: −log p₁ is softplus(−z), −log p₀ is z more."""
        smoothing, (negative_weight, positive_weight) = self.settings.label_smoothing, self.class_weights
        of_0 = ((1 - smoothing) * (1 - positive) + smoothing / 2) * negative_weight
        of_1 = ((1 - smoothing) * positive + smoothing / 2) * positive_weight
        return (of_0 + of_1) * softplus(-z) + of_0 * z

    def selective(self, exits: Tensor, parts: Parts, counted: Tensor) -> Tensor:
        """(M,) risk of the soft exits (M, B), and coverage reward, over the cases `counted` (M, B) or (B,).

        A class without any is left out of the reward.
        """
        exited = exits * counted
        risk = (exited * parts.risk).sum(1) / (exited @ parts.weights).clamp(min=1e-8)
        classes = torch.stack([1 - parts.positive, parts.positive], 1)
        sizes = counted @ classes
        share = (exited @ classes / sizes.clamp(min=1)).clamp(min=LEAST_COVERAGE)
        return risk - 0.5 * self.settings.coverage_reward * (share.log() * (sizes > 0)).sum(1)

    def penalty(self, exits: Tensor, parts: Parts, used: Tensor | None = None) -> Tensor:
        """(M,) what the constraint costs, with the batch noted for the dual step.

        used: (M,) 1 for the heads that it is to hold, None for all; it costs the others nothing.
        """
        terms, positives = (exits * (parts.missed - self.settings.target)) @ parts.positive, parts.positive.sum()
        used = torch.ones_like(terms) if used is None else used.float()
        if self.training:
            self.pending += torch.stack([terms.detach(), positives.expand_as(terms)]) * used
        return self._lagrangian(terms, positives) * used

    def _lagrangian(self, terms: Tensor, positives: Tensor) -> Tensor:
        """(M,) (max(0, μ + ρĈ)² − μ²) / 2ρ of the batch's sums (M,) of s·(f − α_t) over its positives ().

        Ĉ has the value of the running mean, this batch included, and the batch's gradient: a batch's few
        positives alone would say too little. Nothing where the batch has no positive.
        """
        kept = self.settings.memory
        value = (kept * self.violation + terms.detach()) / (kept * self.positives + positives).clamp(min=1e-12)
        batch = terms / positives.clamp(min=1)
        constraint = value + batch - batch.detach()
        rho = self.settings.penalty
        penalty = ((self.multiplier + rho * constraint).clamp(min=0) ** 2 - self.multiplier**2) / (2 * rho)
        return penalty * (positives > 0)

    @torch.no_grad()
    def dual_step(self) -> None:
        """Take the batches of all ranks since the last step into the running constraint, move the multipliers."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.pending)
        violation, positives = self.pending
        moving = positives > 0
        kept = torch.where(moving, self.settings.memory, 1.0)
        self.violation.mul_(kept).add_(violation)
        self.positives.mul_(kept).add_(positives)
        moved = (self.multiplier + self.settings.penalty * self.constraint).clamp(0, self.settings.largest_multiplier)
        self.multiplier.copy_(torch.where(moving, moved, self.multiplier))
        self.pending.zero_()

    def figures(self) -> dict[str, float]:
        """For metrics.csv: mean over the heads of constraint and multiplier."""
        return {
            "gate_constraint": float(self.constraint.mean()),
            "gate_multiplier": float(self.multiplier.mean()),
        }

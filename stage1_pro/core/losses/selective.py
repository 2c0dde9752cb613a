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
from torch import Tensor, nn

from stage1_pro.core.devices import sum_of_ranks
from stage1_pro.core.losses.cross_entropy import label_rows, weighted_binary
from stage1_pro.core.models.heads import Members, margin, signed_gate

# a batch that nearly all defers must not make the loss infinite
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
    classes: Tensor
    """(2, B) 1 where the label is 0, and where it is 1."""
    answers: Tensor
    """(M,) loss of the class and auxiliary heads, over all cases."""
    anchor: Tensor
    """(M,) cross entropy of the gate with "the answer is right", weighted."""

    @property
    def positive(self) -> Tensor:
        """(B,) 1 where the label is 1."""
        return self.classes[1]


class SelectiveLoss(nn.Module):
    """The losses of M heads, (M,), each under a constraint of its own.

    class_weights: (2,). The state (multipliers and running constraint) is in buffers, and so in the
    checkpoint; it moves in `dual_step`, which is to be called once an optimizer step on every rank, so
    that accumulated batches count as one.
    """

    of_label: Tensor
    multiplier: Tensor
    running: Tensor
    pending: Tensor

    def __init__(self, members: int, class_weights: Tensor, settings: SelectiveSettings):
        super().__init__()
        self.settings = settings
        self.register_buffer("of_label", _of_label(class_weights, settings.label_smoothing), persistent=False)
        self.register_buffer("multiplier", torch.zeros(members))
        for name in ("running", "pending"):  # sums of s·(f − α_t) and of positives: fading, and since the last step
            self.register_buffer(name, torch.zeros(2, members))

    def weigh(self, class_weights: Tensor) -> None:
        """Go on with other class weights (2,)."""
        self.of_label.copy_(_of_label(class_weights, self.settings.label_smoothing))

    @property
    def constraint(self) -> Tensor:
        """(M,) running mean of s·(f − α_t) over recent positives; 0 before the first."""
        violation, positives = self.running
        return violation / positives.clamp(min=1e-12)

    def forward(self, members: Members, labels: Tensor, correct: Tensor | None = None, warm: bool = False) -> Tensor:
        """(M,) loss of each head, in float32 whatever autocast is in force.

        labels: (B,); correct: (B,) 1 where an out-of-fold model is right, None to use the heads' own answers.
        warm: class and auxiliary loss only.
        """
        # sums over a batch, and differences of rates near .02, are too coarse in half precision
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
        """Return what the terms of the loss are made of.

        labels: (B,); correct: (B,) whether the out-of-fold answer is right, None for the heads' own answers.
        """
        columns = self.of_label[:, labels]
        (weights, targets), classes = columns[:2], columns[2:]
        z = margin(torch.stack([members.logits, members.aux]).float())
        # hard and without gradient: through a soft miss the constraint moved the classifier toward answering 1, from
        # an accuracy of .88 to .82, and the gate certified nothing
        answers = (z.detach()[0] >= 0).float()
        right = (answers == classes[1]).float() if correct is None else correct.float()
        gate = signed_gate(members.logits, members.evidence)
        risk = weighted_binary(z, targets, weights)
        class_loss, auxiliary_loss = risk.mean(2)
        return Parts(
            gate,
            risk.detach()[0],
            1 - answers,
            classes,
            class_loss + self.settings.aux_weight * auxiliary_loss,
            self.settings.gate_loss_weight * weighted_binary(gate, right, weights).mean(1),
        )

    def selective(self, exits: Tensor, parts: Parts, counted: Tensor) -> Tensor:
        """(M,) risk of the soft exits (M, B), and coverage reward, over the cases `counted` (M, B) or (B,).

        A class without any is left out of the reward.
        """
        exited = exits * counted
        risk = (exited * parts.risk).sum(1) / exited.sum(1).clamp(min=1e-8)
        sizes = counted @ parts.classes.T
        # class by class: rewarded together, the rarer one is the cheaper to give up
        share = (exited @ parts.classes.T / sizes.clamp(min=1)).clamp(min=LEAST_COVERAGE)
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
        violation, seen = self.settings.memory * self.running
        value = (violation + terms.detach()) / (seen + positives).clamp(min=1e-12)
        batch = terms / positives.clamp(min=1)
        # the value of the mean, the gradient of the batch
        constraint = value + batch - batch.detach()
        rho = self.settings.penalty
        penalty = ((self.multiplier + rho * constraint).clamp(min=0) ** 2 - self.multiplier**2) / (2 * rho)
        return penalty * (positives > 0)

    @torch.no_grad()
    def dual_step(self) -> None:
        """Take the batches of all ranks since the last step into the running constraint, move the multipliers."""
        # multipliers must move alike on all ranks, or each would train another loss
        sum_of_ranks(self.pending)
        moving = self.pending[1] > 0
        self.running.mul_(torch.where(moving, self.settings.memory, 1.0)).add_(self.pending)
        self.multiplier.add_(self.constraint * moving, alpha=self.settings.penalty)
        self.multiplier.clamp_(0, self.settings.largest_multiplier)
        self.pending.zero_()

    def figures(self) -> dict[str, float]:
        """For metrics.csv: mean over the heads of constraint and multiplier."""
        return {
            "gate_constraint": float(self.constraint.mean()),
            "gate_multiplier": float(self.multiplier.mean()),
        }


def _of_label(class_weights: Tensor, smoothing: float) -> Tensor:
    """(4, 2), a column a label: its class weight, its smoothed target for class 1, and one-hot the label."""
    rows = label_rows(class_weights, smoothing)
    return torch.cat([rows[:, :1].T, rows[:, 2:].T, torch.eye(2, device=rows.device)])

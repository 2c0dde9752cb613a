"""The selective heads: M small networks side by side, each with a class, a gate and an auxiliary head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

HIDDEN = 768


class Members(NamedTuple):
    """What each of M heads says of B cases. hidden: (M, B, H); logits, aux: (M, B, C); evidence: (M, B),
    the gate head's log-odds of the positive class."""

    hidden: Tensor
    logits: Tensor
    evidence: Tensor
    aux: Tensor


class ClassHead(nn.Sequential):
    """Linear → ReLU → Dropout → Linear: features (B, D) → logits (B, C)."""

    def __init__(self, features: int, classes: int, dropout: float):
        super().__init__(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(dropout), nn.Linear(HIDDEN, classes))


class SideBySide(nn.Module):
    """M linear layers as one batched product: (M, B, H) → (M, B, O).

    The biases are one flat tensor: what is one-dimensional does not decay.
    """

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        bound = inputs**-0.5  # as nn.Linear begins
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members * outputs).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.view(len(self.weight), 1, -1), hidden, self.weight)


class SelectiveHeads(nn.Module):
    """Features (B, D) → Members. One trunk layer for all members, since they read the same features.

    The gate head is linear in [h, z, |z|] and begins at zero. It reads them without gradient: the gate learns
    from the answers and does not move them. Let through, its class-weighted loss moves the classifier toward
    answering 1 (FPR on exits up by .004 to .015 on real images).
    """

    def __init__(self, features: int, classes: int, members: int, dropout: float):
        super().__init__()
        self.members = members
        self.trunk = nn.Linear(features, members * HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.cls = SideBySide(members, HIDDEN, classes)
        self.gate = SideBySide(members, HIDDEN + 2, 1)
        self.aux = SideBySide(members, HIDDEN, classes)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Tensor, shift: float = 0.0) -> Members:
        """shift: of the answers, in the class head's bias; the gate reads z without it."""
        hidden = self.trunk(features).relu().unflatten(-1, (self.members, HIDDEN)).transpose(0, 1)
        hidden = self.dropout(hidden)
        logits = self.cls(hidden)
        evidence = self.gate(gate_inputs(hidden, logits, shift).detach()).squeeze(-1)
        return Members(hidden, logits, evidence, self.aux(hidden))

    @torch.no_grad()
    def take_members(self, other: "SelectiveHeads") -> None:
        """Give the first members the other's weights, as many as both have, but for the gate."""
        shared = min(self.members, other.members)
        taken = {"trunk": HIDDEN * shared, "cls": shared, "aux": shared}
        for name, rows in taken.items():
            own, its = getattr(self, name), getattr(other, name)
            own.weight[:rows] = its.weight[:rows]
            biases = rows * own.bias.numel() // len(own.weight)
            own.bias[:biases] = its.bias[:biases]

    @torch.no_grad()
    def take_class_head(self, head: ClassHead) -> None:
        """Give the first member the weights of a single head; the others keep theirs, and so stay different."""
        single = head.state_dict()
        self.trunk.weight[:HIDDEN], self.trunk.bias[:HIDDEN] = single["0.weight"], single["0.bias"]
        self.cls.weight[0], self.cls.bias[: len(single["3.bias"])] = single["3.weight"].T, single["3.bias"]


def gate_inputs(hidden: Tensor, logits: Tensor, shift: float = 0.0) -> Tensor:
    """[h, z, |z|]: (..., H) and (..., 2) → (..., H + 2), z as it was before the answers were shifted."""
    z = margin(logits).unsqueeze(-1) - shift
    return torch.cat([hidden, z.to(hidden.dtype), z.abs().to(hidden.dtype)], dim=-1)


def margin(logits: Tensor) -> Tensor:
    """z: (..., 2) logits → (...), positive where the answer is 1."""
    return logits[..., 1] - logits[..., 0]


def signed_gate(logits: Tensor, evidence: Tensor, shift: float = 0.0) -> Tensor:
    """The gate logit, log-odds that the answer is right: (2ŷ − 1)(½z + ½·evidence), in float32.

    logits: (..., 2), which answer; evidence: (...), the gate head's log-odds of the positive class; z is that of the
    logits before the answers were shifted.
    """
    z = margin(logits.float()).detach()
    return torch.where(z >= 0, 0.5, -0.5) * (z - shift + evidence.float())

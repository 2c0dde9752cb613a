"""A training step on cached features with SelectiveLoss and ConformalRiskLoss, against plain cross entropy.

All three train the same heads on the same batch of 256 cases with 1,280 features, one positive in ten, in
float32 on the CPU: forward, backward, AdamW, and what the module does besides for the loss. Cross entropy
trains the class and the auxiliary heads; the gate head is the losses' own.
"""

from collections.abc import Callable

import torch
from result import Result, fastest
from torch.nn.functional import cross_entropy

from stage1_pro.core.losses.conformal import ConformalRiskLoss
from stage1_pro.core.losses.selective import SelectiveLoss, SelectiveSettings
from stage1_pro.core.models.heads import SelectiveHeads
from stage1_pro.core.optim.schedule import parameter_groups

BATCH, FEATURES, BANK = 256, 1280, 2048
TEMPERATURE = 0.3
ROUNDS = 15
SETTINGS = SelectiveSettings(target=0.013, label_smoothing=0.1)
WEIGHTS = torch.tensor([0.55, 5.0])


def measure() -> list[Result]:
    return [row for members in (1, 8) for row in rows(members)]


def rows(members: int) -> list[Result]:
    steps = {
        "cross entropy": plain_step(members),
        "SelectiveLoss": step(members, SelectiveLoss(members, WEIGHTS, SETTINGS)),
        "ConformalRiskLoss": step(members, conformal(members)),
    }
    for one in steps.values():
        one()
    seconds = fastest(steps, ROUNDS)
    base = seconds.pop("cross entropy")
    note = f"cross entropy {1000 * base:.1f} ms; batch {BATCH}, {torch.get_num_threads()} threads"
    return [
        Result(f"{name} / cross entropy, {members} head{'s' * (members > 1)}", least / base, 1.15, "at most", note)
        for name, least in seconds.items()
    ]


def plain_step(members: int) -> Callable[[], None]:
    heads, optimizer, features, labels = made(members)

    def run() -> None:
        optimizer.zero_grad()
        found = heads(features)
        total = sum(
            weight * cross_entropy(logits.flatten(0, 1), labels.repeat(members), WEIGHTS, label_smoothing=0.1)
            for logits, weight in ((found.logits, 1.0), (found.aux, SETTINGS.aux_weight))
        )
        (total + 0.0 * found.evidence.sum()).backward()  # the same parameters move
        optimizer.step()

    return run


def step(members: int, loss: SelectiveLoss | ConformalRiskLoss) -> Callable[[], None]:
    heads, optimizer, features, labels = made(members)
    correct = torch.ones(BATCH)

    def run() -> None:
        optimizer.zero_grad()
        loss(heads(features), labels, correct).sum().backward()
        loss.dual_step()
        optimizer.step()

    return run


def conformal(members: int) -> ConformalRiskLoss:
    """With a full bank, of which half a per cent are misses."""
    loss = ConformalRiskLoss(members, WEIGHTS, SETTINGS, BANK)
    loss.bank_held.fill_(True)
    loss.bank_gate.normal_(2.0)
    loss.bank_missed[:, ::200] = 1.0
    loss.begin_epoch(TEMPERATURE, seed=0)
    return loss


def made(members: int) -> tuple[SelectiveHeads, torch.optim.Optimizer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    heads = SelectiveHeads(FEATURES, 2, members, dropout=0.3).train()
    optimizer = torch.optim.AdamW(parameter_groups(heads, 1e-4, 0.0, 0.01), fused=True)
    return heads, optimizer, torch.randn(BATCH, FEATURES), (torch.arange(BATCH) % 10 == 0).long()

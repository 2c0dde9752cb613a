"""A training step on cached features with SelectiveLoss and ConformalRiskLoss, against plain cross entropy.

All three train the same heads on the same batch of 256 cases with 1,280 features, one positive in ten, in
float32 on the CPU: forward, backward, clipping, AdamW, the average of the weights, and what the module does besides
for the loss. Cross entropy trains the class and the auxiliary heads; the gate head is the losses' own, and is
clipped apart.
"""

from collections.abc import Callable

import torch
from result import Result, slowdowns
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stage1_pro.core.losses.conformal import ConformalRiskLoss
from stage1_pro.core.losses.selective import SelectiveLoss, SelectiveSettings
from stage1_pro.core.models.heads import SelectiveHeads
from stage1_pro.core.optim.schedule import parameter_groups

BATCH, FEATURES, BANK = 256, 1280, 2048
TEMPERATURE = 0.3
STEPS = {1: 300, 8: 60}
"""Of each loss, by heads."""
SETTINGS = SelectiveSettings(target=0.013, label_smoothing=0.1)
WEIGHTS = torch.tensor([0.55, 5.0])


def measure() -> list[Result]:
    return [row for members in STEPS for row in rows(members)]


def rows(members: int) -> list[Result]:
    steps = {
        "cross entropy": plain_step(members),
        "SelectiveLoss": step(members, SelectiveLoss(members, WEIGHTS, SETTINGS)),
        "ConformalRiskLoss": step(members, conformal(members)),
    }
    for one in steps.values():
        one()
    note = f"batch {BATCH}, median of {STEPS[members]} steps, {torch.get_num_threads()} threads"
    heads = f"{members} head{'s' * (members > 1)}"
    return [
        Result(f"{name} / cross entropy, {heads}", ratio, 1.15, "at most", note)
        for name, ratio in slowdowns(steps, "cross entropy", STEPS[members]).items()
    ]


def plain_step(members: int) -> Callable[[], None]:
    heads, features, labels, move = made(members)

    def run() -> None:
        found = heads(features)
        total = sum(
            weight * cross_entropy(logits.flatten(0, 1), labels.repeat(members), WEIGHTS, label_smoothing=0.1)
            for logits, weight in ((found.logits, 1.0), (found.aux, SETTINGS.aux_weight))
        )
        (total + 0.0 * found.evidence.sum()).backward()  # the same parameters move
        move([list(heads.parameters())])

    return run


def step(members: int, loss: SelectiveLoss | ConformalRiskLoss) -> Callable[[], None]:
    heads, features, labels, move = made(members)
    correct = torch.ones(BATCH)
    gate = list(heads.gate.parameters())
    rest = [parameter for part in (heads.trunk, heads.cls, heads.aux) for parameter in part.parameters()]

    def run() -> None:
        loss(heads(features), labels, correct).sum().backward()
        loss.dual_step()
        move([gate, rest])

    return run


def conformal(members: int) -> ConformalRiskLoss:
    """With a full bank, of which half a per cent are misses."""
    loss = ConformalRiskLoss(members, WEIGHTS, SETTINGS, BANK)
    gate, missed, positive = loss.bank.split([members, members, 1])
    gate.normal_(2.0)
    missed[:, ::200] = 1.0
    positive.fill_(1.0)
    loss.start_epoch(TEMPERATURE, seed=0)
    return loss


def made(members: int) -> tuple[SelectiveHeads, torch.Tensor, torch.Tensor, Callable[[list[list[nn.Parameter]]], None]]:
    """Heads, features, labels, and what moves the weights, each group clipped by itself."""
    torch.manual_seed(0)
    heads = SelectiveHeads(FEATURES, 2, members, dropout=0.3).train()
    optimizer = torch.optim.AdamW(parameter_groups(heads, 1e-4, 0.0, 0.01), fused=True)
    averaged = AveragedModel(heads, multi_avg_fn=get_ema_multi_avg_fn(0.9999))

    def move(groups: list[list[nn.Parameter]]) -> None:
        for group in groups:
            nn.utils.clip_grad_norm_(group, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(heads)

    return heads, torch.randn(BATCH, FEATURES), (torch.arange(BATCH) % 10 == 0).long(), move

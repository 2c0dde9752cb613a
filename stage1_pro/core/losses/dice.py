"""The loss of masks: cross entropy and soft Dice over what is decided.

    ce_weight · mean CE  +  dice_weight · (1 − mean over foreground classes of (2 Σ p y + 1) / (Σ p + Σ y + 1))

Sums are over the whole batch, so that a case without a class does not make its term jump: over the batch of all
devices, so that several train as one would. Everything is float32, whatever the precision of training: a half loses
counts above 2048. `gather` on the log-softmax, since `nll_loss` on maps has no deterministic gradient on a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class MaskLoss(nn.Module):
    """Of logits (B, K, *S) and labels (B, *S) int64, where −1 enters neither term. whole: makes the sums (2K,) over the
    part of a batch that this process has those over the batch; by default it has all.

    loss = MaskLoss(ce_weight=1, dice_weight=1)
    loss(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))        # ()
    """

    def __init__(self, ce_weight: float, dice_weight: float):
        super().__init__()
        self.ce_weight, self.dice_weight = ce_weight, dice_weight

    def forward(self, logits: Tensor, labels: Tensor, whole: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            log_p = torch.log_softmax(logits.float(), dim=1)
            decided = labels >= 0
            known = labels.clamp(min=0)[:, None]
            cross = -(log_p.gather(1, known)[:, 0] * decided).sum()
            p = log_p[:, 1:].exp() * decided[:, None]
            classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (labels.ndim - 1))
            truth = (known == classes) & decided[:, None]
            over = [0, *range(2, logits.ndim)]
            both, size = (p * truth).sum(dim=over), p.sum(dim=over) + truth.sum(dim=over)
            foreground = logits.shape[1] - 1
            sums = whole(torch.cat([cross[None], decided.sum()[None], both, size]))
            cross, number, both, size = sums.split([1, 1, foreground, foreground])
            dice = ((2 * both + 1) / (size + 1)).mean()
            return self.ce_weight * (cross / number.clamp(min=1)).squeeze() + self.dice_weight * (1 - dice)

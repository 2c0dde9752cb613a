"""The loss of masks: cross entropy and soft Dice over what is decided.

    ce_weight · mean CE  +  dice_weight · (1 − mean over foreground classes of (2 Σ p y + 1) / (Σ p + Σ y + 1))

Sums of the Dice term are over the whole batch, so that a case without a class does not make its term jump. Everything
is float32, whatever the precision of training: a half loses counts above 2048. `gather` on the log-softmax, since
`nll_loss` on maps has no deterministic gradient on a GPU.
"""

import torch
from torch import Tensor, nn


class MaskLoss(nn.Module):
    """Of logits (B, K, *S) and labels (B, *S) int64, where −1 enters neither term.

    loss = MaskLoss(ce_weight=1, dice_weight=1)
    loss(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))        # ()
    """

    def __init__(self, ce_weight: float, dice_weight: float):
        super().__init__()
        self.ce_weight, self.dice_weight = ce_weight, dice_weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            log_p = torch.log_softmax(logits.float(), dim=1)
            decided = labels >= 0
            known = labels.clamp(min=0)[:, None]
            number = decided.sum().clamp(min=1)
            cross = -(log_p.gather(1, known)[:, 0] * decided).sum() / number
            p = log_p[:, 1:].exp() * decided[:, None]
            classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (labels.ndim - 1))
            truth = (known == classes) & decided[:, None]
            over = [0, *range(2, logits.ndim)]
            both, size = (p * truth).sum(dim=over), p.sum(dim=over) + truth.sum(dim=over)
            dice = ((2 * both + 1) / (size + 1)).mean()
            return self.ce_weight * cross + self.dice_weight * (1 - dice)

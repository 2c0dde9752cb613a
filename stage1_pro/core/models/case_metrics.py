"""What a model says of a labelled case, for the choice of further training cases."""

import math

import torch
from torch import Tensor


def case_metrics(logits: Tensor, labels: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dice (B,) float64, entropy (B,) float64, embedding (B, D) float32), on the CPU.

    logits: (B, C), C >= 2; labels: (B,). For one label a case the Dice coefficient 2Σpy / (Σp + Σy) is the probability
    of the true class; entropy is in units of log C, so 0 to 1. What is not finite stays so.
    """
    log_p = torch.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    dice = p.gather(1, labels[:, None]).squeeze(1)
    entropy = -(p * log_p.clamp(min=-1e3)).sum(1) / math.log(logits.shape[1])  # 0 · log 0 is 0
    return dice.cpu(), entropy.clamp(0, 1).cpu(), embedding.float().cpu()

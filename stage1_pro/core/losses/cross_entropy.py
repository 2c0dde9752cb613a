"""The class loss: smooth the label, weight the case by its own class, average over the number of cases.

    loss = 1/B Σ_i w(y_i) · CE(logits_i, (1 − ε)·onehot(y_i) + ε/C)        Σ_c n_c·w_c = Σ_c n_c over the training split

The order of the two matters. torch's `cross_entropy(weight=w, label_smoothing=ε)` weights each term of the sum by the
class that the smoothing mass falls on. Of a certain negative the optimum is then P(positive) = (ε/2)·w₁ /
((1 − ε/2)·w₀ + (ε/2)·w₁): with balanced weights and ε = .1 that is .05 where half of the cases are positive, .50 at 5 %
positives and .84 at 1 %, so that every case is answered positive. Here it is ε/2 at every prevalence, and a case that
is positive with the probability π of its prevalence has its optimum at ½. Dividing by the number of cases, not by the
batch's Σ w(y), keeps the gradient of small batches unbiased: at 1 % positives half of the batches of 64 hold none.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class ClassLoss(nn.Module):
    """Class-weighted, smoothed cross entropy of one head, or of many side by side.

    class_weights: (C,), average 1 over the training cases, as `balanced_weights` makes them; smoothing: ε from 0 to 1.
    The weights are in a buffer that is no part of a checkpoint.

        loss = ClassLoss(balanced_weights(np.array([980, 20])), smoothing=0.1)
        loss(torch.zeros(8, 2), torch.zeros(8, dtype=torch.long))        # one head: ()
        loss(torch.zeros(3, 8, 2), torch.zeros(8, dtype=torch.long))     # three heads: (3,)
    """

    of_label: Tensor

    def __init__(self, class_weights: Tensor, smoothing: float):
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("of_label", label_rows(class_weights, smoothing), persistent=False)

    @property
    def class_weights(self) -> Tensor:
        """(C,) weight of the cases of each class."""
        return self.of_label[:, 0]

    def weigh(self, class_weights: Tensor) -> None:
        """Go on with other class weights (C,)."""
        self.of_label.copy_(label_rows(class_weights, self.smoothing))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(...) mean over the cases. logits: (..., B, C); labels: (B,) or (..., B)."""
        return self.cases(logits, labels).mean(-1)

    def cases(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(..., B) loss of each case, its class weight included, float32."""
        rows, logits = self.of_label[labels], logits.float()
        weights, targets = rows[..., 0], rows[..., 1:]
        if logits.shape[-1] == 2:  # one fused kernel on the log-odds, twice as fast on large batches
            return weighted_binary(logits[..., 1] - logits[..., 0], targets[..., 1], weights)
        return -weights * (logits.log_softmax(-1) * targets).sum(-1)


def label_rows(class_weights: Tensor, smoothing: float) -> Tensor:
    """(C, 1 + C), a row a label: the weight of its cases, then the smoothed label."""
    classes = len(class_weights)
    smoothed = torch.full((classes, classes), smoothing / classes, device=class_weights.device)
    smoothed.diagonal().add_(1 - smoothing)
    return torch.cat([class_weights.float()[:, None], smoothed], dim=1)


def weighted_binary(z: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(..., B) weight times binary cross entropy of log-odds z (..., B) with targets from 0 to 1.

    targets, weights: of any shape that goes to z's.
    """
    return binary_cross_entropy_with_logits(z, targets.expand_as(z), weights, reduction="none")


def balanced_weights(counts: np.ndarray) -> Tensor:
    """(C,) float32 weights that give each class the same share of the loss and average 1 over the cases counted.

    counts: (C,) training cases per class. A class without a case weighs as if it had one.
    """
    present = max(1, np.count_nonzero(counts))
    return torch.tensor(counts.sum() / (present * np.maximum(counts, 1)), dtype=torch.float32)

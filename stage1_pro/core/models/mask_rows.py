"""From the logits of a whole case to its mask and its row of sums, which `MaskSums` reads."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stage1_pro.core.metrics.masks import least_overlap


@torch.no_grad()
def case_row(logits: Tensor, labels: Tensor, positives: Sequence[int]) -> Tensor:
    """The sums of one case, (6 F + 10,) float64 on the CPU, in the order of the fields of `MaskSums`.

    logits: (K, *S) of the whole case; labels: (*S) int64, −1 is in no sum with the truth; positives: values of the
    positive class. An answer is the class of the largest logit, of equal ones the last.
    """
    truth, flat = labels.flatten(), logits.flatten(1).float()
    answer, log_p = answered(flat), torch.log_softmax(flat, dim=0)
    p = log_p.exp()
    # a row for each class, and one for the positive class
    chances = torch.stack([*p[1:], sum((p[value] for value in positives), torch.zeros_like(p[0]))])
    drawn, true = (_by_class(codes, len(flat), positives) for codes in (answer, truth))
    # to leave voxels out would be a copy, and to ask whether there are any would wait for the GPU; −1 equals no class
    decided = truth >= 0
    counts = [part.sum(dim=1).double() for part in (drawn & true, drawn & decided, true, drawn)]  # exact up to 2**53
    sums = [part.sum(dim=1, dtype=torch.float64) for part in (chances, chances * drawn)]
    entropy = (p * log_p.clamp(min=-1e3)).sum(dim=0).sum(dtype=torch.float64) / -math.log(len(flat))
    rest = [chances[-1].amax().clamp(max=1), entropy, p[1:].amax(), torch.full((), p.shape[1], device=flat.device)]
    fields = torch.stack([*counts, *sums])
    return torch.cat([fields[:, :-1].flatten(), fields[:, -1], *(value.double().reshape(1) for value in rest)]).cpu()


def answered(logits: Tensor) -> Tensor:
    """(*S) uint8 class of each voxel of logits (K, *S), K ≤ 256: the largest, of equal ones the last.

    >>> answered(torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 3.0]])).tolist()
    [1, 0, 1]
    """
    best, answer = logits[0], torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    # argmax along the first of many axes, and filling under a mask, are ten times slower
    for code in range(1, len(logits)):
        answer = torch.maximum(answer, (logits[code] >= best).view(torch.uint8) * code)
        best = torch.maximum(best, logits[code])
    return answer


def worst_overlap(logits: Tensor, labels: Tensor, positives: Sequence[int]) -> float:
    """Share of its voxels in the mask, of the true component of the positive class that has least: `least_overlap`."""
    truth, mask = (_among(codes, positives).cpu().numpy() for codes in (labels, answered(logits)))
    return least_overlap(truth, mask)


def _among(codes: Tensor, values: Sequence[int]) -> Tensor:
    found = codes == values[0]
    for value in values[1:]:
        found |= codes == value
    return found


def _by_class(codes: Tensor, classes: int, positives: Sequence[int]) -> Tensor:
    """(K, N) bool from codes (N,): a row for each class but the first, and one for the positive class."""
    return torch.stack([*(codes == value for value in range(1, classes)), _among(codes, positives)])

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
    classes = torch.arange(1, len(flat), device=flat.device)[:, None]
    positive = p[list(positives)].sum(dim=0)[None]
    drawn, drawn_positive = answer == classes, _among(answer, positives)[None]
    alone = (_sums(p[1:], drawn), _sums(positive, drawn_positive))
    entropy = -(p * log_p.clamp(min=-1e3)).sum(dim=0).sum(dtype=torch.float64) / math.log(len(flat))
    rest = [positive.amax().clamp(max=1), entropy, p[1:].amax(), torch.full((), p.shape[1], device=flat.device)]
    # to leave voxels out would be a copy, and to ask whether there are any would wait for the GPU; −1 equals no class
    decided = truth >= 0
    compared = (
        _counts(drawn & decided, truth == classes),
        _counts(drawn_positive & decided, _among(truth, positives)[None]),
    )
    blocks = [block for parts in zip(compared, alone, strict=True) for part in parts for block in part]
    return torch.cat([*blocks, *(value.double().reshape(1) for value in rest)]).cpu()


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


def _counts(answered: Tensor, true: Tensor) -> list[Tensor]:
    """(I, P, Y) of each of F classes, float64 (F,), which is exact up to 2**53."""
    return [part.sum(dim=1).double() for part in (answered & true, answered, true)]


def _sums(p: Tensor, answered: Tensor) -> list[Tensor]:
    """(Σ ŷ, Σ p, Σ p ŷ) of each of F classes, float64 (F,)."""
    # class by class: a sum along the second of two axes takes ten times as long
    agreed = [(chances * drawn).sum(dtype=torch.float64) for chances, drawn in zip(p, answered, strict=True)]
    return [answered.sum(dim=1).double(), p.sum(dim=1, dtype=torch.float64), torch.stack(agreed)]

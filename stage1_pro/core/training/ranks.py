"""Cases of several ranks brought together, each once."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def gather(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All ranks' cases, each once, in the order of their positions, which are the first part."""
    if several_ranks():
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, parts)
        parts = tuple(torch.cat(part) for part in zip(*ranks, strict=True))
    return _each_once(parts)


def gather_on_first(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The same, sent to the first rank alone; None on the others."""
    if several_ranks():
        # embeddings of a whole pool are large, and one rank decides
        first = dist.get_rank() == 0
        ranks: list[Any] | None = [None] * dist.get_world_size() if first else None
        dist.gather_object(parts, ranks)
        if ranks is None:
            return None
        parts = tuple(torch.cat(part) for part in zip(*ranks, strict=True))
    return _each_once(parts)


def several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _each_once(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # samplers repeat cases where the ranks do not come out even
    _, first = np.unique(parts[0].numpy(), return_index=True)
    return tuple(part[first] for part in parts)

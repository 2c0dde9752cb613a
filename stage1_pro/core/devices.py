"""Where a model computes: the device of one process, the ranks that train one model together, and their generators."""

import random
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stage1_pro.core.seeds import seed_of


def fastest_device(*, mps: bool = False) -> torch.device:
    """Return the accelerator at hand, or the CPU. mps: also Apple's, for work in float32 alone: it has no float64."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if mps and torch.backends.mps.is_available() else "cpu")


class Moment:
    """When a device will have done what it has been given so far.

    A GPU works through its queue while the process goes on: by the process's own clock the time in which the GPU still
    computes would pass for waiting.
    """

    def __init__(self, device: torch.device):
        self.clock = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(device))

    def seconds_since(self, earlier: "Moment") -> float:
        """Return the seconds from an earlier moment of the same device to this one, once it has come."""
        if self.event is None or earlier.event is None:
            return self.clock - earlier.clock
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


def world_size() -> int:
    """Return the number of processes that train together; 1 outside a distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this process is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_of_ranks(value: Tensor) -> Tensor:
    """Add the value of every rank up, in place."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def mean_of_ranks(value: Tensor) -> Tensor:
    """Average the value of every rank, in place."""
    return sum_of_ranks(value).div_(world_size()) if world_size() > 1 else value


def whole_batch(value: Tensor) -> Tensor:
    """Return a sum over the cases of all ranks, for a loss that is no mean over cases.

    Strategies average the gradients of ranks, so that of a rank's own part is taken as many times as there are ranks.
    """
    if world_size() == 1:
        return value
    alone = value.detach()
    return sum_of_ranks(alone.clone()) + world_size() * (value - alone)


def gather(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return all ranks' cases, each once, in the order of their positions, which are the first part."""
    if world_size() > 1:
        ranks: list[Any] = [None] * world_size()
        dist.all_gather_object(ranks, parts)
        parts = tuple(torch.cat(part) for part in zip(*ranks, strict=True))
    return _each_once(parts)


def gather_on_first(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the same on the first rank, None on the others."""
    if world_size() > 1:
        ranks: list[Any] | None = None if rank() else [None] * world_size()
        dist.gather_object(parts, ranks)
        if ranks is None:
            return None
        parts = tuple(torch.cat(part) for part in zip(*ranks, strict=True))
    return _each_once(parts)


def _each_once(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    _, first = np.unique(parts[0].numpy(), return_index=True)
    return tuple(part[first] for part in parts)


class isolated_seed:
    """Within the block all three random generators start from the key; outside nothing has happened."""

    def __init__(self, *key: int | str):
        self.seed = seed_of(*key)

    def __enter__(self) -> None:
        self.state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 (transforms draw from it)
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reset the accelerators too

    def __exit__(self, *_: object) -> None:
        python, numpy, pytorch = self.state
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)

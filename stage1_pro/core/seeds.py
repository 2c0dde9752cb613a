"""One integer seed for everything random, and an independent generator for each purpose."""

import random
from zlib import crc32

import numpy as np


def rng_of(*key: int | str) -> np.random.Generator:
    """Return the generator of one purpose, such as (seed, "order", epoch); trailing zeros do not tell keys apart.

    >>> rng_of(42, "folds").permutation(4).tolist()
    [0, 2, 1, 3]
    """
    return np.random.default_rng(_words(key))


def seed_of(*key: int | str) -> int:
    """Return an independent seed for each key, such as (seed, epoch, rank)."""
    return int(np.random.SeedSequence(_words(key)).generate_state(1)[0])


class isolated_seed:
    """Within the block all three random generators start from the key; outside nothing has happened."""

    def __init__(self, *key: int | str):
        self.seed = seed_of(*key)

    def __enter__(self) -> None:
        import torch  # deferred: incremental admission and the reports draw without it

        self.state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 (transforms draw from it)
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reset the accelerators too

    def __exit__(self, *_: object) -> None:
        import torch

        python, numpy, pytorch = self.state
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def _words(key: tuple[int | str, ...]) -> list[int]:
    return [crc32(part.encode()) if isinstance(part, str) else part for part in key]

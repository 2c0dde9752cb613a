"""One integer seed for everything random, and an independent generator for each purpose."""

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


def _words(key: tuple[int | str, ...]) -> list[int]:
    return [crc32(part.encode()) if isinstance(part, str) else part for part in key]

"""Draws that depend on a name alone: the same on every machine, in any order, without a state.

A random number would depend on the order of the cases; a hash of the case's own name does not, so
two hosts that never spoke to each other draw the same cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray

HashArray = NDArray[np.uint64]


def hash64(names: Iterable[object], prefix: bytes = b"") -> HashArray:
    """(N,) the first 64 bits of BLAKE2b(prefix + name), as whole numbers that are uniform on 0 … 2^64 - 1.

    names: (N,) anything whose text names it, encoded as UTF-8. prefix: a secret salt, or the purpose of
    the draw: draws with different prefixes are independent.

    >>> hash64(["a", "b"]).tolist()
    [4681665781835383343, 9543904841865449333]
    """
    digests = [blake2b(prefix + str(name).encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def drawn(hashes: HashArray, share: ArrayLike) -> BoolArray:
    """(N,) which hashes fall below share * 2^64, compared as whole numbers. share: (N,) or one, 0 to 1.

    A hash as a float would lose its last 11 bits, and a share of exactly 1 its last cases.
    """
    shares = np.broadcast_to(np.asarray(share, dtype=np.float64), hashes.shape)
    distinct, index = np.unique(shares, return_inverse=True)
    # a float is a fraction with a power of 2 below the line, so the limits are exact
    last = np.array([max(0, -int(-Fraction(s) * 2**64 // 1) - 1) for s in distinct.tolist()], dtype=np.uint64)
    return (hashes <= last[index]) & (distinct > 0)[index]


def unit(hashes: HashArray) -> FloatArray:
    """(N,) hashes as numbers in [0, 1): the upper 53 bits, all that a float holds."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(hashes: HashArray) -> HashArray:
    """(N,) hashes that have nothing in common with the given ones but their order of cases (SplitMix64, Steele 2014).

    For a second draw among cases that a first draw has chosen by their hash.
    """
    with np.errstate(over="ignore"):
        z = hashes + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

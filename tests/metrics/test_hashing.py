"""Draws by name: portable, exact at the edges, independent of each other."""

from hashlib import blake2b

import numpy as np
import pytest
from scipy.stats import kstest

from stage1_pro.core.metrics.hashing import drawn, hash64, mixed, unit

NAMES = [f"case-{number}" for number in range(20_000)]


def test_the_hash_is_blake2b_of_prefix_and_name() -> None:
    """What another language has to compute to audit the same groups."""
    digest = blake2b("salt¤πr²".encode(), digest_size=8).digest()
    assert hash64(["πr²"], "salt¤".encode()).tolist() == [int.from_bytes(digest, "big")]
    assert hash64([]).shape == (0,)


def test_shares_are_compared_as_whole_numbers() -> None:
    edge = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert drawn(edge, 0.5).tolist() == [True, True, False, False]
    assert drawn(edge, 1.0).all()
    assert not drawn(edge, 0.0).any()
    assert drawn(edge, [1.0, 0.0, 1.0, 0.5]).tolist() == [True, False, True, False]
    # the smallest share draws the one hash that is below it
    assert drawn(edge, np.nextafter(0, 1)).tolist() == [True, False, False, False]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_draws_have_their_share_and_salts_are_independent(share: float) -> None:
    first, second = drawn(hash64(NAMES, b"one"), share), drawn(hash64(NAMES, b"two"), share)
    spread = 4 * np.sqrt(share * (1 - share) / len(NAMES))
    assert abs(first.mean() - share) < spread
    assert abs((first & second).mean() - share**2) < spread


def test_a_second_draw_is_uniform_among_those_that_the_first_chose() -> None:
    hashes = hash64(NAMES)
    chosen = hashes[drawn(hashes, 0.1)]
    assert kstest(unit(mixed(chosen)), "uniform").pvalue > 0.001
    assert kstest(unit(mixed(mixed(chosen))), "uniform").pvalue > 0.001
    assert kstest(unit(chosen), "uniform").pvalue < 1e-9  # as it would be without

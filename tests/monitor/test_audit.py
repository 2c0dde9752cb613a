"""The audit: a hash and a secret decide, and too little of either is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from stage1_pro.core.errors import UserError
from stage1_pro.core.monitor.audit import Audit, demand_groups, doubtful_probability, read_salt

SALT = b"sixteen bytes or more"
GROUPS = [f"track-{number}" for number in range(4000)]


def test_an_audit_is_the_hash_of_salt_and_group() -> None:
    """Computed apart from the project, as another host would."""
    chosen = Audit(0.05, SALT).chooses(GROUPS)
    hashes = [int.from_bytes(hashlib.blake2b(SALT + g.encode(), digest_size=8).digest(), "big") for g in GROUPS]
    assert chosen.tolist() == [h < 0.05 * 2**64 for h in hashes]
    larger = Audit(0.2, SALT).chooses(GROUPS)
    assert larger[chosen].all()  # a larger share keeps the groups of a smaller one


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_of_nothing_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="above 0, up to 1"):
        Audit(share, SALT)


def test_a_salt_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "audit.salt"
    path.write_bytes(SALT + b"\n")
    assert read_salt(path, {}) == read_salt(None, {"STAGE1_AUDIT_SALT": SALT.decode()}) == SALT
    assert len({Audit(0.1, salt).digest for salt in (SALT, SALT + b"!", b"another salt of its own")}) == 3


@pytest.mark.parametrize(
    ("content", "told"), [(None, "does not exist"), (b"", "no audit salt"), (b"short", "16 or more")]
)
def test_a_missing_or_short_salt_is_refused_with_the_command_that_makes_one(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "audit.salt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=told) as refused:
        read_salt(path, {})
    assert "secrets.token_hex" in str(refused.value)
    with pytest.raises(UserError, match="no audit salt"):
        read_salt(None, {})


def test_sites_are_no_groups() -> None:
    with pytest.raises(UserError, match="never a camera or a site"):
        demand_groups(5, 100_000)
    demand_groups(200, 100_000)
    demand_groups(30, 30)  # cases without a group: few, and nothing is wrong


@pytest.mark.parametrize("tied", [False, True])
def test_doubtful_cases_are_audited_more_often_within_the_same_budget(tied: bool) -> None:
    rng = np.random.default_rng(0)
    reference, doubt = rng.random(5000) ** 3, rng.random(5000) ** 3
    if tied:
        reference, doubt = np.round(reference, 1), np.round(doubt, 1)
    answered = rng.random(5000) < 0.1
    probability = doubtful_probability(answered, doubt, reference, 0.1)
    assert (probability[answered] == 0.1).all()
    negative = probability[~answered]
    assert negative.mean() == pytest.approx(0.1, rel=0.05)
    assert negative.min() >= 0.1 * 0.1
    assert negative.max() > 3 * 0.1
    assert (np.diff(negative[np.argsort(doubt[~answered], kind="stable")]) >= 0).all()
    assert doubtful_probability([False], [1.0], reference, 0.9).tolist() == [1.0]
    with pytest.raises(UserError, match="share"):
        doubtful_probability(answered, doubt, reference, 0.0)

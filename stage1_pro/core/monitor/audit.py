"""Which cases are audited: a hash of the group and a secret salt decides, and nothing else.

Two hosts with the same salt audit the same groups without speaking to each other, and nobody can steer the
audit: not the model, not the camera, not a person who thinks that a case "looked odd". The salt is chosen once
before deployment and kept out of the bundle, since whoever knows it knows which cases will not be looked at.

Audited cases can carry a new certificate, but are no uniform sample where some were audited more often than others:
unweighted they give false certificates (.403 where confident exits were audited more often, at .1 promised). Each is
kept with a probability that evens this out, drawn by a second hash; then val_select and val_calib are the older and the
newer half. Valid where every exit of the new policy had a known probability above 0 to be audited, where no label is
missing and where the window's start was fixed without looking at the labels: picked by them, false certificates are
seven times as frequent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.hashing import drawn, hash64

SALT_VARIABLE = "STAGE1_AUDIT_SALT"
LEAST_SALT = 16
"""Bytes; a shorter salt can be guessed from the digest that is written down."""
LEAST_GROUPS = 200
LARGE_GROUP = 50
"""Cases a group, on average, above which fewer than LEAST_GROUPS groups are taken for cameras or sites."""
FLOOR = 0.3
"""Least audit probability of an exit, as a share of the audit share: 0 would leave cases that nobody ever sees."""
STEEPNESS = 4
"""Power of the rank that the probability of a doubtful case rises with."""
MAKE_SALT = "python -c 'import secrets; print(secrets.token_hex(32))'"


@dataclass(frozen=True, slots=True)
class Audit:
    """The rule of an audit. share: of the groups that are audited, in (0, 1]; salt: secret bytes.

    >>> audit = Audit(0.05, b"sixteen bytes or more")
    >>> bool(audit.chooses(["track-17"])[0])
    False
    """

    share: float
    salt: bytes

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(
                f"the audit share is {self.share:g}; allowed above 0, up to 1. Without audits nothing is ever known of "
                "FNR on exits; leave --audit_share out to run without a monitor."
            )

    @property
    def digest(self) -> str:
        """What is written down of the salt, to notice when it changes."""
        return salt_digest(self.salt)

    def chooses(self, groups: Iterable[object], probability: ArrayLike | None = None) -> BoolArray:
        """(N,) whether the groups of cases are audited. groups: (N,) the group of each, its id where it has none;
        probability: (N,) where it differs from case to case, else the share."""
        return drawn(hash64(groups, self.salt), self.share if probability is None else probability)


def salt_digest(salt: bytes) -> str:
    """SHA-256 of a salt, with a prefix that keeps it apart from the hashes of groups."""
    return sha256(b"stage1 audit salt:" + salt).hexdigest()


def read_salt(path: Path | None, environment: Mapping[str, str]) -> bytes:
    """The salt out of a key file, else out of STAGE1_AUDIT_SALT. White space around it does not count.

    Raises UserError where there is none, or one so short that it can be guessed.
    """
    if path is not None:
        salt, where = artifacts.read_bytes(path, f"Make one: {MAKE_SALT} > {path}").strip(), str(path)
    else:
        salt, where = environment.get(SALT_VARIABLE, "").strip().encode(), SALT_VARIABLE
    if not salt:
        raise UserError(f"{where}: no audit salt. Make one: {MAKE_SALT} > audit.salt; then --audit_salt audit.salt")
    if len(salt) < LEAST_SALT:
        raise UserError(f"{where}: a salt of {len(salt)} bytes; allowed {LEAST_SALT} or more. Make one: {MAKE_SALT}")
    return salt


def demand_groups(groups: int, cases: int) -> None:
    """Raise UserError where so few groups hold so many cases that an audit of groups sees nothing, or everything.

    groups: distinct ones; cases: in them. Few groups of few cases are a small day, and add up over days.
    """
    if groups < LEAST_GROUPS and cases > LARGE_GROUP * groups:
        raise UserError(
            f"{cases} cases in {groups} groups; an audit needs {LEAST_GROUPS} groups or more (of 5 groups, a share of "
            ".05 audits nothing with .78 of the salts). A group is what depends on each other (a track, a patient), "
            "never a camera or a site: name such groups, decide more of them at once, or audit all with "
            "--audit_share 1."
        )


def doubtful_probability(
    answered_positive: ArrayLike, doubt: ArrayLike, reference: ArrayLike, share: float
) -> FloatArray:
    """(N,) audit probabilities of exits that rise with doubt among answers 0, where misses are; answers 1 keep `share`.

    doubt: (N,) how near an exit is to being deferred, larger is nearer; reference: (K,) doubts of earlier answers 0
    that exited. Over cases like the reference the mean is `share` (less where that would take a probability above 1).

    Worth it only where misses are doubtful: with all of them in the most doubtful tenth a rate of .05 or .10 is
    noticed 2.4 times as early as by the uniform audit or better, with all of them in the surer half three times as
    late or worse. The uniform audit is therefore the default.
    """
    if not 0 < share <= 1:
        raise UserError(f"the audit share is {share:g}; allowed above 0, up to 1.")
    ordered = np.sort(np.asarray(reference, dtype=np.float64))
    if not ordered.size:
        raise ValueError("no reference: the rank of a doubt among nothing is not known")
    doubt = np.asarray(doubt, dtype=np.float64)
    rank = (np.searchsorted(ordered, doubt, "left") + np.searchsorted(ordered, doubt, "right")) / (2 * ordered.size)
    rising = share * (FLOOR + (1 - FLOOR) * (STEEPNESS + 1) * rank**STEEPNESS)
    return np.where(np.asarray(answered_positive, dtype=bool), share, np.minimum(1.0, rising))


# ---- a uniform sample again, halved by time

SECOND_HASH, HALVING_HASH = b"recertify:", b"recertify, half:"


@dataclass(frozen=True, slots=True, eq=False)
class Resample:
    """Positions of the cases that stay: select, calib (older and newer half), and how many were thinned out."""

    select: IntArray
    calib: IntArray
    thinned: int


def resample(
    groups: ArrayLike, times: ArrayLike, probability: ArrayLike, labelled: ArrayLike, salt: bytes, since: float
) -> Resample:
    """A uniform sample of the audited cases from `since` on.

    groups, times: (N,); probability: (N,) with which each case's label was to be had (1 where stage 2 labels all
    deferred ones); labelled: (N,) bool; since: start of the window, in the unit of times. Groups stay whole. Raises
    UserError where a label of the window is missing, where a probability is not known, or where too little is left.
    """
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    times, probability = np.asarray(times, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    first = np.full(names.size, np.inf)
    np.minimum.at(first, index, times)
    inside = first[index] >= since
    _demand_whole(inside, probability, np.asarray(labelled, dtype=bool))
    # a group is kept or left out as one, so by the least that any of its cases could be had with
    least = np.ones(names.size)
    np.minimum.at(least, index[inside], probability[inside])
    floor = least[np.unique(index[inside])].min()
    kept = drawn(hash64(names, SECOND_HASH + salt), floor / least)[index] & inside
    here = np.unique(index[kept])
    # all cases of a job have one time; a hash halves those that lie in the middle
    here = here[np.lexsort((hash64(names[here], HALVING_HASH + salt), first[here]))]
    newer = np.zeros(names.size, dtype=bool)
    newer[here[(here.size + 1) // 2 :]] = True
    return Resample(
        np.flatnonzero(kept & ~newer[index]), np.flatnonzero(kept & newer[index]), int((inside & ~kept).sum())
    )


def _demand_whole(inside: BoolArray, probability: np.ndarray, labelled: BoolArray) -> None:
    if not inside.any():
        raise UserError("no audited case since the start of the window: choose an earlier start, or wait.")
    unknown = inside & ~((probability > 0) & (probability <= 1))
    if unknown.any():
        raise UserError(
            f"{np.count_nonzero(unknown)} cases without an audit probability in (0, 1]: only cases decided with "
            "--audit_share can be used. Start the window where the audit starts."
        )
    missing = inside & ~labelled
    if missing.any():
        raise UserError(
            f"{np.count_nonzero(missing)} audited cases have no label, and which ones do not may depend on what they "
            "are. Label them first."
        )

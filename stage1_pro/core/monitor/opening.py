"""What a monitor starts with.

The rules of a monitor are fixed with its first reading, before the first label: chosen afterwards they could be
chosen to please.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import MANIFEST, BundleContents
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.monitor.audit import SALT_VARIABLE, read_salt, salt_digest
from stage1_pro.core.monitor.reading import Reader
from stage1_pro.core.monitor.state import Settings, seconds
from stage1_pro.core.monitor.tables import Decisions
from stage1_pro.core.policies.grouped import GroupedExitPolicy
from stage1_pro.core.policies.words import promised_fnr

CHOSEN = {
    "audit": "--audit",
    "audit_share": "--audit_share",
    "salt_digest": "--audit_salt",
    "max_label_delay_days": "--max_label_delay_days",
    "group_days": "--group_days",
    "planned": "--planned",
}
"""Settings that a user chooses when a monitor starts, and how."""


UNIFORM, DOUBTFUL = "uniform", "doubtful"


def kind_of(least: float | None) -> str:
    """The kind of audit of a monitor's settings."""
    return UNIFORM if least is None else DOUBTFUL


def bundle_digest(contents: BundleContents) -> str:
    """What decisions and monitors call a bundle: SHA-256 of bundle.json, which lists the digests of all its files."""
    return artifacts.digest_file(contents.path / MANIFEST)


def certified_groups(contents: BundleContents) -> tuple[str, ...]:
    """Names of the groups that have a certificate each, sorted; () where one holds for all cases."""
    policy = contents.policy
    return tuple(policy.names.tolist()) if isinstance(policy, GroupedExitPolicy) else ()


def reader_of(contents: BundleContents, now: int) -> Reader:
    """What the values of files of decisions and labels of this bundle mean, at this moment."""
    return Reader(bundle_digest(contents), tuple(contents.manifest["class_names"]), now, certified_groups(contents))


def first_settings(contents: BundleContents, decisions: Decisions, chosen: Mapping[str, Any]) -> Settings:
    """The settings of a new monitor: target and confidence of the bundle's policy, and what the user chose.

    chosen: keys of CHOSEN, None where the user said nothing. Without an audit share it is that of the decisions.
    Raises UserError where neither names one.
    """
    policy_file = contents.path / contents.manifest["policy_file"]
    policy = artifacts.read_json(policy_file, policy_file.stem)
    given = {name: value for name, value in chosen.items() if value is not None}
    kind = given.pop("audit", UNIFORM)
    if "audit_share" not in given:
        if kind == DOUBTFUL:
            raise UserError("--audit doubtful needs --audit_share, since each case has a probability of its own.")
        given["audit_share"] = _share_of(decisions)
    if kind == DOUBTFUL:
        given["least"] = given["audit_share"]  # of positive answers, on which the bets rest
    expires = contents.manifest.get("expires") or {}
    after, date = expires.get("audited_positives"), expires.get("date")
    if streams := certified_groups(contents):
        given["streams"] = streams
    return Settings(
        bundle_digest(contents),
        promised_fnr(policy),
        round(1 - policy["fnr_confidence"], 12),
        **{**({} if after is None else {"planned": after}), **given},
        expires_at=None if date is None else seconds(date),
        expires_after=after,
    )


def demand_settings(settings: Settings, contents: BundleContents, chosen: Mapping[str, Any], where: Path) -> None:
    """Raise UserError where the user, or the bundle, now says something else than when the monitor started."""
    problems = []
    if settings.bundle_digest != bundle_digest(contents):
        problems.append(f"it watches another bundle ({settings.bundle_digest[:12]}…) than {contents.path}")
    for name, value in chosen.items():
        kept = kind_of(settings.least) if name == "audit" else getattr(settings, name)
        if value is None or value == kept:
            continue
        if name == "salt_digest":
            told = "the salt changed" if kept else "it was started without a salt; leave --audit_salt out"
        else:
            told = f"{CHOSEN[name]} is {value}, and {kept} since its first reading"
        problems.append(told)
    raise_problems(
        f"{where}: not what this monitor was started with:",
        problems,
        "Leave these options out, or start a new monitor with another --out.",
    )


def _share_of(decisions: Decisions) -> float:
    known = decisions.audit_probability[np.isfinite(decisions.audit_probability)]
    if not known.size:
        raise UserError(
            "a new monitor needs --audit_share, or decisions that were made with one (60_predict.py and 70_serve.py "
            "take --audit_share and --audit_salt)."
        )
    return float(np.median(known))


def salt_of(file: str | None, environment: Mapping[str, str]) -> bytes | None:
    """The salt where one is at hand, from the file or from STAGE1_AUDIT_SALT. Raises UserError for a bad one."""
    if file is None and not environment.get(SALT_VARIABLE):
        return None
    return read_salt(None if file is None else Path(file), environment)


def digest_or_none(salt: bytes | None) -> str | None:
    return None if salt is None else salt_digest(salt)

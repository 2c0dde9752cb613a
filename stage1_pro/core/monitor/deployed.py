"""What 60, 61 and 70 are started with: how decisions are audited, and what each says of its certificate."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import time as clock
from typing import Literal, Protocol

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.calib_scores import read_negative_exit_scores
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.inference.records import Decision
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.monitor.audit import Audit, doubtful_probability, read_salt
from stage1_pro.core.monitor.files import MONITOR
from stage1_pro.core.monitor.opening import DOUBTFUL, UNIFORM, bundle_digest, kind_of
from stage1_pro.core.monitor.state import ALARM, EXPIRED, NONE, seconds


class MonitorFile:
    """A monitor.json that others write while this process decides: read again where it has changed."""

    def __init__(self, path: Path):
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._state = NONE

    def state(self) -> str:
        """What it says of the certificate; while it cannot be read, what it said last."""
        try:
            found = os.stat(self.path)
            seen = (found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._state = str(json.loads(self.path.read_bytes())["certificate"])
                self._seen = seen
        except (OSError, ValueError, KeyError):
            pass  # between two revisions on a network disk: a decision must not fail for it
        return self._state


@dataclass(frozen=True, slots=True)
class Deployed:
    """How decisions are audited and what is said of their certificate. audit: None where nothing is audited; monitor:
    its monitor.json, None where nothing watches; expires_at: seconds since 1970, None for never; positive: name
    of the positive class; doubts: (Q,) of negative answers that exit, where doubtful ones are audited more often."""

    bundle: str
    audit: Audit | None
    monitor: MonitorFile | None
    expires_at: int | None
    positive: str
    doubts: FloatArray | None = None

    @property
    def audits(self) -> bool:
        return self.audit is not None

    def audited(self, name: str, decision: Decision) -> tuple[bool | None, float | None]:
        """Whether the group of this name is audited, and with which probability; None, None: nothing is audited."""
        if self.audit is None:
            return None, None
        columns = ([value] for value in (decision.answer, decision.decision, decision.score))
        probability = self.probabilities(*map(np.array, columns))
        return bool(self.audit.chooses([name], probability)[0]), float(probability[0])

    def probabilities(self, answers: np.ndarray, decisions: np.ndarray, scores: np.ndarray) -> FloatArray:
        """(N,) with which each case is audited, of its answer, decision and score."""
        assert self.audit is not None
        share = np.full(len(answers), self.audit.share)
        exits = np.flatnonzero(decisions == "exit")
        if self.doubts is not None:
            rising = (answers[exits] == self.positive, -scores[exits].astype(np.float64), self.doubts)
            share[exits] = doubtful_probability(*rising, self.audit.share)
        return share

    def certificate(self, now: int) -> str:
        """What holds at this moment, as the monitor stands: in force, alarm, expired, or none where nothing watches."""
        watched = NONE if self.monitor is None else self.monitor.state()
        past = self.expires_at is not None and now >= self.expires_at
        return EXPIRED if past and watched != ALARM else watched


def deployed(
    contents: BundleContents,
    share: float | None,
    salt_file: str | None,
    monitor: str | None,
    environment: Mapping[str, str],
    kind: str = UNIFORM,
) -> Deployed:
    """Check the options of 60 and 70 against each other and the monitor. Raises UserError with every problem."""
    problems: list[str] = []
    audit = None
    if share is None and salt_file is not None:
        problems.append("--audit_salt without --audit_share: say which share of the groups is audited, as in .05")
    elif share is not None:
        try:
            audit = Audit(share, read_salt(None if salt_file is None else Path(salt_file), environment))
        except UserError as problem:
            problems.append(str(problem))
    scores = read_negative_exit_scores(contents.path) if kind == DOUBTFUL else None
    if kind == DOUBTFUL:
        problems += [] if share is not None else ["--audit doubtful without --audit_share: say which share is audited"]
        problems += (
            [] if scores is not None else [f"{contents.path} holds no scores of val_calib's exits: export it again"]
        )
    path = None if monitor is None else _monitor_file(Path(monitor))
    if path is not None:
        problems += _monitor_problems(path, contents, audit, kind)
    raise_problems("nothing can be audited so:", problems)
    date = (contents.manifest.get("expires") or {}).get("date")
    return Deployed(
        bundle_digest(contents),
        audit,
        path and MonitorFile(path),
        None if date is None else seconds(date),
        contents.manifest["class_names"][-1],
        None if scores is None else np.sort(-scores),
    )


class AuditOptions(Protocol):
    """The options of 60 and 61 that a table of decisions gets its columns of the audit by."""

    @property
    def audit_share(self) -> float | None: ...
    @property
    def audit(self) -> Literal["uniform", "doubtful"]: ...
    @property
    def audit_salt(self) -> str | None: ...
    @property
    def monitor(self) -> str | None: ...
    @property
    def time(self) -> str | None: ...


def deployed_by(
    options: AuditOptions, contents: BundleContents, environment: Mapping[str, str], groups: str | None = None
) -> tuple[Deployed, int] | None:
    """What the options of 60 and 61 ask for, and when the cases were met; None where nothing is asked and the bundle
    has no end. groups: of 60. Raises UserError with every problem."""
    asked = options.audit_share is not None or options.audit_salt or options.monitor or options.audit == DOUBTFUL
    if contents.task.has_masks and asked:
        raise UserError(
            "a label cannot say whether a mask is right, so masks are not audited: leave out --audit_share, --audit, "
            "--audit_salt and --monitor."
        )
    if not asked:
        if groups or options.time:
            raise UserError("--groups and --time are for audits: add --audit_share, or leave them out.")
        if not contents.manifest.get("expires"):
            return None
    kind, share, salt = options.audit, options.audit_share, options.audit_salt
    found = deployed(contents, share, salt, options.monitor, environment, kind)
    return found, int(clock()) if options.time is None else seconds(options.time)


def _monitor_file(path: Path) -> Path:
    return path / MONITOR if path.is_dir() else path


def _monitor_problems(path: Path, contents: BundleContents, audit: Audit | None, kind: str) -> list[str]:
    try:
        settings = artifacts.read_json(path, "monitor")["settings"]
    except UserError as problem:
        return [str(problem)]
    problems = []
    if settings["bundle_digest"] != bundle_digest(contents):
        problems.append(f"{path} watches another bundle than {contents.path}: start a new monitor for a new bundle")
    if audit is not None and kind_of(settings["least"]) != kind:
        problems.append(f"{path} was started for an audit that is {kind_of(settings['least'])}: say so with --audit")
    if audit is None:
        problems.append(f"{path} needs audits: add --audit_share {settings['audit_share']:g} and --audit_salt")
    elif settings["salt_digest"] not in (None, audit.digest):
        problems.append(
            f"the salt is another one than {path} was started with: a changed salt audits other groups. Give the "
            "former salt, or start a new monitor"
        )
    return problems

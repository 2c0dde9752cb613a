"""The audited cases of a monitor as the cases of a new certificate.

They are a sample of all cases that production met, drawn by a hash before anybody saw them, so the model can be
certified anew on them. The older half of the window chooses and tests, the newer half certifies.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.console import say
from stage1_pro.core.errors import UserError, counted, first_few
from stage1_pro.core.metrics.error_budget import attempt_delta
from stage1_pro.core.metrics.hashing import drawn, hash64
from stage1_pro.core.metrics.views import views_of
from stage1_pro.core.monitor.audit import Audit, resample
from stage1_pro.core.monitor.files import MONITOR, locked, read_monitor
from stage1_pro.core.monitor.opening import demand_settings, digest_or_none, reader_of
from stage1_pro.core.monitor.state import Monitor, day_text, time_text
from stage1_pro.core.monitor.tables import DAY, Decisions, Labels
from stage1_pro.core.records.provenance import utc_now

ATTEMPTS = "attempts.csv"
COLUMNS = ("attempt", "time", "run", "since", "until", "fnr_confidence")
TEST_SHARE = 1 / 3
"""Of the older half: what it keeps for the test of the new policy."""
TEST_HASH = b"recertify, test:"
MISSING = "to_recertify.csv"


@dataclass(frozen=True, slots=True)
class Request:
    """What 38 is asked for. folder: of the monitor; decisions, labels: files; since: start of the window, seconds since
    1970, fixed without a look at the labels; images: folder that the ids are files in; now: seconds since 1970."""

    folder: Path
    decisions: Sequence[str]
    labels: Sequence[str]
    since: int
    images: Path
    salt: bytes
    now: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a certificate out of this deployment's audits. number: 1, 2, …; promised: the confidence of all
    attempts there will ever be together; confidence: that of this one."""

    number: int
    promised: float
    since: int
    until: int

    @property
    def confidence(self) -> float:
        return round(1 - attempt_delta(1 - self.promised, self.number), 12)

    @property
    def origin(self) -> dict[str, Any]:
        """What the provenance of the new bundle says of it, so that the count goes on there."""
        return {"attempt": self.number, "promised_confidence": self.promised}


@contextmanager
def audited_site(
    contents: BundleContents, request: Request, promised: float | None, table: Path
) -> Iterator[tuple[Attempt, dict[str, Any]]]:
    """The attempt and the settings of its cases, with the monitor's folder held for this process.

    promised: confidence, None for that of the bundle; table: file of the cases to write. Raises UserError where the
    labels of the window are not complete; then MISSING in the monitor's folder lists the cases.
    """
    if views_of(contents.manifest) is not None:
        raise UserError(
            f"{contents.path} decides groups, and audits name no images of a group: certify it anew with --config and "
            "labelled images."
        )
    if not (request.folder / MONITOR).exists():
        raise UserError(f"--from_audit {request.folder}: no {MONITOR} there. Name the folder of 65_monitor.py.")
    with locked(request.folder):
        monitor = read_monitor(request.folder)
        said = {"salt_digest": digest_or_none(request.salt)}
        demand_settings(monitor.settings, contents, said, request.folder / MONITOR)
        until = _end(monitor)
        cases, answers, more = _labelled(contents, request, until)
        number = 1 + _attempts_before(contents, request.folder)
        attempt = Attempt(number, _promised(contents, promised), request.since, until)
        names = _class_names(contents)
        _write_table(cases, answers, request, names[:2], table, more)
        data = {"sources": [{"name": "audit", "labels": str(table), "root": str(request.images)}], "class_names": names}
        say(
            f"attempt   {number} at a certificate from audits: confidence {attempt.confidence:.6g}, so that all "
            f"attempts there may be have {attempt.promised:g} together"
        )
        yield attempt, {"dataset_params": data, "fnr_confidence": attempt.confidence}


def _labelled(
    contents: BundleContents, request: Request, until: int
) -> tuple[Decisions, np.ndarray, dict[str, np.ndarray]]:
    """The audited cases of the window, their labels (N,) of 0 and 1, and columns (N,) that the table has beside them:
    the certified group, where the bundle certifies each by itself."""
    reader, column = reader_of(contents, request.now), contents.manifest.get("certificate_groups")
    listed = reader.streams
    if column is not None:  # a camera that joined since is no group of the bundle, and may become one
        reader = replace(reader, streams=reader.certificate_groups(request.decisions))
    (rows, _), (labels, _) = reader.both(request.decisions, request.labels)
    cases = _window(rows, request, until)
    if column is not None:
        cases = cases.take(_asked(cases, _labels_of(cases, labels), reader.streams, listed))
    answers = _labels_of(cases, labels)
    _demand_images(cases, request.images)
    _demand_labels(cases, answers, request.folder)
    return cases, answers, {} if column is None else {column: _names_of(cases, reader.streams)}


def record_attempt(folder: Path, attempt: Attempt, run: Path) -> None:
    """Write an attempt down, before its val_calib is looked at: one that is cut off counts."""
    path = folder / ATTEMPTS
    row = {
        "attempt": attempt.number,
        "time": utc_now(),
        "run": str(run),
        "since": time_text(attempt.since),
        "until": time_text(attempt.until),
        "fnr_confidence": attempt.confidence,
    }
    artifacts.write_csv(path, [*_rows(path), row], COLUMNS)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return list(csv.DictReader(io.StringIO(artifacts.read_bytes(path).decode(), newline="")))


def _attempts_before(contents: BundleContents, folder: Path) -> int:
    """Attempts of this deployment so far: those that led to the bundle, and those of its monitor."""
    origin = contents.manifest["provenance"].get("recalibrated_from", {})
    return origin.get("attempt", 0) + len(_rows(folder / ATTEMPTS))


def _promised(contents: BundleContents, promised: float | None) -> float:
    if promised is not None:
        return promised
    origin = contents.manifest["provenance"].get("recalibrated_from", {})
    policy_file = contents.path / contents.manifest["policy_file"]
    return origin.get("promised_confidence") or artifacts.read_json(policy_file, policy_file.stem)["fnr_confidence"]


def _class_names(contents: BundleContents) -> list[str]:
    """Names for a table of cases: of the negatives, then of the positives, several where the bundle joined them."""
    config = artifacts.read_json(contents.path / contents.manifest["config_file"], "config")
    positives = config["dataset_params"]["positive_class"]
    negative, positive = contents.manifest["class_names"]
    return [negative, *(positives if isinstance(positives, list) else [positive])]


def _end(monitor: Monitor) -> int:
    """The end of the last closed day: later days still wait for labels, and which came first is no accident."""
    if monitor.closed_through is None:
        raise UserError("no day of this monitor is closed yet. Run 65_monitor.py with the labels first.")
    return (monitor.closed_through + 1) * DAY


def _window(rows: Decisions, request: Request, until: int) -> Decisions:
    """Audited cases of the window, each id once. A group belongs to the window that its first case lies in."""
    _demand_drawn(rows, Audit(1.0, request.salt))
    rows = rows.take(np.flatnonzero(rows.audited))
    rows = rows.take(np.unique(rows.id.astype(str), return_index=True)[1])
    _, index = np.unique(rows.group.astype(str), return_inverse=True)
    first = np.full(index.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, index, rows.time)
    inside = (first[index] >= request.since) & (rows.time < until)
    if not inside.any():
        raise UserError(
            f"no audited case of these decisions lies between {time_text(request.since)} and {day_text(until // DAY)}, "
            "where the closed days of the monitor end. Choose an earlier --since, give more files, or wait."
        )
    return rows.take(inside)


def _demand_drawn(rows: Decisions, audit: Audit) -> None:
    wrong = audit.chooses(rows.group, np.nan_to_num(rows.audit_probability)) != rows.audited
    if wrong.any():
        raise UserError(
            f"{counted(int(wrong.sum()), 'case')} of these decisions were audited by another salt than this one. Give "
            "the salt that they were decided with, or start the window where it changed."
        )


def _labels_of(cases: Decisions, labels: Labels) -> np.ndarray:
    """(N,) 1, 0, or -1 where there is no label, or two that contradict each other."""
    found: dict[str, int] = {}
    for name, positive in zip(labels.id.tolist(), labels.positive.tolist(), strict=True):
        found[name] = int(positive) if found.get(name, positive) == positive else -1
    return np.array([found.get(name, -1) for name in cases.id.tolist()], dtype=np.int64)


def _names_of(cases: Decisions, streams: Sequence[str]) -> np.ndarray:
    """(N,) the certified group of each case, "" for none."""
    return np.array([*streams, ""], dtype=object)[cases.stream]


def _asked(cases: Decisions, answers: np.ndarray, streams: Sequence[str], listed: Sequence[str]) -> np.ndarray:
    """(N,) whether a case takes part: not where the bundle does not list its certified group and nobody has labelled a
    case of it. Such a group defers as before, whatever its labels would say.

    answers: (N,) labels, -1 for none; streams: groups by number; listed: those with a certificate.
    """
    of = _names_of(cases, streams)
    left_out = [name for name in sorted(set(of) - set(listed)) if (answers[of == name] < 0).all()]
    for name in left_out:
        cases_of = f"{counted(int((of == name).sum()), 'audited case')} of " + (f"'{name}'" if name else "no group")
        say(f"left out  {cases_of}, none of them labelled: such cases still defer")
    asked = ~np.isin(of, left_out)
    if not asked.any():
        raise UserError("no audited case of the window has a label. Name the files of labels with --labels.")
    return asked


def _demand_images(cases: Decisions, images: Path) -> None:
    """Raise UserError where not one id is a file in the folder: then another folder is meant."""
    paths = [images / str(name) for name in cases.id if "://" not in str(name)]
    if len(paths) == len(cases) and not any(path.is_file() for path in paths):
        raise UserError(
            f"none of the {counted(len(paths), 'audited case')} is a file in {images}, as {paths[0]}: name with "
            "--images the folder that the ids of the decisions are files in."
        )


def _demand_labels(cases: Decisions, answers: np.ndarray, folder: Path) -> None:
    missing = np.flatnonzero(answers < 0)
    if not missing.size:
        return
    rows = ({"id": cases.id[at], "time": time_text(int(cases.time[at]))} for at in missing.tolist())
    artifacts.write_csv(folder / MISSING, rows, ("id", "time", "label", "label_time"))
    raise UserError(
        f"{counted(missing.size, 'audited case')} of the window without one label: {first_few(cases.id[missing])}. "
        "Which ones lack it may depend on what they are, so all are needed, those that defer too. They are listed in "
        f"{folder / MISSING}: fill it in and name it with --labels."
    )


def _write_table(
    cases: Decisions,
    answers: np.ndarray,
    request: Request,
    names: Sequence[str],
    table: Path,
    more: Mapping[str, np.ndarray],
) -> None:
    """The cases that stay, as a table of labelled images with their splits. names: of a negative, of a positive; more:
    columns (N,) beside these."""
    found = resample(
        cases.group, cases.time, cases.audit_probability, answers >= 0, request.salt, since=float(request.since)
    )
    split = np.full(len(cases), "", dtype=object)
    tested = drawn(hash64(cases.group, TEST_HASH + request.salt), TEST_SHARE)
    split[found.select], split[found.calib] = "val_select", "val_calib"
    split[found.select[tested[found.select]]] = "val_test"
    kept = np.flatnonzero(split != "").tolist()
    say(
        f"audited   {len(kept)} labelled cases since {time_text(request.since)}"
        + (f", {found.thinned} thinned out to make all equally likely" if found.thinned else "")
    )
    rows = [
        {
            "path": str(cases.id[at]),
            "label": names[answers[at]],
            "group": cases.group[at],
            "split": split[at],
            **{name: column[at] for name, column in more.items()},
        }
        for at in kept
    ]
    artifacts.write_csv(table, rows, ("path", "label", "group", "split", *more))

"""What a table of decisions has beside its answers: what is audited, when it was met, under which certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.data.image_files import folder_of
from stage1_pro.core.errors import UserError
from stage1_pro.core.monitor.audit import demand_groups
from stage1_pro.core.monitor.deployed import Deployed
from stage1_pro.core.monitor.opening import DOUBTFUL, UNIFORM
from stage1_pro.core.monitor.state import time_text

FOLDER = "folder"
ORDER = (
    "id",
    "group",
    "time",
    "answer",
    "probability",
    "decision",
    "score",
    "reason",
    "audit",
    "audit_probability",
    "certificate",
    "bundle",
)
"""The columns of a row, as 70 logs them; what a policy adds follows."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Adds the columns of the audit to tables of decisions.

    groups: id → group, for cases that belong together; record: what job.json pins, time and certificate among it, which
    stay as they were when the job began, so that a job that goes on makes the rows that it would have made.
    """

    deployed: Deployed
    groups: dict[str, str]
    record: dict[str, Any]

    def added(self, rows: pd.DataFrame, record: dict[str, Any]) -> pd.DataFrame:
        """The rows with all columns. record: as the job began with it; a column group of the rows is taken as it is."""
        groups = rows["id"].map(self.groups) if self.groups else rows.get("group", pd.Series(None, rows.index, object))
        audit = self.deployed.audit
        names = groups.where(groups.notna(), rows["id"])
        chances = None
        if audit is not None:
            chances = self.deployed.probabilities(*(rows[name].to_numpy() for name in ("answer", "decision", "score")))
        wide = rows.assign(
            group=groups.astype(object).where(groups.notna(), None),
            time=record["time"],
            audit=None if audit is None else audit.chooses(names, chances),
            audit_probability=np.nan if chances is None else chances,
            certificate=record["certificate"],
            bundle=self.deployed.bundle,
        )
        return wide[[*ORDER, *(name for name in rows.columns if name not in ORDER)]]


def columns_of(deployed: Deployed, ids: Sequence[str], groups: str | None, now: int) -> Columns:
    """The columns for these ids. groups: "folder", or a file with columns id and group; now: when the cases were met.

    Raises UserError where a case has no group, and where so few large groups hold the cases that each is more likely a
    camera than a track.
    """
    found = groups_of(ids, groups)
    _demand_auditable(deployed, len(set(found.values())), len(found), "leave --groups out")
    return Columns(
        deployed, found, _record(deployed, artifacts.digest_json(sorted(found.items())) if found else None, now)
    )


def columns_of_rows(deployed: Deployed, groups: int, cases: int, now: int) -> Columns:
    """The columns where each row comes with its group. groups: distinct ones; cases: in them.

    Raises UserError where so few large groups hold the cases that each is more likely a camera than a track.
    """
    _demand_auditable(deployed, groups, cases, "leave the column group out")
    return Columns(deployed, {}, _record(deployed, None, now))


def _demand_auditable(deployed: Deployed, groups: int, cases: int, way_out: str) -> None:
    if cases and deployed.doubts is not None:
        raise UserError(f"--audit doubtful is for cases that stand alone: {way_out}, or audit uniformly.")
    if cases and deployed.audit is not None and deployed.audit.share < 1:
        demand_groups(groups, cases)


def _record(deployed: Deployed, groups: str | None, now: int) -> dict[str, Any]:
    """What job.json keeps. groups: their digest, where they do not come with the rows."""
    audit = deployed.audit
    return {
        "audit_share": None if audit is None else audit.share,
        "audit_kind": None if audit is None else UNIFORM if deployed.doubts is None else DOUBTFUL,
        "salt_digest": None if audit is None else audit.digest,
        "groups": groups,
        "monitor": None if deployed.monitor is None else str(deployed.monitor.path),
        "time": time_text(now),
        "certificate": deployed.certificate(now),
    }


def groups_of(ids: Sequence[str], groups: str | None) -> dict[str, str]:
    """id → group; empty where each case stands for itself."""
    if groups is None:
        return {}
    if groups == FOLDER:
        return {name: folder_of(name) for name in ids}
    path = Path(groups)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"--groups {groups}: 'folder', or a .csv or .parquet file with the columns id and group.")
    content = artifacts.read_bytes(path, "Name a file with the columns id and group, or 'folder'.")
    table = _table(path, content)
    if missing := [name for name in ("id", "group") if name not in table.columns]:
        raise UserError(f"{path}: no column {' and no column '.join(missing)}. It needs the columns id and group.")
    known = dict(zip(table["id"].astype(str), table["group"].astype(str), strict=True))
    without = [name for name in ids if name not in known]
    if without:
        raise UserError(
            f"{path}: no group for {len(without)} of {len(ids)} images, such as {without[0]}. Name a group for each; a "
            "case that stands alone has its own id as group."
        )
    return {name: known[name] for name in ids}


def _table(path: Path, content: bytes) -> pd.DataFrame:
    from io import BytesIO

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(BytesIO(content))
        return pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' and pyarrow's own errors are of this kind
        raise UserError(f"{path}: {str(error).splitlines()[0][:120]}. Fix this and run again.") from None

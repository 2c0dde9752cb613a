"""A policy file with all the fields that it needs, and the ways in which one may rest on its evidence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core.errors import raise_problems
from stage1_pro.core.metrics.arrays import BoolArray
from stage1_pro.core.metrics.binomial import p_value
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.records.scores import Scores

MEND = "Calibrate the run with our script."
DEMANDED = (
    "schema_version",
    "run_id",
    "created_at",
    "target_fnr_exit",
    "fnr_confidence",
    "guarantee",
    "exited_positives",
    "misses",
    "fnr_upper_bound",
    "fnr_on_exits",
    "exit_accuracy",
    "coverage",
    "calib_use_count",
    "model_digest",
    "splits_digest",
    "diagnostics",
    "sweep_results",
    "val_calib_metrics",
)
OF_SCRC = ("dirichlet_params", "calibrator_params", "calibrator_type")
OF_METRICS = (
    "cases",
    "positives",
    "negatives",
    "groups",
    "positive_groups",
    "exited",
    "coverage",
    "exited_positives",
    "misses",
    "fnr_on_exits",
    "exited_negatives",
    "false_alarms",
    "fpr_on_exits",
    "precision_on_exits",
    "accuracy_on_exits",
)
"""Demanded of val_calib_metrics; what was added later is compared where a file records it."""
OF_ROWS = ("coverage", "misses", "exited_positives")


@dataclass(frozen=True, slots=True, eq=False)
class PolicyFile:
    """A policy file whose demanded fields are all there.

    content: as read, valid by its schema; misses, exited_positives: (J,) of the rows of its sweep, certified: (J,)
    bool; kind: how it rests on its evidence.
    """

    content: dict[str, Any]
    misses: np.ndarray
    exited_positives: np.ndarray
    certified: BoolArray
    kind: "Kind"

    @classmethod
    def of(cls, content: dict[str, Any], kind: "Kind", where: Path) -> "PolicyFile":
        """where: for the message. Raises UserError that lists the fields that are missing."""
        demanded = {
            "$": (content, (*DEMANDED, *kind.demanded, *(OF_SCRC if "scrc_variant" in content else ()))),
            "$.val_calib_metrics": (content.get("val_calib_metrics", {}), OF_METRICS),
        }
        rows = content.get("sweep_results", [])
        demanded |= {f"$.sweep_results[{index}]": (row, OF_ROWS) for index, row in enumerate(rows)}
        missing = [
            f"{path}.{name} is missing"
            for path, (part, names) in demanded.items()
            for name in names
            if name not in part
        ]
        raise_problems(f"{where}: incomplete, so nothing shows that it was certified:", missing, MEND)
        misses, exited = (np.array([row[name] for row in rows], dtype=np.int64) for name in OF_ROWS[1:])
        return cls(content, misses, exited, np.array([row.get("certified", False) for row in rows], dtype=bool), kind)

    def __getitem__(self, field: str) -> Any:
        return self.content[field]

    @property
    def risk(self) -> Risk:
        return Risk(self["target_fnr_exit"], self["fnr_confidence"])

    @property
    def chosen(self) -> dict[str, Any]:
        """The last certified row of the sweep; empty where there is none."""
        certified = np.flatnonzero(self.certified)
        return self["sweep_results"][certified[-1]] if certified.size else {}

    @property
    def grouped(self) -> bool:
        return self["val_calib_metrics"]["groups"] < self["val_calib_metrics"]["cases"]

    @property
    def earlier(self) -> list[float]:
        """Confidences of the other looks at the same positives, as far as they are recorded."""
        return self.content.get("earlier_confidences", [])

    @property
    def miss_rule(self) -> dict[str, Any] | None:
        """When the mask of a positive case counts as a miss; None of a policy that decides images alone."""
        return self.content.get("miss_rule")

    @property
    def passes(self) -> BoolArray:
        """(J,) rows whose own exact test passes."""
        return p_value(self.misses, self.exited_positives, self.risk.target_fnr) <= self.risk.delta


Check = Callable[[PolicyFile], Iterator[str]]
"""From a policy file to what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way in which a policy file rests on its evidence.

    checks: of this kind's evidence; promised: what `guarantee` must say; counted: (N,) bool, the cases of val_calib
    that the promise counts; words: the evidence in one line; demanded: fields beside those of every file.
    """

    name: str
    checks: tuple[Check, ...]
    promised: Callable[[PolicyFile], dict[str, str]]
    counted: Callable[[Scores], BoolArray]
    words: Callable[[dict[str, Any]], str]
    demanded: tuple[str, ...] = ()

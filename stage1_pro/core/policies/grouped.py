"""A policy with a certificate for each group, such as a camera: every case is decided by the threshold of its group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.policies.base import ExitDecisions, Outputs

THRESHOLDS = {"exit_threshold": "threshold", "gate_threshold": "threshold", "lambda1": "lambda1", "lambda2": "lambda2"}
"""Fields of policies and their files that hold the chosen thresholds, and what sweeps and groups call them."""
NO_GROUPS = (
    "this policy holds for each group of '{column}' by itself: pass the group of each case (groups=), \"\" where it is "
    "not known"
)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedExitPolicy:
    """Exit as `policy` says, at the thresholds of the case's group; a case of a group that is not listed defers.

    column: what the groups are; names: (G,) of those with a certificate, sorted; thresholds: (G,) each, by the field of
    `policy` that they stand for.
    """

    policy: Any
    column: str
    names: np.ndarray
    thresholds: dict[str, FloatArray]

    @classmethod
    def of(cls, policy: Any, data: Mapping[str, Any]) -> "GroupedExitPolicy":
        """policy: of the file's own thresholds; data: content of a policy file with `groups`."""
        names = sorted(data["groups"])
        thresholds = {
            field: np.array([data["groups"][name][short] for name in names], dtype=np.float64)
            for field, short in THRESHOLDS.items()
            if field in data
        }
        return cls(policy, data["certificate_groups"], np.array(names, dtype=str), thresholds)

    def decide(self, outputs: Outputs, groups: Sequence[str] | np.ndarray | None = None) -> ExitDecisions:
        """groups: (N,) str, the group of each case; None: those that the outputs bring as `certificate_group`."""
        named = getattr(outputs, "certificate_group", None) if groups is None else groups
        if named is None:
            raise ValueError(NO_GROUPS.format(column=self.column))
        at = self._positions(np.asarray(named, dtype=str))
        if at.shape != (len(outputs.logits),):
            raise ValueError(f"{at.size} groups for {len(outputs.logits)} cases")
        covered = at >= 0
        # nothing reaches infinity: the case of a group without a certificate defers
        own = {field: np.where(covered, values[at], np.inf) for field, values in self.thresholds.items()}
        return replace(replace(self.policy, **own).decide(outputs), covered=covered)

    def _positions(self, named: np.ndarray) -> IntArray:
        """(N,) position of each case's group among the listed ones, -1 for another."""
        at = np.minimum(np.searchsorted(self.names, named), len(self.names) - 1)
        return np.where(self.names[at] == named, at, -1)

"""The thresholds that a calibration tried, as policies: what each would do to the cases of any split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.policies.base import ExitPolicy
from stage1_pro.core.policies.candidate_pairs import RankedPairs
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.grouped import THRESHOLDS, GroupedExitPolicy
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.scrc import SCRCExitPolicy, ranked_by
from stage1_pro.core.records.scores import Scores


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """policy: the certified one; whole: the same with one threshold for all cases, where it has one for each group;
    fields: its thresholds by name; rows: (J, F) their values at each candidate, in the order of growing coverage, from
    the sweep of the policy file."""

    policy: ExitPolicy
    whole: Any
    fields: tuple[str, ...]
    rows: np.ndarray

    @classmethod
    def of(cls, name: str, artifact: dict[str, Any]) -> Ladder:
        """The ladder of a policy file. name: of its policy."""
        fields = tuple(field for field in THRESHOLDS if field in artifact)
        swept = [[row[THRESHOLDS[field]] for field in fields] for row in artifact["sweep_results"]]
        policy = policy_from_artifact(name, artifact)
        whole = policy.policy if isinstance(policy, GroupedExitPolicy) else policy
        return cls(policy, whole, fields, np.array(swept, dtype=np.float64))

    def at(self, candidate: int) -> ExitPolicy:
        """The policy with the thresholds of one candidate; not certified by standing here."""
        return replace(self.whole, **dict(zip(self.fields, self.rows[candidate].tolist(), strict=True)))

    def counts(self, split: Scores, kept: np.ndarray | None = None) -> ExitCounts:
        """Exits of every candidate (J,), of all cases of a split or of those kept (N,) bool."""
        own = slice(None) if kept is None else kept
        if isinstance(self.whole, SCRCExitPolicy):
            maps = self.whole.dirichlet_params, self.whole.calibrator_params
            answers, confidence, gate = ranked_by(EXIT_RULES[self.whole.exit_rule], *maps, split)
            return RankedPairs.of(split, gate, confidence, answers).counts(self.rows, kept)
        decisions = self.whole.decide(split)
        return count_exits(decisions.scores[own], decisions.predictions[own], split.labels[own], self.rows[:, 0])

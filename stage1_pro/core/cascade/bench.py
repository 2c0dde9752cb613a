"""What a cascade is measured on: the test split of a calibrated run, and what each threshold would do to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1_pro.core.cascade.study import Way, way
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.policies.base import ExitDecisions, ExitPolicy
from stage1_pro.core.policies.candidate_pairs import RankedPairs
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.grouped import THRESHOLDS, GroupedExitPolicy
from stage1_pro.core.policies.independence import independence
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.scrc import SCRCExitPolicy, ranked_by
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores

WAYS = {
    "stage2_alone": "All to stage 2",
    "stage2": "All to stage 2, stage 1 running",
    "certified": "Certified",
    "cheapest": "Cheapest uncertified",
    "all_exit": "All exit",
}


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


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The test split of a run. artifact: its policy file; decisions: of the certified policy; labels: (N,);
    independent: (N,) bool, of each group's positives one."""

    run: Run
    artifact: dict[str, Any]
    ladder: Ladder
    test: Scores
    decisions: ExitDecisions
    labels: IntArray
    independent: BoolArray

    @classmethod
    def of(cls, run: Run, artifact: dict[str, Any]) -> Bench:
        ladder, test = Ladder.of(run.policy_row.name, artifact), run.scores("val_test")
        labels = np.asarray(test.labels, np.int64)
        decided = ladder.policy.decide(test)
        counted = replace(decided, predictions=test.counted(decided.predictions))
        return cls(run, artifact, ladder, test, counted, labels, independence(test)[0])

    @property
    def groups(self) -> int:
        """How many groups the test cases come in."""
        return len(np.unique(self.test.group.astype(str)))

    def exits_of(self, key: str, candidate: int) -> BoolArray:
        """(N,) the cases that stage 1 answers. candidate: of the cheapest way; an unreadable case never exits."""
        if key == "certified":
            return self.decisions.exits
        if key == "cheapest":
            return self.ladder.at(candidate).decide(self.test).exits
        return np.isfinite(self.decisions.scores) & (key == "all_exit")

    def way(self, key: str, exits: BoolArray, second: FloatArray) -> Way:
        """second: (N,) probability that stage 2 is wrong."""
        first = (self.decisions.predictions != self.labels).astype(np.float64)
        return way(WAYS[key], exits, first, second, stage1=key != "stage2_alone")

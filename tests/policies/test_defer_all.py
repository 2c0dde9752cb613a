"""Where nothing was certified all cases defer, and the policy's own score still ranks them."""

import numpy as np
import pytest

from stage1_pro.core.metrics.selective import augrc
from stage1_pro.core.policies.defer_all import GATE, SOFTMAX, decide_without_certificate
from stage1_pro.core.policies.softmax import softmax_scores
from stage1_pro.core.records.scores import Scores


def split(name: str, seed: int) -> Scores:
    """A gate that knows which answers are right better than the logits do."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 1000).astype(np.int8)
    z = rng.normal(2.0 * labels - 1, 1)
    right = (z >= 0) == labels
    gate = (2 * (2 * right - 1) + rng.normal(0, 1, 1000)).astype(np.float32)
    logits = np.column_stack([np.zeros(1000), z]).astype(np.float32)
    ids = np.array([f"{name}{index:04d}" for index in range(1000)])
    return Scores(name, ids, ids, labels, logits, gate, "0" * 64, "1" * 64)


@pytest.mark.parametrize("policy", ["softmax", "gate", "scrc"])
def test_nothing_exits_and_the_ranking_is_the_policys(policy):
    cases = split("val_test", 2)
    decisions, words = decide_without_certificate(policy, split("val_select", 1), cases)
    wrong = decisions.predictions != cases.labels
    assert not decisions.exits.any()
    assert words == (SOFTMAX if policy == "softmax" else GATE)
    by_softmax = augrc(softmax_scores(cases.logits), wrong)
    found = augrc(decisions.scores, wrong)
    assert found == by_softmax if policy == "softmax" else found < 0.5 * by_softmax

"""The evaluation summary: its figures against direct computation, and valid JSON at the edges."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest

from stage1_pro.core.metrics import calibration
from stage1_pro.core.metrics.selective import augrc
from stage1_pro.core.metrics.summary import evaluate, selective_summary


@dataclass(frozen=True)
class Decisions:
    exits: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray


def decide(logits: np.ndarray, threshold: float) -> Decisions:
    with np.errstate(invalid="ignore"):
        scores = softmax(logits, axis=1).max(axis=1)
    return Decisions(scores >= threshold, logits.argmax(axis=1), scores)


def figures(logits, labels, groups, decisions, **more) -> dict:
    return evaluate(
        logits,
        labels,
        groups,
        decisions,
        target_fnr=0.02,
        delta=0.05,
        samples=200,
        confidence=0.95,
        rng=np.random.default_rng(0),
        **more,
    )


@pytest.fixture
def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    labels = (rng.random(600) < 0.3).astype(np.int8)
    logits = rng.normal(size=(600, 2)).astype(np.float32)
    logits[:, 1] += 3 * labels - 1.5
    return logits, labels, np.array([f"track{i % 90}" for i in range(600)], dtype=object)


def test_figures_match_direct_computation(cases) -> None:
    logits, labels, groups = cases
    decisions = decide(logits, 0.8)
    got = figures(logits, labels, groups, decisions)
    exits, answers = decisions.exits, decisions.predictions
    positive = labels == 1
    assert (got["cases"], got["positives"], got["negatives"]) == (
        600,
        positive.sum(),
        600 - positive.sum(),
    )
    assert got["groups"] == 90
    expected = {
        "coverage": exits.mean(),
        "fnr_on_exits": (answers == 0)[exits & positive].mean(),
        "fpr_on_exits": (answers == 1)[exits & ~positive].mean(),
        "precision_on_exits": positive[exits & (answers == 1)].mean(),
        "accuracy_on_exits": (answers == labels)[exits].mean(),
        "right_exits": (exits & (answers == labels)).mean(),
        "utility": exits.mean() - 5 * (exits & (answers == 1) & ~positive).mean(),
    }
    assert {name: f["value"] for name, f in got["exits"].items()} == pytest.approx(expected)
    for figure in [*got["exits"].values(), got["accuracy"]]:
        assert figure["low"] < figure["value"] < figure["high"]
    assert got["accuracy"]["value"] == pytest.approx((answers == labels).mean())
    assert got["selective"]["augrc"]["value"] == pytest.approx(augrc(decisions.scores, answers != labels))
    assert got["selective"]["risk_at_coverage"]["1.0"] == pytest.approx((answers != labels).mean())
    assert set(got["selective"]["coverage_at_risk"]) == {"0.01", "0.02", "0.05"}
    probabilities = softmax(logits.astype(float), axis=1)
    assert got["calibration"]["ece"] == pytest.approx(calibration.ece(probabilities, labels))
    for name, members in {"exits": exits, "deferred": ~exits}.items():
        table = [[int((members & (labels == y) & (answers == a)).sum()) for a in (0, 1)] for y in (0, 1)]
        assert got["confusion"][name] == table


def test_calibration_is_that_before_the_answers_were_placed(cases) -> None:
    logits, labels, groups = cases
    placed = logits + np.float32([0, 1.5])
    before, after = (
        figures(given, labels, groups, decide(given, 0.8), shift=shift) for given, shift in ((logits, 0), (placed, 1.5))
    )
    assert after["calibration"] == pytest.approx(before["calibration"], abs=1e-5)
    assert after["exits"] != before["exits"]


def test_wrong_exits_cost_what_is_stated(cases) -> None:
    logits, labels, groups = cases
    decisions = decide(logits, 0.8)
    wrong = decisions.exits & (decisions.predictions != labels)
    got = figures(logits, labels, groups, decisions, prices=(3.0, 7.0))["exits"]["utility"]
    cost = 3 * (wrong & (labels == 0)).mean() + 7 * (wrong & (labels == 1)).mean()
    assert got["value"] == pytest.approx(decisions.exits.mean() - cost)
    assert got["low"] < got["value"] < got["high"]


def test_fnr_on_exits_is_exact(cases) -> None:
    logits, labels, groups = cases
    fnr = figures(logits, labels, groups, decide(logits, 0.8))["exits"]["fnr_on_exits"]
    misses, positives = fnr["misses"], fnr["exited_positives"]
    interval = binomtest(misses, positives).proportion_ci(0.95, method="exact")
    assert (fnr["low"], fnr["high"]) == pytest.approx(tuple(interval))
    one_sided = binomtest(misses, positives, alternative="less").proportion_ci(0.95)
    assert fnr["upper_bound"] == pytest.approx(one_sided.high)
    test = binomtest(misses, positives, 0.02, alternative="less")
    assert fnr["p_value"] == pytest.approx(test.pvalue)


@pytest.mark.parametrize("grouped", [False, True])
def test_what_all_cases_agree_on_is_as_sure_as_their_number_allows(cases, grouped: bool) -> None:
    _, labels, groups = cases
    certain = np.where(labels[:, None] == [0, 1], 9.0, 0.0)
    got = figures(certain, labels, groups if grouped else None, decide(certain, 0.8))

    def zero(counted) -> float:
        units = 90 if grouped else counted.sum()  # 90 tracks, of nearly equal size
        return binomtest(0, int(units)).proportion_ci(0.95, method="exact").high

    fpr, some = got["exits"]["fpr_on_exits"], 0.25 if grouped else 1e-9
    assert (fpr["value"], fpr["low"]) == (0, 0)
    assert fpr["high"] == pytest.approx(zero(labels == 0), rel=some)
    right = got["exits"]["right_exits"]
    assert (right["value"], right["high"]) == (1, 1)
    assert right["low"] == pytest.approx(1 - zero(labels >= 0), rel=some)
    utility = got["exits"]["utility"]
    assert 1 - utility["low"] == pytest.approx(5 * (1 - right["low"]))  # each of them may be a false alarm
    ranked = got["selective"]
    assert 0 == ranked["augrc"]["low"] < ranked["augrc"]["high"] < ranked["aurc"]["high"] < 0.3


def test_edges_are_plain_json(cases) -> None:
    logits, labels, _ = cases
    broken = logits.copy()
    broken[:4] = [[np.nan, 0], [np.inf, np.inf], [-np.inf, 0], [np.nan, np.nan]]
    tied = np.zeros_like(logits)
    for some_logits, some_labels, threshold in [
        (broken, labels, 0.8),
        (logits, labels, 2.0),
        (logits, np.zeros_like(labels), 0.8),
        (tied, labels, 0.5),
        (logits[:0], labels[:0], 0.8),
    ]:
        decisions = decide(some_logits, threshold)
        got = figures(some_logits, some_labels, None, decisions)
        assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_without_exited_positives_fnr_is_unknown(cases) -> None:
    logits, labels, groups = cases
    fnr = figures(logits, labels, groups, decide(logits, 2.0))["exits"]["fnr_on_exits"]
    assert fnr["value"] is None
    assert (fnr["low"], fnr["high"], fnr["upper_bound"], fnr["p_value"]) == (0, 1, 1, 1)


@pytest.mark.parametrize("classes", [2, 5])
def test_selective_summary(classes: int) -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(classes), 300), rng.integers(0, classes, 300)
    wrong = probabilities.argmax(1) != labels
    assert selective_summary(probabilities.astype(np.float32), labels) == pytest.approx(
        {
            "accuracy": 1 - wrong.mean(),
            "ece": calibration.ece(probabilities, labels),
            "augrc": augrc(probabilities.max(1), wrong),
            "nll": calibration.nll(probabilities, labels),
        },
        rel=1e-5,
    )

"""Dirichlet calibration against logistic regression on the same features, and against another optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from stage1_pro.core.errors import UserError
from stage1_pro.core.policies.dirichlet import (
    FOLDS,
    PENALTIES,
    WEIGHT,
    class_weights,
    demand_diagonal,
    fit_dirichlet,
    log_odds,
)

LN2 = np.log(2)


def drawn(seed: int = 0, cases: int = 3000, slope: float = 0.6, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    """logits, labels, groups: too sure by 1 / slope where slope < 1, and shifted."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(cases) < 0.3).astype(np.int64)
    z = rng.normal(np.where(labels == 1, 1.0, -1.0), 1.0) * 2 / slope + shift
    logits = np.column_stack([rng.normal(0, 3, cases), np.zeros(cases)]).astype(np.float64)
    logits[:, 1] = logits[:, 0] + z
    return logits, labels, np.arange(cases).astype(str).astype(object)


def features(logits: np.ndarray, anchor: float) -> np.ndarray:
    z = logits[:, 1] - logits[:, 0]
    return np.column_stack([np.logaddexp(0, z) - anchor, -np.logaddexp(0, -z) + anchor])


def fitted(kind: str, data: tuple[np.ndarray, ...]) -> dict:
    return fit_dirichlet(kind, *data, seed=0)


def test_the_tied_map_is_a_weighted_logistic_regression_without_offset() -> None:
    logits, labels, groups = drawn()
    params = fitted("tied", (logits, labels, groups))
    model = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-10)
    model.fit(features(logits, LN2), labels, sample_weight=class_weights(labels))
    assert [params["W"][0][0], params["W"][1][1]] == pytest.approx(model.coef_[0].tolist(), rel=1e-4)
    assert params["b"] == [params["W"][0][0] * LN2, params["W"][1][1] * LN2]
    assert params["W"][0][1] == params["W"][1][0] == 0
    np.testing.assert_allclose(log_odds(params, logits), model.decision_function(features(logits, LN2)), atol=1e-3)


def test_the_free_map_shares_its_bias_and_finds_its_penalty_on_folds() -> None:
    logits, labels, groups = drawn(1, shift=2.0)
    params = fitted("free", (logits, labels, groups))
    assert params["mu"] in PENALTIES
    assert params["b"][0] == -params["b"][1]
    assert params["mu"] < 1  # a bias is needed
    weights = class_weights(labels) / len(labels)

    def loss(v: np.ndarray) -> float:
        u = features(logits, 0.0) @ v[:2] + v[2]
        return float(weights @ (np.logaddexp(0, u) - labels * u) + params["mu"] / 2 * 2 * (v[2] / 2) ** 2)

    exact = {"xatol": 1e-7, "fatol": 1e-13, "maxiter": 5000}
    other = minimize(loss, [0.5, 2.0, 0.3], method="Nelder-Mead", options=exact)
    found = [params["W"][0][0], params["W"][1][1], params["b"][1] - params["b"][0]]
    assert found == pytest.approx(other.x.tolist(), abs=2e-3)
    assert loss(np.array(found)) <= other.fun + 1e-10


@pytest.mark.parametrize("kind", ["tied", "free"])
def test_entries_are_kept_above_zero_and_below_their_limit(kind: str) -> None:
    logits, labels, groups = drawn(2)
    wrong = fitted(kind, (-logits, labels, groups))  # the scores point the wrong way
    assert [wrong["W"][0][0], wrong["W"][1][1]] == pytest.approx([WEIGHT[0]] * 2)
    z = np.where(labels == 1, 1.0, -1.0)  # separable
    sharp = fitted(kind, (np.column_stack([-z, z]), labels, groups))
    assert max(sharp["W"][0][0], sharp["W"][1][1]) <= WEIGHT[1]


def test_tied_keeps_every_answer_and_both_rise_with_p() -> None:
    logits, labels, groups = drawn(4, shift=0.7)
    tied, free = (fitted(kind, (logits, labels, groups)) for kind in ("tied", "free"))
    z = np.concatenate([np.linspace(-60, 60, 4001), [0.0, 1e-8, -1e-8]])
    line = np.column_stack([np.zeros_like(z), z])
    assert ((log_odds(tied, line) >= 0) == (z >= 0)).all()
    assert log_odds(tied, np.zeros((1, 2)))[0] == 0
    assert ((log_odds(free, line) >= 0) != (z >= 0)).any()
    for params in (tied, free):
        assert (np.diff(log_odds(params, line[:4001])) > 0).all()


def test_calibration_lowers_the_weighted_loss_and_scores_stay_finite() -> None:
    logits, labels, groups = drawn(5)
    params = fitted("tied", (logits, labels, groups))
    fresh, truth, _ = drawn(6)
    u, z = log_odds(params, fresh), fresh[:, 1] - fresh[:, 0]
    weights = class_weights(truth)
    assert weights @ (np.logaddexp(0, u) - truth * u) < 0.95 * weights @ (np.logaddexp(0, z) - truth * z)
    far = log_odds(params, np.array([[-3e38, 3e38], [3e38, -3e38]], np.float32))
    assert expit(far).tolist() == [1.0, 0.0]


def test_what_is_not_finite_is_left_out_and_stays_nan() -> None:
    logits, labels, groups = drawn(7)
    expected = fitted("tied", (logits, labels, groups))
    dirty = np.concatenate([logits, [[np.nan, 0], [0, np.inf], [-np.inf, 0]]])
    more = np.append(labels, [1, 0, 1]), np.append(groups, ["a", "b", "c"])
    params = fitted("tied", (dirty, *more))
    assert params == expected
    assert np.isnan(log_odds(params, dirty)[-3:]).all()


def test_folds_never_cut_a_group_nor_ask_for_more_than_there_is() -> None:
    logits, labels, _ = drawn(8, 40)
    two = np.where(np.arange(40) < 20, "a", "b").astype(object)
    assert FOLDS > 2
    assert fitted("free", (logits, labels, two))["mu"] in PENALTIES
    one = fitted("free", (logits, labels, np.full(40, "a", dtype=object)))  # nothing to hold out
    assert one["mu"] == PENALTIES[-1]
    assert one["b"] == pytest.approx([0, 0], abs=1e-3)


@pytest.mark.parametrize("W", [[[1.0, 0.1], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]])
def test_a_matrix_that_is_no_rising_diagonal_is_refused(W: list) -> None:
    with pytest.raises(UserError, match="no diagonal"):
        demand_diagonal({"W": W, "b": [0.0, 0.0]}, "scrcparams.json", "")

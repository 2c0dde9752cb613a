"""Calibrators against scikit-learn, on exact maps, and on gates that cannot be calibrated."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from stage1_pro.core.errors import UserError
from stage1_pro.core.policies.gate_maps import calibrated, demand_sound, fit_calibrator


def drawn(
    seed: int = 0, cases: int = 4000, slope: float = 1.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """gate, answers, right, softmax confidence; right with probability σ(slope·g), shifted for answer 1."""
    rng = np.random.default_rng(seed)
    answers = (rng.random(cases) < 0.4).astype(np.int64)
    gate = rng.normal(1, 1.5, cases).astype(np.float32).astype(np.float64)
    right = rng.random(cases) < expit(slope * gate + 0.7 * answers)
    return gate, answers, right, expit(np.abs(rng.normal(2, 1, cases)))


def test_platt_is_scikit_learns_sigmoid_per_answer() -> None:
    gate, answers, right, confidence = drawn()
    params = fit_calibrator("platt", gate, answers, right, confidence).params
    for answer in (0, 1):
        own = answers == answer
        a, b = _sigmoid_calibration(gate[own], right[own])  # expit(-(a·g + b))
        assert params[f"answer_{answer}"]["a"] == pytest.approx(-a, rel=1e-3)
        assert params[f"answer_{answer}"]["b"] == pytest.approx(-b, abs=1e-3)
        assert params[f"answer_{answer}"]["a"] == pytest.approx(1.3, abs=0.2)
    assert params["answer_1"]["b"] - params["answer_0"]["b"] == pytest.approx(0.7, abs=0.3)


def test_isotonic_is_scikit_learns_per_answer() -> None:
    gate, answers, right, confidence = drawn(1)
    params = fit_calibrator("isotonic", gate, answers, right, confidence).params
    fresh = np.random.default_rng(2).normal(1, 4, 3000)
    for answer in (0, 1):
        own = answers == answer
        fitted = IsotonicRegression(out_of_bounds="clip").fit(gate[own], right[own].astype(float))
        np.testing.assert_allclose(calibrated(params, fresh, np.full(3000, answer)), fitted.predict(fresh), atol=1e-12)
    demand_sound(params, "gateparams")


def test_quantile_map_gives_each_answer_softmaxs_shares() -> None:
    gate, answers, right, confidence = drawn(3, 1500)
    fitted = fit_calibrator("quantile", gate, answers, right, confidence)
    assert fitted.params["type"] == "quantile"
    demand_sound(fitted.params, "gateparams")
    scores = calibrated(fitted.params, gate, answers)
    for answer in (0, 1):
        own = answers == answer
        np.testing.assert_allclose(np.sort(scores[own]), np.sort(confidence[own]), atol=1e-12)
        assert np.all(np.diff(scores[own][np.argsort(gate[own])]) >= 0)
        ends = gate[own].min() - np.arange(4), gate[own].max() + np.arange(4)
        beyond = calibrated(fitted.params, np.sort(np.concatenate(ends)), np.full(8, answer))
        assert (np.diff(beyond) > 0).all()  # what lies outside of val_select does not tie


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_of_an_answer_that_always_exits_nothing_is_fitted_and_nothing_asked(kind: str) -> None:
    """Beside it the other answer's map stays what it is; a gate that is wrong there does not matter."""
    gate, answers, right, confidence = drawn(12)
    turned = np.where(answers == 1, -gate, gate)
    with pytest.raises(UserError, match=r"anti-informative \(answer 1\)"):
        fit_calibrator(kind, turned, answers, right, confidence)
    fitted = fit_calibrator(kind, turned, answers, right, confidence, compares=(0,))
    both = fit_calibrator(kind, gate, answers, right, confidence)
    assert fitted.params["answer_0"] == both.params["answer_0"]
    assert not any("answer 1" in warning for warning in fitted.warnings)
    demand_sound(fitted.params, "gateparams")
    assert np.isfinite(calibrated(fitted.params, gate, answers)).all()
    with pytest.raises(UserError, match=r"anti-informative \(answer 0\)"):
        fit_calibrator(kind, -gate, answers, right, confidence, compares=(0,))


@pytest.mark.parametrize("name", ["isotonic", "quantile"])
def test_knots_are_read_alike_under_either_name(name: str) -> None:
    """Older files call the quantile map isotonic."""
    gate, answers, right, confidence = drawn(13)
    params = fit_calibrator("quantile", gate, answers, right, confidence).params
    demand_sound({**params, "type": name}, "gateparams")
    assert np.array_equal(calibrated({**params, "type": name}, gate, answers), calibrated(params, gate, answers))


def test_equal_confidences_make_no_flat_piece() -> None:
    gate, answers, right, confidence = drawn(11)
    fitted = fit_calibrator("quantile", gate, answers, right, np.round(confidence, 2))
    for answer in (0, 1):
        own = np.sort(gate[answers == answer])
        scores = calibrated(fitted.params, own, np.full(own.size, answer))
        assert (np.diff(scores) > 0).all()
        np.testing.assert_allclose(scores, np.sort(confidence[answers == answer]), atol=0.02)


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_a_map_rises_and_does_not_depend_on_batch_or_layout(kind: str) -> None:
    gate, answers, right, confidence = drawn(4)
    gate[:40] = gate[0]  # ties
    params = fit_calibrator(kind, gate, answers, right, confidence).params
    whole = calibrated(params, gate, answers)
    assert whole.dtype == np.float64
    assert ((whole >= 0) & (whole <= 1)).all()
    for size in (1, 7, 1001):
        parts = [calibrated(params, gate[i : i + size], answers[i : i + size]) for i in range(0, 2000, size)]
        assert np.array_equal(np.concatenate(parts)[:2000], whole[:2000])
    wide = np.zeros((len(gate), 3), np.float32)
    wide[:, 1] = gate
    assert np.array_equal(calibrated(params, wide[:, 1], answers), whole)
    for answer in (0, 1):
        line = calibrated(params, np.linspace(-20, 20, 5001), np.full(5001, answer))
        assert (np.diff(line) >= 0).all()


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_what_is_not_finite_stays_out(kind: str) -> None:
    gate, answers, right, confidence = drawn(5)
    params = fit_calibrator(kind, gate, answers, right, confidence).params
    dirty = np.append(gate, [np.nan, np.inf, -np.inf])
    more = np.append(answers, [0, 1, 1])
    again = fit_calibrator(kind, dirty, more, np.append(right, [True] * 3), np.append(confidence, [1, 1, 1]))
    assert again.params == params
    assert np.isnan(calibrated(params, dirty, more)[-3:]).all()


@pytest.mark.parametrize("slope", [-1.3, -0.3])
def test_an_anti_informative_gate_is_an_error_with_advice(slope: float) -> None:
    with pytest.raises(UserError, match=r"anti-informative \(answer 0\).*gate_refit: true.*exit_policy: softmax"):
        fit_calibrator("platt", *drawn(6, slope=slope))


def test_a_constant_gate_says_nothing() -> None:
    gate, answers, right, confidence = drawn(7)
    for kind in ("platt", "isotonic", "quantile"):
        with pytest.raises(UserError, match="the gate is constant"):
            fit_calibrator(kind, np.ones_like(gate), answers, right, confidence)


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_a_gate_that_ranks_wrong_answers_first_is_an_error_with_advice(kind: str) -> None:
    gate, answers, right, confidence = drawn(7)
    with pytest.raises(UserError, match=r"anti-informative \(answer 0\).*AUROC 0\.\d\d.*gate_refit: true"):
        fit_calibrator(kind, -gate, answers, right, confidence)


@pytest.mark.parametrize("kind", ["isotonic", "quantile"])
def test_a_gate_that_knows_nothing_is_no_error(kind: str) -> None:
    gate, answers, right, confidence = drawn(7)
    noise = np.random.default_rng(1).standard_normal(gate.shape)
    assert fit_calibrator(kind, noise, answers, right, confidence).params


def test_an_answer_that_is_never_wrong_keeps_the_gates_scale() -> None:
    gate, answers, right, confidence = drawn(8)
    right |= answers == 1
    fitted = fit_calibrator("platt", gate, answers, right, confidence)
    own, count = answers == 1, int((answers == 1).sum())
    assert fitted.params["answer_1"]["a"] == 1
    mean = expit(gate[own] + fitted.params["answer_1"]["b"]).mean()
    assert logit(mean) == pytest.approx(logit((count + 1) / (count + 2)), abs=1e-4)
    assert fitted.warnings == [
        "answer 1: 0 wrong answers on val_select cannot tell the calibrator's slope; the gate's own scale is kept"
    ]


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_an_answer_that_is_never_given_has_a_map_all_the_same(kind: str) -> None:
    gate, answers, right, confidence = drawn(9)
    fitted = fit_calibrator(kind, gate, np.zeros_like(answers), right, confidence)
    assert any(warning.startswith("answer 1: ") for warning in fitted.warnings)
    assert np.isfinite(calibrated(fitted.params, gate, answers)).all()


def test_isotonic_on_few_points_warns() -> None:
    few = fit_calibrator("isotonic", *drawn(10, 20))
    assert "isotonic calibration fitted on" in few.warnings[0]
    assert "wants 1000" in few.warnings[0]
    assert fit_calibrator("isotonic", *drawn(10, 6000)).warnings == []


@pytest.mark.parametrize(
    "knots",
    [
        {"x": [0.0, 1.0], "y": [0.5]},
        {"x": [1.0, 0.0], "y": [0.1, 0.5]},
        {"x": [0.0, 0.0], "y": [0.1, 0.5]},
        {"x": [0.0, 1.0], "y": [0.5, 0.4]},
    ],
)
def test_knots_that_are_no_rising_map_are_refused(knots: dict) -> None:
    params = {"type": "isotonic", "answer_0": {"x": [0.0], "y": [0.5]}, "answer_1": knots}
    with pytest.raises(UserError, match=r"calibrator_params\.answer_1 is no rising map"):
        demand_sound(params, "gateparams")

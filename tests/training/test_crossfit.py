"""Folds, out-of-fold targets and the refit of the gate: no case is judged by a fit that saw it."""

import numpy as np
import pytest
import torch
from made_models import gated_model
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.models.heads import gate_inputs, margin, signed_gate
from stage1_pro.core.training.crossfit import FOLDS, group_folds, out_of_fold_correct, refit_gate


def cases(seed: int = 0, count: int = 300, features: int = 512) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    inputs = rng.normal(0, 1, (count, features)).astype(np.float32)
    inputs[:, :20] += 0.5 * labels[:, None]
    return torch.from_numpy(inputs), labels, np.array([f"case{i}" for i in range(count)])


def test_folds_keep_groups_whole_and_share_out_both_labels() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"g{i}" for i in np.repeat(np.arange(90), 4)])
    labels = np.repeat((rng.random(90) < 0.2).astype(int), 4)
    fold = group_folds(labels, groups, 1)
    assert all(len(set(fold[groups == name])) == 1 for name in set(groups))
    for label in (0, 1):
        counts = np.bincount(fold[labels == label], minlength=FOLDS)
        assert np.ptp(counts) <= 4  # a group
    order = rng.permutation(len(labels))
    assert np.array_equal(group_folds(labels[order], groups[order], 1), fold[order])
    assert not np.array_equal(group_folds(labels, groups, 2), fold)


def test_folds_of_unequal_groups_have_their_share_of_cases() -> None:
    """One patient has a fifth of the cases: it takes the room of many small ones, not a place beside them."""
    groups = np.array([f"g{i}" for i in np.repeat(np.arange(101), [25] + [1] * 100)])
    labels = np.arange(len(groups)) % 5 == 0
    fold = group_folds(labels.astype(int), groups, 0)
    assert np.ptp(np.bincount(fold, minlength=FOLDS)) <= 2
    assert np.ptp(np.bincount(fold[labels], minlength=FOLDS)) <= 2


def test_a_case_never_helps_to_fit_what_judges_it() -> None:
    """The labels of one fold flipped: its own out-of-fold gate logits stay, bit for bit."""
    features, labels, names = cases()
    groups = np.repeat(names[:150], 2)  # flips whole groups, so that the folds stay
    fold = group_folds(labels, groups, 0)
    first = refit_gate(gated_model(2), features[:, : gated_model(2).features], labels, fold)
    flipped = labels.copy()
    own = np.flatnonzero(fold == 1)
    pairs = own.reshape(-1, 2)
    chosen = pairs[labels[pairs].sum(axis=1) == 1]  # one positive, one negative: swap them, the group stays positive
    flipped[chosen] = 1 - flipped[chosen]
    assert len(chosen) > 5
    second = refit_gate(gated_model(2), features[:, : gated_model(2).features], flipped, fold)
    assert np.array_equal(group_folds(flipped, groups, 0), fold)
    assert np.array_equal(first[own], second[own])
    assert not np.array_equal(first[fold == 0], second[fold == 0])


def test_the_making_of_targets_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("stage1_pro.core.console.EVERY", 0)
    features, labels, groups = cases()
    config = merge_configs([("test", {"phase": 3, "batch_size": 100, "epochs": 2})])
    out_of_fold_correct(features.numpy(), labels, group_folds(labels, groups, 0), config, torch.device("cpu"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        f"  targets of the gate: {step} of 6" for step in range(1, 6)
    ] + ["  targets of the gate: 6"]
    assert all(line.endswith(" left") for line in lines[:-1])


def test_refit_is_scikit_learn_folded_into_the_head() -> None:
    model = gated_model(2)
    features, labels, groups = cases(1, 240, model.features)
    fold = group_folds(labels, groups, 7)
    held_out = refit_gate(model, features, labels, fold)
    with torch.no_grad():
        members = model.heads(features)
    every, own = [], []
    for member in range(2):
        inputs = gate_inputs(members.hidden[member], members.logits[member]).double().numpy()
        fits = [
            make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000)).fit(
                inputs[fold != k], labels[fold != k]
            )
            for k in range(FOLDS)
        ]
        scores = np.stack([fit.decision_function(inputs) for fit in fits])
        every.append(scores.mean(axis=0))
        own.append(scores[fold, np.arange(len(labels))])
    logits = members.logits.mean(0)
    for found, evidence in ((model.head(features).gate_logit, every), (torch.from_numpy(held_out), own)):
        expected = signed_gate(logits, torch.from_numpy(np.mean(evidence, axis=0)))
        np.testing.assert_allclose(found.detach(), expected, atol=2e-3)


def test_a_gate_reads_the_log_odds_before_the_answers_were_placed() -> None:
    """Trained jointly or fitted again: its evidence is that of the model that was not placed, its sign the answer's."""
    plain, placed = gated_model(2), gated_model(2)
    features, labels, groups = cases(1, 240, plain.features)
    fold = group_folds(labels, groups, 7)
    with torch.inference_mode():
        usual = plain.head(features)
    z = margin(usual.logits)
    placed.shift_answers(float(-z.quantile(0.4)))
    for refits in (False, True):
        own = [refit_gate(model, features, labels, fold) for model in (plain, placed)] if refits else []
        with torch.inference_mode():
            before, after = plain.head(features), placed.head(features)
        np.testing.assert_allclose(after.members.evidence, before.members.evidence, atol=2e-4)
        flipped = (margin(before.logits) >= 0) != (margin(after.logits) >= 0)
        assert 0.05 < float(flipped.float().mean()) < 0.95
        sign = torch.where(flipped, -1.0, 1.0)
        np.testing.assert_allclose(after.gate_logit, sign * before.gate_logit, atol=2e-4)
        if refits:
            np.testing.assert_allclose(own[1], sign.numpy() * own[0], atol=2e-4)


@pytest.mark.parametrize("labels", [[1] + [0] * 29, [0] * 30, [1] * 30, [1, 0], [1, 0, 1, 0]])
def test_there_are_no_folds_where_a_fit_would_lack_a_label(labels: list[int]) -> None:
    assert group_folds(np.array(labels), np.array([f"c{i}" for i in range(len(labels))]), 0) is None
    assert group_folds(np.array(labels), np.array([f"c{i // 2}" for i in range(len(labels))]), 0) is None


@pytest.mark.parametrize("size", [1, 2])
def test_two_groups_of_positives_are_enough(size: int) -> None:
    groups = np.array([f"c{i // size}" for i in range(30)])
    assert group_folds(np.array([1] * 2 * size + [0] * (30 - 2 * size)), groups, 0) is not None


@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_out_of_fold_targets_tell_what_training_answers_cannot(signal: float) -> None:
    """On pure noise a head learns its training cases by heart; out of fold it is right half the time."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 240)
    features = rng.normal(0, 1, (240, 64)).astype(np.float32)
    features[:, 0] += signal * (2 * labels - 1)
    groups = np.array([f"c{i}" for i in range(240)])
    config = merge_configs([("test", {"phase": 3, "epochs": 6, "lr_head": 3e-3, "batch_size": 32})])
    state = torch.get_rng_state()
    fold = group_folds(labels, groups, config.seed)
    arguments = features, labels, fold, config, torch.device("cpu")
    correct = out_of_fold_correct(*arguments)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(correct, out_of_fold_correct(*arguments))
    share = float(correct.mean())
    assert share > 0.95 if signal else 0.35 < share < 0.65

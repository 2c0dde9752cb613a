"""The study of defaults: networks trained side by side are those trained alone; rows say what decisions do."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import defaults_data
import defaults_outcomes
import defaults_training as subject
from defaults_training import Arm, Member

from stage1_pro.core.losses.cross_entropy import ClassLoss, balanced_weights
from stage1_pro.core.optim.schedule import parameter_groups, warmup_cosine


def alone(
    member: Member, inputs: torch.Tensor, labels: np.ndarray, taken: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """(epochs, N) z by the average of the weights, of one network trained by torch's own means."""
    torch.manual_seed(member.seed)
    network = subject.prototype(member.arm.network, inputs)
    average = copy.deepcopy(network)
    weights = balanced_weights(np.bincount(labels[taken], minlength=2))
    if member.arm.loss == "right":
        loss = ClassLoss(weights, member.arm.smoothing)
    else:
        loss = torch.nn.CrossEntropyLoss(weights, label_smoothing=member.arm.smoothing)
    optimizer = torch.optim.AdamW(parameter_groups(network, member.arm.lr, 0, 0.01))
    per_epoch = -(-len(taken) // 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(per_epoch, per_epoch * member.arm.epochs))
    step, found = 0, []
    for epoch in range(member.arm.epochs):
        order = taken[np.random.default_rng([member.seed, epoch]).permutation(len(taken))]
        for batch in torch.from_numpy(order).split(64):
            optimizer.zero_grad()
            loss(network(inputs[batch]), torch.from_numpy(labels)[batch]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            decay = min(0.9999, (1 + step) / (10 + step))
            for mean, now in zip(average.parameters(), network.parameters(), strict=True):
                mean.data.lerp_(now.data, 1 - decay)
        with torch.no_grad():
            logits = average(inputs[others])
        found.append((logits[:, 1] - logits[:, 0]).numpy())
    return np.stack(found)


@pytest.mark.parametrize("network", ["linear", "head"])
def test_networks_trained_side_by_side_are_those_trained_alone(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "DROPOUT", 0.0)
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 5 == 0).astype(np.int64)
    inputs = torch.from_numpy((rng.normal(size=(400, 6)) + labels[:, None]).astype(np.float32) * 4)
    order = rng.permutation(80) * 5  # positives; each is followed by four negatives
    parts = [(part[:, None] + np.arange(5)).ravel() for part in (order[:30], order[20:50], order[50:])]
    taken, held_out = dict(enumerate(parts[:2])), {0: parts[2], 1: parts[2][10:]}
    arms = [Arm(3e-3, 0.1, 2, "torch"), Arm(1e-2, 0.0, 3), Arm(1e-3, 0.1, 1), Arm(3e-3, 0.1, 3)]
    members = [
        Member(Arm(arm.lr, arm.smoothing, arm.epochs, arm.loss, network=network), split, seed)
        for arm, split, seed in zip(arms, (0, 1, 1, 0), (0, 1, 0, 1), strict=True)
    ]
    found = subject.train(members, inputs, labels, taken, held_out)
    assert [member.arm.epochs for member in found.members] == [3, 3, 2, 1]
    for member, z in zip(found.members, found.averaged, strict=True):
        expected = alone(member, inputs, labels, taken[member.split], held_out[member.split])
        np.testing.assert_allclose(z, expected, rtol=1e-3, atol=2e-4)


def test_an_outcome_counts_what_the_certified_threshold_does_to_the_test_cases() -> None:
    rng = np.random.default_rng(1)
    labels = [(np.arange(size) % 5 == 0).astype(int) for size in (1000, 2000)]
    z = [np.where(label == 1, 2.5, -2.5) + rng.normal(size=len(label)) for label in labels]
    held = defaults_outcomes.Held("made", 0, *labels)
    evidence = defaults_outcomes.Evidence(200, 200, 0.05)
    found = defaults_outcomes.outcome("one_sided", *z, held, evidence)
    shift, _, certified = defaults_outcomes.one_sided(z[0], labels[0], evidence)
    expected = []
    for calib in defaults_outcomes.resplits(held, 200):
        assert np.count_nonzero(labels[1][calib]) == 200
        assert np.count_nonzero(calib) == 1000
        moved, own = z[1] + shift, labels[1]
        threshold = certified(moved[calib], own[calib])
        out = (moved >= 0) | (1 / (1 + np.exp(moved)) >= threshold)
        alarms = (moved >= 0) & (own == 0)
        expected.append((out & ~calib).sum() / 1000 - 5 * (alarms & ~calib).sum() / 1000)
    assert found["certified"] == 1
    assert found["utility"] == pytest.approx(np.mean(expected))
    assert 0.7 < found["utility"] < 1
    assert found["fnr"] < 0.05


def test_splits_keep_groups_and_the_share_of_positives() -> None:
    classes = np.repeat(np.arange(10), 600)
    images = defaults_data.Images(np.zeros((6000, 1, 1), np.uint8), classes, np.arange(6000) // 30)
    cell = defaults_data.Cell(defaults_data.Task("made", "two", (2,), (0.05,)), 0.05, images)
    parts = cell.splits(0)
    every = np.concatenate(list(parts.values()))
    assert len(np.unique(every)) == len(every) > 5000
    for part in parts.values():
        assert cell.labels[part].mean() == pytest.approx(0.05, abs=0.002)
    outside = np.concatenate([parts["val_select"], parts["pool"]])
    assert not set(images.groups[parts["train"]]) & set(images.groups[outside])


def test_a_monitor_keeps_the_best_epoch_and_the_last_of_a_tie_within_its_patience() -> None:
    values = [3.0, 2.0, 2.0, 2.5, 2.0, 2.6, 1.0]
    assert defaults_outcomes._kept(values, 3, last=True) == 4
    assert defaults_outcomes._kept(values, 3, last=False) == 1
    assert defaults_outcomes._kept(values, 10, last=True) == 6

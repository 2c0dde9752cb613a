"""The probe against a brute-force twin, and measures of collapse on features whose truth is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.pretraining.guard import verdict, warnings_of
from stage1_pro.core.pretraining.probe import (
    ProbeCases,
    effective_rank,
    feature_std,
    knn_accuracy,
    measure,
    probe_cases,
)


def brute_force(unit: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float:
    right: dict[int, list[bool]] = {}
    for case in range(len(unit)):
        others = [(float(unit[case] @ unit[other]), other) for other in range(len(unit)) if group[other] != group[case]]
        votes = np.zeros(labels.max() + 1)
        for cosine, other in sorted(others, reverse=True)[:20]:
            votes[labels[other]] += np.exp(cosine / 0.07) / (labels == labels[other]).sum()
        right.setdefault(labels[case], []).append(votes.argmax() == labels[case])
    return float(np.mean([np.mean(hits) for hits in right.values()]))


def unit_features(count: int, width: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width))
    return features / np.linalg.norm(features, axis=1, keepdims=True), rng


@pytest.mark.parametrize("seed", [0, 1])
def test_knn_as_a_loop_would_count_it(seed: int) -> None:
    unit, rng = unit_features(150, 6, seed)
    labels = (unit[:, 0] + 0.3 * rng.normal(size=150) > 0.4).astype(np.int64) + (unit[:, 1] > 0.5)
    group = rng.integers(0, 40, 150)
    found = knn_accuracy(torch.tensor(unit), torch.tensor(labels), torch.tensor(group))
    assert found == pytest.approx(brute_force(unit, labels, group), abs=1e-9)
    assert found > 0.4


def test_a_case_is_not_known_by_its_own_group() -> None:
    """Twins of equal features and label: seen, they would make a probe of noise look right."""
    unit, rng = unit_features(100, 16, 3)
    unit, labels = unit.repeat(30, axis=0), rng.integers(0, 2, 100).repeat(30)
    tensors = torch.tensor(unit), torch.tensor(labels)
    assert knn_accuracy(*tensors, torch.arange(100).repeat_interleave(30)) < 0.7
    assert knn_accuracy(*tensors, torch.arange(3000)) == 1.0


def test_rare_classes_are_heard() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[:20] = 1
    noise = torch.nn.functional.normalize(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert 0.35 < knn_accuracy(noise, labels, torch.arange(1000)) < 0.65
    shifted = torch.nn.functional.normalize(noise + 2.0 * labels[:, None], dim=1)
    assert knn_accuracy(shifted, labels, torch.arange(1000)) > 0.9


def test_measures_of_collapse() -> None:
    spread = torch.nn.functional.normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    one = spread[:1].expand(50, 16)
    plane = torch.nn.functional.normalize(torch.cat([spread[:, :2], torch.zeros(4000, 14)], dim=1), dim=1)
    assert feature_std(spread) == pytest.approx(1, abs=0.02)
    assert feature_std(one) == pytest.approx(0, abs=1e-6)
    assert effective_rank(spread) == pytest.approx(16, abs=0.1)
    assert effective_rank(plane) == pytest.approx(2, abs=0.05)
    assert effective_rank(one) == 0
    cases = ProbeCases(["x"] * 50, np.arange(50) % 2, np.arange(50))
    broken = measure(torch.full((50, 4), torch.nan), cases)
    assert (broken.knn, broken.feature_std, broken.effective_rank) == (0, 0, 0)


def test_probe_cases_are_of_train_and_keep_the_classes_in_proportion() -> None:
    class Drawn:
        def indices(self, split: str) -> list[int]:
            return {"train": list(range(0, 800))}[split]

    frame = pd.DataFrame({"path": [f"{i}" for i in range(1000)], "label": np.arange(1000) % 10 == 0, "group": "g"})
    cases = CaseTable(frame.astype({"label": int}), ("a", "b"), False, False)
    few = probe_cases(cases, Drawn(), 100, seed=1)
    assert len(few) == 100
    assert few.labels.sum() == 10
    assert max(map(int, few.paths)) < 800
    assert few.paths == probe_cases(cases, Drawn(), 100, seed=1).paths != probe_cases(cases, Drawn(), 100, seed=2).paths
    assert len(probe_cases(cases, Drawn(), 5000, seed=1)) == 800


def rows(*knn: float, std: float = 1.0, rank: float = 9.0) -> list[dict[str, float]]:
    return [
        {"step": 5 * at, "knn": value, "feature_std": std if at else 1.0, "effective_rank": rank if at else 9.0}
        for at, value in enumerate(knn)
    ]


def test_verdict() -> None:
    good = verdict(rows(0.8, 0.9, 0.85))
    assert (good.passed, good.kept, good.kept_step) == (True, 0.9, 5)
    assert not verdict(rows(0.8, 0.9, 0.79)).passed
    assert verdict(rows(0.8, 0.8)).passed
    assert verdict(rows(0.8, 0.9, 0.9)).kept_step == 5
    assert verdict(rows(0.8, 0.0, std=0.0)).kept is None
    assert warnings_of(rows(0.8, 0.9)) == []
    assert len(warnings_of(rows(0.8, 0.9, std=0.4, rank=4.0))) == 2

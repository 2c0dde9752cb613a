"""The study of policies: answers are placed as training places them, and lines say what decisions do."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import policies_outcomes as subject
import policies_table

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.records.scores import Scores


@pytest.fixture(scope="module")
def scores() -> dict[str, Scores]:
    """Three splits whose answers stand too high, with a gate that is half the log-odds of the answer."""
    rng, found = np.random.default_rng(0), {}
    for name in ("val_select", "val_calib", "val_test"):
        labels = (np.arange(3000) % 10 == 0).astype(np.int8)
        z = 2.5 * np.where(labels == 1, 1.0, -1.0) + rng.normal(size=3000) - 2
        logits = np.column_stack([-z / 2, z / 2]).astype(np.float32)
        names = np.array([f"{name}{i:05d}" for i in range(3000)], dtype=object)
        gate = (np.abs(z) / 2 + 0.3 * rng.normal(size=3000)).astype(np.float32)
        found[name] = Scores(name, names, names, labels, logits, gate, "", "")
    return found


def test_placed_scores_are_those_of_a_model_whose_bias_was_moved(scores: dict[str, Scores]) -> None:
    placed = subject.placed(scores, Risk(0.05, 0.95))
    shift = placed["val_test"].answer_shift
    assert shift > 0.5
    for name, split in placed.items():
        moved = split.logits[:, 1] - split.logits[:, 0] - (scores[name].logits[:, 1] - scores[name].logits[:, 0])
        np.testing.assert_allclose(moved, shift, atol=1e-5)
        turned = (split.logits[:, 1] >= split.logits[:, 0]) != (scores[name].logits[:, 1] >= scores[name].logits[:, 0])
        assert turned.any()
        assert np.array_equal(split.gate_logit, np.where(turned, -1, 1) * scores[name].gate_logit)


@pytest.mark.parametrize("phase", subject.POLICIES)
def test_a_line_says_what_the_policy_does_and_nothing_certified_exits_nothing(
    scores: dict[str, Scores], phase: int, tmp_path: Path
) -> None:
    lines = list(subject.outcomes(scores, phase, 0.05))
    assert [line["column"] for line in lines] == list(subject.POLICIES[phase])
    first = lines[0]
    assert first["right_exits"] > 0.8
    assert first["utility"] <= first["right_exits"] <= first["coverage"]
    assert first["right_exits"] == pytest.approx(first["accuracy"] * first["coverage"])
    few = {
        name: replace(split, labels=np.where(np.arange(3000) < 200, split.labels, 0)) for name, split in scores.items()
    }
    nothing = list(subject.outcomes(few, phase, 0.05))
    assert all("refused" in line and line["coverage"] == line["utility"] == 0 for line in nothing)
    cell = {"recipe": "short", "arm": "frozen", "positive": "made", "split": 0, "seed": 0}
    rows = [{**cell, **line} for line in (*lines, {**first, "column": "softmax"})]
    pd.DataFrame(rows).to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    assert first["column"] in policies_table.write_table(tmp_path / "lines.jsonl", tmp_path / "page.md")

"""Two positives in a hundred: what is certified is worth something, or is refused, or is marked as what it is.

The heads are trained on generated features, the rest is the chain as it is: scores, certificate, test, report, bundle.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import copy
from made_runs import MODEL_FACTS
from shared_folders import made_once

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.export import export_bundle
from stage1_pro.core.config.sections import DatasetParams, Source
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.evaluation import evaluate_run, read_evaluation, trusted_policy
from stage1_pro.core.losses.cross_entropy import ClassLoss, balanced_weights
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.models.heads import ClassHead
from stage1_pro.core.policies.dirichlet import class_margin
from stage1_pro.core.policies.placement import Prices, place_answers
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.splits import SPLITS
from stage1_pro.core.report.run.page import verdict

CASES, POSITIVES = 4000, 80
LABELS = (np.arange(CASES) < POSITIVES).astype(np.int8)
SMOOTHING = 0.1
RISK = Risk(0.1, 0.95)


def features(split: int) -> torch.Tensor:
    """(CASES, 12) one positive in ten looks like a negative."""
    rng = np.random.default_rng(split)
    values = rng.normal(0, 1, (CASES, 12))
    values[:, 0] += np.where((LABELS == 1) & (rng.random(CASES) < 0.9), 3.0, 0.0)
    return torch.from_numpy(values.astype(np.float32))


def as_torch_weights(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's order: the smoothing is weighted by the class that it falls on."""
    weights = balanced_weights(np.bincount(LABELS))
    return torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=SMOOTHING)


LOSSES = {"ours": ClassLoss(balanced_weights(np.bincount(LABELS)), SMOOTHING), "torch": as_torch_weights}


def trained(loss) -> ClassHead:
    torch.manual_seed(0)
    head, inputs, labels = ClassHead(12, 2, 0.0), features(0), torch.from_numpy(LABELS).long()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(4):
        for batch in torch.randperm(CASES).split(64):
            optimizer.zero_grad()
            loss(head(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return head.eval()


def make(run: Run, loss: str) -> None:
    """A run with scores of such a head; its answers are placed where the loss is ours."""
    run.path.mkdir(parents=True)
    params = DatasetParams(sources=(Source(labels="labels.csv"),), class_names=("no", "yes"), positive_class="yes")
    config = Stage1ProConfig(target_fnr_exit=RISK.target_fnr, bootstrap_samples=100, dataset_params=params)
    counts = {name: {"no": CASES - POSITIVES, "yes": POSITIVES} for name in SPLITS}
    facts = {"cases": 4 * CASES, "counts": counts, "class_names": ["no", "yes"], "positive_class": "yes"}
    content = {f"{name}_indices": list(range(at * CASES, (at + 1) * CASES)) for at, name in enumerate(SPLITS)}
    digests = {"case_table_digest": "0" * 64, "val_calib_digest": "1" * 64}
    balance = {name: {"no": 0.98, "yes": 0.02} for name in SPLITS}
    content |= {"seed": 1, "class_balance": balance, "metadata": {**facts, **digests}}
    artifacts.write_json(run.splits_path, content, "splits")
    run.begin_training(config, MODEL_FACTS)
    run.model_path.write_bytes(b"weights")
    run.metrics_path.write_text("epoch,step,train_loss,val_accuracy\n0,7,.7,.8\n")
    head, ids, shift = trained(LOSSES[loss]), np.array([f"case{index:05d}" for index in range(CASES)]), 0.0
    for at, split in enumerate(SPLITS[1:], 1):
        with torch.inference_mode():
            logits = head(features(at)).numpy()
        if split == "val_select" and loss == "ours":
            everyone = np.ones(CASES, bool)
            shift = place_answers(
                class_margin(logits), LABELS.astype(np.int64), everyone, POSITIVES, RISK, Prices(), 42
            ).shift
        placed = (logits + np.array([-shift / 2, shift / 2])).astype(np.float32)
        scores = Scores(split, ids, ids, LABELS, placed, None, run.model_digest, run.splits.digest)
        replace(scores, answer_shift=shift).write(run.scores_path(split))


@pytest.fixture(scope="session", params=list(LOSSES))
def rare(request, tmp_path_factory) -> tuple[str, Path]:
    folder = made_once(
        tmp_path_factory, f"rare-{request.param}", lambda at: make(Run(at / "runs" / "rare"), request.param)
    )
    return request.param, folder / "runs" / "rare"


def test_no_green_badge_where_one_negative_in_four_is_called_positive(rare, script, runs) -> None:
    """The wrong loss answers positive to every case: certified by the count of misses, and refused."""
    loss, made = rare
    run = copy(made, runs)
    outcome = script("25_threshold_sweep", "--run", run)
    if loss == "torch":
        assert outcome.status == 3
        assert "certified, but stage 1 answers positive to 1" in outcome.err
        assert "--even_if_useless" in outcome.err
        assert not list(run.glob("thresholds.json"))
        return
    assert outcome.status == 0, outcome
    policy = trusted_policy(Run(run))
    exits = evaluate_run(Run(run), policy)["exits"]
    assert exits["fpr_on_exits"]["value"] < 0.25
    assert exits["right_exits"]["value"] > 0.25
    assert exits["utility"]["value"] > 0.25


def test_even_if_useless_it_is_marked_everywhere(rare, script, runs) -> None:
    loss, made = rare
    if loss == "ours":
        pytest.skip("of use")
    run = copy(made, runs)
    assert script("25_threshold_sweep", "--run", run).status == 3
    outcome = script("25_threshold_sweep", "--run", run, "--even_if_useless")
    assert outcome.status == 0, outcome
    policy = json.loads((run / "thresholds.json").read_text())
    assert "answers positive to 1" in policy["useless"]
    assert f"warning: {policy['useless']}" in outcome.out
    assert script("40_eval_selective", "--run", run).status == 0
    assert verdict(policy, read_evaluation(Run(run))).tone == "bad"
    report = (run / "report.html").read_text()
    assert '<span class="verdict bad">Certified, but of no use' in report
    assert '<span class="verdict good">' not in report
    readme = export_bundle(Run(run), run / "bundle").path / "README.md"
    for words in (
        "of no use:",
        policy["useless"],
        "Every answer “yes” exits",
        "priced at 5 deferrals",
    ):
        assert words in readme.read_text()
    summary = json.loads((run / "bundle" / "bundle.json").read_text())["eval"]
    assert summary["utility"] < 0 < summary["right_exits"] < 0.1


def test_even_if_useless_certifies_nothing_by_itself(rare, script, runs) -> None:
    run = copy(rare[1], runs)
    outcome = script("25_threshold_sweep", "--run", run, "--even_if_useless", "--target_fnr_exit", "0.001")
    assert outcome.status == 3
    assert "nothing certified" in outcome.err
    assert not list(run.glob("thresholds.json"))


def test_another_target_than_the_answers_were_placed_for_is_said(rare, script, runs) -> None:
    loss, made = rare
    run = copy(made, runs)
    outcome = script("25_threshold_sweep", "--run", run, "--target_fnr_exit", "0.09")
    words = "the answers were placed for target_fnr_exit 0.1 at confidence 0.95"
    assert (words in outcome.out + outcome.err) is (loss == "ours")  # the other run's answers are as trained

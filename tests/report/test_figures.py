"""Figures: whatever a policy file may hold can be drawn, and a million cases draw as lightly as a thousand."""

import copy
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from stage1_pro.core.report.common.style import STYLE, WIDTH
from stage1_pro.core.report.run.charts import CHARTS, sweep_figure
from stage1_pro.core.report.run.evidence import gather, read_epochs
from stage1_pro.core.report.run.mask_evidence import Overlay
from stage1_pro.core.report.run.mask_figures import draw_overlays

OF_SCORES = [chart for chart in CHARTS if chart.section == "test"]


@pytest.fixture(scope="module")
def evaluated(made):
    return made()


def of_pairs(policy: dict) -> dict:
    """The same candidates as a later policy would write them, in an order without growing coverage."""
    pairs = [{**row, "lambda1": row["threshold"], "lambda2": 0.5} for row in policy["sweep_results"]]
    return {**policy, "sweep_results": [{k: v for k, v in row.items() if k != "threshold"} for row in pairs][::-1]}


def without_exits(policy: dict) -> dict:
    undefined = dict.fromkeys(("fnr_on_exits", "fpr_on_exits", "accuracy_on_exits"))
    empty = {**undefined, "coverage": 0.0, "fnr_upper_bound": 1.0, "p_value": 1.0, "exited_positives": 0, "misses": 0}
    return {**policy, "sweep_results": [{**row, **empty} for row in policy["sweep_results"]]}


def without_naive(policy: dict) -> dict:
    return {**policy, "diagnostics": {**policy["diagnostics"], "naive": {"certified": False, "note": "none"}}}


@pytest.mark.parametrize("change", [copy.copy, of_pairs, without_exits, without_naive])
def test_every_sweep_can_be_drawn(evaluated, tmp_path, change):
    path = tmp_path / "figures" / "sweep.png"
    sweep_figure(change(evaluated[1]), path)
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [child.name for child in path.parent.iterdir()] == ["sweep.png"]


def test_naive_is_marked_as_not_certified(evaluated):
    chart = next(chart for chart in CHARTS if chart.section == "calibration")
    evidence = gather(*evaluated)
    assert "naive (not certified)" in drawn(chart, evidence)
    assert "naive" not in drawn(chart, replace(evidence, policy=without_naive(evidence.policy)))


def drawn(chart, evidence) -> str:
    """The figure as an SVG; the PNG of it, and the room between its parts, would take three times as long."""
    with matplotlib.rc_context(STYLE):
        figure, svg = Figure((WIDTH, chart.height)), io.StringIO()
        chart.draw(figure, evidence)
        figure.savefig(svg, format="svg")
    return svg.getvalue()


@pytest.mark.parametrize("chart", OF_SCORES, ids=lambda chart: chart.name)
def test_figures_stay_light_whatever_the_number_of_cases(evaluated, chart):
    cases = 200_000
    rng = np.random.default_rng(0)
    labels, confidence = rng.integers(0, 2, cases), rng.uniform(0.5, 1, cases)
    answers = np.where(rng.random(cases) < confidence, labels, 1 - labels)
    evidence = replace(
        gather(*evaluated),
        scores=confidence,
        answers=answers,
        labels=labels,
        confidence=confidence,
        correct=answers == labels,
    )
    assert len(drawn(chart, evidence)) < 150_000


@pytest.mark.parametrize("chart", OF_SCORES, ids=lambda chart: chart.name)
@pytest.mark.parametrize("score", [np.nan, 0.0, 1.0])
def test_scores_that_are_all_alike_or_unknown_can_be_drawn(evaluated, chart, score):
    evidence = gather(*evaluated)
    alike = np.full(evidence.scores.shape, score)
    known = np.isfinite(alike)
    drawn(chart, replace(evidence, scores=alike, confidence=alike[known], correct=np.ones(known.sum(), dtype=bool)))


@pytest.mark.parametrize("content", [None, "", "epoch,train_loss\n", "epoch,train_loss,val_accuracy\n0,,\n1,.3,\n"])
def test_training_is_drawn_from_whatever_metrics_hold(evaluated, tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    chart = next(chart for chart in CHARTS if chart.section == "training")
    epochs = read_epochs(path)
    svg = drawn(chart, replace(gather(*evaluated), epochs=epochs, chosen_epoch=None))
    assert ("holds no epochs" in svg) == (not epochs or not epochs["epoch"].size)


def test_conformal_training_is_shown_where_it_happened(evaluated):
    chart = next(chart for chart in CHARTS if chart.name == "conformal_training")
    evidence = gather(*evaluated)
    assert not chart.shown(evidence)
    columns = {f"conformal_{name}_share": np.array([np.nan, 0.5, np.nan]) for name in ("infeasible", "edge", "live")}
    epochs = {**evidence.epochs, **columns, "conformal_threshold": np.array([np.nan, -2.0, 1.0])}
    conformal = replace(evidence, epochs=epochs)
    assert chart.shown(conformal)
    svg = drawn(chart, conformal)
    assert "none feasible" in svg
    assert "mean threshold (logits)" in svg


def test_sharpness_is_shown_where_it_was_measured(evaluated):
    chart = next(chart for chart in CHARTS if chart.name == "sharpness")
    evidence = gather(*evaluated)
    assert not chart.shown(evidence)
    of_sam = {"sharpness_loss_gap": np.array([0.2, 0.1, np.nan]), "sharpness_gradient_norm": np.array([2.0, 1.0, 0.5])}
    for columns in (of_sam, {**of_sam, "sharpness_cosine": np.array([0.5, -0.1, 0.1])}):
        sharp = replace(evidence, epochs={**evidence.epochs, **columns})
        assert chart.shown(sharp)
        assert "gradient norm" in drawn(chart, sharp)
        assert ("cosine with average" in drawn(chart, sharp)) == ("sharpness_cosine" in columns)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3)])
def test_a_mask_up_to_the_edge_has_a_whole_outline_however_small_the_image_is(shape: tuple[int, int]) -> None:
    full = np.ones(shape, dtype=np.int64)
    evidence: Any = SimpleNamespace(masks=SimpleNamespace(overlays=[Overlay("best", full * 0.5, full, full)]))
    figure = Figure()
    draw_overlays(figure, evidence)
    axes = figure.axes[0]
    for outline in axes.collections:
        corners = outline.get_paths()[0].vertices
        assert np.ptp(corners, axis=0).tolist() == [shape[1], shape[0]]
    assert len(axes.collections) == 2
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, shape[1] - 0.5), (shape[0] - 0.5, -0.5))

"""The figures of an incremental training: what they name, and when there is nothing to show."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stage1_pro.core.incremental.machine import Pick, Scored, Stage, State, Suspect
from stage1_pro.core.report.common.style import render
from stage1_pro.core.report.run.charts import CHARTS
from stage1_pro.core.report.run.evidence import Staged

NAMES = ("stages", "stage_scores", "admitted", "suspects")


def evidence(pictures: Path, scored: Scored | None) -> SimpleNamespace:
    first = Stage(1, 0, 2, epochs=2, best_metric=0.2, best_epoch=1, end="plateau", scored=scored)
    second = Stage(2, 2, 4, epochs=1, best_metric=0.1, best_epoch=2)
    state = State("DONE", ("a", "b", "c", "d"), (first, second), "max_stages", 6)
    paths = {case: str(pictures / f"{index:02}.png") for index, case in enumerate("abcd")}
    epochs = {"epoch": np.arange(3.0), "active_cases": np.array([2.0, 2, 4]), "val_augrc": np.array([0.3, 0.2, 0.1])}
    return SimpleNamespace(stages=Staged(state, paths, "val_augrc"), epochs=epochs, policy={})


def drawn(name: str, shown: SimpleNamespace) -> str:
    chart = next(chart for chart in CHARTS if chart.name == name)
    return render(lambda figure: chart.draw(figure, shown), chart.height, name).svg  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "words", "images"),
    [
        ("stages", ["cases in training", "val_augrc", "stage's best"], 0),
        ("stage_scores", ["difficulty", "uncertainty", "after stage 1"], 0),
        ("admitted", ["stage 1", "0.90 0.50 1.00", "0.70 0.50 0.10"], 2),
        ("suspects", ["failing 0.12", "kept out 0.20"], 2),
    ],
)
def test_figures_say_what_the_state_says(name: str, words: list[str], images: int, pictures: Path) -> None:
    picks = (Pick("c", 0.9, 0.5, 1.0, 0.8), Pick("d", 0.7, 0.5, 0.1, 0.6))
    scored = Scored(6, 4, (), 1.5, picks, (Suspect("b", 0, 0.12), Suspect("c", None, 0.2)), ("c",), (5, 1), (6, 0))
    svg = drawn(name, evidence(pictures, scored))
    assert all(word in svg for word in words)
    assert svg.count("<image") == images


def test_nothing_is_drawn_of_what_there_is_not(pictures: Path) -> None:
    rows = [chart for chart in CHARTS if chart.name in NAMES]
    unscored, plain = evidence(pictures, None), SimpleNamespace(stages=None)
    assert [chart.name for chart in rows if chart.shown(unscored)] == ["stages"]  # pyright: ignore
    assert not [chart for chart in rows if chart.shown(plain)]  # pyright: ignore


def test_a_missing_image_leaves_its_place_empty(pictures: Path) -> None:
    shown = evidence(pictures, Scored(1, 1, (), 1.0, (Pick("gone", 0.9, 0.5, 1.0, 0.8),)))
    assert drawn("admitted", shown).count("<image") == 0

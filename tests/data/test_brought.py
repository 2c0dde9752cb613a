"""Unusual tables and folders as people bring them, each with what 00 says of it and what becomes of it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.errors import UserError
from stage1_pro.core.training.start import preview


def table(labels: str = "a b", row: str = "{i:02}.png,{label}", head: str = "path,label", count: int = 40) -> str:
    """A table of `count` pictures, their labels in turn. row: a format string of i, the picture, and label."""
    names = labels.split()
    return "\n".join([head] * bool(head) + [row.format(i=i, label=names[i % len(names)]) for i in range(count)])


@pytest.fixture
def bring(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., tuple]:
    """Bring files and settings to 00: (cases, splits, all that was said); of a refusal (None, None, message)."""
    monkeypatch.chdir(tmp_path)

    def put(name: str, content: str | bytes | int) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            shutil.copy(pictures / f"{content:02}.png", path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def outcome(files: Mapping[str, str | bytes | int] | str | bytes, **settings: Any) -> tuple:
        source: dict[str, Any] = {"name": "s", "root": "."}
        if not isinstance(files, Mapping):
            files, source = {"labels.csv": files}, {"name": "s", "root": str(pictures), "labels": "labels.csv"}
        for name, content in files.items():
            put(name, content)
        top = {name: settings.pop(name) for name in ("phase",) if name in settings}
        params = {
            "sources": [source],
            "val_calib_ratio": 0.25,
            "val_select_ratio": 0.2,
            "val_test_ratio": 0.2,
            **settings,
        }
        try:
            cases, splits = preview(merge_configs([("test", {**top, "dataset_params": params})]))
        except UserError as error:
            return None, None, str(error)
        return cases, splits, capsys.readouterr().out

    return outcome


# ---- which class must not be missed

TEN = "tench shark ray cock hen ostrich jay magpie crow wren"


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        ("ok ok ok defect", {}, ["The labels are defect (10), ok (30)", "positive_class: defect below"]),
        ("no no no yes", {}, ['positive_class: "yes" below']),
        ("a a b", {"class_names": ["a", "b"]}, ["a (27), b (13)", "positive_class: b below"]),
        ("a a b c", {}, ["rest: true for that class against all others"]),
        ("a b", {"positive_class": "B"}, ["positive_class is 'B'", "the labels are a (20), b (20)"]),
        ("a b", {"positive_class": ["a", "b"]}, ["names every class (a, b)"]),
        ("a b c", {"rest": True}, ["rest is true, and positive_class is not set"]),
        ("a b c", {"positive_class": "c", "phase": 3}, ["the labels have 3 classes", "set dataset_params.rest: true"]),
        ("a b x x c", {"class_names": ["a", "b", "c"], "positive_class": "a"}, ["1 label outside", "x (16)"]),
        ("red Red blue blue", {"positive_class": "red", "rest": True}, ["'Red', 'red'", "positive_class: [Red, red]"]),
    ],
)
def test_what_must_be_answered_first(bring, labels: str, settings: dict, words: list[str]) -> None:
    cases, _, said = bring(table(labels), **settings)
    assert cases is None
    for word in words:
        assert word in said


@pytest.mark.parametrize("phase", range(1, 7))
@pytest.mark.parametrize(
    ("positive", "names"),
    [("hen", ("rest", "hen")), (["hen", "cock"], ("rest", "hen or cock"))],
)
def test_one_class_or_several_against_all_others_in_every_phase(bring, phase: int, positive: Any, names: tuple) -> None:
    cases, splits, said = bring(table(TEN), positive_class=positive, rest=True, phase=phase)
    assert cases is not None, said
    assert cases.class_names == names
    assert f"positive: {names[1]} (against rest)" in said
    assert cases.frame["label"].sum() == 4 * len([positive] if isinstance(positive, str) else positive)
    assert splits.positive_class == names[1]


def test_the_answers_that_a_question_names_are_accepted(bring) -> None:
    labels = table("red Red blue blue")
    cases, _, said = bring(labels, positive_class=["Red", "red"], rest=True)
    assert cases is not None, said
    assert cases.class_names == ("blue", "Red or red")
    cases, _, said = bring(table("no no no yes"), positive_class="yes")
    assert cases is not None, said


def test_a_text_that_stands_for_nothing_and_names_that_are_alike_are_warned_of(bring) -> None:
    cases, _, said = bring(table("a nan a_1 A-1"), positive_class="a")
    assert cases is not None
    assert "warning: label 'nan' is taken as a class (10 cases)" in said
    assert "labels 'A-1', 'a_1' are classes of their own" in said

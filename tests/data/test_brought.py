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


# ---- splits that somebody has made


def folders(**classes: str) -> dict[str, int]:
    """Pictures below folders: `folders(train="a b", val="a b")` gives six of each class in each split."""
    places = [f"{split}/{name}" for split, names in classes.items() for name in names.split()]
    return {f"{place}/{i}.png": 6 * number + i for number, place in enumerate(places) for i in range(6)}


def kept(cases: Any, splits: Any, prefix: str) -> set[str]:
    """The splits of the cases whose id begins so."""
    inside = cases.frame["case_id"].str.startswith(prefix).to_numpy().nonzero()[0]
    names = ("train", "val_select", "val_calib", "val_test")
    found = {name for name in names if set(splits.indices(name)) & set(inside.tolist())}
    assert sum(len(set(splits.indices(name)) & set(inside.tolist())) for name in names) == len(inside) > 0
    return found


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"train": "a b", "val": "a b", "test": "a b"},
            {"train": {"train"}, "val": {"val_select", "val_calib"}, "test": {"val_test"}},
        ),
        (
            {"Train": "a b", "valid": "a b"},
            {"Train": {"train"}, "valid": {"val_select", "val_calib", "val_test"}},
        ),
        (
            {"train": "a b", "testing": "a b"},
            {"train": {"train", "val_select", "val_calib"}, "testing": {"val_test"}},
        ),
        (
            {"train": "a b", "val_select": "a b", "val_calib": "a b", "val_test": "a b"},
            {name: {name} for name in ("train", "val_select", "val_calib", "val_test")},
        ),
    ],
)
def test_folders_of_splits_over_folders_of_classes(bring, tree: dict, expected: dict) -> None:
    cases, splits, said = bring(folders(**tree), positive_class="b", val_calib_ratio=0.3)
    assert cases is not None, said
    assert cases.class_names == ("a", "b")
    assert {top: kept(cases, splits, f"{top}/") for top in tree} == expected
    assert f"the folders {', '.join(sorted(tree))} are taken as splits" in said
    assert ("is divided into" in said) == ("val_calib" not in tree)


@pytest.mark.parametrize("word", ["val", "valid", "dev", "Validation"])
def test_a_column_of_common_splits(bring, word: str) -> None:
    rows = [f"{i:02}.png,{'ab'[i % 2]},{('train', word, 'test')[i // 2 % 3]}" for i in range(60)]
    cases, splits, said = bring("\n".join(["path,label,split", *rows]), positive_class="b")
    assert cases is not None, said
    assert "the given split 'val' is divided into val_calib and val_select" in said
    assert len(splits.indices("val_test")) == len(splits.indices("train")) == 20
    assert len(splits.indices("val_calib")) > 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {f"{top}/{i}.png": 10 * n + i for n, top in enumerate(("train", "val")) for i in range(9)},
            "named like splits",
        ),
        (
            {f"{top}/{i}.png": 10 * n + i for n, top in enumerate(("images", "masks")) for i in range(9)},
            "are no classes",
        ),
        (
            "path,label,split\n00.png,a,val\n01.png,b,val_select\n02.png,a,val_calib\n03.png,b,train\n04.png,a,test",
            "split 'val' stands beside val_select and val_calib",
        ),
        (
            table(row="{i:02}.png,{label},,g", count=9) + "\n" + "\n".join(f"{i}.png,a" for i in range(10, 40)),
            "do their jobs:\n  - all 4 cases of b lie in 1 group",
        ),
    ],
)
def test_folders_and_splits_that_cannot_be_what_they_look_like(bring, files: Any, words: str) -> None:
    if isinstance(files, str) and files.startswith("path,label\n"):
        files = files.replace("path,label\n", "path,label,case_id,group\n")
    cases, _, said = bring(files, positive_class="b" if isinstance(files, str) else "val")
    assert cases is None
    assert words in said


def test_train_and_val_as_two_sources_are_said_to_be_pooled(bring, tmp_path: Path) -> None:
    tree = folders(train="a b", val="a b")
    sources = [{"name": "one", "root": "train"}, {"name": "two", "root": "val"}]
    cases, _, said = bring(tree, positive_class="b", sources=sources)
    assert cases is not None, said
    assert "warning: the sources train, val are pooled, and all their cases are split anew" in said

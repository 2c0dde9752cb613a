"""Drawing the splits: by group, stratified, and a function of the cases and the seed alone."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.sections import DatasetParams
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.run_cases import cases_of
from stage1_pro.core.data.splitting import evidence_warning, make_splits
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import SPLITS, USAGE, Splits
from stage1_pro.core.training.start import new_run

RATIOS = {"val_select": 0.2, "val_calib": 0.25, "val_test": 0.15}


def settings(seed: int = 42, **ratios: float) -> Stage1ProConfig:
    params = {f"{name}_ratio": ratio for name, ratio in {**RATIOS, **ratios}.items()}
    return merge_configs([("test", {"seed": seed, "dataset_params": params})])


def of(params: DatasetParams) -> Stage1ProConfig:
    return Stage1ProConfig(dataset_params=params)


def table(labels: np.ndarray, groups: np.ndarray | None = None, split: np.ndarray | None = None) -> CaseTable:
    """Cases "0000", "0001", … with these labels, each its own group where none are given."""
    ids = np.array([f"{index:04}" for index in range(len(labels))], dtype=object)
    names = ids if groups is None else np.array([f"g{group}" for group in groups], dtype=object)
    columns = {"case_id": ids, "path": ids, "label": labels, "group": names, "split": "", "content": ids}
    frame = pd.DataFrame(columns) if split is None else pd.DataFrame({**columns, "split": split})
    classes = tuple(f"c{label}" for label in range(int(max(labels)) + 1))
    return CaseTable(frame, classes, groups is not None, split is not None)


def split_of(splits: Splits, cases: CaseTable) -> dict[str, str]:
    return {cases.frame["case_id"].iloc[index]: name for name in SPLITS for index in splits.indices(name)}


def random_tables(count: int) -> list[tuple[np.random.Generator, CaseTable]]:
    tables = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        size, classes = int(rng.integers(150, 600)), int(rng.integers(2, 4))
        labels = rng.choice(classes, size, p=rng.dirichlet(np.full(classes, 8.0)))
        groups = rng.integers(0, size // int(rng.integers(2, 5)), size) if seed % 2 else None
        tables.append((rng, table(labels, groups)))
    return tables


def test_every_case_has_one_split_and_no_group_has_two() -> None:
    for _, cases in random_tables(8):
        drawn = split_of(make_splits(cases, settings()), cases)
        assert sorted(drawn) == cases.frame["case_id"].tolist()
        assert (
            cases.frame.assign(split=cases.frame["case_id"].map(drawn)).groupby("group")["split"].nunique().max() == 1
        )


def test_each_class_has_its_share_of_each_split() -> None:
    for rng, cases in random_tables(8):
        if cases.group_column:
            continue
        splits = make_splits(cases, settings(int(rng.integers(1000))))
        sizes = cases.frame["label"].value_counts()
        for code, name in enumerate(cases.class_names):
            for split, ratio in RATIOS.items():
                assert abs(splits.counts(split)[name] - ratio * sizes[code]) <= 2


def test_groups_with_a_few_positives_spread_over_the_splits() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(300), 5)
    tracks = rng.permutation(300)[:60]  # 60 tracks with one or two positive frames in five
    labels = np.isin(groups, tracks) & (rng.random(1500) < 0.4)
    cases = table(labels.astype(int), groups)
    drawn = split_of(make_splits(cases, settings()), cases)
    with_positives = cases.frame[labels].drop_duplicates("group")["case_id"].map(drawn)
    assert len(with_positives) > 50
    for split, ratio in RATIOS.items():
        assert abs((with_positives == split).sum() - ratio * len(with_positives)) <= 1


def test_the_draw_depends_on_seed_and_groups_alone() -> None:
    for rng, cases in random_tables(6):
        splits = make_splits(cases, settings(1))
        assert make_splits(cases, settings(1)).data == splits.data
        assert make_splits(cases, settings(2)).digest != splits.digest
        order = rng.permutation(len(cases))
        shuffled = CaseTable(cases.frame.iloc[order].reset_index(drop=True), cases.class_names, False, False)
        assert split_of(make_splits(shuffled, settings(1)), shuffled) == split_of(splits, cases)


def test_new_cases_of_one_class_move_no_case_of_another() -> None:
    labels = np.r_[np.zeros(300, int), np.ones(80, int)]
    cases, more = table(labels), table(np.r_[labels, np.zeros(150, int)])
    before, after = split_of(make_splits(cases, settings()), cases), split_of(make_splits(more, settings()), more)
    positives = cases.frame["case_id"][cases.frame["label"] == 1]
    assert all(before[case] == after[case] for case in positives)


def test_the_notes_are_right() -> None:
    for _, cases in random_tables(6):
        splits = make_splits(cases, settings())
        drawn = cases.frame["case_id"].map(split_of(splits, cases))
        for split in SPLITS:
            labels = cases.frame["label"][drawn == split]
            counts = {name: int((labels == code).sum()) for code, name in enumerate(cases.class_names)}
            assert splits.counts(split) == counts
            shares = {name: count / len(labels) for name, count in counts.items()}
            assert splits.data["class_balance"][split] == pytest.approx(shares)
        positive = cases.frame[(drawn == "val_calib") & (cases.frame["label"] == len(cases.class_names) - 1)]
        assert splits.metadata["evidence"] == {
            "val_calib_positives": len(positive),
            "val_calib_positive_groups": len(set(positive["group"])),
            "positives_needed": 149,  # target .02 at confidence .95
            "target_fnr_exit": 0.02,
            "fnr_confidence": 0.95,
        }
        assert splits.metadata["cases"] == len(cases)
        assert splits.metadata["groups"] == len(set(cases.frame["group"]))
        assert splits.metadata["group_column"] == ("group" if cases.group_column else None)
        assert splits.metadata["positive_class"] == cases.class_names[-1]
        assert splits.metadata["usage"] == USAGE


def test_too_few_positives_are_told_beforehand_and_enough_are_not() -> None:
    few = make_splits(table(np.arange(400) % 2), settings())
    assert "val_calib has 50 positives" in str(evidence_warning(few, settings()))
    assert "needs at least 149" in str(evidence_warning(few, settings()))
    assert evidence_warning(make_splits(table(np.arange(1300) % 2), settings()), settings()) is None
    grouped = make_splits(table(np.arange(1300) % 2, np.arange(1300) // 10), settings())
    assert "independent positives (one a group)" in str(evidence_warning(grouped, settings()))


@pytest.mark.parametrize(
    ("positives", "target", "ways"),
    [
        (400, 0.02, "Add positives, raise val_calib_ratio to 0.38, or raise target_fnr_exit."),
        (220, 0.02, "Add positives, or raise target_fnr_exit."),
        (60, 0.1, "Add positives, or raise val_calib_ratio to 0.52."),
        (10, 0.1, "Add positives."),
    ],
)
def test_only_ways_out_that_lead_out_are_named(positives: int, target: float, ways: str) -> None:
    cases = table((np.arange(2000) < positives).astype(int))

    def said(target: float, ratio: float) -> str | None:
        params = {"val_calib_ratio": ratio, "val_select_ratio": 0.1, "val_test_ratio": 0.05}
        config = merge_configs([("test", {"target_fnr_exit": target, "dataset_params": params})])
        return evidence_warning(make_splits(cases, config), config)

    assert str(said(target, 0.15)).endswith(f"nothing will be certified. {ways}")
    if ratio := re.search(r"val_calib_ratio to (\d\.\d+)", ways):
        assert said(target, float(ratio[1])) is None
    if "raise target" in ways:
        assert said(0.1, 0.15) is None


def test_given_splits_are_kept_as_they_are() -> None:
    given = np.array(SPLITS, dtype=object)[np.arange(40) // 2 % 4]
    cases = table(np.arange(40) % 2, split=given)
    splits = make_splits(cases, settings())
    assert split_of(splits, cases) == dict(zip(cases.frame["case_id"], given, strict=True))
    assert splits.metadata["split_column"] == "split"
    assert make_splits(cases, settings(7)).digest == splits.digest


def test_a_split_without_a_class_is_named_with_the_mend() -> None:
    with pytest.raises(UserError) as refused:
        make_splits(table(np.r_[np.zeros(100, int), 1, 1]), settings())
    for split in ("val_calib", "val_test"):
        assert f"{split} has no case of c1: more cases, more groups, or a larger {split}_ratio" in str(refused.value)
    with pytest.raises(UserError, match=r"train has no case of c0, c1: give some of them this split"):
        make_splits(table(np.arange(40) % 2, split=np.array(["val_test"] * 40, dtype=object)), settings())


def test_the_digest_is_of_the_assignment_and_the_cases() -> None:
    cases = table(np.arange(200) % 2)
    digest = make_splits(cases, settings()).digest
    looser = merge_configs(
        [("", {"target_fnr_exit": 0.1, "dataset_params": {f"{k}_ratio": v for k, v in RATIOS.items()}})]
    )
    assert make_splits(cases, looser).digest == digest
    cases.frame.loc[0, "content"] = "other"
    other = CaseTable(cases.frame, cases.class_names, False, False)
    assert make_splits(other, settings()).digest != digest


# ---- from files


@pytest.fixture
def begin(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
    """Begin a run from a copy of the pictures in a folder of its own; lines may be shuffled."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, lines: list[str]) -> tuple:
        shutil.copytree(pictures, tmp_path / name / "images")
        (tmp_path / name / "labels.csv").write_text("\n".join(lines))
        source = {"name": "s", "root": str(tmp_path / name / "images"), "labels": str(tmp_path / name / "labels.csv")}
        positive = lines[1].split(",")[1]
        params = {"sources": [source], "val_calib_ratio": 0.2, "positive_class": positive}
        config = merge_configs([("test", {"dataset_params": params})])
        return *new_run(f"runs/{name}", config), config.dataset_params

    return make


def test_equal_images_give_equal_bytes_wherever_they_lie_in_whatever_order(begin: Callable) -> None:
    lines = [f"{index:02}.png,{'ab'[index % 2]}" for index in range(60)]
    first, second = begin("one", lines)[0], begin("two", [lines[1], *reversed(lines[2:]), lines[0]])[0]
    assert first.splits_path.read_bytes() == second.splits_path.read_bytes()


def test_identical_images_land_in_one_split(begin: Callable, pictures: Path, tmp_path: Path) -> None:
    lines = [f"{index:02}.png,{'ab'[index % 2]}" for index in range(60)]
    lines += [
        f"{pictures}/{index:02}.png,{'ab'[index % 2]},copy{copy}-{index}" for index in range(60) for copy in (1, 2)
    ]
    lines = [line if line.count(",") == 2 else f"{line}," for line in lines]
    run, cases, _ = begin("one", lines)
    drawn = cases.frame["case_id"].map(split_of(run.splits, cases))
    assert len(cases) == 180
    assert cases.frame.assign(split=drawn).groupby("content")["split"].nunique().max() == 1
    assert run.splits.metadata["groups"] == 60


def test_a_group_moved_by_hand_and_classes_renamed_are_noticed(begin: Callable, tmp_path: Path) -> None:
    run, _, params = begin("one", [f"{index:02}.png,{index % 2},,g{index // 2}" for index in range(60)])
    with pytest.raises(UserError, match="drawn for the classes 0, 1; the config now names no, yes"):
        cases_of(run, of(dataclasses.replace(params, class_names=("no", "yes"), positive_class="yes")))
    data = json.loads(run.splits_path.read_text())
    moved = data["train_indices"].pop()
    data["val_calib_indices"].append(moved)
    data["metadata"]["counts"]["train"][str(moved % 2)] -= 1
    data["metadata"]["counts"]["val_calib"][str(moved % 2)] += 1
    run.splits_path.write_text(json.dumps(data))
    with pytest.raises(
        UserError, match=r"splits.json: group g\d+ crosses splits. Run 00_make_splits.py for a new run."
    ):
        cases_of(Run.open(str(run.path)), of(params))


def test_changed_images_are_noticed_and_unchanged_ones_accepted(begin: Callable, tmp_path: Path) -> None:
    lines = [f"{index:02}.png,{'ab'[index % 2]}" for index in range(60)]
    run, cases, params = begin("one", lines)
    assert cases_of(run, of(params)).digest == cases.digest
    labels = tmp_path / "one" / "labels.csv"
    labels.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r"changed since the splits were drawn \(59 cases, not 60\)"):
        cases_of(run, of(params))
    labels.write_text("\n".join(lines))
    shutil.copy(tmp_path / "one" / "images" / "00.png", tmp_path / "one" / "images" / "02.png")
    with pytest.raises(UserError, match="as many cases with other content"):
        cases_of(run, of(params))

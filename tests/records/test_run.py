"""A run directory and the ledger beside it: what may be written when, and what is refused."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1_pro.core import artifacts
from stage1_pro.core.config.sections import DatasetParams
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.splitting import make_splits
from stage1_pro.core.errors import UserError
from stage1_pro.core.records import ledger
from stage1_pro.core.records.looks import alone, begin, refused_attempt
from stage1_pro.core.records.policy_file import demand_uncalibrated, policy_header, read_policy, write_policy
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import MaskScores, Scores, hashes
from stage1_pro.core.records.splits import read_splits

ENTRY = ledger.Entry("2026-01-01T00:00:00Z", "d" * 64, "p1", "softmax", 0.02, 0.95, "certified")
FACTS = {
    "preprocessing": {
        "size": 32,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "color_order": "RGB",
    },
    "backbone": "random:test_vit",
    "backbone_license": "unknown",
}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def some_cases(size: int = 80, prefix: str = "") -> CaseTable:
    """Cases without groups; prefix: of their ids, not of their images."""
    names = [f"{index:03}" for index in range(size)]
    ids = [prefix + name for name in names]
    columns = {"case_id": ids, "path": ids, "label": np.arange(size) % 2, "group": ids, "split": "", "content": names}
    return CaseTable(pd.DataFrame(columns), ("no", "yes"), False, False)


def prepared(path: str | None = "runs/a", config: Stage1ProConfig | None = None, cases: CaseTable | None = None) -> Run:
    config = config or Stage1ProConfig()
    run = Run.create(path, config.phase)
    artifacts.write_json(run.splits_path, make_splits(cases or some_cases(), config).data, "splits")
    return run


def trained(
    path: str = "runs/a",
    weights: bytes = b"weights",
    config: Stage1ProConfig | None = None,
    cases: CaseTable | None = None,
) -> Run:
    """A run with scores of val_select and val_calib."""
    run = prepared(path, config, cases)
    run.begin_training(config or Stage1ProConfig(), FACTS)
    artifacts.write_bytes(run.model_path, weights)
    for split in ("val_select", "val_calib"):
        scores_of(run, split, cases).write(run.scores_path(split))
    return run


def scores_of(run: Run, split: str, cases: CaseTable | None = None) -> Scores:
    table = (cases or some_cases()).frame.iloc[run.splits.indices(split)]
    size = len(table)
    logits = np.random.default_rng(5).normal(size=(size, 2)).astype(np.float32)
    ids, labels = table["case_id"].to_numpy(), table["label"].to_numpy().astype(np.int8)
    groups, content = table["group"].to_numpy(), hashes(table["content"])
    digests = run.model_digest, run.splits.digest
    return Scores(split, ids, groups, labels, logits, None, *digests, content=content)


def policy_of(run: Run) -> dict:
    figures = {"fnr_on_exits": 0.0, "coverage": 0.5, "exit_accuracy": 1.0, "sweep_results": [], "val_calib_metrics": {}}
    return {**policy_header(run, run.risk()), **figures, "exit_threshold": 0.9}


def refused(job: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refusal:
        job()
    return str(refusal.value)


# ---- directories


def test_latest_points_to_the_newest_run() -> None:
    prepared("runs/a")
    assert Run.open("runs/latest").path == Path("runs/a")
    prepared("runs/b")
    assert Run.open("runs/latest").name == "b"
    assert os.readlink("runs/latest") == "b"
    prepared("elsewhere/c")
    assert Run.open("runs/latest").name == "b"  # only what lies in runs/ is the latest of runs/
    assert not list(Path("runs").glob(".latest*"))


def test_a_run_without_a_name_is_named_by_phase_and_time() -> None:
    run, same_second = Run.create(None, 2), Run.create(None, 2)
    assert run.path.match("runs/p2-*Z")
    assert run.path != same_second.path
    assert os.readlink("runs/latest") == same_second.name


def test_a_run_is_never_overwritten() -> None:
    run = trained()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert refused(lambda: Run.create("runs/a", 1)) == (
        "runs/a already holds a run, and runs are never overwritten. Choose another --run."
    )
    assert "has been trained already" in refused(run.demand_untrained)
    run.config_path.rename("config.json")
    for look in (run.demand_untrained, lambda: Run.open("runs/a").config, lambda: Run.demand_new("runs/a")):
        assert "runs/a/config.json is gone, and training had begun (there is model_best.pth)" in refused(look)
    Path("config.json").rename(run.config_path)
    prepared("runs/b")
    assert "awaits its training, and runs are never overwritten. Go on with 20_train.py --run runs/b and" in refused(
        lambda: Run.demand_new("runs/b")
    )
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_to_is_told_before_images_are_read() -> None:
    Path("locked").mkdir(mode=0o555)
    assert "locked may not be written to. Choose another --run." in refused(lambda: Run.demand_new("locked/runs/a"))


def test_a_run_that_cannot_be_made_or_opened() -> None:
    prepared()
    Path("file").write_text("")
    Path("runs/empty").mkdir()
    assert "file/a cannot be made" in refused(lambda: Run.create("file/a", 1))
    assert "cannot be made: File exists" in refused(lambda: Run.create("file", 1))
    assert "runs/latest is the link to the newest run" in refused(lambda: Run.create("runs/latest", 1))
    assert "runs/aa does not exist (did you mean 'a'?)" in refused(lambda: Run.open("runs/aa"))
    assert "runs/empty is not a run (no splits.json in it)" in refused(lambda: Run.open("runs/empty"))
    assert "runs/a is not trained yet. Run 20_train.py --run runs/a first." in refused(
        lambda: Run.open("runs/a").config
    )
    assert "does not exist" in refused(lambda: Run.open("nowhere/at/all"))


def test_config_and_environment_are_on_record() -> None:
    config = Stage1ProConfig(seed=7)
    run = Run.open(trained(config=config).path.as_posix())
    assert run.config == config
    facts = artifacts.read_json(run.environment_path, "environment")
    assert facts["seed"] == 7
    assert {"torch", "timm", "lightning", "numpy"} <= set(facts["packages"])
    assert not [
        name for name in json.loads(run.config_path.read_text()) if "indices" in name or name == "exit_threshold"
    ]


# ---- policies


def test_the_policy_goes_round() -> None:
    run = trained()
    demand_uncalibrated(run, "softmax")
    assert run.policy_files() == []
    assert "runs/a/thresholds.json does not exist" in refused(lambda: read_policy(run))
    policy = policy_of(run)
    assert write_policy(run, policy) == Path("runs/a/thresholds.json")
    assert read_policy(Run.open("runs/a")) == policy
    assert "runs/a/thresholds.json exists: this run is calibrated already" in refused(
        lambda: demand_uncalibrated(run, "softmax")
    )


def test_another_policy_is_sent_to_its_script() -> None:
    run = trained()
    words = "exit_policy is 'softmax'. Run 25_threshold_sweep.py --run runs/a instead."
    assert words in refused(lambda: demand_uncalibrated(run, "gate"))
    (run.path / "gateparams.json").write_text("{}")
    assert "gateparams.json exists" in refused(lambda: demand_uncalibrated(run, "softmax"))
    assert "gateparams.json is not the policy of this run ('softmax')" in refused(lambda: read_policy(run))
    write_policy(run, policy_of(run))
    assert "Multiple policy files found! Only thresholds.json should exist." in refused(lambda: read_policy(run))
    assert [path.name for path in run.policy_files()] == ["thresholds.json", "gateparams.json"]


@pytest.mark.parametrize("key", ["model_digest", "splits_digest"])
def test_a_policy_of_other_weights_or_splits_is_refused(key: str) -> None:
    run = trained()
    for policy in ({**policy_of(run), key: "0" * 64}, {k: v for k, v in policy_of(run).items() if k != key}):
        write_policy(run, policy)
        assert f"thresholds.json: $.{key} is of another model or other splits" in refused(lambda: read_policy(run))


def test_new_weights_leave_the_old_policy_behind() -> None:
    run = trained()
    write_policy(run, policy_of(run))
    run.model_path.write_bytes(b"other weights")
    assert "$.model_digest is of another model" in refused(lambda: read_policy(Run.open("runs/a")))


@pytest.mark.parametrize(
    ("target", "confidence"), [(0, 0.95), (0.2, 0.95), (float("nan"), 0.95), (0.02, 1), (0.02, 0.4)]
)
def test_a_risk_outside_its_range_is_refused(target: float, confidence: float) -> None:
    run = trained()
    assert "allowed" in refused(lambda: run.risk(target, confidence))
    assert dataclasses.astuple(run.risk(0.1, 0.5)) == (0.1, 0.5)
    assert dataclasses.astuple(run.risk()) == (0.02, 0.95)


# ---- scores


def test_scores_come_back_sorted_and_exact() -> None:
    run = trained()
    scores = dataclasses.replace(scores_of(run, "val_calib"), gate_logit=None)
    order = np.random.default_rng(0).permutation(len(scores))
    shuffled = dataclasses.replace(
        scores,
        case_id=scores.case_id[order],
        group=scores.group[order],
        labels=scores.labels[order],
        logits=scores.logits[order],
    )
    gates = shuffled.logits[:, 0] * np.float32(1e-30)
    dataclasses.replace(shuffled, gate_logit=gates).write(run.scores_path("val_calib"))
    read = run.scores("val_calib")
    assert read.case_id.tolist() == scores.case_id.tolist()
    assert read.logits.dtype == np.float32
    np.testing.assert_array_equal(read.logits, scores.logits)
    np.testing.assert_array_equal(read.labels, scores.labels)
    np.testing.assert_array_equal(read.gate_logit, scores.logits[:, 0] * np.float32(1e-30))
    assert read.positives == int((scores.labels == 1).sum())


def test_equal_scores_give_equal_bytes() -> None:
    run = trained()
    for name in ("one", "two"):
        scores_of(run, "val_select").write(Path(name))
    assert Path("one").read_bytes() == Path("two").read_bytes()


def test_a_case_scored_twice_is_our_bug() -> None:
    run = trained()
    scores = scores_of(run, "val_calib")
    twice = dataclasses.replace(scores, case_id=np.array(["x"] * len(scores)))
    with pytest.raises(ValueError, match="scored twice"):
        twice.write(run.scores_path("val_test"))
    assert not run.scores_path("val_test").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [({"split": "val_select"}, "split"), ({"model_digest": "0"}, "weights"), ({"splits_digest": "0"}, "splits")],
)
def test_scores_of_something_else_are_refused(change: dict, what: str) -> None:
    run = trained()
    dataclasses.replace(scores_of(run, "val_calib"), **change).write(run.scores_path("val_calib"))
    message = refused(lambda: run.scores("val_calib"))
    assert f"runs/a/scores/val_calib.parquet: these scores are of other {what}" in message
    assert "run 20_train.py --resume runs/a to write it" in message


def test_scores_that_are_missing_or_damaged_name_the_mend() -> None:
    run = trained()
    assert "val_test.parquet does not exist. Run 40_eval_selective.py" in refused(lambda: run.scores("val_test"))
    path = run.scores_path("val_calib")
    scores_of(run, "val_calib").write(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "val_calib.parquet: not a whole score file" in refused(lambda: run.scores("val_calib"))


def test_a_parquet_file_that_is_no_score_file_is_refused() -> None:
    run = trained()
    pd.DataFrame({"case_id": ["a"], "label": [1]}).to_parquet(run.scores_path("val_calib"))
    assert "not a whole score file" in refused(lambda: run.scores("val_calib"))


def test_scores_of_masks_from_an_older_version_name_the_column_and_the_mend() -> None:
    run = trained()
    path, scores = run.scores_path("val_test"), scores_of(run, "val_test")
    ones = np.ones(len(scores))
    dataclasses.replace(scores, masks=MaskScores(ones.astype(np.int8), ones, ones, ones, ones)).write(path)
    frame, facts = pd.read_parquet(path), pq.read_schema(path).metadata
    older = pa.Table.from_pandas(frame.drop(columns=["positive_dice", "marked_dice"]), preserve_index=False)
    pq.write_table(older.replace_schema_metadata(facts), path)
    assert refused(lambda: run.scores("val_test")) == (
        f"{path}: it has no 'positive_dice', as where an older version wrote it. Remove it and run "
        "40_eval_selective.py --run runs/a to write it."
    )


# ---- splits.json


def test_splits_that_contradict_themselves_are_refused() -> None:
    run = prepared()
    data = json.loads(run.splits_path.read_text())

    def told(**changes: object) -> str:
        run.splits_path.write_text(json.dumps({**data, **changes}))
        return refused(lambda: read_splits(run.splits_path))

    assert "a case is in two splits" in told(val_test_indices=data["train_indices"])
    assert "an index is beyond the 80 cases" in told(val_test_indices=[80])
    assert "train_indices missing" in told(**{"train_indices": None}) or "$.train_indices is null" in told(
        train_indices=None
    )
    assert "$.val_test_indices" in told(val_test_indices=[1, 1])
    assert "$.val_test_indices[0] is -1" in told(val_test_indices=[-1])
    assert "$.val_test_indices[0] is 1.0" in told(val_test_indices=[1.0])
    without = {key: value for key, value in data.items() if key != "train_indices"}
    run.splits_path.write_text(json.dumps(without))
    assert "train_indices missing. Run 00_make_splits.py" in refused(lambda: read_splits(run.splits_path))


# ---- the ledger


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def look(run: Run, outcome: str | None = ledger.CERTIFIED, target: float | None = None, **options: object) -> int:
    """How many looks at its positives this one makes; outcome: None for a look that crashed."""
    found = begin(run, "softmax", run.risk(target), **options)
    if outcome:
        found.settle(outcome)
    assert found.remaining == pytest.approx(max(0, 1 - 0.05 * (1 + len(found.earlier))))
    return 1 + len(found.earlier)


def test_looks_are_counted_over_runs_also_those_that_failed_or_crashed() -> None:
    first, second = trained("runs/a"), trained("runs/b", weights=b"other")
    assert look(first, ledger.NOTHING_CERTIFIED) == 1
    assert look(second, None, 0.1) == 2  # equal cases, equal splits
    assert look(Run.open("runs/a"), ledger.NOT_READ) == 3  # counts until it is known that val_calib was not read
    assert look(Run.open("runs/latest"), ledger.USELESS) == 3
    rows = table_of(Path("runs/calibrations.csv"))
    assert list(rows[0]) == ledger.COLUMNS
    assert [row["run"] for row in rows] == ["a", "b", "a", "b"]
    assert [row["outcome"] for row in rows] == ["nothing certified", "begun", "val_calib not read", "useless"]
    assert [row["target_fnr_exit"] for row in rows] == ["0.02", "0.1", "0.02", "0.02"]
    for row in rows:
        seen = np.load(f"runs/looks/{row['look']}.npy")
        assert len(seen) == first.splits.counts("val_calib")["yes"]
        np.testing.assert_array_equal(seen, np.load(f"runs/{row['run']}/looks/{row['look']}.npy"))


def ratios(calib: float, seed: int = 1) -> Stage1ProConfig:
    return Stage1ProConfig(seed=seed, dataset_params=DatasetParams(val_calib_ratio=calib))


def without(cases: CaseTable, left_out: int) -> CaseTable:
    kept = np.sort(np.random.default_rng(0).permutation(len(cases))[left_out:])
    return dataclasses.replace(cases, frame=cases.frame.iloc[kept].reset_index(drop=True))


MANY = some_cases(1500)


@pytest.mark.parametrize(
    ("config", "cases"),
    [
        (ratios(0.331), MANY),
        (ratios(0.33), without(MANY, 50)),
        (ratios(0.33), some_cases(1500, "a source/")),
        (ratios(0.33, seed=2), MANY),
    ],
    ids=["ratio .331", "50 images removed", "prefixed ids", "drawn again"],
)
def test_a_look_at_much_the_same_positives_counts(config: Stage1ProConfig, cases: CaseTable) -> None:
    first, second = trained("runs/a", config=ratios(0.33), cases=MANY), trained("runs/b", config=config, cases=cases)
    assert first.splits.metadata["val_calib_digest"] != second.splits.metadata["val_calib_digest"]
    assert [look(first), look(second)] == [1, 2]
    assert look(trained("runs/c", config=ratios(0.33), cases=MANY)) == 3


def test_a_look_at_other_positives_does_not_count() -> None:
    kept = np.arange(1500)
    halves = [
        dataclasses.replace(MANY, frame=MANY.frame[kept % 4 // 2 == half].reset_index(drop=True)) for half in (0, 1)
    ]
    runs = [trained(f"runs/{half}", config=ratios(0.33), cases=cases) for half, cases in enumerate(halves)]
    assert [look(run) for run in runs] == [1, 1]


def test_a_group_is_known_again_by_its_name_and_by_any_draw_of_it() -> None:
    """Twenty frames a group: other frames of the same groups, and the same frames under other names."""
    size = 4000
    names = [f"{index:04}" for index in range(size)]
    groups = [f"g{index // 20}" for index in range(size)]
    columns = {"case_id": names, "path": names, "label": (np.arange(size) // 20) % 2, "split": ""}

    def grouped(groups: list[str], content: list[str], ids: list[str] = names) -> CaseTable:
        frame = pd.DataFrame({**columns, "case_id": ids, "group": groups, "content": content})
        return CaseTable(frame.sort_values("case_id", ignore_index=True), ("no", "yes"), True, False)

    one = trained("runs/one", config=ratios(0.33), cases=grouped(groups, names))
    other_frames = trained("runs/two", config=ratios(0.33), cases=grouped(groups, [f"new {name}" for name in names]))
    renamed = grouped([f"s/{name}" for name in groups], names, [f"s/{name}" for name in names])
    assert [look(one), look(other_frames)] == [1, 2]
    assert look(trained("runs/three", config=ratios(0.33), cases=renamed)) == 2  # it shares frames with the first alone
    strangers = grouped([f"x{name}" for name in groups], [f"x{name}" for name in names])
    assert look(trained("runs/four", config=ratios(0.33), cases=strangers)) == 1


def test_a_copied_run_carries_the_looks_that_its_count_rests_on() -> None:
    first, second = trained("runs/a"), trained("runs/b", weights=b"other")
    assert [look(first), look(second)] == [1, 2]
    shutil.copytree("runs/b", "elsewhere/b")
    assert look(Run.open("elsewhere/b")) == 3
    shutil.copytree("runs/b", "runs/c")
    assert look(Run.open("runs/c")) == 3


def test_scores_without_contents_are_counted_by_their_split() -> None:
    run = trained()
    dataclasses.replace(run.scores("val_calib"), content=None).write(run.scores_path("val_calib"))
    assert [look(run), look(Run.open("runs/a"))] == [1, 2]
    assert not Path("runs/looks").exists()


def test_the_same_test_again_is_no_further_look() -> None:
    run = trained()
    assert look(run, ledger.USELESS) == 1
    assert look(run, repeat=True) == 1
    (row,) = table_of(Path("runs/calibrations.csv"))
    assert (row["outcome"], row["repeated"]) == ("certified", "1")
    assert look(run, target=0.05, repeat=True) == 2  # another target
    assert look(run, options={"calibrator": "platt"}, repeat=True) == 3
    scores = run.scores("val_calib")
    dataclasses.replace(scores, logits=scores.logits + np.float32(1)).write(run.scores_path("val_calib"))
    assert look(run, repeat=True) == 4
    assert look(run) == 5  # without being told that it is the same


def test_one_calibration_at_a_time() -> None:
    run = trained()
    job = (
        "import sys, time; from pathlib import Path\n"
        "from stage1_pro.core.records.looks import alone; from stage1_pro.core.records.run import Run\n"
        "with alone(Run(Path('runs/a'))): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, text=True)
    assert other.stdout
    with other.stdout:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another calibration of this run is under way"), alone(run):
            pytest.fail("two at once")
        other.kill()
        other.wait()
    with alone(run):  # the lock of a killed process has ended with it
        pass


def test_the_ledger_lies_in_the_innermost_folder_of_runs() -> None:
    look(trained("runs/project/runs/a"))
    assert Path("runs/project/runs/calibrations.csv").exists()
    shutil.copy("runs/project/runs/a/splits.json", "runs/project/runs/splits.json")
    look(trained("runs/project/runs/runs/a-seed1"))  # as the runs of an A/B test, which count with those around it
    assert [row["run"] for row in table_of(Path("runs/project/runs/calibrations.csv"))] == ["a", "a-seed1"]
    assert not Path("runs/calibrations.csv").exists()


def test_a_refused_attempt_is_of_this_run_and_of_no_other_of_its_name() -> None:
    refused_run = trained("runs/x/a")
    look(refused_run, ledger.NOTHING_CERTIFIED)
    assert refused_attempt(refused_run) is not None
    same_name = trained("runs/y/a")  # equal weights and splits, one ledger for both
    assert refused_attempt(same_name) is None
    look(same_name)
    assert refused_attempt(refused_run) is not None
    Path("elsewhere").mkdir()
    Path("runs").rename("elsewhere/runs")
    assert refused_attempt(Run.open("elsewhere/runs/x/a")) is not None
    look(Run.open("elsewhere/runs/y/a"), ledger.USELESS)
    assert refused_attempt(Run.open("elsewhere/runs/y/a")) is not None
    artifacts.write_bytes(Path("elsewhere/runs/x/a/model_best.pth"), b"a later run in the same place")
    assert refused_attempt(Run.open("elsewhere/runs/x/a")) is None


OLD_LEDGER = (
    "time,val_calib_digest,run,policy,target_fnr_exit,fnr_confidence,outcome\n"
    "2999-01-01T00:00:00Z,{digest},a,softmax,0.02,0.95,nothing certified\n"
    "2999-01-01T00:00:00Z,{digest},cut"
)


def test_a_ledger_of_before_runs_were_told_apart_is_counted_and_says_nothing_about_a_run() -> None:
    run = trained()
    path = Path("runs/calibrations.csv")
    path.write_text(OLD_LEDGER.format(digest=run.splits.metadata["val_calib_digest"]))
    assert [entry.run for entry in ledger.read(path)] == ["a"]
    assert refused_attempt(run) is None
    assert look(run, ledger.NOTHING_CERTIFIED) == 3  # a fragment was a look as well
    assert refused_attempt(run) is not None
    assert look(run, ledger.NOTHING_CERTIFIED) == 4
    table = pd.read_csv(path)  # still one table
    assert table["run_path"].tolist()[2:] == ["a", "a"]
    assert table["run_path"].isna().tolist() == [True, True, False, False]


def test_awkward_names_stay_in_their_cell() -> None:
    path = Path("calibrations.csv")
    name = 'a,"b"\nc'
    for count in (0, 1):
        assert len(ledger.append(path, dataclasses.replace(ENTRY, run=name))) == count
    assert [row["run"] for row in table_of(path)] == [name, name]


def test_a_row_cut_off_by_a_crash_takes_no_other_with_it() -> None:
    path = Path("calibrations.csv")
    ledger.append(path, ENTRY)
    path.write_text(path.read_text() + "2026-01-01T00:00:00Z,ddd")
    assert [len(ledger.append(path, ENTRY)) for _ in "ab"] == [2, 3]


@pytest.mark.parametrize("before", ["", OLD_LEDGER.splitlines(keepends=True)[0]])
def test_four_processes_keep_every_row_whole(before: str) -> None:
    Path("calibrations.csv").write_text(before)
    job = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from stage1_pro.core.records import ledger\n"
        f"entry = ledger.{ENTRY!r}\n"
        "path, mine = Path('calibrations.csv'), replace(entry, run=sys.argv[1] * 3000)\n"
        "for _ in range(25): print(len(ledger.append(path, mine)))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", job, name], stdout=subprocess.PIPE, text=True) for name in "abcd"
    ]
    counts = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert sorted(counts) == list(range(100))
    rows = table_of(Path("calibrations.csv"))
    assert sorted(row["run"] for row in rows) == sorted(name * 3000 for name in "abcd" * 25)
    assert {tuple(row.values())[3:7] for row in rows} == {("softmax", "0.02", "0.95", "certified")}

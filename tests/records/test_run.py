"""A run directory and the ledger beside it: what may be written when, and what is refused."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.splitting import make_splits
from stage1_pro.core.errors import UserError
from stage1_pro.core.records import ledger
from stage1_pro.core.records.looks import record_attempt, refused_attempt
from stage1_pro.core.records.policy_file import demand_uncalibrated, policy_header, read_policy, write_policy
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
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


def some_cases(size: int = 80) -> CaseTable:
    ids = [f"{index:03}" for index in range(size)]
    columns = {"case_id": ids, "path": ids, "label": np.arange(size) % 2, "group": ids, "split": "", "content": ids}
    return CaseTable(pd.DataFrame(columns), ("no", "yes"), False, False)


def prepared(path: str | None = "runs/a", config: Stage1ProConfig | None = None) -> Run:
    config = config or Stage1ProConfig()
    run = Run.create(path, config.phase)
    artifacts.write_json(run.splits_path, make_splits(some_cases(), config).data, "splits")
    return run


def trained(path: str = "runs/a", weights: bytes = b"weights", config: Stage1ProConfig | None = None) -> Run:
    run = prepared(path, config)
    run.begin_training(config or Stage1ProConfig(), FACTS)
    artifacts.write_bytes(run.model_path, weights)
    return run


def scores_of(run: Run, split: str) -> Scores:
    table = some_cases().frame.iloc[run.splits.indices(split)]
    size = len(table)
    logits = np.random.default_rng(5).normal(size=(size, 2)).astype(np.float32)
    ids, labels = table["case_id"].to_numpy(), table["label"].to_numpy().astype(np.int8)
    return Scores(split, ids, ids, labels, logits, None, run.model_digest, run.splits.digest)


def policy_of(run: Run) -> dict:
    figures = {"fnr_on_exits": 0.0, "coverage": 0.5, "exit_accuracy": 1.0, "sweep_results": [], "val_calib_metrics": {}}
    return {**policy_header(run, run.risk(), 1), **figures, "exit_threshold": 0.9}


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
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    assert refused(lambda: Run.create("runs/a", 1)) == (
        "runs/a already holds a run, and runs are never overwritten. Choose another --run."
    )
    assert "has been trained already" in refused(run.demand_untrained)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


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
        twice.write(run.scores_path("val_calib"))
    assert not run.scores_path("val_calib").exists()


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
    run.scores_path("val_calib").parent.mkdir()
    pd.DataFrame({"case_id": ["a"], "label": [1]}).to_parquet(run.scores_path("val_calib"))
    assert "not a whole score file" in refused(lambda: run.scores("val_calib"))


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


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_attempts_are_counted_over_runs_also_those_that_failed() -> None:
    first, second = trained("runs/a"), trained("runs/b", weights=b"other")
    assert record_attempt(first, "softmax", first.risk(), certified=False) == 1
    assert record_attempt(second, "softmax", second.risk(0.1), certified=True) == 2  # equal cases, equal splits
    third = trained("runs/c", config=Stage1ProConfig(seed=1))
    assert record_attempt(third, "softmax", third.risk(), certified=True) == 1  # another val_calib
    assert record_attempt(Run.open("runs/latest"), "softmax", third.risk(), certified=True) == 2
    lines = Path("runs/calibrations.csv").read_text().splitlines()
    assert lines[0] == ("time,val_calib_digest,run,policy,target_fnr_exit,fnr_confidence,outcome,run_path,model_digest")
    rows = rows_of(Path("runs/calibrations.csv"))
    assert [row["run"] for row in rows] == ["a", "b", "c", "c"]
    assert [row["outcome"] for row in rows] == ["nothing certified", "certified", "certified", "certified"]
    assert [row["target_fnr_exit"] for row in rows] == ["0.02", "0.1", "0.02", "0.02"]


def test_a_refused_attempt_is_of_this_run_and_of_no_other_of_its_name() -> None:
    refused_run = trained("runs/x/a")
    record_attempt(refused_run, "softmax", refused_run.risk(), certified=False)
    assert refused_attempt(refused_run) is not None
    same_name = trained("runs/y/a")  # equal weights and splits, one ledger for both
    assert refused_attempt(same_name) is None
    record_attempt(same_name, "softmax", same_name.risk(), certified=True)
    assert refused_attempt(refused_run) is not None
    Path("elsewhere").mkdir()
    Path("runs").rename("elsewhere/runs")
    assert refused_attempt(Run.open("elsewhere/runs/x/a")) is not None
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
    assert record_attempt(run, "softmax", run.risk(), certified=False) == 3  # a fragment was a look as well
    assert refused_attempt(run) is not None
    assert record_attempt(run, "softmax", run.risk(), certified=False) == 4
    table = pd.read_csv(path)  # still one table
    assert table["run_path"].tolist()[2:] == ["a", "a"]
    assert table["run_path"].isna().tolist() == [True, True, False, False]


def test_awkward_names_stay_in_their_cell() -> None:
    path = Path("calibrations.csv")
    name = 'a,"b"\nc'
    for count in (1, 2):
        assert ledger.append(path, dataclasses.replace(ENTRY, run=name)) == count
    assert [row["run"] for row in rows_of(path)] == [name, name]


def test_a_row_cut_off_by_a_crash_takes_no_other_with_it() -> None:
    path = Path("calibrations.csv")
    ledger.append(path, ENTRY)
    path.write_text(path.read_text() + "2026-01-01T00:00:00Z,ddd")
    assert ledger.append(path, ENTRY) == 2
    assert ledger.append(path, ENTRY) == 3


@pytest.mark.parametrize("before", ["", OLD_LEDGER.splitlines(keepends=True)[0]])
def test_four_processes_keep_every_row_whole(before: str) -> None:
    Path("calibrations.csv").write_text(before)
    job = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from stage1_pro.core.records import ledger\n"
        f"entry = ledger.{ENTRY!r}\n"
        "for _ in range(25): print(ledger.append(Path('calibrations.csv'), replace(entry, run=sys.argv[1] * 3000)))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", job, name], stdout=subprocess.PIPE, text=True) for name in "abcd"
    ]
    counts = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert sorted(counts) == list(range(1, 101))
    rows = rows_of(Path("calibrations.csv"))
    assert sorted(row["run"] for row in rows) == sorted(name * 3000 for name in "abcd" * 25)
    assert {tuple(row.values())[3:7] for row in rows} == {("softmax", "0.02", "0.95", "certified")}

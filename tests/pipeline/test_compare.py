"""40 --compare on real runs: the page of those that can be compared, and one clear message for those that cannot."""

import json
import shutil
from pathlib import Path

import pytest
from chain import copy, done, evaluate, files_of, refused
from shared_folders import made_once

from stage1_pro.core.artifacts import digest_file

COMPARE = "40_eval_selective"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def other_once(trained_once, evaluated_once, tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        run = shutil.copytree(trained_once, copy(evaluated_once, folder / "runs").parent / "other", symlinks=True)
        done("25_threshold_sweep", "--run", run, "--target_fnr_exit", "0.09")
        evaluate(run)

    return made_once(tmp_path_factory, "other", make) / "runs" / "other"


@pytest.fixture
def other(other_once, evaluated) -> Path:
    """A second evaluated run on the same splits, with a stricter promise."""
    return copy(other_once, evaluated.parent)


@pytest.fixture
def nothing_certified(trained_once, evaluated, script) -> Path:
    run = shutil.copytree(trained_once, evaluated.parent / "refused", symlinks=True)
    assert script("25_threshold_sweep", "--run", run, "--target_fnr_exit", "0.001").status == 3
    return run


def test_runs_side_by_side(evaluated, other, nothing_certified, script, tmp_path):
    out = tmp_path / "new" / "folder"
    outcome = script(COMPARE, "--compare", evaluated, other, nothing_certified, "--out", out)
    assert outcome.status == 0, outcome
    assert outcome.out.splitlines()[-1] == f"comparison {out}/comparison.html"
    for words in ("Nothing was certified", "promise different things", "Coverage less A"):
        assert words in outcome.out
        assert words == "Coverage less A" or words in (out / "comparison.html").read_text()
    first, second, last = read(out / "comparison.json")["runs"]
    for run, evaluation in ((first, read(evaluated / "eval.json")), (second, read(other / "eval.json"))):
        assert run["fnr_on_exits"] == evaluation["exits"]["fnr_on_exits"]
        assert run["augrc"] == evaluation["selective"]["augrc"]
        for name in ("right_exits", "utility", "coverage", "fpr_on_exits", "accuracy_on_exits"):
            assert run[name] == evaluation["exits"][name]
    assert first["fnr_upper_bound"] == read(evaluated / "thresholds.json")["fnr_upper_bound"]
    assert (last["target_fnr_exit"], last["coverage"]["value"], last["policy_digest"]) == (0.001, 0.0, None)
    assert last["augrc"] == first["augrc"]  # the same weights rank alike
    assert (nothing_certified / "scores" / "val_test.parquet").exists()


def test_without_out_a_new_folder_is_made_each_time(evaluated, other, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {run: files_of(run) for run in (evaluated, other)}
    pages = [script(COMPARE, "--compare", evaluated, other).out.split()[-1] for _ in range(2)]
    assert len(set(pages)) == 2
    assert all((tmp_path / page).is_file() and page.startswith("runs/compare-") for page in pages)
    assert {run: files_of(run) for run in (evaluated, other)} == before


def test_runs_that_cannot_be_compared(evaluated, trained_once, config, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untried = shutil.copytree(trained_once, evaluated.parent / "untried", symlinks=True)
    calibrated = shutil.copytree(evaluated, evaluated.parent / "calibrated", symlinks=True)
    (calibrated / "eval.json").unlink()
    script("00_make_splits", "--config", config, "--seed", "7", "--run", "elsewhere")
    refused(script(COMPARE, "--compare", evaluated), "two or more runs")
    refused(script(COMPARE, "--compare"), "--compare", "at least one")
    refused(script(COMPARE, "--compare", evaluated, f"{evaluated}/../{evaluated.name}"), "more than once")
    refused(script(COMPARE, "--compare", evaluated, evaluated.parent / "traind"), "did you mean 'trained'?")
    refused(
        script(COMPARE, "--compare", evaluated, "elsewhere"), "different splits", "runs/trained: splits", "elsewhere"
    )
    refused(script(COMPARE, "--compare", evaluated, calibrated, "--run", evaluated), "takes the place of --run")
    refused(script(COMPARE, "--compare", evaluated, calibrated, "--out", evaluated), "never overwritten")
    refused(script(COMPARE, "--out", "x"), "goes with --compare")
    refused(
        script(COMPARE, "--compare", evaluated, untried, calibrated),
        "2 of the runs",
        "Run 25_threshold_sweep.py --run runs/untried first",
        "Run 40_eval_selective.py --run runs/calibrated first",
    )
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("runs", "elsewhere")] == []
    assert not list((tmp_path / "runs").glob("compare-*"))


def test_what_another_run_tried_is_no_attempt(nothing_certified, trained_once, evaluated, script):
    """One ledger is for all runs: a run of the same name in another folder has not been tried."""
    untried = shutil.copytree(trained_once, evaluated.parent / "nested" / nothing_certified.name, symlinks=True)
    refused(script(COMPARE, "--compare", evaluated, untried), "not calibrated yet", "25_threshold_sweep.py")


def test_a_threshold_that_val_calib_contradicts_is_neither_evaluated_nor_compared(evaluated, other, script, tmp_path):
    """Altered together with the row of the sweep that it stands for, the file agrees with itself alone."""
    path = other / "thresholds.json"
    policy = read(path)
    chosen = [row for row in policy["sweep_results"] if row["certified"]][-1]
    policy["exit_threshold"] = chosen["threshold"] = 0.3
    path.write_text(json.dumps(policy))
    contradicted = "on val_calib it gives", "file or scores have been altered"
    before = files_of(other)
    refused(script(COMPARE, "--run", other), f"runs/{other.name}/thresholds.json", *contradicted)
    assert files_of(other) == before
    evaluation = read(other / "eval.json")
    (other / "eval.json").write_text(json.dumps({**evaluation, "policy_digest": digest_file(path)}))
    refused(script(COMPARE, "--compare", evaluated, other, "--out", tmp_path / "out"), *contradicted)
    assert not (tmp_path / "out").exists()


def _policy(run: Path) -> None:
    (run / "thresholds.json").write_text((run / "thresholds.json").read_text() + "\n")


def _figures(run: Path) -> None:
    evaluation = read(run / "eval.json")
    evaluation["confusion"]["exits"][0][0] += 1
    (run / "eval.json").write_text(json.dumps(evaluation))


def _weights(run: Path) -> None:
    with open(run / "model_best.pth", "ab") as file:
        file.write(b" ")


def _scores(run: Path) -> None:
    path = run / "scores" / "val_test.parquet"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (_policy, "eval.json is of another model or policy"),
        (_figures, "not those of the policy and the scores beside it"),
        (_weights, "is of another model"),
        (_scores, "not a whole score file"),
    ],
)
def test_what_was_evaluated_must_still_be_there(evaluated, other, script, tmp_path, damage, fragment):
    damage(other)
    refused(script(COMPARE, "--compare", evaluated, other, "--out", tmp_path / "out"), fragment)
    assert not (tmp_path / "out").exists()

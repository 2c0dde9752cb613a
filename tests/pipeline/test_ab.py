"""43 on real runs: trained, certified once, resumed, and one that crashes takes no other with it.

The scripts of the trials run in this process, but where processes are what is tested.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import chain
import pytest
from chain import SCRIPTS, files_of, refused
from made_runs import looked

from stage1_pro.core.ab import processes, runner
from stage1_pro.core.ab.plan import make_plan
from stage1_pro.core.ab.processes import Children, Stopped
from stage1_pro.core.ab.runner import bring_to_end, next_step
from stage1_pro.core.errors import UserError
from stage1_pro.core.records import ledger, provenance
from stage1_pro.core.records.run import Run


@pytest.fixture(scope="session")
def arms(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("arms")
    for name, text in (
        ("plain", "phase: 2\n"),
        ("tiny", "phase: 2\nlr_head: 1.0e-7\nuse_ema: true\ntarget_fnr_exit: 0.1\n"),
        ("broken", "phase: 2\nmodel_path: file:absent.safetensors:test_efficientnet\n"),
    ):
        (folder / f"{name}.yaml").write_text(text)
    return {path.stem: path for path in folder.iterdir()}


def command(config: Path, arms: dict[str, Path], names: list[str], out: Path, seeds: int = 1) -> list[str]:
    files = [str(arms[name]) for name in names]
    return ["--config", str(config), "--epochs", "2", "--arms", *files, "--seeds", str(seeds), "--out", str(out)]


class InThisProcess(Children):
    """Calls the scripts without processes of their own, but for one, of which it says that it ended well."""

    def __init__(self, side_by_side: int = 1, skipped: str = ""):
        super().__init__(side_by_side)
        self.skipped = skipped

    def call(self, words, log):
        if words[0] == self.skipped:
            return 0
        outcome = chain.call(words[0].removesuffix(".py"), *words[1:])
        with open(log, "a") as file:
            file.write(outcome.out + outcome.err)
        return outcome.status


class AtOnce:
    """A pool of no threads, since a script sets signal handlers, as the main thread alone may."""

    def __init__(self, threads: int):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, job, *arguments):
        future = Future()
        try:
            future.set_result(job(*arguments))
        except Exception as problem:
            future.set_exception(problem)
        return future


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    monkeypatch.setattr(runner, "Children", InThisProcess)
    monkeypatch.setattr(runner, "ThreadPoolExecutor", AtOnce)


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out.parents[1] / "calibrations.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("in_this_process")
def test_one_arm_that_crashes_takes_no_other_with_it_and_what_ended_is_not_repeated(config, arms, script, tmp_path):
    out = tmp_path / "runs" / "ab" / "first"
    words = command(config, arms, ["plain", "tiny", "broken"], out)
    outcome = script("43_ab_test", *words)
    refused(outcome, "1 run failed: broken-seed42")
    assert "absent.safetensors does not exist" in outcome.out
    record = json.loads((out / "ab.json").read_text())
    assert [arm["verdict"] for arm in record["arms"]] == ["reference", "one seed", "incomplete"]
    assert [len(arm["runs"]) for arm in record["arms"]] == [1, 1, 0]
    assert "ended with status 2" in record["arms"][2]["failures"]["broken-seed42"]
    for name in ("ab.html", "figures/arms.png", "figures/differences.png", "figures/cost.png"):
        assert (out / name).stat().st_size > 1000
    for arm in record["arms"][:2]:
        demand_figures(arm, out)

    before, rows = files_of(out / "runs"), rows_of(out)
    assert sorted(row["run"] for row in rows) == ["plain-seed42", "tiny-seed42"]
    refused(script("43_ab_test", *words), "1 run failed: broken-seed42")
    assert files_of(out / "runs") == before
    assert rows_of(out) == rows


def demand_figures(arm: dict, out: Path) -> None:
    """The figures of an arm's one run are those of its evaluation; its cost is known."""
    (run,), folder = arm["runs"], out / "runs" / f"{arm['name']}-seed42"
    if run["certified"]:
        evaluation = json.loads((folder / "eval.json").read_text())
        for name in ("right_exits", "utility", "coverage"):
            assert run["figures"][name] == evaluation["exits"][name]["value"]
    else:
        assert (run["figures"]["coverage"], arm["nothing_certified"]) == (0.0, 1)
    assert run["cost"]["trainable"] == arm["cost"]["trainable"] > 0
    assert run["cost"]["peak_mib"] > 10
    assert run["cost"]["epochs"] == 2
    assert (folder / "splits.json").read_bytes() == (out / "splits.json").read_bytes()


def test_splits_and_settings_of_a_test_cannot_change(trained_once, config, arms, script, tmp_path):
    out = tmp_path / "runs" / "ab" / "old"
    plain = shutil.copytree(trained_once, out / "runs" / "plain-seed42", symlinks=True)
    shutil.copytree(trained_once, out / "runs" / "tiny-seed42", symlinks=True)
    shutil.copy(trained_once / "splits.json", out)
    words = ["--config", config, "--arms", arms["plain"], arms["tiny"], "--seeds", "1", "--out", out]
    refused(script("43_ab_test", *words, "--seed", "7"), "was drawn from other data", "Name another folder with --out")
    splits = json.loads((out / "splits.json").read_text())
    train, test = splits["train_indices"], splits["val_test_indices"]
    splits["train_indices"], splits["val_test_indices"] = [test[0], *train[1:]], [train[0], *test[1:]]
    (plain / "splits.json").write_text(json.dumps(splits))
    outcome = script("43_ab_test", *words)
    assert outcome.status == 2
    assert "arms are compared on equal splits only" in outcome.out
    assert "was trained with other settings (lr_head)" in outcome.out
    assert "no run of this test ended" in outcome.err


def test_what_a_run_lacks_next(trained_once, config, arms, tmp_path):
    """From nothing to its evaluation; a look at val_calib without a policy is not repeated."""
    layers = [("config", config), ("line", {"phase": 2})]
    plan = make_plan(layers, [str(arms["plain"]), str(arms["tiny"])], 1, tmp_path)
    (trial, *_), path = plan.trials(), shutil.copytree(trained_once, tmp_path / "run", symlinks=True)

    def step() -> list[str] | None:
        return next_step(Run(path), trial, plan)

    assert step() == ["25_threshold_sweep.py", "--run", str(path)]
    (path / "scores" / "val_calib.parquet").rename(tmp_path / "kept")
    assert step() == ["20_train.py", "--resume", str(path)]
    (tmp_path / "kept").rename(path / "scores" / "val_calib.parquet")
    run = Run(path)
    for outcome in (ledger.NOTHING_CERTIFIED, ledger.USELESS):
        looked(run, "softmax", outcome)
        assert step() == ["40_eval_selective.py", "--run", str(path), "--scores_only"]
    looked(run, "softmax", ledger.BEGUN)
    with pytest.raises(Exception, match="val_calib was looked at, and the policy was not written"):
        step()
    (path / "config.json").unlink()
    assert step()[0] == "20_train.py"
    assert step()[-2:] == ["--run", str(path)]


def test_a_script_is_judged_by_what_it_left(trained_once, config, arms, tmp_path):
    out = tmp_path / "runs" / "ab" / "lost"
    plan = make_plan([("config", config), ("line", {"phase": 2})], [str(arms["plain"]), str(arms["tiny"])], 1, out)
    trial = next(iter(plan.trials()))
    shutil.copytree(trained_once, trial.path, symlinks=True)
    shutil.copy(trained_once / "splits.json", out)
    with pytest.raises(UserError, match=r"25_threshold_sweep\.py left nothing behind"):
        bring_to_end(trial, plan, InThisProcess(skipped="25_threshold_sweep.py"))
    assert bring_to_end(trial, plan, InThisProcess()).startswith("certified, right exits on test")


# ---- processes


WAITING = """
import os, signal, sys, time

def end(*_):
    print("asked to end")
    sys.exit(143)

signal.signal(signal.SIGTERM, end)
print(*sys.argv[1:], "with", os.environ.get("OMP_NUM_THREADS"), "threads", flush=True)
if "--wait" in sys.argv or "--run" in sys.argv:
    time.sleep(60)
sys.exit("--status" in sys.argv and 7)
"""


@pytest.fixture
def waiting(tmp_path, monkeypatch) -> None:
    """In place of the training script one that says so, and waits until it is asked to end."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "20_train.py").write_text(WAITING)
    monkeypatch.setattr(processes, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(provenance, "cores", lambda: 6)


def when_said(log: Path, words: str, do) -> threading.Thread:
    """Do this, in a thread of its own, when the words stand in the log."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not (log.exists() and words in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.usefixtures("waiting")
def test_a_process_leaves_its_status_and_its_words(tmp_path):
    log = tmp_path / "log"
    assert Children(side_by_side=2).call(["20_train.py", "--status"], log) == 7
    assert Children(side_by_side=1).call(["20_train.py", "--more"], log) == 0
    first, said, second, again = log.read_text().splitlines()
    assert first == "$ python stage1_pro/scripts/20_train.py --status"
    assert said == "--status with 3 threads"
    assert (second[-6:], again) == ("--more", "--more with None threads")


@pytest.mark.usefixtures("waiting")
def test_once_stopped_the_running_process_is_asked_to_end_and_no_other_begins(tmp_path):
    children, log = Children(side_by_side=1), tmp_path / "log"
    thread = when_said(log, "threads", children.stop)
    with pytest.raises(Stopped):
        children.call(["20_train.py", "--wait"], log)
    thread.join()
    assert log.read_text().endswith("asked to end\n")
    with pytest.raises(Stopped):
        children.call(["20_train.py"], log)


@pytest.mark.usefixtures("waiting")
def test_an_interrupted_test_stops_its_processes(config, arms, script, tmp_path):
    out = tmp_path / "runs" / "ab" / "stopped"
    log = out / "logs" / "plain-seed42.log"
    thread = when_said(log, "threads", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert script("43_ab_test", *command(config, arms, ["plain", "tiny"], out)).status == 143
    thread.join()
    assert log.read_text().endswith("asked to end\n")
    other = out / "logs" / "tiny-seed42.log"
    assert not other.exists() or "threads" not in other.read_text()


@pytest.mark.slow
def test_real_trainings_that_are_stopped_go_on(config, arms, tmp_path):
    out = tmp_path / "runs" / "ab" / "stopped"
    words = command(config, arms, ["plain", "tiny"], out)
    words[words.index("--epochs") + 1] = "400"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "43_ab_test.py"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    log = out / "logs" / "plain-seed42.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "epoch 3/" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "--resume" in log.read_text()
    plan = make_plan([("c", config), ("l", {"epochs": 400})], [str(arms["plain"]), str(arms["tiny"])], 1, out)
    trial = next(plan.trials())
    assert next_step(Run(trial.path), trial, plan) == ["20_train.py", "--resume", str(trial.path)]
    assert not (out / "runs" / "tiny-seed42" / "config.json").exists()

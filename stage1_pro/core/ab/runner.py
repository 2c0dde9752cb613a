"""Bring every trial of an A/B test to its test scores, one script after another, each resumable.

What a run directory holds says what it lacks, so that the same command goes on where it stopped, and a run can be
finished by hand. val_calib is looked at once a run: a run whose look left no policy is not tried again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from stage1_pro.core import artifacts
from stage1_pro.core.ab.plan import Plan, Trial, changed_settings
from stage1_pro.core.ab.processes import Children, Stopped
from stage1_pro.core.errors import Interrupted, NothingCertified, UserError
from stage1_pro.core.evaluation import read_evaluation
from stage1_pro.core.records.ledger import NOTHING_CERTIFIED
from stage1_pro.core.records.looks import attempts, refused_attempt
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import read_splits


class Caller(Protocol):
    """Runs scripts as processes: `Children` on this machine, `RayChildren` on a cluster."""

    def call(self, words: Sequence[str], log: Path) -> int: ...
    def stop(self) -> None: ...


def run_trials(plan: Plan, jobs: int, say: Callable[[str], None], children: Caller | None = None) -> dict[str, str]:
    """Run what has not ended yet, `jobs` trials at a time. Returns the names of those that failed, and why.

    children: runs their scripts; None: processes of this machine. A trial that fails takes no other with it. Raises
    Interrupted once all processes have ended.
    """
    trials, failures = list(plan.trials()), {}
    children = children or Children(jobs)
    with ThreadPoolExecutor(jobs) as pool, _stopping(children, pool):
        futures = {pool.submit(bring_to_end, trial, plan, children): trial.name for trial in trials}
        for number, future in enumerate(as_completed(futures), 1):
            name, failure = futures[future], _failure(future)
            if failure is not None:
                failures[name] = failure
            say(f"  {number} of {len(trials)}  {name}: {f'FAILED, {failure}' if failure else future.result()}")
    return failures


def _failure(future: "Future[str]") -> str | None:
    """What went wrong in a trial, in words; None where nothing did."""
    try:
        future.result()
    except UserError as problem:
        return str(problem)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


@contextmanager
def _stopping(children: Caller, pool: ThreadPoolExecutor) -> Iterator[None]:
    """Within the block an interruption ends the processes too, and is raised when they have ended."""
    try:
        yield
    except (Interrupted, Stopped):
        children.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def bring_to_end(trial: Trial, plan: Plan, children: Caller) -> str:
    """Run the scripts that this trial lacks; returns how it ended. Raises UserError where one of them fails."""
    run, log = prepared(trial, plan), plan.log_path(trial)
    log.parent.mkdir(parents=True, exist_ok=True)
    before = None
    while (words := next_step(run, trial, plan)) is not None:
        if words == before:
            raise UserError(f"{words[0]} left nothing behind; see {log}")
        status = children.call(words, log)
        if status not in (0, NothingCertified.exit_status):
            raise UserError(f"{words[0]} ended with status {status}: {_last_line(log)} (see {log})")
        before, run = words, Run(run.path)  # a Run remembers what it has read
    if refused := refused_attempt(run):
        return "nothing certified" if refused.outcome == NOTHING_CERTIFIED else "nothing worth certifying"
    return f"certified, right exits on test {read_evaluation(run)['exits']['right_exits']['value']:.1%}"


def prepared(trial: Trial, plan: Plan) -> Run:
    """The trial's run, begun here with the test's splits where it is new.

    Raises UserError where it was begun with other splits or another config.
    """
    trial.path.mkdir(parents=True, exist_ok=True)
    splits, run = plan.splits_path.read_bytes(), Run(trial.path)
    if not run.splits_path.exists():
        artifacts.write_bytes(run.splits_path, splits)
    demand_equal_splits(run, plan)
    if run.config_path.exists() and (changed := changed_settings(run.config, trial.arm.with_seed(trial.seed))):
        raise UserError(
            f"{run.path} was trained with other settings ({', '.join(changed)}). Give the test another --out, or "
            "remove that run."
        )
    return run


def demand_equal_splits(run: Run, plan: Plan) -> None:
    """Raise UserError unless the run has the splits of the test."""
    expected = read_splits(plan.splits_path).digest
    if run.splits.digest != expected:
        raise UserError(
            f"{run.splits_path}: splits {run.splits.digest[:12]}, and {expected[:12]} in {plan.splits_path}: arms are "
            "compared on equal splits only. Remove that run."
        )


def next_step(run: Run, trial: Trial, plan: Plan) -> list[str] | None:
    """Script and arguments of what the run lacks next; None where it lacks nothing."""
    path = str(run.path)
    if not run.config_path.exists():
        arm = str(plan.config_path(trial.arm))
        return ["20_train.py", "--config", arm, "--seed", str(trial.seed), "--run", path]
    if not run.scores_path("val_calib").exists():
        return ["20_train.py", "--resume", path]
    if not run.policy_files():
        return _certified_in_vain(run) if attempts(run) else [run.policy_row.script, "--run", path]
    return None if run.eval_path.exists() else ["40_eval_selective.py", "--run", path]


def _certified_in_vain(run: Run) -> list[str] | None:
    """Where nothing was certified the test images are scored all the same: the scores still rank them."""
    if refused_attempt(run) is None:
        raise UserError(
            f"{run.path}: val_calib was looked at, and the policy was not written before an interruption. Reusing "
            "it would weaken the guarantee: remove this run to train it anew."
        )
    return (
        None
        if run.scores_path("val_test").exists()
        else ["40_eval_selective.py", "--run", str(run.path), "--scores_only"]
    )


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"

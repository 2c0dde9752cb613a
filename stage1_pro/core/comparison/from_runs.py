"""From run directories to what a comparison takes: checked to share their test cases, and to be what they say."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.comparison.compare import Comparison, compare
from stage1_pro.core.comparison.contender import BINOMIAL, IN_EXPECTATION, Certificate, Contender, SharedCases
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.evaluation import read_evaluation, trusted_policy
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.summary import confusion
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.defer_all import decide_without_certificate
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.policies.independence import one_case_per_group
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.records.looks import confidences_spent, refused_attempt
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.run import Run
from stage1_pro.core.seeds import rng_of

Item = TypeVar("Item")
Result = TypeVar("Result")


def compare_runs(paths: Sequence[str]) -> Comparison:
    """Compare runs on val_test, in the order given, with the first one's bootstrap settings.

    A run for which nothing was certified takes part: no case exits. Raises UserError, with the problems of all
    runs at once, for a run that is not calibrated or evaluated, or that has other splits than the first one.
    """
    runs = open_runs(paths)
    names = _names(runs)
    _all(runs, demand_ready)  # of every run, before one is scored
    _demand_one_world(runs)
    contenders = _all(list(zip(runs, names, strict=True)), lambda pair: contender_of(*pair))
    config = runs[0].config
    return compare(
        contenders,
        shared_cases(runs),
        samples=config.bootstrap_samples,
        confidence=config.bootstrap_confidence,
        # the first run's generator: its intervals are those of its own report
        rng=rng_of(config.seed, "bootstrap"),
    )


def _demand_one_world(runs: Sequence[Run]) -> None:
    """Raise UserError where known weights make other test cases of equal splits."""
    worlds = [run.weights.digest if run.weights else "" for run in runs]
    if len(set(worlds)) > 1:
        found = [f"{run.path}: weights {world[:12] or 'none'}" for run, world in zip(runs, worlds, strict=True)]
        raise_problems(
            "--compare: these runs were certified for different worlds:", found, "Compare runs with the same --weights."
        )


def open_runs(paths: Sequence[str]) -> list[Run]:
    """Two or more different runs with equal splits."""
    if len(paths) < 2:
        raise UserError(f"--compare takes two or more runs; given: {', '.join(paths) or 'none'}.")
    runs = _all(paths, Run.open)
    real = Counter(run.path.resolve() for run in runs)
    twice = [str(run.path) for run in runs if real.pop(run.path.resolve(), 1) > 1]
    if twice:
        raise UserError(f"--compare names {', '.join(twice)} more than once. Name each run once.")
    if len({run.splits.digest for run in runs}) > 1:
        found = [f"{run.path}: splits {run.splits.digest[:12]}" for run in runs]
        raise_problems(
            "--compare: these runs have different splits, so other test cases:",
            found,
            "Compare runs with equal splits: begin them with the same data, seed and ratios.",
        )
    return runs


def demand_ready(run: Run) -> None:
    """Raise UserError unless the run has been evaluated, or was tried and nothing could be certified."""
    if run.policy_files():
        trusted_policy(run)
        read_evaluation(run)
    elif refused_attempt(run) is None:
        script = run.policy_row.script
        raise UserError(f"{run.path} is not calibrated yet. Run {script} --run {run.path} first.")


def contender_of(run: Run, name: str) -> Contender:
    """One run that is ready, with its decisions on val_test."""
    risk, certificate, decisions, ranked_by = _certified(run) if run.policy_files() else _uncertified(run)
    return Contender(
        name=name,
        path=str(run.path),
        phase=run.config.phase,
        exit_policy=run.config.exit_policy,
        seed=run.config.seed,
        risk=risk,
        certificate=certificate,
        decisions=decisions,
        ranked_by=ranked_by,
        digests={
            "model": run.model_digest,
            "policy": artifacts.digest_file(run.policy_path) if certificate else None,
            "scores": artifacts.digest_file(run.scores_path("val_test")),
        },
    )


def shared_cases(runs: Sequence[Run]) -> SharedCases:
    """The test cases of runs with equal splits, whose score files must hold the same ones; prices are the first's."""
    first, *others = (run.scores("val_test") for run in runs)
    for run, scores in zip(runs[1:], others, strict=True):
        same = (np.array_equal(getattr(scores, name), getattr(first, name)) for name in ("case_id", "group", "labels"))
        if not all(same):
            raise UserError(
                f"{run.scores_path('val_test')} holds other cases than {runs[0].scores_path('val_test')}, although the "
                f"splits are equal: one of them has been altered. {RESCORE.format(run=run.path)}"
            )
    groups, config = group_index(first.group.astype(str), len(first)), runs[0].config
    prices = config.false_alarm_price, config.miss_price
    looks = max((confidences_spent(run) for run in runs), key=len)  # runs in several folders have several ledgers
    kept, digest = one_case_per_group(first), runs[0].splits.digest
    return SharedCases(first.labels.astype(np.int64), groups, kept, digest, prices, looks)


RESCORE = "Remove scores/val_test.parquet and run 40_eval_selective.py --run {run} again."


def _certified(run: Run) -> tuple[Risk, Certificate, ExitDecisions, str]:
    policy, scores, evaluation = read_policy(run), run.scores("val_test"), read_evaluation(run)
    decided = policy_from_artifact(run.policy_row.name, policy).decide(scores)
    decisions = replace(decided, predictions=scores.counted(decided.predictions))
    same_scores = evaluation["scores_digest"] == artifacts.digest_file(run.scores_path("val_test"))
    labels = scores.labels.astype(np.int64)
    if not same_scores or evaluation["confusion"] != confusion(decisions, labels, scores.logits.shape[1]):
        raise UserError(
            f"{run.eval_path}: its figures are not those of the policy and the scores beside it. "
            f"Run 40_eval_selective.py --run {run.path} again."
        )
    risk = Risk(policy["target_fnr_exit"], policy["fnr_confidence"])
    certificate = Certificate(
        policy["fnr_upper_bound"],
        policy["calib_use_count"],
        IN_EXPECTATION if in_expectation(policy) else BINOMIAL,
        policy.get("scrc_variant"),
        policy.get("remaining_confidence"),
    )
    return risk, certificate, decisions, "score of the exit policy"


def _uncertified(run: Run) -> tuple[Risk, None, ExitDecisions, str]:
    """Its test cases are scored here, since evaluation refuses a run without a policy."""
    attempt = refused_attempt(run)
    assert attempt is not None  # demand_ready has asked
    from stage1_pro.core.inference.scoring import score_test  # torch is imported for this alone

    score_test(run)
    select, scores = run.scores("val_select"), run.scores("val_test")
    config = run.config
    decisions, ranked_by = decide_without_certificate(config.exit_policy, select, scores, config.exit_rule)
    counted = replace(decisions, predictions=scores.counted(decisions.predictions))
    return Risk(attempt.target_fnr_exit, attempt.fnr_confidence), None, counted, ranked_by


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the runs; their paths where two have the same name."""
    count = Counter(run.name for run in runs)
    return [run.name if count[run.name] == 1 else str(run.path) for run in runs]


def _all(items: Sequence[Item], step: Callable[[Item], Result]) -> list[Result]:
    """step(item) of every item; the mistakes of all of them come as one UserError."""
    done, problems = [], []
    for item in items:
        try:
            done.append(step(item))
        except UserError as problem:
            problems.append(str(problem))
    if len(problems) == 1:
        raise UserError(problems[0])
    raise_problems(f"--compare: {len(problems)} of the runs cannot be compared yet:", problems)
    return done

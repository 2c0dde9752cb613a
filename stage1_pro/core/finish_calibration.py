"""How every calibration script ends: the attempt is recorded, then the policy is written or refused."""

from collections.abc import Callable
from typing import Any

from stage1_pro.core.console import say, say_next
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.verification import evidence_words
from stage1_pro.core.records.looks import record_attempt
from stage1_pro.core.records.policy_file import policy_header, write_policy
from stage1_pro.core.records.run import Run


def conclude(
    run: Run,
    name: str,
    risk: Risk,
    *,
    certified: bool,
    notes: list[str],
    warnings: list[str],
    fields: Callable[[], dict[str, Any]],
) -> None:
    """Record the attempt, then write the policy file and its figure, and say what is promised.

    fields: the policy's part of its file. Raises what it raises where nothing was certified, after notes and warnings
    have been said: they may tell why.
    """
    uses = record_attempt(run, name, risk, certified)
    for note in notes:
        say(note)
    for warning in warnings:
        say(f"warning: {warning}")
    policy = {**policy_header(run, risk, uses), **fields()}
    write_policy(run, policy)
    _draw(run, policy)
    _say_policy(policy)
    say_next(run.path, "40_eval_selective.py")


def _draw(run: Run, policy: dict[str, Any]) -> None:
    from stage1_pro.core.report.run.charts import sweep_figure

    sweep_figure(policy, run.figures_path / "threshold_sweep.png")


def _say_policy(policy: dict[str, Any]) -> None:
    """What was certified, and the promise in words."""
    say(f"certified: coverage {policy['coverage']:.1%} of val_calib; {evidence_words(policy)}")
    say(policy["guarantee"]["words"])
    if policy["calib_use_count"] > 1:
        say(
            f"warning: this val_calib split was used {policy['calib_use_count']} times; "
            "each use spends the confidence again"
        )

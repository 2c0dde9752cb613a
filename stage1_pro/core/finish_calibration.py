"""How every calibration script ends: the attempt is recorded, then the policy is written or refused."""

from collections.abc import Callable
from typing import Any

from stage1_pro.core.console import say, say_next
from stage1_pro.core.errors import NotWorthIt
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.usefulness import exit_figures, valued
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
    even_if_useless: bool = False,
) -> None:
    """Record the attempt, then write the policy file and its figure, and say what is promised.

    fields: the policy's part of its file. Raises what it raises where nothing was certified, after notes and warnings
    have been said: they may tell why. Raises NotWorthIt, and writes nothing, for a policy that is of no use, unless
    even_if_useless.
    """
    policy = valued(fields(), run.config) if certified else {}
    refused = "useless" in policy and not even_if_useless
    uses = record_attempt(run, name, risk, certified and not refused)
    for note in notes:
        say(note)
    for warning in [*warnings, *_stale_placement(run, risk)]:
        say(f"warning: {warning}")
    if not certified:
        fields()  # raises with the evidence and the remedies
    if refused:
        raise NotWorthIt(
            f"certified, but {policy['useless']}. No policy is written. Train a better model, or state other prices; "
            "--even_if_useless writes this one all the same, marked as what it is."
        )
    policy = {**policy_header(run, risk, uses), **policy, "answer_shift": run.scores("val_select").answer_shift}
    write_policy(run, policy)
    _draw(run, policy)
    _say_policy(policy)
    say_next(run.path, "40_eval_selective.py")


def _stale_placement(run: Run, risk: Risk) -> list[str]:
    """Say where the answers were placed for another target than the one that is certified."""
    placed_for = run.risk()
    if risk == placed_for or not run.scores("val_select").answer_shift:
        return []
    return [
        f"the answers were placed for target_fnr_exit {placed_for.target_fnr:g} at confidence "
        f"{placed_for.confidence:g}; a run trained with the new target places them anew"
    ]


def _draw(run: Run, policy: dict[str, Any]) -> None:
    from stage1_pro.core.report.run.charts import sweep_figure

    sweep_figure(policy, run.figures_path / "threshold_sweep.png")


def _say_policy(policy: dict[str, Any]) -> None:
    """Say what was certified, the promise in words, and what it is worth."""
    figures = policy["val_calib_metrics"]
    promised = f"FNR on exits <= {policy['target_fnr_exit']:g} at confidence {policy['fnr_confidence']:g}"
    say(f"certified: {promised}; {evidence_words(policy)}")
    say(f"on val_calib: {exit_figures(figures)}")
    say(policy["guarantee"]["words"])
    if "useless" in policy:
        say(f"warning: {policy['useless']}")
    if policy["calib_use_count"] > 1:
        say(
            f"warning: this val_calib split was used {policy['calib_use_count']} times; "
            "reusing it weakens the guarantee"
        )

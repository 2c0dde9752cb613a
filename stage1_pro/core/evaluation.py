"""Labelled cases decided by a certified policy and measured: the test split of a run, or another set."""

from dataclasses import replace
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.metrics.summary import evaluate
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.certification import one_case_per_group, share
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.verification import demand_consistent, demand_reproduced
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.seeds import rng_of


def trusted_policy(run: Run) -> dict[str, Any]:
    """The run's policy file. Raises UserError unless it carries its promise and val_calib gives its counts again."""
    policy, calib = read_policy(run), run.scores("val_calib")
    demand_consistent(policy, run.policy_path)
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(calib)
    demand_reproduced(policy, decisions, calib, run.policy_path)
    return policy


def evaluate_run(run: Run, policy: dict[str, Any]) -> dict[str, Any]:
    """Compute and write eval.json: every figure of METRICS on val_test, with intervals."""
    scores = run.scores("val_test")
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(scores)
    evaluation = {
        "run_id": run.name,
        "split": "val_test",
        "splits_digest": run.splits.digest,
        "policy_digest": artifacts.digest_file(run.policy_path),
        "scores_digest": artifacts.digest_file(run.scores_path("val_test")),
        **measured(scores, decisions, policy, run.config),
    }
    artifacts.write_json(run.eval_path, evaluation, "eval")
    return evaluation


def measured(
    scores: Scores, decisions: ExitDecisions, policy: dict[str, Any], config: Stage1ProConfig, what: str = "test split"
) -> dict[str, Any]:
    """Return what eval.json says of decisions on labelled cases, but for where scores and policy come from.

    policy: content of the policy file that decided; config: prices, and how intervals are drawn; what: the cases in
    words.
    """
    figures = evaluate(
        scores.logits,
        scores.labels,
        scores.group,
        replace(decisions, predictions=scores.counted(decisions.predictions)),
        target_fnr=policy["target_fnr_exit"],
        delta=1 - policy["fnr_confidence"],
        samples=config.bootstrap_samples,
        confidence=config.bootstrap_confidence,
        rng=rng_of(config.seed, "bootstrap"),
        independent=one_case_per_group(scores),
        shift=scores.answer_shift,
        prices=(config.false_alarm_price, config.miss_price),
        supported=scores.supported(decisions.predictions),
    )
    if not figures["negatives"]:
        figures = without_negatives(figures)
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "created_at": utc_now(),
        "phase": config.phase,
        "exit_policy": config.exit_policy,
        "model_digest": scores.model_digest,
        "target_fnr_exit": policy["target_fnr_exit"],
        "fnr_confidence": policy["fnr_confidence"],
        "bootstrap": {
            "samples": config.bootstrap_samples,
            "confidence": config.bootstrap_confidence,
            "unit": "group" if figures["groups"] < figures["cases"] else "case",
        },
        "promise": agreement(
            figures["exits"], policy["target_fnr_exit"], config.bootstrap_confidence, what, not figures["negatives"]
        ),
        **({} if scores.lengths is None else _of_groups(scores.lengths, scores.labels, decisions)),
        **figures,
    }


OF_POSITIVES = ("fnr_on_exits", "coverage", "right_exits")
"""What exits of positives alone can tell."""


def without_negatives(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of positives alone: what needs negatives is undefined, and not as good as it can be."""
    kept = {name: figures["exits"][name] for name in OF_POSITIVES}
    return {**figures, **_undefined({name: figures[name] for name in ("accuracy", "selective", "calibration")}),
            "exits": {**_undefined(figures["exits"]), **kept}}  # fmt: skip


def _undefined(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    return {"value": None} if "value" in value else {name: _undefined(item) for name, item in value.items()}


LENGTHS = 4
"""Ranges of group sizes, of about as many groups each, that figures are told for."""


def _of_groups(lengths: IntArray, labels: IntArray, decisions: ExitDecisions) -> dict[str, Any]:
    """Exits of groups by their number of images: the promise binds the mix of sizes, and not each of them."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="inverted_cdf"))
    place, rows = np.searchsorted(edges, lengths), []
    for members in (place == at for at in range(len(edges))):
        counts = count_decisions(decisions.exits[members], decisions.predictions[members], labels[members])
        rows.append(
            {
                "shortest": int(lengths[members].min()),
                "longest": int(lengths[members].max()),
                "groups": counts.cases,
                "positives": counts.positives,
                "coverage": share(counts.coverage[0]),
                "exited_positives": int(counts.exited_positives[0]),
                "misses": int(counts.misses[0]),
            }
        )
    return {"frames": int(lengths.sum()), "by_length": rows}


def read_evaluation(run: Run) -> dict[str, Any]:
    """eval.json, checked to be of this run's weights and policy."""
    mend = f"Run 40_eval_selective.py --run {run.path}"
    if not run.eval_path.exists():
        raise UserError(f"{run.eval_path} does not exist: the run has no test figures yet. {mend} first.")
    evaluation = artifacts.read_json(run.eval_path, "eval")
    if evaluation["split"] != "val_test":
        raise UserError(f"{run.eval_path} is of other cases than the run's test split. {mend} again.")
    found = (evaluation["model_digest"], evaluation["policy_digest"])
    if found != (run.model_digest, artifacts.digest_file(run.policy_path)):
        raise UserError(f"{run.eval_path} is of another model or policy. {mend} again.")
    return evaluation


VERDICTS = {
    "agrees": ("agrees with the promise", True),
    "too_few": ("has too few positives to tell", None),
    "contradicts": ("CONTRADICTS the promise", False),
}
"""By the exact two-sided interval of FNR on exits: all of it at or below the target, on both sides, all above."""


def agreement(
    exits: dict[str, Any], target: float, confidence: float, what: str = "test split", positives_only: bool = False
) -> dict[str, Any]:
    """Say whether labelled cases agree with a target that was certified, in one sentence: `promise` of eval.json.

    exits: their figures, as `evaluate` makes them; confidence: of their intervals; what: the cases in words.
    """
    fnr = exits["fnr_on_exits"]
    verdict = "agrees" if fnr["high"] <= target else "contradicts" if fnr["low"] > target else "too_few"
    words, held = VERDICTS[verdict]
    seen = f"{fnr['misses']} of {fnr['exited_positives']} exited positives missed"
    coverage, right, missed, alarms = (
        _percent(exits[name]["value"]) for name in ("coverage", "right_exits", "fnr_on_exits", "fpr_on_exits")
    )
    shares = f"coverage {coverage}, right exits {right}, FNR on exits {missed}, FPR on exits {alarms}"
    more = ""
    if positives_only:
        shares = f"of its cases, all positive, {coverage} exit and {right} exit rightly; FNR on exits {missed}"
        more = " Coverage of all cases, FPR, precision and calibration are not measured: they need negatives."
    return {
        "verdict": verdict,
        "held": held,
        "words": f"The {what} {words}: {shares}; {seen}, {fnr['low']:.2%} to {fnr['high']:.2%} at confidence "
        f"{confidence:g} against a target of {target:g}.{more}",
    }


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"

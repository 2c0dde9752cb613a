"""Labelled cases decided by a certified policy and measured: the test split of a run, or another set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import IntArray, percent, share
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.metrics.summary import evaluate
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.independence import one_case_per_group
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
    by_group = _by_certificate_group(scores, decisions, policy, config.bootstrap_confidence)
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
            figures["exits"],
            policy["target_fnr_exit"],
            config.bootstrap_confidence,
            what,
            not figures["negatives"],
            by_group,
        ),
        **({"by_certificate_group": by_group} if by_group else {}),
        **({} if scores.lengths is None else _of_groups(scores.lengths, scores.labels, decisions)),
        **figures,
    }


def _by_certificate_group(
    scores: Scores, decisions: ExitDecisions, policy: dict[str, Any], confidence: float
) -> list[dict[str, Any]]:
    """Exits of each certificate group; none where a policy has one certificate for all cases.

    The intervals of all certified groups together hold with this confidence.
    """
    if scores.certificate_group is None or "groups" not in policy:
        return []
    names, counted, rows = scores.certificate_group.astype(str), one_case_per_group(scores), []
    certified = set(policy["groups"]) & set(names.tolist())
    each = 1 - (1 - confidence) / max(1, len(certified))
    for name in np.unique(names).tolist():
        own = names == name
        every, evidence = (
            count_decisions(decisions.exits[kept], decisions.predictions[kept], scores.labels[kept])
            for kept in (own, own & counted)
        )
        misses, exited = int(evidence.misses[0]), int(evidence.exited_positives[0])
        low, high = (float(end) for end in fnr_interval(misses, exited, each))
        rows.append(
            {
                "name": name,
                "certified": name in certified,
                "cases": every.cases,
                "positives": every.positives,
                "coverage": share(every.coverage[0]),
                "exited_positives": exited,
                "misses": misses,
                "low": low,
                "high": high,
                "verdict": _verdict(low, high, policy["target_fnr_exit"]) if name in certified else None,
            }
        )
    return rows


OF_POSITIVES = ("fnr_on_exits", "coverage", "right_exits")
"""What exits of positives alone can tell."""


def without_negatives(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of positives alone: what needs negatives is undefined, and not as good as it can be."""
    exits = figures["exits"]
    kept = {name: exits[name] for name in OF_POSITIVES}
    others = {name: _undefined(figures[name]) for name in ("accuracy", "selective", "calibration")}
    return {**figures, **others, "exits": {**_undefined(exits), **kept}}


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


OF_GROUPS = {
    "agrees": "agree with the promise",
    "too_few": "have too few positives to tell",
    "contradicts": "CONTRADICT it",
}


def _verdict(low: float, high: float, target: float) -> str:
    return "agrees" if high <= target else "contradicts" if low > target else "too_few"


def _of_certified(by_group: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The verdict on a promise for each group, which the worst of them decides, and a sentence on them."""
    found = {name: [row["name"] for row in by_group if row["verdict"] == name] for name in VERDICTS}
    verdict = next((name for name in ("contradicts", "too_few", "agrees") if found[name]), "too_few")
    told = [f"{len(found[name])} {words}" for name, words in OF_GROUPS.items() if found[name]]
    named = f" ({', '.join(found['contradicts'])})" if found["contradicts"] else ""
    return verdict, f" Of the certified groups {', '.join(told) or 'none has a case here'}{named}."


def agreement(
    exits: dict[str, Any],
    target: float,
    confidence: float,
    what: str = "test split",
    positives_only: bool = False,
    by_group: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Say whether labelled cases agree with a target that was certified, in one sentence: `promise` of eval.json.

    exits: their figures, as `evaluate` makes them; confidence: of their intervals; what: the cases in words; by_group:
    rows of the certificate groups, where each has a promise of its own.
    """
    fnr = exits["fnr_on_exits"]
    verdict, of_groups = _of_certified(by_group) if by_group else (_verdict(fnr["low"], fnr["high"], target), "")
    words, held = VERDICTS[verdict]
    seen = f"{fnr['misses']} of {fnr['exited_positives']} exited positives missed"
    coverage, right, missed, alarms = (
        percent(exits[name]["value"]) for name in ("coverage", "right_exits", "fnr_on_exits", "fpr_on_exits")
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
        f"{confidence:g} against a target of {target:g}.{of_groups}{more}",
    }

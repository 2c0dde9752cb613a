"""The test split of a calibrated run: scored once, decided by the policy, measured."""

from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.summary import evaluate
from stage1_pro.core.policies.certification import one_case_per_group
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.verification import demand_consistent, demand_reproduced
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.records.run import Run
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
    scores, config = run.scores("val_test"), run.config
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(scores)
    figures = evaluate(
        scores.logits,
        scores.labels,
        scores.group,
        decisions,
        target_fnr=policy["target_fnr_exit"],
        delta=1 - policy["fnr_confidence"],
        samples=config.bootstrap_samples,
        confidence=config.bootstrap_confidence,
        rng=rng_of(config.seed, "bootstrap"),
        independent=one_case_per_group(scores),
    )
    evaluation = {
        "schema_version": artifacts.SCHEMA_VERSION,
        "run_id": run.name,
        "created_at": utc_now(),
        "split": "val_test",
        "phase": config.phase,
        "exit_policy": run.policy_row.name,
        "model_digest": run.model_digest,
        "splits_digest": run.splits.digest,
        "policy_digest": artifacts.digest_file(run.policy_path),
        "scores_digest": artifacts.digest_file(run.scores_path("val_test")),
        "target_fnr_exit": policy["target_fnr_exit"],
        "fnr_confidence": policy["fnr_confidence"],
        "bootstrap": {
            "samples": config.bootstrap_samples,
            "confidence": config.bootstrap_confidence,
            "unit": "group" if figures["groups"] < figures["cases"] else "case",
        },
        "promise": _promise(figures["exits"], policy["target_fnr_exit"]),
        **figures,
    }
    artifacts.write_json(run.eval_path, evaluation, "eval")
    return evaluation


def read_evaluation(run: Run) -> dict[str, Any]:
    """eval.json, checked to be of this run's weights and policy."""
    mend = f"Run 40_eval_selective.py --run {run.path}"
    if not run.eval_path.exists():
        raise UserError(f"{run.eval_path} does not exist: the run has no test figures yet. {mend} first.")
    evaluation = artifacts.read_json(run.eval_path, "eval")
    found = (evaluation["model_digest"], evaluation["policy_digest"])
    if found != (run.model_digest, artifacts.digest_file(run.policy_path)):
        raise UserError(f"{run.eval_path} is of another model or policy. {mend} again.")
    return evaluation


def _promise(exits: dict[str, Any], target: float) -> dict[str, Any]:
    """Whether the test split agrees with the certificate, in one sentence."""
    fnr, coverage = exits["fnr_on_exits"], exits["coverage"]["value"]
    misses, exited = fnr["misses"], fnr["exited_positives"]
    if not exited:
        return {
            "held": None,
            "words": "No positive of the test split exits, so it cannot speak about FNR on exits "
            f"(coverage {coverage:.1%}).",
        }
    held = fnr["value"] <= target
    verdict = "The promise held on the test split" if held else "The promise did NOT hold on the test split"
    chance = "" if held or fnr["low"] > target else ", which its interval still covers"
    return {
        "held": held,
        "words": f"{verdict}: coverage {coverage:.1%}, {misses} of {exited} exited positives missed, FNR on exits "
        f"{fnr['value']:.4f} against a target of {target:g}{chance}.",
    }

"""Whether a policy file is what a calibration wrote: complete, in itself consistent, and reproduced by val_calib."""

from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray
from stage1_pro.core.metrics.binomial import bound_text, fnr_upper_bound, p_value
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.metrics.risk import Risk, remaining_confidence
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.certification import (
    GROUP_WORDS,
    any_case_per_group,
    one_case_per_group,
    promise,
    share,
    split_metrics,
)
from stage1_pro.core.policies.exit_rules import boundary_problems, method_of
from stage1_pro.core.policies.fixed_sequence import ALL_DRAWS, GUARANTEE
from stage1_pro.core.policies.scrc_transductive import Selection, allowed_losses, cut, promise_in_expectation
from stage1_pro.core.records.scores import Scores

DEMANDED = (
    *("schema_version", "run_id", "created_at", "target_fnr_exit", "fnr_confidence", "guarantee", "exited_positives"),
    *("misses", "fnr_upper_bound", "calib_use_count", "model_digest", "splits_digest", "diagnostics", "sweep_results"),
)
DEMANDED_OF_SCRC = ("dirichlet_params", "calibrator_params", "calibrator_type")
THRESHOLDS = {"threshold": ("exit_threshold", "gate_threshold"), "lambda1": ("lambda1",), "lambda2": ("lambda2",)}
"""What a row of the sweep calls a parameter, and the fields that hold the chosen one."""
SPENT = ("earlier_confidences", "remaining_confidence")
"""The other looks at the same positives, and what all of them leave of the confidence."""
COUNTS = ("misses", "exited_positives", "fnr_upper_bound", "coverage")


def in_expectation(policy: dict[str, Any]) -> bool:
    """Whether the promise is one in expectation (SCRC-T), without a binomial certificate."""
    return policy.get("scrc_variant") == "SCRC-T"


def evidence_words(policy: dict[str, Any]) -> str:
    """What the promise of a policy rests on, in one line."""
    misses, exited, bound = policy["misses"], policy["exited_positives"], bound_text(policy["fnr_upper_bound"])
    if in_expectation(policy):
        selected = policy["transductive"]["positives_selected"]
        return (
            f"{misses} of {selected} selected positives have a prediction set without the positive class; "
            f"FNR on exits <= {bound} in expectation, approximately"
        )
    return f"{misses} of {exited} exited positives missed; FNR on exits <= {bound}"


def demand_consistent(policy: dict[str, Any], where: Path) -> None:
    """Raise UserError unless the file is complete and its counts really carry what it promises."""
    demanded = (*DEMANDED, *(DEMANDED_OF_SCRC if "scrc_variant" in policy else ()))
    demanded += ("transductive",) if in_expectation(policy) else ()
    missing = [f"$.{name} is missing" for name in demanded if name not in policy]
    raise_problems(
        f"{where}: incomplete, so nothing shows that it was certified:", missing, "Calibrate the run with our script."
    )
    (_demand_expectation if in_expectation(policy) else _demand_certificate)(policy, where)
    _demand_spent(policy, where)
    if _as_of_today(policy["guarantee"], policy) != promised(policy):
        raise _altered(where, "$.guarantee does not say what its numbers do")
    if policy.get("fnr_bound") not in (
        None,
        policy["target_fnr_exit"],
        policy["fnr_upper_bound"],
    ):  # the bound: files of 2026
        raise _altered(where, "$.fnr_bound is not $.target_fnr_exit, which is what is promised")
    for version, digest in (("model_version", "model_digest"), ("splits_version", "splits_digest")):
        if policy.get(version, policy[digest]) != policy[digest]:
            raise _altered(where, f"$.{version} and $.{digest} differ")
    certified = [row for row in policy["sweep_results"] if row.get("certified")]
    chosen = certified[-1] if certified else {}
    expected = {name: policy[name] for name in COUNTS if name in chosen or not in_expectation(policy)}
    for name in THRESHOLDS.keys() & chosen.keys():
        expected[name] = next(policy[field] for field in THRESHOLDS[name] if field in policy)
    if not chosen or any(chosen.get(name) != value for name, value in expected.items()):
        raise _altered(where, "its threshold is not the last one that its sweep certified")


def demand_reproduced(policy: dict[str, Any], decisions: ExitDecisions, calib: Scores, where: Path) -> None:
    """Raise UserError unless the policy, applied to val_calib again, gives the counts that it records."""
    kept = counted_cases(policy, calib)
    counts = count_decisions(decisions.exits[kept], decisions.predictions[kept], calib.labels[kept])
    found = int(counts.misses[0]), int(counts.exited_positives[0])
    if found != (policy["misses"], policy["exited_positives"]):
        raise UserError(
            f"{where}: on val_calib it gives {found[0]} misses of {found[1]} exited positives, not the "
            f"{policy['misses']} of {policy['exited_positives']} that it records: file or scores have been altered."
        )
    every = count_decisions(decisions.exits, decisions.predictions, calib.labels)
    groups, recorded = len(np.unique(calib.group.astype(str))), policy["val_calib_metrics"]
    metrics = split_metrics(every, groups, counts.positives, 0)
    facts = {"coverage": metrics["coverage"], "exit_accuracy": metrics["accuracy_on_exits"]}
    facts["fnr_on_exits"] = share(counts.fnr[0])
    wrong = [f"$.{name}" for name, value in facts.items() if policy[name] != value]
    wrong += [f"$.val_calib_metrics.{name}" for name, value in metrics.items() if recorded.get(name) != value]
    if wrong:
        raise UserError(f"{where}: val_calib gives other values of {', '.join(wrong)}: file or scores were altered.")
    if in_expectation(policy):
        _demand_cut(policy, decisions.scores, calib, kept, where)


def _demand_cut(policy: dict[str, Any], gate: FloatArray, calib: Scores, kept: BoolArray, where: Path) -> None:
    """lambda1 must be where val_calib is cut, and the selected positives those above it."""
    facts = policy["transductive"]
    selection = Selection(facts["selected_of_select"], facts["cases_of_select"], 0.5, 0.0)
    selected = int(np.count_nonzero(kept & (gate >= policy["lambda1"]) & (calib.labels == 1)))
    if cut(gate[kept], selection) != policy["lambda1"] or selected != facts["positives_selected"]:
        raise UserError(f"{where}: val_calib is cut elsewhere than at $.lambda1: file or scores were altered.")


def counted_cases(policy: dict[str, Any], calib: Scores) -> BoolArray:
    """(N,) the cases of val_calib that the promise counts: one a group, where there are groups."""
    return any_case_per_group(calib) if in_expectation(policy) else one_case_per_group(calib)


def _demand_certificate(policy: dict[str, Any], where: Path) -> None:
    misses, exited, delta = policy["misses"], policy["exited_positives"], 1 - policy["fnr_confidence"]
    if misses > exited or p_value(misses, exited, policy["target_fnr_exit"]) > delta:
        raise _altered(
            where,
            f"{misses} misses of {exited} exited positives do not certify target_fnr_exit "
            f"{policy['target_fnr_exit']:g} at confidence {policy['fnr_confidence']:g}",
        )
    if policy["fnr_upper_bound"] < float(fnr_upper_bound(misses, exited, delta)) - 1e-9:
        raise _altered(where, "$.fnr_upper_bound is tighter than its counts allow")
    for problem in boundary_problems(policy, Risk(policy["target_fnr_exit"], policy["fnr_confidence"])):
        raise _altered(where, problem)


def _demand_expectation(policy: dict[str, Any], where: Path) -> None:
    """No binomial certificate: the number of losses must be what the conformal rule allows."""
    facts, target = policy["transductive"], policy["target_fnr_exit"]
    level, singletons, selected = (
        facts["alpha_prime"],
        facts["singleton_share_lower_bound"],
        facts["positives_selected"],
    )
    if level != target * singletons:
        raise _altered(where, f"$.transductive.alpha_prime {level:g} is not target times singleton share")
    if not policy["misses"] <= policy["exited_positives"] <= selected:
        raise _altered(where, f"misses, exited and {selected} selected positives do not nest")
    if policy["misses"] > allowed_losses(selected, level):
        raise _altered(
            where,
            f"{policy['misses']} losses among {selected} selected positives; at alpha_prime {level:.4g} "
            f"{max(0, allowed_losses(selected, level))} are allowed",
        )
    if policy["lambda2"] > facts["lambda2_max"] or policy["fnr_upper_bound"] != target:
        raise _altered(where, "$.lambda2 is above its maximum, or the bound is not the target")


GROUP_WORDS_OF_2026 = (
    " Cases of one group are not independent, so one positive drawn from each group was counted: the promise is about "
    "a case drawn at random from a new group."
)
"""They said more than was certified; bundles that hold them are in use."""


def _as_of_today(guarantee: dict[str, str], policy: dict[str, Any]) -> dict[str, str]:
    """A guarantee in the words of now; files of before the confidence that remains was recorded said less."""
    words = guarantee["words"].replace(GROUP_WORDS_OF_2026, GROUP_WORDS)
    if "remaining_confidence" not in policy and ALL_DRAWS not in words and not in_expectation(policy):
        sentence = GUARANTEE.format(confidence=policy["fnr_confidence"], target=policy["target_fnr_exit"])
        words = words.replace(sentence, sentence + ALL_DRAWS)
    return {**guarantee, "words": words}


def _demand_spent(policy: dict[str, Any], where: Path) -> None:
    """What remains of the confidence must follow from the looks that are counted."""
    recorded = [name for name in SPENT if name in policy]
    if not recorded:
        return  # a file of before it was recorded
    raise_problems(
        f"{where}: incomplete, so nothing shows which confidence remains:",
        [f"$.{name} is missing" for name in SPENT if name not in policy],
        "Calibrate the run with our script.",
    )
    earlier = policy["earlier_confidences"]
    if policy["calib_use_count"] != 1 + len(earlier):
        raise _altered(
            where, f"$.calib_use_count is {policy['calib_use_count']}, and {len(earlier)} other looks are listed"
        )
    if policy["remaining_confidence"] != remaining_confidence([*earlier, policy["fnr_confidence"]]):
        raise _altered(where, "$.remaining_confidence is not what the looks leave of $.fnr_confidence")


def promised(policy: dict[str, Any]) -> dict[str, str]:
    """Return the guarantee that the numbers of a policy file carry."""
    metrics, risk = policy["val_calib_metrics"], Risk(policy["target_fnr_exit"], policy["fnr_confidence"])
    grouped, earlier = metrics["groups"] < metrics["cases"], policy.get("earlier_confidences", [])
    if not in_expectation(policy):
        return promise(risk, method_of(policy), grouped=grouped, earlier=earlier)
    facts = policy["transductive"]
    shares = facts["alpha_prime"], facts["singleton_share_lower_bound"]
    return promise_in_expectation(risk, *shares, grouped=grouped, looks=1 + len(earlier))


def _altered(where: Path, what: str) -> UserError:
    return UserError(f"{where}: {what}: the file has been altered. Calibrate the run with our script.")

"""The evidence in a policy file, and whether it carries what the file promises.

A file rests on its evidence in one of a few ways, and each is a row of KINDS: what it demands, what is recomputed.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core.metrics.binomial import bound_text, fnr_upper_bound, p_value
from stage1_pro.core.metrics.margins import margins, robust_target
from stage1_pro.core.metrics.risk import remaining_confidence
from stage1_pro.core.metrics.views import views_of
from stage1_pro.core.policies.fixed_sequence import ALL_DRAWS, GUARANTEE
from stage1_pro.core.policies.grouped import THRESHOLDS
from stage1_pro.core.policies.independence import any_case_per_group, one_case_per_group
from stage1_pro.core.policies.nested_boundary import crossing
from stage1_pro.core.policies.policy_record import Check, Kind, PolicyFile
from stage1_pro.core.policies.promise import GROUP_WORDS, promise
from stage1_pro.core.policies.scrc_transductive import allowed_losses, promise_in_expectation
from stage1_pro.core.policies.usefulness import worth

SLACK = 1e-12
"""Rounding of a sum of equal parts of delta."""
SPENT = ("earlier_confidences", "remaining_confidence")
"""The other looks at the same positives, and what all of them leave of the confidence."""
GROUP_WORDS_OF_2026 = (
    " Cases of one group are not independent, so one positive drawn from each group was counted: the promise is about "
    "a case drawn at random from a new group."
)
"""They said more than was certified; bundles that hold them are in use."""


def kind_of(policy: dict[str, Any]) -> Kind:
    """Return how a policy file says that it rests on its evidence."""
    if in_expectation(policy):
        return KINDS["expectation"]
    if "groups" in policy:
        return KINDS["groups"]
    if policy.get("exit_rule") == "one_sided":
        return KINDS["one_sided"]
    return KINDS["boundary" if "boundary" in policy.get("diagnostics", {}) else "walk"]


def in_expectation(policy: dict[str, Any]) -> bool:
    """Return whether the promise is one in expectation (SCRC-T), without a binomial certificate."""
    return policy.get("scrc_variant") == "SCRC-T"


def read_evidence(policy: dict[str, Any], where: Path) -> PolicyFile:
    """Return a policy file with all the fields that its kind of evidence needs.

    policy: content of the file, valid by its schema; where: its path. Raises UserError for fields that are missing.
    """
    return PolicyFile.of(policy, kind_of(policy), where)


def evidence_words(policy: dict[str, Any]) -> str:
    """Return in one line what the promise of a policy rests on."""
    return kind_of(policy).words(policy)


# ---- checks of every file


def _says_what_its_numbers_do(file: PolicyFile) -> Iterator[str]:
    guarantee = file["guarantee"]
    words = guarantee["words"].replace(GROUP_WORDS_OF_2026, GROUP_WORDS)
    if not any(name in file.content for name in SPENT) and ALL_DRAWS not in words:  # older files said less
        sentence = GUARANTEE.format(confidence=file.risk.confidence, target=file.risk.target_fnr)
        words = words.replace(sentence, sentence + ALL_DRAWS)
    if {**guarantee, "words": words} != file.kind.promised(file):
        yield "$.guarantee does not say what its numbers do"


def _states_what_remains(file: PolicyFile) -> Iterator[str]:
    """What remains of the confidence follows from the looks that are counted; older files state neither."""
    if not any(name in file.content for name in SPENT):
        return
    earlier, left = (file.content.get(name) for name in SPENT)
    if earlier is None or file["calib_use_count"] != 1 + len(earlier):
        yield f"$.calib_use_count is {file['calib_use_count']}, and {len(earlier or [])} other looks are listed"
    elif left != remaining_confidence([*earlier, file.risk.confidence]):
        yield "$.remaining_confidence is not what the looks leave of $.fnr_confidence"


def _promises_the_target(file: PolicyFile) -> Iterator[str]:
    """`fnr_bound` of SCRC is the target; before exit_rule was recorded it was the pointwise bound."""
    before = {file["fnr_upper_bound"]} if "exit_rule" not in file.content else set()
    if file.content.get("fnr_bound", file["target_fnr_exit"]) not in {file["target_fnr_exit"], *before}:
        yield "$.fnr_bound is not $.target_fnr_exit, which is what is promised"


def _names_one_model(file: PolicyFile) -> Iterator[str]:
    for version, digest in (("model_version", "model_digest"), ("splits_version", "splits_digest")):
        if file.content.get(version, file[digest]) != file[digest]:
            yield f"$.{version} and $.{digest} differ"


def _holds_the_last_certified_row(file: PolicyFile) -> Iterator[str]:
    row = file.chosen
    expected = {name: file[name] for name in ("misses", "exited_positives", "coverage")}
    expected |= {name: file[field] for field, name in THRESHOLDS.items() if field in file.content}
    if "fnr_upper_bound" in row or not in_expectation(file.content):
        expected["fnr_upper_bound"] = file["fnr_upper_bound"]
    if any(row.get(name) != value for name, value in expected.items()):
        yield "its threshold is not the last one that its sweep certified"


def _is_worth_what_it_says(file: PolicyFile) -> Iterator[str]:
    """Utility and uselessness follow from the counts and the stated prices; files without prices state neither."""
    if "prices" not in file.content:
        return
    utility, useless = worth(file["val_calib_metrics"], file["prices"], masks=file.miss_rule is not None)
    if file["val_calib_metrics"].get("utility") != utility or file.content.get("useless", "") != useless:
        yield "$.val_calib_metrics.utility or $.useless is not what its counts are worth at $.prices"


def _names_its_groups(file: PolicyFile) -> Iterator[str]:
    if ("groups" in file.content) != ("certificate_groups" in file.content):
        yield "of $.certificate_groups and $.groups one stands without the other"


def _states_its_margins(file: PolicyFile) -> Iterator[str]:
    """Margins follow from the target, the level that is certified and robust_to; older files state none."""
    if "margins" not in file.content:
        return
    level, stated = file["target_fnr_exit"], dict(file["margins"])
    target, ratio = stated.pop("target"), stated.pop("robust_to")
    expected = target if ratio is None else robust_target(target, ratio)
    if not math.isclose(expected, level, rel_tol=1e-9):
        yield f"$.margins.target is {target:g}, which certifies {expected:.6g}, and $.target_fnr_exit is {level:g}"
    elif stated != margins(target, level):
        yield "$.margins are not those of the level that is certified"


def _counts_what_was_kept(file: PolicyFile) -> Iterator[str]:
    """With known weights what is counted is what they keep, and a promise in expectation has none."""
    if "weights" not in file.content:
        return
    weights, metrics = file["weights"], file["val_calib_metrics"]
    if (weights["kept"], weights["kept_positives"]) != (metrics["cases"], metrics["positives"]):
        yield "$.weights and $.val_calib_metrics count other cases"
    if in_expectation(file.content):
        yield "$.weights goes with a certificate, and this is a promise in expectation"


EVERY: tuple[Check, ...] = (
    _names_its_groups,
    _states_its_margins,
    _counts_what_was_kept,
    _says_what_its_numbers_do,
    _states_what_remains,
    _promises_the_target,
    _names_one_model,
    _is_worth_what_it_says,
)


# ---- checks of a certificate


def _carries_its_certificate(file: PolicyFile) -> Iterator[str]:
    misses, exited, risk = file["misses"], file["exited_positives"], file.risk
    if misses > exited or p_value(misses, exited, risk.target_fnr) > risk.delta:
        yield (
            f"{misses} misses of {exited} exited positives do not certify target_fnr_exit {risk.target_fnr:g} at "
            f"confidence {risk.confidence:g}"
        )
    elif file["fnr_upper_bound"] < float(fnr_upper_bound(misses, exited, risk.delta)) - 1e-9:
        yield "$.fnr_upper_bound is tighter than its counts allow"


def _is_one_sided(file: PolicyFile) -> Iterator[str]:
    """Positives answered 1 exit at every threshold, and certified is all up to the last that passes."""
    if (np.diff(file.exited_positives - file.misses) != 0).any() or (np.diff(file.misses) < 0).any():
        yield "$.sweep_results is of no one-sided exits: the positives answered 1 differ, or misses fall"
    last = np.flatnonzero(file.passes)[-1:]
    if (file.certified != (np.arange(file.passes.size) <= (last[0] if last.size else -1))).any():
        yield "$.sweep_results does not certify all up to the last threshold that passes"


def _is_a_walk(file: PolicyFile) -> Iterator[str]:
    """Certified is one run of candidates, each of which passes."""
    if (file.certified & ~file.passes).any() or np.count_nonzero(np.diff(file.certified, prepend=False)) > 2:
        yield "$.sweep_results is of no walk: it certifies a threshold that fails, or goes on after one"


def _is_within_its_boundary(file: PolicyFile) -> Iterator[str]:
    """The boundary is crossed rarely enough, and certified is what lies within it."""
    rises, risk = np.asarray(file["diagnostics"]["boundary"]["rises"], dtype=np.int64), file.risk
    if (np.diff(rises, prepend=0) < 1).any():
        yield "$.diagnostics.boundary.rises does not rise"
    elif crossing(rises, risk.target_fnr) > risk.delta:
        yield f"$.diagnostics.boundary is crossed with a probability above {risk.delta:.4g}"
    within = file.misses < np.searchsorted(rises, file.exited_positives, side="right")
    for index in np.flatnonzero(within != file.certified)[:1]:
        yield (
            f"{file.misses[index]} misses of {file.exited_positives[index]} exited positives are "
            f"{'within' if within[index] else 'not within'} $.diagnostics.boundary, against $.sweep_results[{index}]"
        )


def _promised(file: PolicyFile) -> dict[str, str]:
    facts: dict[str, Any] = {"earlier": file.earlier, "miss_rule": file.miss_rule, "views": views_of(file.content)}
    if "groups" in file.content:
        facts["certified"] = file["certificate_groups"], sorted(file["groups"])
    facts["weights"] = file.content.get("weights")
    return promise(file.risk, file.kind.name, grouped=file.grouped, **facts)


def _certificate_words(policy: dict[str, Any]) -> str:
    missed = f"{policy['misses']} of {policy['exited_positives']} exited positives missed"
    return f"{missed}, bound at this threshold alone {bound_text(policy['fnr_upper_bound'])}"


# ---- checks of a promise in expectation


def _keeps_the_conformal_rule(file: PolicyFile) -> Iterator[str]:
    """No binomial certificate: the number of losses must be what the conformal rule allows."""
    facts, target, misses = file["transductive"], file["target_fnr_exit"], file["misses"]
    level, selected = facts["alpha_prime"], facts["positives_selected"]
    if level != target * facts["singleton_share_lower_bound"]:
        yield f"$.transductive.alpha_prime {level:g} is not target times singleton share"
    if not misses <= file["exited_positives"] <= selected:
        yield f"misses, exited and {selected} selected positives do not nest"
    if misses > allowed_losses(selected, level):
        yield (
            f"{misses} losses among {selected} selected positives; at alpha_prime {level:.4g} "
            f"{max(0, allowed_losses(selected, level))} are allowed"
        )
    if file["lambda2"] > facts["lambda2_max"] or file["fnr_upper_bound"] != target:
        yield "$.lambda2 is above its maximum, or the bound is not the target"
    if file.content.get("exit_rule", "symmetric") != "symmetric":
        yield "$.exit_rule is not symmetric: SCRC-T selects by the gate of either answer"


def _promised_in_expectation(file: PolicyFile) -> dict[str, str]:
    facts = file["transductive"]
    shares = facts["alpha_prime"], facts["singleton_share_lower_bound"]
    return promise_in_expectation(file.risk, *shares, grouped=file.grouped, looks=1 + len(file.earlier))


def _expectation_words(policy: dict[str, Any]) -> str:
    return (
        f"{policy['misses']} of {policy['transductive']['positives_selected']} selected positives have a prediction "
        f"set without the positive class; FNR on exits <= {bound_text(policy['fnr_upper_bound'])} in expectation, "
        "approximately"
    )


# ---- checks of a certificate for each group


def group_file(policy: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one group's part of a policy file as a file of its own: what is the same for all groups, and its own."""
    shared = {key: value for key, value in policy.items() if key not in ("groups", "groups_deferred", *THRESHOLDS)}
    own = dict(policy["groups"][name])
    delta = own.pop("delta")
    chosen = {field: own.pop(short) for field, short in THRESHOLDS.items() if field in policy}
    return {**shared, **own, **chosen, "fnr_confidence": 1 - delta}


def _certifies_each_group(file: PolicyFile) -> Iterator[str]:
    """Each group is what a policy file of its own would be, and together they spend delta."""
    for name in sorted(file["groups"]):
        own = read_evidence(group_file(file.content, name), Path(f"$.groups.{name}"))
        yield from (f"$.groups.{name}: {problem}" for check in own.kind.checks for problem in check(own))
    parts = [*file["groups"].values(), *file["groups_deferred"].values()]
    if sum(part["delta"] for part in parts) > file.risk.delta + SLACK:
        yield f"$.groups and $.groups_deferred spend more than the {file.risk.delta:.4g} of $.fnr_confidence"


def _sums_its_groups(file: PolicyFile) -> Iterator[str]:
    groups = file["groups"].values()
    expected: dict[str, Any] = {name: sum(group[name] for group in groups) for name in ("misses", "exited_positives")}
    expected["fnr_upper_bound"] = max(group["fnr_upper_bound"] for group in groups)
    chosen = {field: short for field, short in THRESHOLDS.items() if field in file.content}
    expected |= {field: max(group[short] for group in groups) for field, short in chosen.items()}
    yield from (f"$.{name} is not that of $.groups" for name, value in expected.items() if file[name] != value)
    if file.certified.any():
        yield "$.sweep_results is of one threshold for all groups, and none of these is certified"


def _groups_words(policy: dict[str, Any]) -> str:
    every, passed = len(policy["groups"]) + len(policy["groups_deferred"]), len(policy["groups"])
    missed = f"{policy['misses']} of {policy['exited_positives']} exited positives missed"
    return f"{passed} of {every} groups of '{policy['certificate_groups']}' certified, in these {missed}"


def _certificate(name: str, check: Check) -> Kind:
    return Kind(
        name=name,
        checks=(_carries_its_certificate, check, _holds_the_last_certified_row),
        promised=_promised,
        counted=one_case_per_group,
        words=_certificate_words,
    )


KINDS = {
    kind.name: kind
    for kind in (
        _certificate("one_sided", _is_one_sided),
        _certificate("boundary", _is_within_its_boundary),
        _certificate("walk", _is_a_walk),
        Kind(
            name="expectation",
            checks=(_keeps_the_conformal_rule, _holds_the_last_certified_row),
            promised=_promised_in_expectation,
            counted=any_case_per_group,
            words=_expectation_words,
            demanded=("transductive",),
        ),
        Kind(
            name="groups",
            checks=(_certifies_each_group, _sums_its_groups),
            promised=_promised,
            counted=one_case_per_group,
            words=_groups_words,
            demanded=("certificate_groups", "groups_deferred"),
        ),
    )
}

"""A calibration in words, for the console: what was certified, what speaks against it, what a further look costs."""

from collections.abc import Iterator
from typing import Any

from stage1_pro.core.cascade.prices import EarlyEnd
from stage1_pro.core.metrics.binomial import bound_text
from stage1_pro.core.metrics.risk import Risk, remaining_confidence
from stage1_pro.core.policies.certification import Calibration
from stage1_pro.core.policies.evidence import evidence_words, in_expectation
from stage1_pro.core.policies.scrc_transductive import Transductive
from stage1_pro.core.policies.usefulness import exit_figures
from stage1_pro.core.policies.words import margin_words, weight_words
from stage1_pro.core.records.looks import Look
from stage1_pro.core.records.run import Run

SEEN_FAILURES = (
    "A model trained anew is another look. If it is changed after seeing which calibration cases failed, no number "
    "covers that: give it a val_calib of other positives."
)
LEAST_KEPT = 1 / 3
"""Share of val_calib that known weights should keep: with less, labels from that world are the cheaper evidence."""


def group_lines(policy: dict[str, Any]) -> Iterator[str]:
    """What a policy file says of each certificate group, a line each; none where one certificate holds for all."""
    for name, group in policy.get("groups", {}).items():
        bound = bound_text(group["fnr_upper_bound"])
        missed = f"{group['misses']} of {group['exited_positives']} exited positives missed"
        yield f"  {name}: coverage {group['coverage']:.1%}, {missed}, bound at this threshold alone {bound}"
    for name, one in policy.get("groups_deferred", {}).items():
        yield f"  {name}: every case defers: {one['why']}"


def policy_lines(policy: dict[str, Any]) -> Iterator[str]:
    """What was certified, the promise in words, and what it is worth."""
    figures, left = policy["val_calib_metrics"], policy["remaining_confidence"]
    sought = f"FNR on exits <= {policy['target_fnr_exit']:g}"
    if left or in_expectation(policy):
        yield f"certified: {sought} at confidence {left:g}; {evidence_words(policy)}"
    else:
        yield f"no confidence remains for {sought}; {evidence_words(policy)}"
    yield from group_lines(policy)
    yield f"on val_calib: {exit_figures(figures)}"
    if "dice_on_exits" in figures:
        yield (
            f"masks of the positives that exit: mean Dice {figures['dice_on_exits']:.3f}, where marking every voxel "
            f"has {figures['marked_dice_on_exits']:.3f}"
        )
    yield policy["guarantee"]["words"]
    if left and (margin := margin_words(policy)):
        yield margin
    if "weights" in policy:
        yield weight_words(policy)
    if "useless" in policy:
        yield f"warning: {policy['useless']}"
    if policy["calib_use_count"] > 1:
        remains = f"{left:g} of {policy['fnr_confidence']:g}" if left else "no"
        looked = times(policy["calib_use_count"])
        yield f"warning: val_calib's positives were looked at {looked}: {remains} confidence remains. {SEEN_FAILURES}"


def stale_placement(run: Run, risk: Risk) -> list[str]:
    """Say where the answers were placed for another target than the one that is certified."""
    placed_for = run.risk()
    if risk == placed_for or not run.scores("val_select").answer_shift:
        return []
    return [
        f"the answers were placed for target_fnr_exit {placed_for.target_fnr:g} at confidence "
        f"{placed_for.confidence:g}; a run trained with the new target places them anew"
    ]


def priced_otherwise(run: Run, end: EarlyEnd | None) -> list[str]:
    """Say where the answers were placed at another price of a false alarm than the one that ends the certification."""
    placed_at = run.config.false_alarm_price
    if end is None or not run.scores("val_select").answer_shift:
        return []
    asked = end.prices.false_alarm_price
    if abs(asked - placed_at) <= 0.01 * placed_at or not end.prices.can_place:
        return []
    return [
        f"the answers were placed at {placed_at:g} deferrals for a false alarm, and these prices say {asked:g}; a run "
        f"trained with false_alarm_price: {asked:g} places them anew"
    ]


def few_kept(run: Run) -> list[str]:
    """Say where known weights keep so little of val_calib that labels from their world would be the better evidence."""
    if run.weights is None:
        return []
    found = run.weights.record(run.unweighted("val_calib"))
    if found["kept"] >= LEAST_KEPT * found["cases"]:
        return []
    return [
        f"the weights keep {found['kept']} of {found['cases']} calibration cases, {found['kept_positives']} of "
        f"{found['positives']} positives: a certificate on labels from that world (38_recalibrate.py) covers more"
    ]


def end_notes(found: Calibration | Transductive, end: EarlyEnd | None) -> list[str]:
    """Say whether prices or evidence have ended the certification."""
    if end is None or not isinstance(found, Calibration):
        return []
    if not found.certified:
        return [
            "no threshold beyond val_select's cheapest was tried: without --prices looser ones are, as another look"
        ]
    last = found.reached_end
    return [
        "the certification ends at val_select's cheapest threshold: more coverage would cost more"
        if last
        else "the evidence ends the certification before val_select's cheapest threshold"
    ]


def next_look(look: Look) -> str:
    """Say what a further look at the same positives costs."""
    nominal, looks = look.entry.fnr_confidence, 1 + len(look.earlier)
    left = remaining_confidence([*look.earlier, nominal, nominal])
    costs = f"leaves {left:g} of that confidence" if left else "leaves no confidence"
    return (
        f"Cost: these calibration positives were looked at {times(looks)}; one more look at confidence {nominal:g}, "
        f"with whatever target, {costs}."
    )


def times(count: int) -> str:
    """once, 2 times, …"""
    return "once" if count == 1 else f"{count} times"

"""What a policy file says, in the words that reports and bundles share."""

from collections.abc import Sequence
from typing import Any

PREVALENCE = (
    "A change of prevalence alone leaves FNR on exits as it was; coverage, precision and the share of positives among "
    "negative answers change."
)
EXIT_RULE_WORDS = {
    "one_sided": "Every answer “{positive}” exits. An answer “{negative}” exits where its score reaches the threshold; "
    "the other cases defer.",
    "symmetric": "An answer of either kind exits where its score reaches the threshold; the other cases defer.",
}
"""By `exit_rule` of a policy file; one without it is symmetric."""
COVERED_WORDS = (
    "Each certified “{column}” has a threshold of its own, and every case of another one, or of none, defers, whatever "
    "its answer."
)


def exit_rule_words(policy: dict[str, Any], class_names: Sequence[str]) -> str:
    """Say which cases exit. class_names: the negative class, then the positive one.

    exit_rule_words({"exit_rule": "one_sided"}, ["blue", "red"])  # Every answer “red” exits. An answer “blue” …
    """
    negative, positive = class_names
    words = EXIT_RULE_WORDS[policy.get("exit_rule", "symmetric")].format(negative=negative, positive=positive)
    if "groups" not in policy:
        return words
    return f"{words} {COVERED_WORDS.format(column=policy['certificate_groups'])}"


def promised_fnr(policy: dict[str, Any]) -> float:
    """Return the FNR on exits that a policy promises, which is above the level that it was certified at where it has a
    margin. Older files state none, and have none."""
    return policy.get("margins", {}).get("target", policy["target_fnr_exit"])


def margin_words(policy: dict[str, Any]) -> str:
    """Say how far the world may move before the promise breaks; nothing where no margin was asked for.

    margin_words({"margins": {"target": 0.02, "robust_to": {...}, ...}})  # Margin: FNR on exits stays within 2% …
    """
    found = policy.get("margins", {})
    if found.get("robust_to") is None:
        return ""
    factor = found["ratio"] ** 0.5
    return (
        f"Margin: FNR on exits stays within {100 * found['target']:g}% where densities of positives change by factors "
        f"of {1 / factor:.3g} to {factor:.3g}; of the positives that exit, {1 / found['exit_gamma']:.3g} to "
        f"{found['exit_gamma']:.3g}, or a total variation of {found['total_variation']:.2g}."
    )


def weight_words(policy: dict[str, Any]) -> str:
    """Say what known weights kept of val_calib; nothing for a policy without them.

    weight_words({"weights": {"bound": 3, "kept": 812, "cases": 2340, ...}})  # Known weights: 812 of 2,340 …
    """
    if "weights" not in policy:
        return ""
    found = policy["weights"]
    return (
        f"Known weights: {found['kept']:,} of {found['cases']:,} calibration cases were kept, "
        f"{found['kept_positives']:,} of {found['positives']:,} positives, each with probability weight / "
        f"{found['bound']:g}; the test split was thinned by the same rule."
    )


def end_words(policy: dict[str, Any]) -> str:
    """Say at which prices a certification ended early; nothing for a policy that evidence alone has ended."""
    if "ended_by" not in policy["diagnostics"]:
        return ""
    found = policy["diagnostics"]["ended_by"]
    prices = ", ".join(f"{name} {found[name]:g}" for name in ("c1", "c2", "cm", "cf"))
    return (
        "Prices ended the certification: no threshold was tried beyond the one that is cheapest on val_select, at "
        f"{prices} and stage 2 with sensitivity {found['sensitivity']:g} and specificity {found['specificity']:g}."
    )


def price_words(policy: dict[str, Any]) -> str:
    """Say at which prices a policy was placed and judged; nothing for a file that records none."""
    if "prices" not in policy:
        return ""
    false_alarm, miss = policy["prices"]["false_alarm"], policy["prices"]["miss"]
    words = f"A false alarm on exits is priced at {false_alarm:g} deferrals"
    return f"{words}, a miss at {miss:g} on top of the promise." if miss else f"{words}."

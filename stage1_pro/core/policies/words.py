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


def exit_rule_words(policy: dict[str, Any], class_names: Sequence[str]) -> str:
    """Say which cases exit. class_names: the negative class, then the positive one.

    exit_rule_words({"exit_rule": "one_sided"}, ["blue", "red"])  # Every answer “red” exits. An answer “blue” …
    """
    negative, positive = class_names
    return EXIT_RULE_WORDS[policy.get("exit_rule", "symmetric")].format(negative=negative, positive=positive)


def price_words(policy: dict[str, Any]) -> str:
    """Say at which prices a policy was placed and judged; nothing for a file that records none."""
    if "prices" not in policy:
        return ""
    false_alarm, miss = policy["prices"]["false_alarm"], policy["prices"]["miss"]
    words = f"A false alarm on exits is priced at {false_alarm:g} deferrals"
    return f"{words}, a miss at {miss:g} on top of the promise." if miss else f"{words}."

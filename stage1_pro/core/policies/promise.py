"""The promise of a policy in words: the `guarantee` of its file, which reports, bundles and README.md repeat."""

from collections.abc import Mapping, Sequence
from typing import Any

from stage1_pro.core.errors import counted
from stage1_pro.core.metrics.risk import Risk, remaining_confidence
from stage1_pro.core.metrics.views import Views
from stage1_pro.core.policies.exit_rules import METHODS
from stage1_pro.core.policies.fixed_sequence import ALL_DRAWS, GUARANTEE, NO_CONFIDENCE

GROUP_WORDS = (
    " Cases of one group are not independent, so one positive drawn from each group was counted. The promise is this: "
    "draw one positive from each new group that holds one; among those that exit, at most that share is answered 0. It "
    "is not a promise about every case of a group."
)
CERTIFIED_WORDS = (
    " It holds in every one of these groups of '{column}', in all of them at once: {names}. A case of any other defers."
)
SPENT_WORDS = (
    " This calibration set was looked at {looks} times, and each look spends confidence: {left} of {nominal:g} "
    "remains, if the other looks changed only target, policy or confidence."
)
VIEWS_WORDS = (
    " A case is a group of images that get one decision, by the mean log-odds of {views}. The promise is this: among "
    "the positive groups that exit, at most that share is answered 0. It holds for the mix of group sizes in the "
    "calibration set."
)
WEIGHTS_WORDS = (
    " Those new cases are of another world: by known weights w, calibration cases were kept with probability "
    "w / {bound:g}, {kept} of {cases}, so what was counted is a sample of the world whose density is w times that of "
    "the calibration cases, up to a factor. With weights that are estimated, nothing is promised."
)
MISS_WORDS = (
    " Of masks, answered negative means missed: a case whose true mask has at least {least} of the positive "
    "class, and whose mask has fewer{rule}."
)
MISSED = {
    "dice": ", or a Dice below {dice:g} with the true mask",
    "lesion": ", or less than {overlap:.0%} of some true component",
    "empty": "",
}
"""By `miss_rule.rule` of a policy file: what else is a miss."""


def miss_words(miss_rule: Mapping[str, Any]) -> str:
    """Return the sentence on what counts as a miss.

    >>> miss_words({"rule": "empty", "dice": 0.5, "overlap": 0.1, "min_voxels": 1})[-25:]
    'and whose mask has fewer.'
    """
    least, rule = counted(miss_rule["min_voxels"], "voxel"), MISSED[miss_rule["rule"]].format(**miss_rule)
    return MISS_WORDS.format(least=least, rule=rule)


def promise(
    risk: Risk,
    method: str,
    *,
    grouped: bool,
    earlier: Sequence[float] = (),
    miss_rule: Mapping[str, Any] | None = None,
    views: Views | None = None,
    certified: tuple[str, Sequence[str]] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the `guarantee` of a policy file.

    method: a key of METHODS; grouped: whether cases come in groups, of which one positive each counts; earlier:
    confidences of the other looks at the same positives, which leave less than the nominal confidence; miss_rule: of
    masks, as a policy file records it; views: where groups get one decision each; certified: the column of cameras or
    sites, and the names of those that have a certificate each; weights: known ones, as a policy file records them.
    """
    left = remaining_confidence([*earlier, risk.confidence])
    words = (GUARANTEE + ALL_DRAWS if left else NO_CONFIDENCE).format(confidence=left, target=risk.target_fnr)
    if weights is not None:
        words += WEIGHTS_WORDS.format(**weights)
    if miss_rule is not None:
        words += miss_words(miss_rule)
    if certified is not None:
        words += CERTIFIED_WORDS.format(column=certified[0], names=", ".join(certified[1]))
    if grouped:
        words += GROUP_WORDS
    if views is not None:
        words += VIEWS_WORDS.format(views=views.words)
    if earlier:
        words += SPENT_WORDS.format(
            looks=1 + len(earlier), left=f"{left:g}" if left else "none", nominal=risk.confidence
        )
    return {
        "words": words,
        "method": METHODS[method],
        "source": "Angelopoulos et al., arXiv 2110.01052",
    }

"""What a certified policy is worth at the stated prices: a promise that is kept may still be worth nothing.

A classifier that answers "positive" to every case keeps any bound on FNR on exits. Its exits are worth less than
deferring everything once false alarms have a price. A network that marks half of all voxels at random keeps it too, by
a miss rule that asks for a tenth of each lesion.
"""

from typing import Any

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.metrics.arrays import BoolArray, percent
from stage1_pro.core.records.scores import Scores

LEAST_RIGHT_MASKS = 0.5
"""Share of right exits below which masks are of no use."""
LEAST_GAIN = 0.1
"""How far the mean Dice of masks must get, from that of marking every voxel, 0, to that of the true masks, 1."""


def valued(policy: dict[str, Any], config: Stage1ProConfig) -> dict[str, Any]:
    """Return the policy file's fields with prices and utility on val_calib, and `useless` in words where it is.

    Useless: utility, coverage less the price of each false alarm and miss a case, is not above 0; or no more of the
    exits are right than answering positive to every case would get right; or masks are hardly better than marking all.
    """
    prices = {"false_alarm": config.false_alarm_price, "miss": config.miss_price}
    figures = policy["val_calib_metrics"]
    utility, words = worth(figures, prices, masks="miss_rule" in policy)
    valued = {**policy, "prices": prices, "val_calib_metrics": {**figures, "utility": utility}}
    return {**valued, "useless": words} if words else valued


def worth(figures: dict[str, Any], prices: dict[str, float], *, masks: bool = False) -> tuple[float, str]:
    """Return utility a case of val_calib_metrics, and in words why the exits are useless; "" where they are not.

    masks: an answer is a mask. Then nothing can be answered without looking, and all cases may be positive: what is
    asked is the share of exits whose mask passes the miss rule, and whether marking every voxel does as well.
    """
    cost = prices["false_alarm"] * figures["false_alarms"] + prices["miss"] * figures["misses"]
    utility = (figures["exited"] - cost) / max(1, figures["cases"])
    return utility, _useless(figures, prices, utility, masks)


def _useless(figures: dict[str, Any], prices: dict[str, float], utility: float, masks: bool) -> str:
    positives, accuracy = figures["positives"] / max(1, figures["cases"]), figures["accuracy_on_exits"] or 0.0
    if not figures["exited"]:
        return "no case of val_calib exits"
    if masks and accuracy < LEAST_RIGHT_MASKS:
        return f"only {accuracy:.1%} of its exits are right: of the others the mask fails the miss rule or is an alarm"
    if masks and _gain(figures) < LEAST_GAIN:
        return (
            "its masks are hardly better than marking every voxel: their mean Dice over the positives that exit is "
            f"{figures['dice_on_exits']:.2f}, and that of marking every voxel {figures['marked_dice_on_exits']:.2f}"
        )
    if not masks and accuracy <= positives:
        return (
            f"stage 1 answers positive to {figures['fpr_on_exits'] or 0:.0%} of the negatives that exit: {accuracy:.1%}"
            f" of its exits are right, and answering positive to every case would get {positives:.1%} right"
        )
    if utility <= 0:
        return (
            f"its exits are worth nothing at the stated prices: coverage {figures['coverage']:.1%}, but "
            f"{figures['false_alarms']} false alarms at {prices['false_alarm']:g} deferrals each (utility "
            f"{utility:+.3f} a case)"
        )
    return ""


def mask_figures(exits: BoolArray, split: Scores) -> dict[str, float]:
    """What val_calib_metrics says of masks: mean Dice of the positive class over the positives that exit, and of a mask
    that marks every voxel. exits: (N,) of the split's cases; empty without masks, and where no positive exits."""
    inside = exits & (split.labels == 1)
    if split.masks is None or not inside.any():
        return {}
    dice, marked = split.masks.positive_dice[inside], split.masks.marked_dice[inside]
    return {"dice_on_exits": float(dice.mean()), "marked_dice_on_exits": float(marked.mean())}


def _gain(figures: dict[str, Any]) -> float:
    """How far the masks get, see LEAST_GAIN; 1 where a file does not record it."""
    if "dice_on_exits" not in figures:
        return 1.0
    marked = figures["marked_dice_on_exits"]
    return (figures["dice_on_exits"] - marked) / max(1e-9, 1 - marked)


def mend(useless: str) -> str:
    """What to do about it, in words."""
    return "Train a better model, or state other prices" if "stated prices" in useless else "Train a better model"


def exit_figures(figures: dict[str, Any]) -> str:
    """Return coverage, right exits, FNR and FPR on exits of val_calib_metrics in one line, in this order."""
    shares = (
        ("coverage", "coverage"),
        ("right exits", "right_exits"),
        ("FNR on exits", "fnr_on_exits"),
        ("FPR on exits", "fpr_on_exits"),
    )
    return ", ".join(f"{words} {percent(figures[name])}" for words, name in shares)

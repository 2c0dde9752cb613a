"""The cases of a run in one glance: classes, groups, splits, and what their positives can certify."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.splitting import evidence_warning
from stage1_pro.core.errors import counted, first_few, one_line
from stage1_pro.core.metrics.binomial import fnr_upper_bound, minimum_positives, positives_for_power
from stage1_pro.core.metrics.risk import LARGEST_TARGET
from stage1_pro.core.records.splits import SPLITS, Splits

MOST_CLASSES = 8
"""Classes with a column of their own; where there are more, the rarer ones share one."""
WIDEST = 20


def describe(cases: CaseTable, splits: Splits, config: Stage1ProConfig) -> None:
    """Say how the cases lie in classes, groups and splits, and whether val_calib can carry the certificate."""
    positive = splits.positive_class
    against = "" if len(splits.class_names) > 2 else f" (against {one_line(splits.class_names[0])})"
    say(f"positive: {one_line(positive)}{against}")
    for line in frame_lines(_table(cases, splits)):
        say(line)
    if len(splits.class_names) > 2:
        say(
            "more than two classes: this run can be trained, but exit policies are binary; rest: true joins "
            "all classes but the positive one"
        )
        return
    at_hand = splits.metadata["evidence"]["val_calib_positive_groups"]
    target, delta = config.certified_level(), 1 - config.fnr_confidence
    say(
        f"val_calib: {counted(at_hand, 'independent positive')}; target_fnr_exit "
        f"{config.target_words()} needs {minimum_positives(target, delta)} exits without a miss, and about "
        f"{positives_for_power(target / 4, target, delta)} if a quarter of that rate is missed (80 % power)"
    )
    say(carries(at_hand, delta))
    for line in _group_lines(splits.metadata["evidence"].get("certificate_groups", {}), target, delta, config):
        say(line)
    warning = evidence_warning(splits, config)
    if warning:
        say(f"warning: {warning}")


def _group_lines(positives: dict[str, int], target: float, delta: float, config: Stage1ProConfig) -> Iterator[str]:
    """Say of each certificate group what it holds and needs at an equal part of delta."""
    if not positives:
        return
    needed = minimum_positives(target, delta / len(positives))
    told = [f"{name} {count}" for name, count in positives.items()]
    yield (
        f"each of {len(positives)} values of '{config.certificate_groups}' needs {needed} exits of positives without a "
        f"miss, or always defers; val_calib holds, independent: {first_few(told)}"
    )


def carries(positives: int, delta: float) -> str:
    """Say which targets so many independent positives can certify, if all of them exit."""
    least = float(fnr_upper_bound(0, positives, delta)) if positives else 1.0
    if least > LARGEST_TARGET:
        return f"it can carry no target up to {LARGEST_TARGET:g}, the largest there is"
    surely = smallest_sure_target(positives, delta)
    likely = f"from {_rounded_up(surely)} on" if surely else f"none up to {LARGEST_TARGET:g}"
    return (
        f"it can carry target_fnr_exit from {_rounded_up(least)} on if none is missed, and {likely} if a quarter of "
        "the target is (80 % power)"
    )


def smallest_sure_target(positives: int, delta: float, share: float = 0.25) -> float | None:
    """Return the smallest target that is certified with 80 % power by a model that misses this share of it.

    None where the largest allowed target is too small.
    """

    def enough(target: float) -> bool:
        needed = positives_for_power(share * target, target, delta)
        return needed is not None and needed <= positives

    return smallest_target(enough)


def smallest_target(enough: Callable[[float], bool]) -> float | None:
    """Return the smallest target, to half a percent of itself, from which on something holds."""
    low, high = LARGEST_TARGET / 1000, LARGEST_TARGET
    if not enough(high):
        return None
    while high > 1.005 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _rounded_up(target: float) -> str:
    """Three decimals that are never below the target: what is printed can be certified."""
    return f"{np.ceil(target * 1000 - 1e-9) / 1000:g}"


def _table(cases: CaseTable, splits: Splits) -> pd.DataFrame:
    """One row a split and one for all: cases, cases of each class, and where groups are given, groups."""
    frame, positive = cases.frame, len(splits.class_names) - 1
    inside = {split: frame.iloc[splits.indices(split)] for split in SPLITS if splits.indices(split)}
    inside["all"] = pd.concat(inside.values())
    shown, others = _columns(inside["all"]["label"], splits.class_names)
    rows = {}
    for split, part in inside.items():
        counts = np.bincount(part["label"], minlength=len(splits.class_names))
        row = {"cases": len(part), **{splits.class_names[code]: int(counts[code]) for code in shown}}
        if others:
            row[f"{len(others)} others"] = int(counts[others].sum())
        if splits.metadata["group_column"]:
            row["groups"] = part["group"].nunique()
            row[f"with {splits.positive_class}"] = part["group"][part["label"] == positive].nunique()
        rows[split] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _columns(labels: pd.Series, names: list[str]) -> tuple[list[int], list[int]]:
    """(codes of the classes with a column of their own, the positive one last; codes of all others)."""
    if len(names) <= MOST_CLASSES:
        return list(range(len(names))), []
    positive = len(names) - 1
    frequent = [code for code in labels.value_counts().index if code != positive][: MOST_CLASSES - 2]
    shown = [*sorted(frequent), positive]
    return shown, [code for code in range(len(names)) if code not in shown]


def frame_lines(table: pd.DataFrame) -> list[str]:
    """Return a table as lines, numbers to the right with commas between thousands.

    >>> frame_lines(pd.DataFrame({"cases": [1200]}, index=["train"]))
    ['        cases', 'train   1,200']
    """
    cells = [[""] + [_short(name) for name in table.columns]]
    cells += [
        [str(name), *(value if isinstance(value, str) else f"{value:,}" for value in row)]
        for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "   ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= WIDEST else name[: WIDEST - 1] + "…"

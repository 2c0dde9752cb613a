"""From the labels of a table to class codes: which classes there are, and which of them must not be missed."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml

from stage1_pro.core.config.sections import DatasetParams
from stage1_pro.core.errors import UserError
from stage1_pro.core.schemas import did_you_mean

SHOWN_LABELS = 20
GAPS = frozenset({"nan", "na", "n/a", "none", "null", "?", "-"})
"""Labels, in lower case, that are often the word of some program for "no label"."""


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """names: the positive class last; codes: (N,) int64 index into names, -1 for a label that is no class.

    questions: what must be answered before splits are drawn; warnings: what may be meant as it is.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    warnings: tuple[str, ...]
    questions: tuple[str, ...]


def classes_of(labels: pd.Series, params: DatasetParams, partial: bool = False) -> Classes:
    """Code the labels of all cases. A label is a class name, or the number of one in the order of `class_names`.

    With `rest`, or several positive classes, the classes become two. partial: labels that the settings name may be
    absent, and so may all others. Raises UserError where `positive_class` does not fit the labels.
    """
    found = sorted(set(labels), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    names = list(params.class_names or [name for name in found if name] or found)
    numbers = {str(index): name for index, name in enumerate(names)}
    named = labels.map({**numbers, **{name: name for name in names}})
    positives = params.positives or (names[-1],)
    absent = [name for name in positives if name not in names] if partial else []
    names += absent
    _demand_known(positives, names, named)
    ordered, groups = _joined(names, positives, partial) if params.merged else _apart(names, positives)
    codes = named.map(groups).fillna(-1).to_numpy(dtype=np.int64)
    alike, risky = _look_alikes(names, params.positives)
    alike += [f"no case is labelled '{name}', which is positive" for name in absent]
    questions = [*risky, *([_which_is_positive(names, named)] if len(names) > 1 and not params.positives else [])]
    return Classes(ordered, codes, (*alike, *_gap_words(labels, params)), tuple(questions))


def _apart(names: list[str], positives: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, int]]:
    ordered = (*(name for name in names if name != positives[0]), positives[0])
    return ordered, {name: code for code, name in enumerate(ordered)}


def _joined(names: list[str], positives: tuple[str, ...], partial: bool) -> tuple[tuple[str, ...], dict[str, int]]:
    """Two classes: all that are not positive, under the name of the only one or "rest", and the positive ones."""
    others = [name for name in names if name not in positives]
    if not others and not partial:
        raise UserError(
            f"dataset_params.positive_class names every class ({', '.join(positives)}): leave one for the rest."
        )
    positive = " or ".join(positives)
    rest = others[0] if len(others) == 1 else "rest" if positive != "rest" else "all others"
    return (rest, positive), {name: int(name in positives) for name in names}


def _demand_known(positives: tuple[str, ...], names: list[str], named: pd.Series) -> None:
    for positive in positives:
        if positive not in names:
            raise UserError(
                f"dataset_params.positive_class is '{positive}'{did_you_mean(positive, names)}; the labels are "
                f"{with_counts(named, names)}."
            )


def _which_is_positive(names: list[str], named: pd.Series) -> str:
    """The question that nothing in the data answers: the alphabet must not choose which error is held down."""
    counts = named.value_counts()
    rare = as_yaml(min(names, key=lambda name: (counts.get(name, 0), name)))
    several = "" if len(names) == 2 else " (and rest: true for that class against all others)"
    return (
        "dataset_params.positive_class is not set: which class must not be missed? The labels are "
        f"{with_counts(named, names)}. Write, for example, positive_class: {rare} below dataset_params{several}."
    )


def as_yaml(name: str) -> str:
    """The name as a YAML file needs it: quoted where YAML would read a number, a date or a truth value.

    >>> as_yaml("red"), as_yaml("no")
    ('red', '"no"')
    """
    try:
        plain = yaml.safe_load(f"[{name}]") == [name]
    except yaml.YAMLError:
        plain = False
    return name if plain else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def with_counts(labels: pd.Series, names: list[str] | None = None) -> str:
    """Labels with their numbers of cases, in the order of names, or the most frequent first.

    >>> with_counts(pd.Series(["ok", "defect", "ok"]))
    'ok (2), defect (1)'
    """
    counts = labels.value_counts()
    order = list(counts.index) if names is None else names
    shown = [f"{name} ({counts.get(name, 0)})" for name in order[:SHOWN_LABELS]]
    return ", ".join(shown) + (f", … and {len(order) - SHOWN_LABELS} more" if len(order) > SHOWN_LABELS else "")


def _look_alikes(names: list[str], positives: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(warnings, questions) on names that differ only in case, spaces or separators; beside a positive one it is asked.

    Read as they are, such positives would be trained and counted as negatives.
    """
    alike = pd.Series(names).groupby([_folded(name) for name in names]).agg(list)
    warnings, questions = [], []
    for group in (group for group in alike if len(group) > 1):
        text = f"labels {', '.join(repr(name) for name in group)} are classes of their own"
        if 0 < len(set(group) & set(positives)) < len(group):
            joined = ", ".join(as_yaml(name) for name in group)
            questions.append(f"{text}: spell them alike, or write positive_class: [{joined}]")
        else:
            warnings.append(f"{text}: spell them alike if one is meant")
    return warnings, questions


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


def _gap_words(labels: pd.Series, params: DatasetParams) -> list[str]:
    """Warnings on labels that look like missing values, where `class_names` does not say that they are classes."""
    counts = labels[labels.str.lower().isin(GAPS)].value_counts()
    return [
        f"label '{name}' is taken as a class ({count} cases): leave those rows out if they have no label"
        for name, count in counts.items()
        if name not in (params.class_names or ())
    ]

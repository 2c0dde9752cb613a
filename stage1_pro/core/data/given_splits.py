"""Splits that somebody else has made: the words for them, in a column or as folders, and what is drawn out of them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stage1_pro.core.config.sections import Source
from stage1_pro.core.records.splits import SPLITS

VALIDATION = "val"
"""Validation cases that nobody has divided yet: val_select and val_calib are drawn out of them."""
WORDS = {
    **{name: name for name in SPLITS},
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), "val_test"),
}
"""Names of splits, in lower case, and what they are read as."""


def split_words(values: pd.Series) -> pd.Series:
    """Read names of splits as ours; other values stay as they are.

    >>> split_words(pd.Series(["Train", "dev", "tain"])).tolist()
    ['train', 'val', 'tain']
    """
    return values.map({value: WORDS.get(value.lower(), value) for value in values.unique()})


def divided(present: set[str]) -> dict[str, tuple[str, ...]]:
    """Return a given split that is divided, and the splits that are drawn out of it; none where all are given.

    >>> divided({"train", "val", "val_test"})
    {'val': ('val_calib', 'val_select')}
    """
    test = () if "val_test" in present else ("val_test",)
    validation = tuple(name for name in ("val_calib", "val_select") if name not in present)
    if VALIDATION in present:
        return {VALIDATION: (*validation, *test)}
    return {"train": (*validation, *test, "train")} if len(validation) == 2 else {}


def division_notes(present: set[str]) -> list[str]:
    return [
        f"the given split '{word}' is divided into {', '.join(names[:-1])} and {names[-1]}, in proportion to the ratios"
        for word, names in divided(present).items()
    ]


def pooled_sources(sources: Sequence[Source]) -> list[str]:
    """Warn of sources that are named like splits although nothing keeps them apart."""
    words = {}
    for source in sources:
        names = [source.name, *([Path(source.root).name] if source.root else []), *_stem(source)]
        word = next((name for name in names if name.lower() in WORDS), None)
        if word:
            words[word] = WORDS[word.lower()]
    if len(set(words.values())) < 2:
        return []
    return [
        f"the sources {', '.join(words)} are pooled, and all their cases are split anew: to keep them apart, give "
        "their tables a column split, or name the folder above their folders as one source"
    ]


def _stem(source: Source) -> list[str]:
    return [Path(source.labels).stem] if source.labels else []

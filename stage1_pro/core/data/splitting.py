"""Draw the four splits: by group, stratified by label, a pure function of seed and groups."""

import math
from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable, rows_digest
from stage1_pro.core.data.given_splits import divided
from stage1_pro.core.errors import counted, raise_problems
from stage1_pro.core.metrics.binomial import minimum_positives
from stage1_pro.core.metrics.risk import LARGEST_TARGET
from stage1_pro.core.records.splits import SPLITS, USAGE, Splits

DRAWN = ("val_calib", "val_select", "val_test", "train")
"""Order in which a stratum's groups are assigned: the certificate's split first, the rest trains."""

LEAST_TRAINED = 0.2
"""Share of the cases that training keeps where a larger val_calib is advised."""


def make_splits(
    cases: CaseTable, config: Stage1ProConfig, *, trains: bool = True, kept: np.ndarray | None = None
) -> Splits:
    """Assign every case to a split and check that the splits can do their jobs.

    trains: False: nothing is trained, and the other three splits share all cases by their ratios. kept: (N,) bool,
    the cases to assign; the others stay in the table and are in no split. Raises one UserError that names every split
    without a class. Too few positives in val_calib is no error, since the model can still be trained:
    `evidence_warning` says it.
    """
    params = config.dataset_params
    assigned = np.ones(len(cases), dtype=bool) if kept is None else kept
    shares = {name: getattr(params, f"{name}_ratio") for name in SPLITS if name != "train"}
    last = "train"
    if not trains:
        last, total = "val_test", sum(shares.values())
        shares = {name: share / total for name, share in shares.items() if name != last}
    split = np.full(len(cases), "", dtype=object)
    assign = _completed if cases.split_column else drawn_splits
    split[assigned] = assign(cases.frame[assigned], shares, config.seed, last)
    counts = _counts(cases, split)
    evidence = _evidence(cases, split, config)
    demanded = cases.class_names if cases.demanded is None else cases.demanded
    needed = {name: {label: row[label] for label in demanded} for name, row in counts.items()}
    few = _few_groups(cases, needed, trains)
    problems = [*_problems(needed, trains, few, cases.split_column), *few.values()]
    raise_problems("the splits cannot do their jobs:", problems)
    data: dict[str, Any] = {f"{name}_indices": np.flatnonzero(split == name).tolist() for name in SPLITS}
    calib = cases.frame[split == "val_calib"]
    metadata = {
        "cases": len(cases),
        "groups": int(cases.frame["group"][assigned].nunique()),
        "group_column": "group" if cases.group_column else None,
        "split_column": "split" if cases.split_column else None,
        "class_names": list(cases.class_names),
        "positive_class": cases.positive_class,
        "counts": counts,
        "case_table_digest": cases.digest,
        "val_calib_digest": rows_digest(calib),
        "usage": USAGE,
        "evidence": evidence,
    }
    balance = {name: _shares(row) for name, row in counts.items()}
    header = {"schema_version": artifacts.SCHEMA_VERSION, "seed": config.seed}
    return Splits({**header, **data, "class_balance": balance, "metadata": metadata})


def drawn_splits(frame: pd.DataFrame, shares: dict[str, float], seed: int, last: str = "train") -> np.ndarray:
    """(N,) split names. Each stratum's groups, in the order of a hash, are cut at the shares; last: takes what is left.

    A group belongs to the stratum of its rarest class, so that tracks with a few positive frames
    spread over the splits. Neither file order nor other strata move a group.
    """
    rarity = frame["label"].map(frame["label"].value_counts().rank(method="first"))
    groups = pd.DataFrame({"group": frame["group"], "stratum": rarity}).groupby("group", sort=True)
    table = groups["stratum"].agg(["min", "size"])
    table["hash"] = [_hash(seed, name) for name in table.index]
    table = table.sort_values(["min", "hash"])
    within = table.groupby("min")["size"]
    # a group goes where its middle falls: by its end, a large group at an edge would always go to the next split
    middle = (within.cumsum() - table["size"] / 2) / within.transform("sum")
    names = [name for name in DRAWN if name in shares]
    edges = np.cumsum([shares[name] for name in names])
    table["split"] = np.array([*names, last])[np.searchsorted(edges, middle.to_numpy(), side="right")]
    return frame["group"].map(table["split"]).to_numpy()


def _completed(frame: pd.DataFrame, shares: dict[str, float], seed: int, last: str) -> np.ndarray:
    """(N,) split names: those given, and those drawn out of a given one that is to be divided."""
    split = frame["split"].to_numpy(dtype=object, copy=True)
    weights = {**shares, last: 1 - sum(shares.values())}
    for word, names in divided(set(split)).items():
        whole = sum(weights[name] for name in names)
        # the last name takes what is left, as train does where all is drawn
        part = {name: weights[name] / whole for name in names[:-1]}
        split[split == word] = drawn_splits(frame[split == word], part, seed, names[-1])
    return split


def _hash(seed: int, group: str) -> int:
    # 7 bytes fit an int64 column; a generator's draw would depend on which other groups there are
    return int.from_bytes(blake2b(f"{seed}\0{group}".encode(), digest_size=7).digest(), "big")


def _counts(cases: CaseTable, split: np.ndarray) -> dict[str, dict[str, int]]:
    table = pd.crosstab(split, cases.frame["label"].to_numpy())
    table = table.reindex(index=list(SPLITS), columns=range(len(cases.class_names)), fill_value=0)
    rows = table.to_numpy().tolist()
    return {name: dict(zip(cases.class_names, row, strict=True)) for name, row in zip(SPLITS, rows, strict=True)}


def _shares(row: dict[str, int]) -> dict[str, float]:
    total = sum(row.values())
    return {name: count / max(1, total) for name, count in row.items()}


def _evidence(cases: CaseTable, split: np.ndarray, config: Stage1ProConfig) -> dict[str, Any]:
    calib = cases.frame[split == "val_calib"]
    positive = calib["label"] == len(cases.class_names) - 1
    of_groups = positive.groupby(calib["group"]).mean()
    least = 0.5 if config.group_views is not None else np.finfo(float).tiny  # decided together, the majority counts
    return {
        **({"certificate_groups": _by_certificate_group(calib[positive])} if "certificate_group" in calib else {}),
        "val_calib_positives": int(positive.sum()),
        "val_calib_positive_groups": int((of_groups >= least).sum()),
        "positives_needed": minimum_positives(config.certified_level(), 1 - config.fnr_confidence),
        "target_fnr_exit": config.target_fnr_exit,
        "fnr_confidence": config.fnr_confidence,
    }


def _by_certificate_group(positives: pd.DataFrame) -> dict[str, int]:
    """How many positives of val_calib count in each certificate group: one of each group of cases."""
    counts = positives[positives["certificate_group"] != ""].groupby("certificate_group")["group"].nunique()
    return {str(name): int(count) for name, count in counts.items()}


def _problems(
    counts: dict[str, dict[str, int]], trains: bool, few: Collection[str], given: bool = False
) -> Iterator[str]:
    """few: classes that no ratio helps; given: the split of each case is."""
    training = sum(counts["train"].values())
    if training and not trains:
        yield f"train has {training} cases, and nothing is trained here: give them another split, or give none to any"
        return
    for name, row in counts.items():
        absent = [label for label, count in row.items() if count == 0 and label not in few]
        if absent and (trains or name != "train"):
            ratio = f"a larger {name}_ratio" if name != "train" else "smaller validation ratios"
            way = "give some of them this split" if given else f"more cases, more groups, or {ratio}"
            yield f"{name} has no case of {', '.join(absent)}: {way}"


def _few_groups(cases: CaseTable, counts: dict[str, dict[str, int]], trains: bool) -> dict[str, str]:
    """Class → the cause, where it has fewer groups than there are splits: no ratio helps there."""
    frame = cases.frame
    splits = [name for name in SPLITS if trains or name != "train"]
    absent = {name for split in splits for name, count in counts[split].items() if not count}
    found = {}
    for name in [name for name in cases.class_names if name in absent]:
        rows = frame[frame["label"] == cases.class_names.index(name)]
        groups = rows["group"].nunique()
        if cases.group_column and groups < len(splits) and len(rows) >= len(splits):
            found[name] = (
                f"all {len(rows)} cases of {name} lie in {counted(groups, 'group')}, and splits never cut a group: "
                f"{len(splits)} groups with {name} are the least, or a finer group column"
            )
    return found


def evidence_warning(splits: Splits, config: Stage1ProConfig) -> str | None:
    """Words for a val_calib that can never certify the config's target; None where it can."""
    evidence = splits.metadata["evidence"]
    by_group = evidence.get("certificate_groups")
    at_hand = evidence["val_calib_positive_groups"] if by_group is None else max(by_group.values(), default=0)
    needed = minimum_positives(config.certified_level(), 1 - config.fnr_confidence)
    if at_hand >= needed:
        return None
    grouped = splits.metadata["group_column"]
    have = counted(at_hand, "independent positive" if grouped else "positive") + " (one a group)" * bool(grouped)
    where = "" if by_group is None else f" in its largest '{config.certificate_groups}'"
    return (
        f"val_calib has {have}{where}, and target_fnr_exit {config.target_words()} at confidence "
        f"{config.fnr_confidence:g} needs at least {needed} even without one miss: nothing will be certified. "
        f"{_ways_out(splits, config, at_hand, needed)}."
    )


def _ways_out(splits: Splits, config: Stage1ProConfig, at_hand: int, needed: int) -> str:
    """What would give val_calib enough positives, and nothing that cannot."""
    ways = ["Add positives"]
    params, delta = config.dataset_params, 1 - config.fnr_confidence
    # from so many onwards, since a split holds half a case more or less than its share
    ratio = math.ceil(100 * params.val_calib_ratio * needed / (at_hand - 0.5)) / 100 if at_hand else 1.0
    if ratio + params.val_select_ratio + params.val_test_ratio <= 1 - LEAST_TRAINED:
        ways.append("move some into it" if splits.metadata["split_column"] else f"raise val_calib_ratio to {ratio:g}")
    if at_hand >= minimum_positives(config.certified_level(LARGEST_TARGET), delta):
        ways.append("raise target_fnr_exit")
    return ", or ".join([", ".join(ways[:-1]), ways[-1]]) if len(ways) > 1 else ways[0]

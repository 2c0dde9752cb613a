"""The file of known weights that a calibration is given, checked as a whole: every mistake is told at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.data.table_files import delimited_rows
from stage1_pro.core.errors import UserError, counted, first_few
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.weights import Weights
from stage1_pro.core.schemas import did_you_mean

COLUMNS = ("case_id", "weight")
NO_BOUND = (
    "--weight_bound is missing: the largest weight that any case of the world can have, known as the weights are, not "
    "the largest one of these cases"
)


def weights_of(run: Run, name: str | None, bound: float | None) -> tuple[Weights | None, list[str]]:
    """The weights that `--weights FILE --weight_bound B` says for this run, None where neither is given, and all
    problems with them."""
    if name is None and bound is None:
        return None, []
    problems, table = _read(name)
    problems += _bound_problems(bound)
    if table is None:
        return None, problems
    calib = run.unweighted("val_calib")
    weights = _sorted(table, bound or np.nan)
    problems += _table_problems(table, np.inf if bound is None else bound, str(name))
    problems += _case_problems(weights, calib, run, str(name))
    if not problems:
        problems += _evidence_problems(weights, calib)
    return (None, problems) if problems else (weights, [])


def _read(name: str | None) -> tuple[list[str], pd.DataFrame | None]:
    """Problems, and the columns as text where the file has both."""
    if name is None:
        return ["--weights is missing: a table with the columns case_id and weight"], None
    path = Path(name)
    try:
        head, *rows = delimited_rows(artifacts.read_bytes(path, "Name an existing table with --weights."), path).cells
    except UserError as error:
        return [str(error)], None
    head = [cell.lower() for cell in head]
    lacking = [f"{name}: no column {column}{_meant(column, head)}" for column in COLUMNS if column not in head]
    if lacking or not rows:
        return lacking or [f"{name}: no rows below its header"], None
    return [], pd.DataFrame(rows, columns=head, dtype=str)[list(COLUMNS)]


def _meant(column: str, head: list[str]) -> str:
    """A hint where another column of the file is nearly named so."""
    hints = (did_you_mean(name, [column]) and f" (is it '{name}'?)" for name in head if name not in COLUMNS)
    return next(filter(None, hints), "")


def _bound_problems(bound: float | None) -> list[str]:
    if bound is None:
        return [NO_BOUND]
    return [] if np.isfinite(bound) and bound > 0 else [f"--weight_bound is {bound:g}; allowed above 0"]


def _table_problems(table: pd.DataFrame, bound: float, name: str) -> Iterator[str]:
    """What is wrong with the rows, whatever cases they are of."""
    weight = _numbers(table)
    checks = (
        (~np.isfinite(weight), "without a number as weight"),
        (weight < 0, "with a weight below 0"),
        (weight > bound, f"with a weight above --weight_bound {bound:g}"),
    )
    for wrong, words in checks:
        if wrong.any():
            yield f"{name}: {counted(int(wrong.sum()), 'row')} {words}: {first_few(table['case_id'][wrong], 3)}"
    differing = table.assign(weight=weight).groupby("case_id")["weight"].nunique(dropna=False)
    twice = differing.index[differing > 1]
    if len(twice):
        yield f"{name}: {counted(len(twice), 'case')} with two different weights: {first_few(twice, 3)}"


def _numbers(table: pd.DataFrame) -> FloatArray:
    return pd.to_numeric(table["weight"], errors="coerce").to_numpy(np.float64)


def _sorted(table: pd.DataFrame, bound: float) -> Weights:
    rows = table.assign(weight=_numbers(table)).drop_duplicates("case_id").sort_values("case_id")
    return Weights(rows["case_id"].to_numpy(object).astype(str), rows["weight"].to_numpy(), bound)


def _case_problems(weights: Weights, calib: Scores, run: Run, name: str) -> Iterator[str]:
    """Cases that have no weight of their own, and groups that would be torn."""
    of_calib = weights.of(calib)
    unknown = calib.case_id[~np.isin(calib.case_id.astype(str), weights.case_id)]
    if unknown.size:
        yield f"{name}: no weight for {counted(unknown.size, 'case')} of val_calib: {first_few(unknown, 3)}"
    others, tested = len(weights.case_id) - (len(calib) - unknown.size), len(run.splits.indices("val_test"))
    if run.config.group_views is None and others < tested:
        yield (
            f"{name}: weights of {others} cases beside val_calib, and val_test holds {tested}: give every case of the "
            "run one, since the test split is measured in the same world"
        )
    known = pd.DataFrame({"group": calib.group.astype(str), "weight": of_calib}).groupby("group")["weight"]
    torn = (found := known.nunique()).index[found > 1]
    if len(torn):
        yield (
            f"{counted(len(torn), 'group')} with cases of different weights ({first_few(torn, 3)}): a group is kept or "
            "left out as a whole, so give its cases one weight"
        )


def _evidence_problems(weights: Weights, calib: Scores) -> Iterator[str]:
    """What leaves nothing to certify, or needs no weights."""
    positive = calib.labels == 1
    of_positives = weights.of(calib)[positive]
    if of_positives.size and of_positives.min() == of_positives.max() > 0:
        yield (
            "all positives of val_calib have one weight, and a change of prevalence alone leaves FNR on exits as it "
            "was: certify without --weights, and let 45_cascade.py --prevalence weigh the costs"
        )
    elif not (weights.kept(calib) & positive).any():
        yield "no positive of val_calib is kept: there is nothing to certify on. Label cases of that world instead"

"""What is known of stage 2: its own answers to the test cases, or a range of sensitivity and specificity."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.cascade.prices import StageTwo
from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.schemas import did_you_mean

ID_COLUMNS, ANSWER_COLUMNS = ("case_id", "id"), ("answer", "prediction")
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Assumed:
    """Stage 2 as a range: (low, high) of sensitivity and of specificity on the cases that are deferred."""

    sensitivity: tuple[float, float]
    specificity: tuple[float, float]

    @property
    def middle(self) -> StageTwo:
        return StageTwo(sum(self.sensitivity) / 2, sum(self.specificity) / 2)

    def corners(self) -> list[StageTwo]:
        """The ends of the range: costs and savings are linear in both rates, so these hold all between them."""
        return [StageTwo(*pair) for pair in sorted(set(product(self.sensitivity, self.specificity)))]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Stage 2's answers. wrong: (N,) float of the test cases, 1 for a wrong answer, NaN where there is none; unused:
    rows of the file about other cases."""

    where: str
    wrong: FloatArray
    unused: int

    @property
    def known(self) -> BoolArray:
        """(N,) cases that stage 2 has answered."""
        return ~np.isnan(self.wrong)


def errors_of(second: StageTwo, labels: IntArray) -> FloatArray:
    """(N,) probability that stage 2 answers each case wrongly."""
    return np.where(labels == 1, 1 - second.sensitivity, 1 - second.specificity)


def rates_of(option: str, words: Sequence[str] | None) -> tuple[tuple[float, float], list[str]]:
    """The range that `--sensitivity LOW HIGH` or `--specificity LOW HIGH` says, and what is wrong with it.

    One number is both ends.
    """
    if not words:
        return (0.0, 1.0), [f"{option} is missing: name the lowest and the highest value that you believe in, 0 to 1"]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 <= value <= 1 for value in values) or values != sorted(values):
        return (0.0, 1.0), [f"{option} {' '.join(words)}: allowed are one number, or a low and a high one, 0 to 1"]
    return (values[0], values[-1]), []


def read_predictions(
    path: Path, case_ids: np.ndarray, labels: IntArray, deferred: BoolArray, class_names: Sequence[str]
) -> tuple[Predictions | None, list[str]]:
    """Stage 2's answers to the test cases out of a CSV with `case_id` and `answer`, and all problems with it.

    case_ids, labels, deferred: (N,) of the test cases; an answer is a class name, or 0 and 1.
    """
    try:
        table = _table(path)
    except UserError as error:
        return None, [str(error)]
    names = [_column(table, wanted, path) for wanted in (ID_COLUMNS, ANSWER_COLUMNS)]
    problems = [name.problem for name in names if name.problem]
    if problems:
        return None, problems
    ids, answers = (table[name.name].str.strip() for name in names)
    places = pd.Series(np.arange(len(case_ids)), index=case_ids.astype(str)).reindex(ids).to_numpy()
    known = {**{str(number): number for number in (0, 1)}, **{name: at for at, name in enumerate(class_names)}}
    codes: FloatArray = np.asarray(answers.map(known), dtype=np.float64)
    problems = [*_bad_answers(path, answers[np.isnan(codes)], class_names), *_twice(path, ids, codes)]
    ours = ~np.isnan(places)
    found = np.full(len(case_ids), np.nan)
    found[places[ours].astype(np.int64)] = codes[ours]
    problems += _lacking(path, case_ids[deferred & np.isnan(found)], int(deferred.sum()))
    wrong = np.where(np.isnan(found), np.nan, (found != labels).astype(np.float64))
    return Predictions(str(path), wrong, int((~ours).sum())), problems


def measured_range(
    predictions: Predictions, members: BoolArray, labels: IntArray, independent: BoolArray, confidence: float
) -> dict[str, tuple[float, float, float]]:
    """Sensitivity and specificity of stage 2 on these cases (N,) bool, with exact intervals over independent ones."""
    ranges = {}
    for name, label, counted_ones in (("sensitivity", 1, independent), ("specificity", 0, np.ones_like(independent))):
        kept = members & predictions.known & (labels == label) & counted_ones
        right, total = int((predictions.wrong[kept] == 0).sum()), int(kept.sum())
        low, high = fnr_interval(right, total, confidence)
        ranges[name] = (right / total if total else float("nan"), float(low), float(high))
    return ranges


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    problem: str = ""


def _table(path: Path) -> pd.DataFrame:
    content = artifacts.read_bytes(path, "Name an existing CSV with --stage2.")
    try:
        text = content.decode("utf-8-sig")
        mark = next((mark for mark in (",", ";", "\t") if mark in text.partition("\n")[0]), ",")
        table = pd.read_csv(io.StringIO(text), sep=mark, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: no CSV in UTF-8 ({' '.join(str(error).split())[:100]})") from None
    return table.rename(columns=lambda name: str(name).strip().lower())


def _column(table: pd.DataFrame, wanted: tuple[str, ...], path: Path) -> _Column:
    found = next((name for name in wanted if name in table.columns), None)
    if found:
        return _Column(found)
    hint = next((hint for name in table.columns if (hint := did_you_mean(name, list(wanted)))), "")
    return _Column("", f"{path}: has no column '{wanted[0]}'{hint}; its columns are {', '.join(table.columns)}")


def _bad_answers(path: Path, answers: pd.Series, class_names: Sequence[str]) -> list[str]:
    if answers.empty:
        return []
    words = ", ".join(repr(word) for word in answers.unique()[:SHOWN])
    allowed = ", ".join(map(repr, class_names))
    return [f"{path}: {counted(len(answers), 'answer')} that are no class, such as {words}; allowed {allowed}, 0 and 1"]


def _twice(path: Path, ids: pd.Series, codes: FloatArray) -> list[str]:
    differing = pd.Series(codes, index=ids.to_numpy()).groupby(level=0).nunique(dropna=False)
    both = differing.index[differing > 1]
    if not len(both):
        return []
    named = ", ".join(map(str, both[:SHOWN]))
    return [f"{path}: {counted(len(both), 'case')} with two different answers: {named}"]


def _lacking(path: Path, missing: np.ndarray, deferred: int) -> list[str]:
    if not len(missing):
        return []
    named = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
    return [
        f"{path}: lacks {len(missing):,} of the {deferred:,} deferred test cases ({named}); what stage 2 does to them "
        "is what counts. Without --stage2 and with --sensitivity and --specificity, deferred.csv lists all of them"
    ]

"""Labels that may be wrong: every training case, ranked by what a model that never saw it says of its label.

A case is ranked by its self-confidence (Northcutt, Jiang & Chuang 2021, "Confident Learning"): the out-of-fold
probability of its own label. The probe that gives it is strongly regularised and has no class weights: a flexible one
learns the wrong labels, and weights let wrong labels of the frequent class pass as the rare one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.errors import counted
from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.records.run import Run
from stage1_pro.core.seeds import rng_of
from stage1_pro.core.training.crossfit import CHUNK, FOLDS, LEAST_DEVIATION, assigned_folds

PROBE_C = 1.3
"""Inverse strength of the L2 penalty on standardised features that are divided by the root of their number; a third or
three times of it hardly changes a ranking."""
MOST_FITTED = 50_000
"""Cases that a probe is fitted to at most; more cost minutes and move no ranking."""
LEAST_TELLING = 3.0
"""Standard errors below which the order of the list may be chance."""
COLUMNS = ("rank", "case_id", "split", "label", "suggested_label", "probability", "suggested_probability")


@dataclass(frozen=True, slots=True, eq=False)
class Suspicion:
    """What out-of-fold probes say of N labels.

    own: (N,) probability of the case's own label, NaN where it cannot be judged; suggested: (N,) the most probable of
    the other classes; suggested_probability: (N,); order: positions of the judged cases, the least probable label
    first; telling: how surely the features tell the classes apart, in standard errors of chance.
    """

    own: FloatArray
    suggested: IntArray
    suggested_probability: FloatArray
    order: IntArray
    telling: float

    @property
    def contradicted(self) -> int:
        """Cases of which another class is more probable than their own label."""
        return int((self.suggested_probability > self.own).sum())


def suspicion(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Suspicion | None:
    """Judge each label by probes of the other folds; no group is in two folds.

    features: (N, D); labels: (N,) int from 0; groups: (N,). None where fewer than three groups, or one class, leave no
    fold out. A case cannot be judged where its features are not finite, or its class is in its own fold alone.
    """
    whole = np.isfinite(features).all(axis=1)
    fold = assigned_folds(labels, np.asarray(groups), seed)
    if fold is None or len(np.unique(labels)) < 2:
        return None
    probability = np.full((len(labels), int(labels.max()) + 1), np.nan)
    with bar("looking for wrong labels", brief=True) as progress:
        for number in range(FOLDS):
            judged = np.flatnonzero(whole & (fold == number))
            fitted = np.flatnonzero(whole & (fold != number))
            if len(fitted) > MOST_FITTED:
                fitted = np.sort(rng_of(seed, "suspects", number).choice(fitted, MOST_FITTED, replace=False))
            classes = np.unique(labels[fitted])
            if len(judged) and len(classes) > 1:
                probability[np.ix_(judged, classes)] = _probed(features, labels, fitted, judged)
            progress(number + 1, FOLDS)
    return _ranked(probability, labels, np.asarray(groups))


def _ranked(probability: FloatArray, labels: np.ndarray, groups: np.ndarray) -> Suspicion:
    """The suspicion of class probabilities (N, C), NaN where a class was not in the fit."""
    every = np.arange(len(labels))
    own, others = probability[every, labels], np.nan_to_num(probability, nan=-1.0)
    others[every, labels] = -2.0
    suggested = others.argmax(axis=1)
    order = np.argsort(own, kind="stable")
    return Suspicion(
        own,
        suggested,
        probability[every, suggested],
        order[: np.isfinite(own).sum()],
        _telling(probability, labels, groups),
    )


def _telling(probability: FloatArray, labels: np.ndarray, groups: np.ndarray) -> float:
    """How far the areas under the ROC curves of the classes lie above one half, together, in standard errors.

    Mann & Whitney (1947); cases of one group count once there, since they are right or wrong together. Two classes
    have one area, so the sum of K deviations is divided by the root of 2 K.
    """
    from scipy.stats import rankdata

    found = []
    for code in np.unique(labels):
        judged = np.isfinite(probability[:, code])
        ours, units = labels[judged] == code, groups[judged]
        count, others = int(ours.sum()), int((~ours).sum())
        if count and others:
            area = (rankdata(probability[judged, code])[ours].mean() - (count + 1) / 2) / others
            count, others = len(np.unique(units[ours])), len(np.unique(units[~ours]))
            found.append((area - 0.5) / ((count + others + 1) / (12 * count * others)) ** 0.5)
    return float(np.sum(found) / max(1, 2 * len(found)) ** 0.5)


def _probed(features: np.ndarray, labels: np.ndarray, fitted: IntArray, judged: IntArray) -> FloatArray:
    """(J, K) probabilities of the judged cases by a probe of the fitted ones; K classes that these have, in order."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    inputs = features[fitted].astype(np.float32, copy=True)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(deviation > LEAST_DEVIATION, 1 / np.maximum(deviation, LEAST_DEVIATION), 0)
    scale = (scale / len(mean) ** 0.5).astype(np.float32)
    inputs -= mean
    inputs *= scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a ranking does not need the last digit
        probe = LogisticRegression(C=PROBE_C, max_iter=200).fit(inputs, labels[fitted])
    parts = (judged[start : start + CHUNK] for start in range(0, len(judged), CHUNK))
    return np.concatenate([probe.predict_proba((features[part] - mean) * scale) for part in parts])


def write_suspects(run: Run, cases: CaseTable, features: np.ndarray, seed: int) -> None:
    """Write suspects.csv: every training case, the most suspect first, and say how many labels are contradicted.

    features: (N, D) of the training split. Only of this split: who corrects a label of val_calib because the model
    contradicts it takes misses out of the count that the certificate rests on.
    """
    frame = cases.frame.iloc[run.splits.indices("train")]
    labels = frame["label"].to_numpy()
    found = suspicion(features, labels, frame["group"].to_numpy(), seed)
    if found is None:
        run.suspects_path.unlink(missing_ok=True)
        say(f"no suspects.csv: train has fewer than {FOLDS} groups, or one class, so no fold can be left out")
        return
    artifacts.write_csv(
        run.suspects_path, _rows(found, frame["case_id"].to_numpy(), labels, cases.class_names), COLUMNS
    )
    judged, left_out = len(found.order), len(labels) - len(found.order)
    say(
        f"suspects.csv: another class is more probable for {found.contradicted:,} of {judged:,} training labels; "
        "look at the first of them" + (f" ({counted(left_out, 'case')} could not be judged)" if left_out else "")
    )
    if found.telling < LEAST_TELLING:
        say(
            "warning: the features do not tell the classes apart better than chance, so the order of suspects.csv says "
            "nothing of the labels: choose another backbone in model_path, or more training cases"
        )


def _rows(found: Suspicion, ids: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Iterator[dict[str, object]]:
    for rank, at in enumerate(found.order, 1):
        yield {
            "rank": rank,
            "case_id": ids[at],
            "split": "train",
            "label": names[labels[at]],
            "suggested_label": names[found.suggested[at]],
            "probability": f"{found.own[at]:.6g}",
            "suggested_probability": f"{found.suggested_probability[at]:.6g}",
        }

"""Farthest-first admission of 200 cases out of 50,000 with 128 features, against scikit-activeml's CoreSet.

Both begin from the same active case, on unit embeddings without ties, and must pick the same cases in the same order.
"""

import warnings

import numpy as np
from result import Result, fastest

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.incremental.acquisition import CaseMetrics, admit

CASES, FEATURES, PICKS = 50_000, 128, 200
ROUNDS = 3
PARAMS = IncrementalParams(enabled=True, w_dice=0, w_uncertainty=0, w_diversity=1)


def measure() -> list[Result]:
    embedding = np.random.default_rng(0).normal(size=(CASES, FEATURES)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    ours, theirs = ours_on(embedding), core_set_on(embedding)
    same = ours().tolist() == theirs().tolist()
    seconds = fastest({"ours": ours, "CoreSet": theirs}, ROUNDS)
    note = f"ours {seconds['ours']:.2f} s, CoreSet {seconds['CoreSet']:.2f} s for {PICKS} of {CASES:,} × {FEATURES}"
    return [
        Result("CoreSet / farthest-first", seconds["CoreSet"] / seconds["ours"], 8, "at least", note),
        Result("same picks as CoreSet", float(same), 1, "at least"),
    ]


def ours_on(embedding: np.ndarray):
    ids, zeros = np.arange(CASES), np.zeros(CASES)
    metrics = CaseMetrics(ids, ids, zeros, zeros, embedding)
    return lambda: admit(metrics, np.array([0]), PARAMS, PICKS, seed=0, stage=1, device="cpu").picks


def core_set_on(embedding: np.ndarray):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from skactiveml.pool import CoreSet
    labels = np.full(CASES, np.nan)
    labels[0] = 0
    return lambda: CoreSet(random_state=0).query(embedding, labels, batch_size=PICKS)

"""The cases that the first stage trains on."""

import numpy as np

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.seeds import rng_of


def initial_cases(
    labels: np.ndarray, content: np.ndarray, classes: int, params: IncrementalParams, seed: int
) -> IntArray:
    """Positions of the initial cases in the pool, sorted; identical images count as one.

    labels, content: (N,) of the pool, sorted by case id. Raises UserError where the pool is too small, or too few
    cases are asked for to have one of each class.
    """
    # a copy in the first few cases would teach nothing, and weigh double
    _, distinct = np.unique(content, return_index=True)
    distinct = np.sort(distinct)
    count, where = params.initial_cases, "incremental_params.initial_cases"
    if count > len(distinct):
        raise UserError(f"{where} is {count}, and the training split has {len(distinct)} different images. Lower it.")
    rng = rng_of(seed, "initial")
    if params.initial_strategy == "random":
        return np.sort(rng.choice(distinct, count, replace=False))
    if count < classes:
        raise UserError(
            f"{where} is {count}, fewer than the {classes} classes that initial_strategy stratified draws one of each "
            f"from. Raise it to {classes} or more."
        )
    drawn = rng.permutation(distinct)
    shares = _shares(np.bincount(labels[distinct], minlength=classes), count)
    return np.sort(np.concatenate([drawn[labels[drawn] == code][:share] for code, share in enumerate(shares)]))


def _shares(sizes: IntArray, count: int) -> IntArray:
    """(C,) how many of each class: in proportion to its size, by largest remainders, one at least where it has one."""
    # one of each class at least: a model that never saw a class cannot be uncertain about it
    shares = np.minimum(np.maximum(count * sizes // sizes.sum(), 1), sizes)
    exact = count * sizes / sizes.sum()
    while shares.sum() != count:
        step = 1 if shares.sum() < count else -1
        possible = shares < sizes if step > 0 else shares > 1
        shares[np.argmax(np.where(possible, step * (exact - shares), -np.inf))] += step
    return shares

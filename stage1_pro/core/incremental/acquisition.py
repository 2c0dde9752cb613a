"""Who is admitted next: what a case would teach, and a greedy farthest-first choice among the eligible.

    difficulty  = 1 - dice                      dice = p(true class)
    uncertainty = entropy / log C
    diversity   = min(d / s, 1)                 d = distance to the nearest active or picked case, s = largest first d
    acq         = w_dice * difficulty + w_uncertainty * uncertainty + w_diversity * diversity

Greedy: pick the largest acq (ties: the smallest id), update d, repeat. The numbers are rounded to 1e-6, so that the
order does not depend on the last bits of a device; distances are float64, since in float32 the expansion of the norm
gives a case a distance of .001 to itself.
"""

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.incremental.distances import Distances
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.seeds import rng_of

DECIMALS = 6
LEAST_SCALE = 1e-12
# cases near the top: enough that the best is mostly among them, few enough to look at in each pick
FRONT = 256


@dataclass(frozen=True, slots=True, eq=False)
class CaseMetrics:
    """What a model says of the whole pool, sorted by case id.

    case_id: (N,) str; content: (N,) equal where the images are identical; dice: (N,) p(true class); entropy: (N,) in
    units of log C; embedding: (N, D) float32. A case with a number that is not finite is not scored.
    """

    case_id: np.ndarray
    content: np.ndarray
    dice: FloatArray
    entropy: FloatArray
    embedding: np.ndarray

    @property
    def finite(self) -> BoolArray:
        """(N,) whether all of a case's numbers are."""
        whole = np.isfinite(self.embedding.sum(axis=1, dtype=np.float64))
        return np.isfinite(self.dice) & np.isfinite(self.entropy) & whole


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """The outcome of one scoring. Positions point into the pool; the components are those at the time of the pick.

    candidates: finite cases not in training, identical images once; eligible: those of them that may be picked;
    nonfinite: positions of cases that could not be scored; scale: s.
    """

    candidates: int
    eligible: int
    nonfinite: IntArray
    scale: float
    picks: IntArray
    difficulty: FloatArray
    uncertainty: FloatArray
    diversity: FloatArray
    acq: FloatArray

    def __len__(self) -> int:
        return len(self.picks)


def admit(
    metrics: CaseMetrics, active: IntArray, params: IncrementalParams, room: int, seed: int, stage: int, device: str
) -> Admission:
    """Choose at most `room` further cases.

    active: (A,) positions in training; device: "cpu" for numpy, else a torch device with float64; the picks are the
    same.
    """
    candidates = _candidates(metrics, active)
    difficulty, uncertainty = np.round(1 - metrics.dice, DECIMALS), np.round(metrics.entropy, DECIMALS)
    if params.strategy == "random":
        # all of them: a control that saw the model would be none. With 10 % wrong labels it is as good as the default
        eligible = candidates
    else:
        easy = metrics.dice[candidates] > params.selection_threshold
        eligible = candidates[~easy & ~too_difficult(metrics.dice[candidates], params)]
    if len(eligible) < params.min_add_cases:
        room = 0  # a whole stage for a case or two
    known = active[metrics.finite[active]]
    distances = Distances(metrics.embedding, eligible, known, device)
    value = params.w_dice * difficulty[eligible] + params.w_uncertainty * uncertainty[eligible]
    nearest = np.round(distances.to_known(), DECIMALS)
    # fixed for the stage: else each pick would change the diversity of all others
    scale = float(nearest.max(initial=0.0))
    if params.strategy == "random":
        rng = rng_of(seed, "admission", stage)
        chosen = rng.permutation(len(eligible))[:room]
        diversity = _diversity(nearest[chosen], scale)
    else:
        chosen, diversity = farthest_first(value, nearest, scale, params.w_diversity, distances, room)
    picks = eligible[chosen]
    return Admission(
        candidates=len(candidates),
        eligible=len(eligible),
        nonfinite=np.flatnonzero(~metrics.finite),
        scale=scale,
        picks=picks,
        difficulty=difficulty[picks],
        uncertainty=uncertainty[picks],
        diversity=diversity,
        acq=value[chosen] + params.w_diversity * diversity,
    )


def farthest_first(
    value: FloatArray, nearest: FloatArray, scale: float, weight: float, distances: Distances, count: int
) -> tuple[IntArray, FloatArray]:
    """Greedy choice of `count` of E cases: (positions in pick order, diversity of each when it was picked).

    value: (E,) what does not change in a stage; nearest: (E,) rounded distance to the active cases.
    A case's distance only falls while others are picked, so an old one bounds its score from above: a case is looked
    at again only while that bound reaches the best known score. (The likely ones, the front, first: they say how high
    that is.) At worst each case meets each pick, O((|A| + count)·E·D) time; memory is O(E).
    """
    nearest, seen = nearest.copy(), np.zeros(len(value), dtype=np.int64)
    acq = value + weight * _diversity(nearest, scale)
    picks: list[int] = []
    diversity: list[float] = []

    def refresh(stale: IntArray) -> None:
        """Bring cases up to date with all picks."""
        for part in distances.blocks(stale[np.argsort(seen[stale], kind="stable")]):
            first = int(seen[part].min())
            found = np.round(distances.to_picks(part, first), DECIMALS)
            nearest[part] = np.minimum(nearest[part], found)
            acq[part] = value[part] + weight * _diversity(nearest[part], scale)
            seen[part] = len(picks)

    front = np.arange(0)
    for _ in range(min(count, len(value))):
        if picks and weight and scale >= LEAST_SCALE:
            refresh(front[np.isfinite(acq[front])])
            best = acq[seen == len(picks)].max(initial=-np.inf)
            reaching = np.flatnonzero((acq >= best) & (seen < len(picks)) & np.isfinite(acq))
            refresh(reaching)
            if len(reaching) > FRONT // 4:  # the front has fallen behind
                front = np.argpartition(acq, -FRONT)[-FRONT:] if len(acq) > FRONT else np.arange(len(acq))
        best = int(np.argmax(acq))  # the first of equals: the smallest id
        if seen[best] < len(picks):  # where distance does not count it is still reported
            refresh(np.array([best]))
        picks.append(best)
        distances.add(best)
        diversity.append(float(_diversity(nearest[best : best + 1], scale)[0]))
        acq[best] = -np.inf
    return np.array(picks, dtype=np.int64), np.array(diversity)


def _candidates(metrics: CaseMetrics, active: IntArray) -> IntArray:
    """Positions of finite cases that are not in training; of identical images only the first, and none whose image
    is in training already."""
    outside = metrics.finite
    outside[active] = False
    outside &= ~np.isin(metrics.content, metrics.content[active])
    positions = np.flatnonzero(outside)
    # of twins the order would depend on the last bits of their scores, and the second teaches nothing
    _, first = np.unique(metrics.content[positions], return_index=True)
    return positions[np.sort(first)]


def too_difficult(dice: FloatArray, params: IncrementalParams) -> BoolArray:
    """Return the cases that max_difficulty keeps out; at random all may be admitted."""
    return (np.round(1 - dice, DECIMALS) > params.max_difficulty) & (params.strategy != "random")


def _diversity(nearest: FloatArray, scale: float) -> FloatArray:
    return np.minimum(nearest / scale, 1.0) if scale >= LEAST_SCALE else np.zeros(len(nearest))

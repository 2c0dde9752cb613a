"""Exits of masks: a positive case whose mask fails the miss rule is a miss, whatever the answer is."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, binom

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.softmax import SoftmaxExitPolicy, calibrate_softmax, softmax_fields
from stage1_pro.core.policies.usefulness import mask_figures, worth
from stage1_pro.core.policies.verification import demand_reproduced
from stage1_pro.core.records.scores import MaskScores, Scores, read_scores

RISK = Risk(0.1, 0.95)


def drawn(rng: np.random.Generator, cases: int, split: str = "val_calib", negatives: float = 0.0) -> Scores:
    """Cases whose masks fail the more often the less sure the network is; answers are all 1."""
    confidence = rng.beta(5, 2, cases)
    labels = (rng.random(cases) >= negatives).astype(np.int8)
    fails = rng.random(cases) < (1 - confidence) ** 1.7
    logits = np.column_stack([np.zeros(cases), np.log1p(confidence) - np.log1p(-confidence)]).astype(np.float32)
    ids = np.array([f"{index:05}" for index in range(cases)])
    missed = np.where(labels == 1, fails, -1).astype(np.int8)
    masks = MaskScores(missed, confidence, 1 - confidence, confidence, np.full(cases, 0.1))
    return Scores(split, ids, ids, labels, logits, None, "m", "s", masks=masks)


def test_misses_are_counted_and_a_file_that_hides_them_is_found_out(tmp_path) -> None:
    rng = np.random.default_rng(0)
    select, calib = drawn(rng, 400, "val_select", 0.2), drawn(rng, 400, negatives=0.2)
    fields = softmax_fields(calibrate_softmax(select, calib, RISK))
    policy = SoftmaxExitPolicy(fields["exit_threshold"])
    decisions = policy.decide(calib)
    exits, positive = decisions.exits, calib.labels == 1
    assert calib.masks is not None
    assert fields["misses"] == int((exits & (calib.masks.missed == 1)).sum()) > 0
    assert fields["exited_positives"] == int((exits & positive).sum())
    assert (decisions.predictions == 1).all()  # decisions are the model's; only counting knows of misses
    calib.write(tmp_path / "a.parquet")
    again = read_scores(tmp_path / "a.parquet", "")
    demand_reproduced(fields, decisions, again, tmp_path)
    assert again.masks is not None
    hidden = replace(again.masks, missed=np.where(exits & positive, 0, again.masks.missed))
    with pytest.raises(UserError, match="on val_calib it gives 0 misses"):
        demand_reproduced(fields, decisions, replace(again, masks=hidden), tmp_path)
    fields["val_calib_metrics"] |= mask_figures(exits, calib)
    demand_reproduced(fields, decisions, again, tmp_path)
    fields["val_calib_metrics"]["dice_on_exits"] += 0.1
    with pytest.raises(UserError, match=r"other values of \$\.val_calib_metrics\.dice_on_exits"):
        demand_reproduced(fields, decisions, again, tmp_path)


def test_masks_are_of_use_where_all_cases_are_positive() -> None:
    figures = {"cases": 100, "positives": 100, "exited": 80, "false_alarms": 0, "misses": 4, "accuracy_on_exits": 0.95}
    figures |= {"coverage": 0.8, "fpr_on_exits": None}
    prices = {"false_alarm": 5.0, "miss": 0.0}
    assert worth(figures, prices)[1] != ""
    assert worth(figures, prices, masks=True)[1] == ""
    blobs = {**figures, "dice_on_exits": 0.62, "marked_dice_on_exits": 0.6}
    assert "0.62, and that of marking every voxel 0.60" in worth(blobs, prices, masks=True)[1]
    assert worth({**blobs, "dice_on_exits": 0.65}, prices, masks=True)[1] == ""
    assert "only 40.0% of its exits are right" in worth({**figures, "accuracy_on_exits": 0.4}, prices, masks=True)[1]


SELECTED, CALIBRATED = 150, 250
"""Cases of val_select and of val_calib in the simulation, all positive."""


def miss_rates() -> np.ndarray:
    """(CALIBRATED,) chance that the first, second … surest case of val_calib is missed, exact up to quadrature."""
    rank = np.arange(1, CALIBRATED + 1)[:, None]
    middles = (np.arange(2000) + 0.5) / 2000
    confidence = beta.isf(beta.ppf(middles, rank, CALIBRATED + 1 - rank), 5, 2)
    return ((1 - confidence) ** 1.7).mean(axis=1)


def power_of_boundary(rises: tuple[int, ...], rates: np.ndarray) -> float:
    """P(misses of the surest cases fall to the boundary somewhere), over thresholds between the cases of val_select."""
    thresholds = set(np.round(CALIBRATED * np.arange(1, SELECTED + 1) / (SELECTED + 1)).astype(int).tolist())
    running, crossed = np.zeros(CALIBRATED + 2), 0.0
    running[0] = 1.0
    for exited, rate in enumerate(rates, 1):
        running[1:] = running[1:] * (1 - rate) + running[:-1] * rate
        running[0] *= 1 - rate
        allowed = sum(rise <= exited for rise in rises)
        if exited in thresholds:
            crossed += float(running[:allowed].sum())
            running[:allowed] = 0.0
    return crossed


def power_of_start(threshold: float) -> float:
    """P(the test at one threshold on the largest probability passes): exits are binomial, and their misses too."""
    confidence = 2 * threshold - 1
    exits = float(beta.sf(confidence, 5, 2))
    inside = np.linspace(confidence, 1, 20_001)
    rate = float(np.average((1 - inside) ** 1.7, weights=beta.pdf(inside, 5, 2)))
    number = np.arange(CALIBRATED + 1)
    passes = [
        next((k for k in range(m + 1) if binom.cdf(k, m, RISK.target_fnr) > 1 - RISK.confidence), m + 1) for m in number
    ]
    return float((binom.pmf(number, CALIBRATED, exits) * binom.cdf(np.array(passes) - 1, number, rate)).sum())


@pytest.mark.mc
def test_few_certificates_of_masks_are_false_and_the_naive_threshold_is_not_one() -> None:
    rng = np.random.default_rng(1)
    population = drawn(rng, 200_000)
    assert population.masks is not None
    order = np.argsort(-population.logits[:, 1], kind="stable")
    confidence = np.exp(population.logits[order, 1].astype(float))
    confidence = confidence / (1 + confidence)
    rate = np.cumsum(population.masks.missed[order] == 1) / np.arange(1, len(order) + 1)
    share = np.arange(1, len(order) + 1) / len(order)

    def at(threshold: float) -> tuple[float, float]:
        exits = int(np.count_nonzero(confidence >= threshold))
        return float(rate[exits - 1]), float(share[exits - 1])

    rates, boundaries, chances = miss_rates(), {}, []
    broken, naive_broken, coverage, draws = 0, 0, [], 400
    for _ in range(draws):
        select, calib = drawn(rng, SELECTED, "val_select"), drawn(rng, CALIBRATED)
        found = calibrate_softmax(select, calib, RISK)
        if "boundary" in found.found.facts:
            rises = tuple(found.found.facts["boundary"]["rises"])
            if rises not in boundaries:
                boundaries[rises] = power_of_boundary(rises, rates)
            chances.append(boundaries[rises])
        else:
            chances.append(power_of_start(found.parameters[found.walk.start]["threshold"]))
        if found.certified:
            fields = softmax_fields(found)
            fnr, covered = at(fields["exit_threshold"])
            broken += fnr > RISK.target_fnr
            coverage.append(covered)
            naive = fields["diagnostics"]["naive"]
            naive_broken += at(naive["threshold"])[0] > RISK.target_fnr
    chance = np.array(chances)
    expected, error = float(chance.sum()), float((chance * (1 - chance)).sum()) ** 0.5
    print(f"violations {broken / draws:.4f}, naive {naive_broken / draws:.3f}, coverage {np.mean(coverage):.3f}")
    print(f"certified {len(coverage)}, by theory {expected:.1f} ± {error:.1f}")
    assert broken / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert naive_broken / draws > 0.2
    # what val_select chose is known, so the chance of each draw to be certified is a sum of binomial probabilities
    assert abs(len(coverage) - expected) <= 4 * error
    assert np.mean(coverage) > 0.3

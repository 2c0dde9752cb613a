"""SCRC at a million cases: counting 200 × 100 pairs against one np.argsort of the scores, and deciding by SCRC-T
against deciding by SCRC-I.

Timed is the whole choice of candidates: calibrated scores in, the best of eight chains of pairs out. Both variants
decide by the same two thresholds, so a transductive decision refits nothing for a case.
"""

from dataclasses import replace

import numpy as np
from population import MAIN, scores
from result import Result, fastest

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidate_pairs import RankedPairs, chain_pairs, count_pairs
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.scrc import SCRCExitPolicy, answered, calibrate_scrc, gate_of
from stage1_pro.core.records.scores import Scores

CASES = 10**6
RISK = Risk(0.05, 0.9)


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    small, large = gated(rng, 10**5), gated(rng, CASES)
    policies = {variant: calibrated(small, gated(rng, 10**5), variant) for variant in ("SCRC-I", "SCRC-T")}
    return [*_counting(ranked(policies["SCRC-I"], large)), _deciding(policies, large)]


def gated(rng: np.random.Generator, cases: int) -> Scores:
    """Cases of the main population with a gate that knows a little more than z."""
    z, labels = MAIN.draw(rng, cases)
    right = (z >= 0) == (labels == 1)
    gate = 0.5 * np.abs(z) + 0.7 * (2 * right - 1) + rng.standard_normal(cases)
    return replace(scores(z, labels), gate_logit=gate.astype(np.float32))


def calibrated(select: Scores, calib: Scores, variant: str) -> SCRCExitPolicy:
    return SCRCExitPolicy.from_artifact(calibrate_scrc(select, calib, RISK, variant=variant).fields())


def ranked(policy: SCRCExitPolicy, split: Scores) -> RankedPairs:
    answers, confidence = answered(policy.dirichlet_params, split)
    return RankedPairs.of(split, gate_of(policy.calibrator_params, split, answers, confidence), confidence, answers)


def _counting(split: RankedPairs) -> list[Result]:
    lambda1 = np.linspace(split.gate.min(), split.gate.max(), 200)
    lambda2 = np.linspace(0.5, 1, 100)
    given = split.gate, split.confidence, split.answers, split.labels
    seconds = fastest(
        {
            "argsort": lambda: np.argsort(split.gate),
            "counts": lambda: count_pairs(*given, lambda1, lambda2),
            "chain": lambda: chain_pairs(split, 10**5, RISK, EXIT_RULES["symmetric"]),
        },
        rounds=3,
    )
    note = f"{len(lambda1)} × {len(lambda2)} pairs, {CASES:.0e} cases, argsort {seconds['argsort'] * 1e3:.0f} ms"
    return [
        Result("pairs counted / argsort", seconds["counts"] / seconds["argsort"], 10, "at most", note),
        Result("chain of pairs / argsort", seconds["chain"] / seconds["argsort"], 10, "at most", "counted and chosen"),
    ]


def _deciding(policies: dict[str, SCRCExitPolicy], split: Scores) -> Result:
    jobs = {variant: lambda policy=policy: policy.decide(split) for variant, policy in policies.items()}
    seconds = fastest(jobs, rounds=3)
    note = f"{CASES:.0e} decisions, SCRC-I {seconds['SCRC-I'] * 1e3:.0f} ms"
    return Result("SCRC-T decides / SCRC-I", seconds["SCRC-T"] / seconds["SCRC-I"], 3, "at most", note)

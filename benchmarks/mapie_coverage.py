"""Validity and certified coverage on 400 fresh draws, ours against every method of MAPIE 1.6.

The same 10^4 + 10^4 cases and the same 200 thresholds go to all. Coverage is the true one of the
certified threshold, 0 where nothing is certified. MAPIE's fixed sequence begins at the strictest
threshold, where no evidence is, and finds nothing; so it is also given shorter lists, which begin at
10 to 40 % coverage. No user could know which of these is best. The peer that knows as much as ours takes
the list that certifies most on val_select itself, the loosest on ties. The best in hindsight, known from
the truth of all draws, is a row of its own: what that knowledge is worth.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from montecarlo import Outcomes, outcomes
from population import MAIN
from result import Result
from rivals import RISK, draw, mapie, ours
from scipy.stats import binom

from stage1_pro.core.policies.candidates import thresholds_between

CASES, DRAWS = 10**4, 400
NAMED = ("bonferroni", "bonferroni_holm", "fixed_sequence", "split_fixed_sequence")
MULTI_STARTS = (5, 10)
SHORTENED = (0.1, 0.2, 0.3, 0.4)


def measure() -> list[Result]:
    found = {name: outcomes(MAIN, list(thresholds)) for name, thresholds in certified().items()}
    for name, outcome in found.items():
        print(f"  {name:<28} {_in_words(outcome)}", file=sys.stderr)
    ours_found = found.pop("ours")
    hindsight = {name: outcome for name, outcome in found.items() if " from " in name}
    regular = {name: outcome for name, outcome in found.items() if name not in hindsight}
    allowed = binom.ppf(0.999, DRAWS, RISK.delta) / (DRAWS * RISK.delta)
    false_share = ours_found.violations(RISK.target_fnr) / (DRAWS * RISK.delta)
    return [
        Result("violations / delta", false_share, allowed, "at most", _in_words(ours_found)),
        _coverage_row("coverage, ours / MAPIE's best", ours_found, regular),
        _coverage_row("coverage, ours / MAPIE's best list in hindsight", ours_found, hindsight),
    ]


def certified() -> dict[str, list[float | None]]:
    """Each method's thresholds, one a draw."""
    rows = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork")) as pool:
        for done, row in enumerate(pool.map(one_draw, range(DRAWS)), 1):
            rows.append(row)
            if done % 50 == 0:
                print(f"  {done} of {DRAWS} draws", file=sys.stderr, flush=True)
    return {name: [row[name] for row in rows] for name in rows[0]}


def one_draw(seed: int) -> dict[str, float | None]:
    from mapie.risk_control import FWERFixedSequenceTesting

    rng = np.random.default_rng([2025, seed])
    select, calib = (draw(MAIN, rng, CASES) for _ in range(2))
    thresholds = thresholds_between(select.scores, 0.5)
    found = {"ours": ours(select, calib, thresholds)}
    for name in NAMED:
        found[name] = mapie(select, calib, thresholds, name)
    for starts in MULTI_STARTS:
        found[f"fixed_sequence, {starts} starts"] = mapie(select, calib, thresholds, FWERFixedSequenceTesting(starts))
    on_select: dict[str, float] = {}
    for share in reversed(SHORTENED):
        shorter, name = thresholds[int(share * len(thresholds)) :], f"fixed_sequence from {share:.0%}"
        found[name] = mapie(select, calib, shorter, "fixed_sequence")
        on_select[name] = mapie(select, select, shorter, "fixed_sequence") or np.inf
    found["list chosen on val_select"] = found[min(on_select, key=lambda name: on_select[name])]
    return found


def _coverage_row(name: str, ours_found: Outcomes, peers: dict[str, Outcomes]) -> Result:
    """Mean coverage against the best peer's; the target allows two paired standard errors."""
    best = max(peers, key=lambda peer: peers[peer].mean_coverage)
    gain = np.nan_to_num(ours_found.coverage) - np.nan_to_num(peers[best].coverage)
    error = gain.std(ddof=1) / np.sqrt(gain.size)
    mean = peers[best].mean_coverage
    note = f"{best}: gain {gain.mean():+.4f}, paired standard error {error:.4f}"
    return Result(name, ours_found.mean_coverage / mean, 1 - 2 * error / mean, "at least", note)


def _in_words(found: Outcomes) -> str:
    share = found.violations(RISK.target_fnr) / found.fnr.size
    return f"violations {share:.3f}, coverage {found.mean_coverage:.3f}, nothing found {found.none_found:.3f}"

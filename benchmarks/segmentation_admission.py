"""Ways of admitting cases with masks: how many cases each needs, over all cases and by the kind of their image.

Called by segmentation.py. Each arm trains by stages from the same first cases as the others of its seed. What the
stages are worth is judged on val_calib and val_test, which neither train nor choose an epoch. An arm needs as many
cases as the first stage has whose mean Dice reaches 95 or 98 % of that of a training on all cases, by kind: of its own.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import t as student

ARMS = {
    "default": {},
    "random": {"strategy": "random"},
    "difficulty": {"w_dice": 1.0, "w_uncertainty": 0.0, "w_diversity": 0.0},
    "uncertainty": {"w_dice": 0.0, "w_uncertainty": 1.0, "w_diversity": 0.0},
    "diversity": {"w_dice": 0.0, "w_uncertainty": 0.0, "w_diversity": 1.0},
    "entropy": {"w_dice": 0.0, "w_uncertainty": 1.0, "w_diversity": 0.0},
}
"""Settings of incremental_params; the last one ranks doubt by mean entropy."""
FULL = "full"
STAGES = {
    "enabled": True,
    "initial_cases": 12,
    "add_cases": 12,
    "max_stages": 12,
    "max_epochs_per_stage": 40,
    "early_stopping_patience": 12,
    "lr_floor_action": "end_stage",
    "selection_threshold": 1.0,
}
SHARES = (0.95, 0.98)
ALL = "all"
COLUMNS = ("arm", "cases to 95 %", "to 98 %", "Dice over the stages, less random's", "95 % interval")
Curve = dict[int, float]
"""Cases in training → mean Dice of the cases that are judged."""


def settings_of(arm: str) -> dict:
    """What an arm sets over the base, or a training on all cases."""
    if arm == FULL:
        return {"epochs": 100}
    doubt = {"segmentation_params": {"uncertainty": "entropy"}} if arm == "entropy" else {}
    return {"incremental_params": {**STAGES, **ARMS[arm]}, **doubt}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def results(runs: Path, cases: Path, seeds: Sequence[int]) -> Iterator[dict]:
    """One row for each arm, seed and kind of image: the curve, Dice of all cases, and cases until its shares.

    cases: the data set's table with the columns case_id and kind.
    """
    kinds = {row["case_id"]: row["kind"] for row in rows_of(cases)}
    for seed in seeds:
        whole = dice_by_kind(runs / f"{FULL}-{seed}" / "stage_dice.csv", kinds)
        for arm in ARMS:
            run = runs / f"{arm}-{seed}"
            sizes = {int(row["stage"]): int(row["active_cases"]) for row in rows_of(run / "stages.csv")}
            stages = dice_by_kind(run / "stage_dice.csv", kinds)
            for kind, (count, reached) in whole.items():
                curve = {sizes[stage]: dice for stage, dice in stages[kind][1].items() if stage}
                to = {f"to_{share:g}": cases_to(curve, share * reached[0]) for share in SHARES}
                yield {
                    "arm": arm,
                    "seed": seed,
                    "kind": kind,
                    "judged": count,
                    "full": reached[0],
                    **to,
                    "curve": curve,
                }


def dice_by_kind(path: Path, kinds: dict[str, str]) -> dict[str, tuple[int, Curve]]:
    """Kind → (cases judged, {stage: mean Dice}), over all kinds first."""
    found: dict[str, dict[int, list[float]]] = {ALL: {}}
    for row in rows_of(path):
        for kind in (ALL, kinds[row["case_id"]]):
            found.setdefault(kind, {}).setdefault(int(row["stage"]), []).append(float(row["dice"]))
    frequent = Counter({kind: len(stages[0]) for kind, stages in found.items()})
    return {
        kind: (count, {stage: float(np.mean(dice)) for stage, dice in sorted(found[kind].items())})
        for kind, count in frequent.most_common()
    }


def cases_to(curve: Curve, level: float) -> int | None:
    """Cases of the first stage that reaches the level; None where none does."""
    return next((cases for cases, dice in sorted(curve.items()) if dice >= level), None)


def print_tables(rows: Sequence[dict]) -> None:
    """One table for each kind of image, and the arms that are not worse than random over all of them."""
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        judged, seeds = [row["judged"] for row in own], len({row["seed"] for row in own})
        full = np.mean([row["full"] for row in own])
        print(f"\n{kind}: {min(judged)} to {max(judged)} cases judged, {seeds} seeds; Dice of all cases {full:.3f}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS))
        for arm in ARMS:
            print(f"| {arm} | {' | '.join(words(own, arm))} |")
    whole = [row for row in rows if row["kind"] == ALL]
    compared = {arm: against_random(whole, arm) for arm in ARMS if arm != "random"}
    fair = [arm for arm in sorted(compared, key=lambda arm: -compared[arm][0]) if is_fair(*compared[arm])]
    print(f"\nnot worse than random within error, the best first: {', '.join(fair) or 'none, so random'}")


def is_fair(mean: float, spread: float) -> bool:
    """Whether an arm's 95 % interval against random reaches zero; False for one seed, which has no error."""
    return math.isfinite(spread) and mean + spread >= 0


def words(rows: Sequence[dict], arm: str) -> Iterator[str]:
    own = [row for row in rows if row["arm"] == arm]
    for share in SHARES:
        needed = [row[f"to_{share:g}"] for row in own]
        # a run that never gets there needs more than any
        middle = median([math.inf if cases is None else cases for cases in needed])
        reached = sum(cases is not None for cases in needed)
        yield f"{'never' if math.isinf(middle) else f'{middle:g}'} ({reached} of {len(needed)} runs)"
    mean, spread = against_random(rows, arm)
    yield f"{mean:+.4f}"
    yield f"{mean - spread:+.4f} to {mean + spread:+.4f}" if math.isfinite(spread) else "needs two seeds"


def against_random(rows: Sequence[dict], arm: str) -> tuple[float, float]:
    """(mean over seeds, half of its 95 % interval by Student's t) of Dice over the stages less random's."""
    curves = {(row["arm"], row["seed"]): row["curve"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    differences = [height(curves[arm, seed], curves) - height(curves["random", seed], curves) for seed in seeds]
    if len(differences) < 2:
        return float(np.mean(differences)), math.inf
    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return float(np.mean(differences)), float(student.ppf(0.975, len(differences) - 1)) * error


def height(curve: Curve, curves: dict[tuple[str, int], Curve]) -> float:
    """Mean of a curve over the cases that all runs have got to."""
    first, last = max(min(one) for one in curves.values()), min(max(one) for one in curves.values())
    sizes = sorted(curve)
    grid = np.linspace(first, last, 50)
    return float(np.interp(grid, sizes, [curve[size] for size in sizes]).mean())

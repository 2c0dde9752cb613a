"""Research: which rule gives the CIFAR-10 figures of "Selective Conformal Risk Control" (arXiv 2512.12844).

    python benchmarks/scrc_table2.py --draws 20
    python benchmarks/scrc_table2.py --logits FILE.npz
reads   FILE.npz with calib_logits_S, calib_labels_S, test_logits_S, test_labels_S for models S = 0, 1, …
        (N, C) and (N,); without it, logits drawn from a softmax model that was fitted to such a file
prints  plain tables; seconds with --draws 20, some twenty with the default 500 a model

None of these rules certifies a bundle: they bound the error of prediction sets, which is not FNR on exits.
The paper's published and released rules are here to be seen beside corrected ones, and nowhere else.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np
from scrc_experiment import (
    ALPHA,
    CASES,
    COLUMNS,
    FITTED,
    SELECTION,
    SETS,
    XI,
    Cells,
    Pool,
    fitted_pools,
    measure,
    pools_from,
)
from scrc_rules import DELTAS, GRID_1, GRID_2, RULES, Rule, cases_needed, ceil_example, deviation, product, released

from stage1_pro.core.metrics.arrays import FloatArray

PAPER_RISK, PAPER_SIZE = (0.0954, 0.0960, 0.0964), (2.460, 2.451, 2.446)

HEAD = """\
RESEARCH. Rules of "Selective Conformal Risk Control" (SCRC, arXiv 2512.12844); none certifies a bundle.

The task: keep the cases that a selection score ranks highest (share xi), give each a set of classes, and keep
the risk, P(true class not in the set | kept), at or below alpha. Smaller sets are better. Every rule keeps the
same cases and differs only in how many misses it allows among the m kept calibration cases; the sets then
grow until no more are missed.

Found in public summaries of the paper: CIFAR-10, ResNet-18, alpha .1, xi .7, sets of 2.3 to 2.6 classes, four
selection scores (largest probability, margin, entropy, energy).
Not found, so assumed: n = {cases} calibration cases; the paper's three columns are delta .01, .05, .10 (its risk
rises and its sets shrink in that order); sets by threshold, by cumulative probability (APS), and by the same with
.1 added for each rank after the second (RAPS); the second version's grid of {grid_1} x {grid_2} pairs, and delta
halved between its two bounds; every rule cuts just above the ceil(xi (n + 1))-th largest calibration score.
"""
DATA = """\
Data: {source}; {count} models with {cases} cases each, accuracy {accuracy}.
Draws: {draws} calibration sets a model, each of {n} of its cases drawn with replacement (seed {seed}). Its cases are
the population, so what a draw leads to is known exactly; +- is the standard error over all {total} draws.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--logits", type=Path, help="logits and labels of trained models; without it, of a fitted one")
    parser.add_argument("--draws", type=int, default=500, help="calibration sets a model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        pools = pools_from(args.logits) if args.logits else fitted_pools(args.seed)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"--logits {args.logits}: {error}; wanted calib_logits_0, calib_labels_0, test_logits_0, …")
    print(HEAD.format(cases=CASES, grid_1=GRID_1, grid_2=GRID_2))
    print(data_words(pools, args))
    found = measure(pools, args.draws, args.seed)
    for kind in SETS:
        print(rule_table(kind, *found["largest probability", kind]))
    print(score_table(found))
    print(ceil_words(args.seed))
    print(reading(found))


def data_words(pools: list[Pool], args: argparse.Namespace) -> str:
    count, cases = len(pools), len(pools[0].labels)
    accuracy = " ".join(f"{(pool.logits.argmax(axis=1) == pool.labels).mean():.3f}" for pool in pools)
    source = args.logits.name if args.logits else FITTED
    return DATA.format(
        source=source, count=count, cases=cases, accuracy=accuracy, n=CASES, total=args.draws * count, **vars(args)
    )


def average(cell: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean (K,) over models and draws, and its standard error for these models."""
    models, draws, _ = cell.shape
    return cell.mean(axis=(0, 1)), np.sqrt(cell.var(axis=1).mean(axis=0) / (models * draws))


def rule_table(kind: str, risk: FloatArray, size: FloatArray) -> str:
    kept = int(np.ceil(product(CASES + 1, XI))) - 1
    (risks, risk_errors), (sizes, size_errors) = average(risk), average(size)
    above, models = (risk > ALPHA).mean(axis=(0, 1)), size.mean(axis=1)
    lines = [
        f"Sets by {kind}; selection by largest probability; alpha {ALPHA}, xi {XI}, m = {kept} of n = {CASES} kept",
        f"{'rule':<36}{'promise':<17}{'delta':>6}{'misses':>8}{'risk':>9}{'+-':>8}{'draws > alpha':>15}"
        f"{'set size':>10}{'+-':>7}  of the models",
    ]
    for k, (rule, delta) in enumerate(COLUMNS):
        allowed = int(rule.allowed(np.array([kept]), CASES, ALPHA, delta)[0])
        lines.append(
            f"{rule.name:<36}{rule.promise:<17}{'' if np.isnan(delta) else f'{delta:.2f}':>6}{allowed:>8}"
            f"{risks[k]:>9.4f}{risk_errors[k]:>8.4f}{above[k]:>15.3f}{sizes[k]:>10.3f}{size_errors[k]:>7.3f}"
            f"  {models[:, k].min():.2f} to {models[:, k].max():.2f}"
        )
    for delta, paper_risk, paper_size in zip(DELTAS, PAPER_RISK, PAPER_SIZE, strict=True):
        name = f"{'the paper, Table 2':<53}"
        lines.append(f"{name}{delta:>6.2f}{'':>8}{paper_risk:>9.4f}{'':>8}{'':>15}{paper_size:>10.3f}")
    return "\n".join(lines) + "\n"


def score_table(found: Cells) -> str:
    shown = [k for k, (_, delta) in enumerate(COLUMNS) if np.isnan(delta) or delta == 0.05]
    lines = [
        "Every selection score and kind of sets, delta .05: risk and set size",
        f"{'rule':<36}{'sets':<23}" + "".join(f"{name:>21}" for name in SELECTION),
    ]
    for k in shown:
        for kind in SETS:
            cells = [tuple(part[..., k].mean() for part in found[name, kind]) for name in SELECTION]
            row = "".join(f"{risk:>15.4f}{size:>6.2f}" for risk, size in cells)
            lines.append(f"{COLUMNS[k][0].name:<36}{kind:<23}{row}")
    return "\n".join(lines) + "\n"


def ceil_words(seed: int, m: int = 74, alpha: float = 0.02, draws: int = 100_000) -> str:
    lines = [f"The ceil rule where it shows: m = {m}, alpha = {alpha}, {draws:,} draws of continuous scores"]
    for name, (allowed, risk, error) in ceil_example(m, alpha, draws, seed).items():
        lines.append(
            f"  {name + '((m+1)a)-1':<15} misses allowed: {allowed}; mean risk {risk:.4f} +- {error:.4f}, in theory "
            f"{allowed + 1}/{m + 1} = {(allowed + 1) / (m + 1):.4f}: {'above' if risk > alpha else 'within'} alpha"
        )
    return "\n".join(lines) + "\n"


def reading(found: Cells) -> str:
    """Which rule gives what, from the figures above."""
    risk = found["largest probability", "threshold"][0]
    means, above = risk.mean(axis=(0, 1)), (risk > ALPHA).mean(axis=(0, 1))
    of = {rule: [k for k, (other, _) in enumerate(COLUMNS) if other is rule] for rule in RULES}

    def off(rule: Rule) -> float:
        return float(np.abs(means[of[rule]] - PAPER_RISK).max())

    nearest, coverage_only = min(RULES, key=off), next(rule for rule in RULES if rule.allowed is released)
    predicted = np.array([ALPHA * (1 - deviation(2 / delta, CASES) / XI) for delta in DELTAS])
    gap = float(np.abs(predicted - PAPER_RISK).max())
    sizes = [size[..., of[coverage_only]].mean(axis=1) for name, (_, size) in found.items() if name[1] == "threshold"]
    lines = [
        "Which rule gives what (largest probability, threshold sets)",
        "  the paper's risk " + _list(PAPER_RISK) + "; largest difference of each rule:",
        *(f"    {rule.name:<36} risk {_list(means[of[rule]]):<22} off by {off(rule):.4f}" for rule in RULES),
        f"  Nearest: {nearest.name}.",
        f"  The released rule spends delta on the share kept and nothing on the misses. That alone predicts\n"
        f"  alpha (1 - eps/xi), eps^2 = ln(2/delta)/2n: {_list(predicted)} at n = {CASES}, {gap:.4f} off at most.",
        f"  Its draws above alpha: {_list(above[of[coverage_only]], 3)}, where delta allows {_list(DELTAS, 2)}.",
        f"  The paper's set sizes {_list(PAPER_SIZE, 3)} depend on its network; threshold sets of this rule hold "
        f"{np.min(sizes):.2f} to {np.max(sizes):.2f}\n  classes here, over models and selection scores.",
        f"  The Hoeffding grid is sound and nearly empty of use: at alpha .02, xi .7, delta .05 it needs\n  n >= "
        f"{cases_needed(0.02, 0.7, 0.05):,} without one miss.",
    ]
    return "\n".join(lines)


def _list(values: FloatArray | tuple[float, ...] | list[float], digits: int = 4) -> str:
    return " ".join(f"{value:.{digits}f}".removeprefix("0") for value in values)


if __name__ == "__main__":
    main()

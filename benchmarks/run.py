"""Benchmarks: the project beside its peers, as ratios.

    python benchmarks/run.py
    python benchmarks/run.py --only startup
Each ratio comes from one run on the same data. Exits with status 1 where a target is missed.
"""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = {
    "certify": "certification of ten million scores against one argsort of them",
    "boundary": "choosing a nested boundary at 300 and at 3,000 positives against its limits",
    "mapie_speed": "certification against MAPIE's split fixed-sequence testing",
    "mapie_coverage": "validity and certified coverage against MAPIE's methods on 400 draws",
    "bootstrap": "1,000 bootstrap resamples against a plain loop",
    "features": "a training step from the feature cache against the live backbone",
    "losses": "a training step with the selective losses against plain cross entropy",
    "fsam": "a step of SAM and F-SAM against one of AdamW",
    "scrc": "a million cases: 200 × 100 pairs against one argsort, SCRC-T against SCRC-I",
    "farthest_first": "200 of 50,000 cases by farthest-first admission against scikit-activeml's CoreSet",
    "controller": "an epoch of training by stages on live images: what the stages add to it",
    "cases": "what an image costs 00, and 20 once its features are cached, at 200,000 images and at 10,000",
    "loading": "60 --num_workers auto against the best number by hand, on crops and photographs",
    "startup": "how long --help takes, and what the scripts import",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="NAME", choices=BENCHMARKS, help=f"one of {', '.join(BENCHMARKS)}")
    only = parser.parse_args().only
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "validity")]  # the project, and the populations of its tests
    from stage1_pro.core.cli import share_cores

    share_cores()  # as the commands do, before torch is imported
    rows = []
    for name in [only] if only else BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(name).measure()
    print_table(rows)
    return 0 if all(row.passed for row in rows) else 1


def print_table(rows: list) -> None:
    width = max(len(row.name) for row in rows)
    print(f"{'name':<{width}}  {'ratio':>9}  {'target':>15}  result  note")
    for row in rows:
        verdict = "pass" if row.passed else "FAIL"
        print(f"{row.name:<{width}}  {row.ratio:>9.3g}  {row.good:>8} {row.target:>6g}  {verdict:<6}  {row.note}")


if __name__ == "__main__":
    sys.exit(main())

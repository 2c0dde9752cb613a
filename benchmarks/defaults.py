"""Which defaults are right: loss, rate, smoothing, epochs, checkpoint and head, at prevalences of 61 to 1 %.

    python benchmarks/defaults.py --short                                    # minutes on two cores: a look
    python benchmarks/defaults.py --data DIR --sets fashion --minutes 9      # on a GPU, a portion at a time
    python benchmarks/defaults.py --table --page docs/operating-point.md     # the tables, from all portions
reads   data sets below --data (see defaults_data.py), weights of EfficientNet-Lite0 (`make data`)
writes  under --out: rows-*.parquet, scores-*.npz of a few networks; with --table the tables into --page, and a figure
        into figures/ beside it

Heads on frozen features are trained many at a time by the project's class loss, and judged by its placement and its
certificate: right exits and utility at the certified bound, means over ten re-splits of what is held out. The peer is
scikit-learn's LogisticRegression with the same placement and certificate.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SETS = ("fashion", "digits", "signs", "demo")
SHORT_SETS = ("small", "demo")
CNN_TASKS = ("pullover", "shirt", "eight", "speed")


def main() -> None:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    args = parse()
    if not args.table:
        study(args)
    if args.table or args.short:
        from defaults_figure import write_figure
        from defaults_table import read_rows, write_tables

        rows, page = read_rows(args.out), args.page or args.out / "tables.md"
        print(write_tables(rows, page))
        if not args.short:  # which has no cell with evidence enough
            write_figure(rows, page.parent / "figures" / "operating-point.png")


def study(args: argparse.Namespace) -> None:
    """Train and judge one portion."""
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that evaluate
    with TemporaryDirectory() as scratch, get_context("spawn").Pool(args.jobs, begin) as pool:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({"OMP_NUM_THREADS": threads} if threads else {})
        portion = Portion(args, pool, Path(scratch), until=begun + 60 * args.minutes)
        for data in args.sets:
            portion.run(data)
    print(f"{time.monotonic() - begun:.0f} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the data sets' folders")
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "demo" / "efficientnet_lite0.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--sets", nargs="+", choices=(*SETS, "small"), help="data sets of this portion")
    parser.add_argument("--tasks", nargs="+", help="tasks or cells of this portion (default: all of its data sets)")
    parser.add_argument("--splits", type=int, default=3, help="training splits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=600, help="begin no cell after so many")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that evaluate")
    parser.add_argument("--only_default", action="store_true", help="train the default alone, with all seeds")
    parser.add_argument("--short", action="store_true", help="the demo and scikit-learn's digits, few arms, one split")
    parser.add_argument("--table", action="store_true", help="train nothing, write the tables")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced (default: tables.md under --out)")
    args = parser.parse_args()
    if args.short:
        args.splits = args.seeds = 1
    args.sets = args.sets or (SHORT_SETS if args.short else SETS)
    return args


# ---- the arms


def arms(task: str, prevalence: float | None, first: bool, args: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """(arm, seeds) of a cell. The whole grid for three tasks; elsewhere its middle. first: the task's first
    prevalence."""
    from defaults_data import GRID_TASKS
    from defaults_training import DEFAULT, Arm

    yield DEFAULT, 3
    if args.only_default:
        return

    before, base = Arm(1e-4, 0.1, 10, loss="torch"), Arm(1e-3, 0.05, 30)
    yield before, 3
    yield replace(before, loss="right"), 3
    yield base, 3
    if args.short:
        yield replace(base, network="linear", lr=3e-3), 1
        return
    yield replace(base, smoothing=0.0), 3
    yield replace(base, smoothing=0.1), 3
    yield replace(base, lr=3e-3), 3
    rates, smoothings = (1e-4, 3e-4, 1e-3, 3e-3), (0.0, 0.05, 0.1)
    for lr, smoothing, epochs in product(rates, smoothings, (10, 30, 100) if task in GRID_TASKS else (30,)):
        yield Arm(lr, smoothing, epochs), 1
    for smoothing in (0.0, 0.05):
        yield replace(base, smoothing=smoothing, weighted=False), 1
        for lr in (3e-4, 1e-3):
            yield replace(base, lr=lr, smoothing=smoothing, features="standardised"), 1
        for lr in (1e-3, 3e-3, 1e-2):
            yield replace(base, lr=lr, smoothing=smoothing, network="linear"), 1
    for lr in (3e-4, 1e-3):
        yield replace(base, lr=lr, network="linear", features="standardised"), 1
    if task in CNN_TASKS and (first or prevalence == 0.02):
        yield replace(base, network="cnn", features="pixels"), 1
        yield replace(base, network="cnn", features="pixels", loss="torch", smoothing=0.1), 1


def members_of(cell, first: bool, args: argparse.Namespace) -> dict[tuple[str, str], list]:
    """(network, features) → the networks to train together."""
    from defaults_training import DEFAULT, Member

    found: dict[tuple[str, str], dict] = {}
    for arm, seeds in arms(cell.task.name, cell.prevalence, first, args):
        for split, seed in product(range(args.splits), range(min(seeds, args.seeds))):
            both = arm == DEFAULT or (arm.epochs == 30 and seed == 0 and arm.network == "head")
            group = found.setdefault((arm.network, arm.features), {})
            group[Member(arm, split, seed, both)] = None  # an arm of two lists is trained once
    return {kind: list(group) for kind, group in found.items()}


# ---- a portion of the study


class Portion:
    """Trains in this process, evaluates in others."""

    def __init__(self, args: argparse.Namespace, pool, scratch: Path, until: float):
        import torch

        self.args, self.pool, self.scratch, self.until = args, pool, scratch, until
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, data: str) -> None:
        """One data set: its rows and a few scores, written at the end of each cell."""
        from defaults_data import GRID_TASKS, cells_of, read_images

        images = read_images(self.args.data, data)
        asked = self.args.tasks
        cells = [one for one in cells_of(data, images) if not asked or {one.task.name, one.name} & {*asked}]
        if not cells:
            return
        cells.sort(key=lambda cell: cell.task.name not in GRID_TASKS)
        features = self._features(data, images)
        pending, scores = [], {}
        for cell in cells:
            if time.monotonic() > self.until:
                print(f"{data}: no time for {cell.name}", flush=True)
                continue
            started = time.monotonic()
            pending += self._cell(cell, features, scores)
            print(f"{cell.name}: trained in {time.monotonic() - started:.0f} s", flush=True)
            self._write(data, [result for result in pending if result.ready()], scores)
        self._write(data, pending, scores)

    def _write(self, data: str, results: list, scores: dict[str, np.ndarray]) -> None:
        """What there is by now, so that a portion cut short is not lost."""
        import pandas as pd

        rows = [row for result in results for row in result.get()]
        part = "-".join([data, *(self.args.tasks or []), *["default"] * self.args.only_default])
        pd.DataFrame(rows).to_parquet(self.args.out / f"rows-{part}.parquet", index=False)
        np.savez_compressed(self.args.out / f"scores-{part}.npz", **scores)  # pyright: ignore[reportArgumentType]
        print(f"{data}: {len(rows)} rows", flush=True)

    def _features(self, data: str, images) -> dict[str, Any]:
        """Features → inputs of all cases on the device; `raw` in a file for the processes as well."""
        import torch
        from defaults_data import as_floats, lite0_features

        if data == "small":
            raw = torch.from_numpy(images.pixels.reshape(len(images.pixels), -1).astype(np.float32) / 16)
        else:
            raw = lite0_features(images.pixels, self.args.weights, self.device)
        np.save(self.scratch / f"{data}.npy", raw.cpu().numpy())
        mean, deviation = raw.mean(0), raw.std(0).clamp(min=1e-6)
        found = {"raw": raw, "standardised": (raw - mean) / deviation}
        if data != "demo":
            found["pixels"] = as_floats(images.pixels, self.device)
        return found

    def _cell(self, cell, features: dict[str, Any], scores: dict[str, np.ndarray]) -> list:
        """Train a cell's networks; returns what the processes will answer with."""
        from defaults_outcomes import Held
        from defaults_training import train

        args, pending = self.args, []
        splits = {split: cell.splits(split) for split in range(args.splits)}
        held = {
            split: Held(cell.name, split, *(cell.labels[parts[name]] for name in ("val_select", "pool")))
            for split, parts in splits.items()
        }
        fields = {"data": cell.task.data, "task": cell.task.name, "cell": cell.name}
        file = self.scratch / f"{cell.task.data}.npy"
        for split, parts in splits.items():
            labels = {name: cell.labels[index] for name, index in parts.items()}
            work = ({**fields, "split": split, "seed": 0}, file, parts, labels, held[split])
            pending += [self.pool.apply_async(peer, (kind, *work)) for kind in (() if args.only_default else PEERS)]
        taken = {split: parts["train"] for split, parts in splits.items()}
        held_out = {split: np.concatenate([parts["val_select"], parts["pool"]]) for split, parts in splits.items()}
        first = cell.prevalence == cell.task.prevalences[0]
        for (_, kind), members in members_of(cell, first, args).items():
            found = train(members, features[kind], cell.labels, taken, held_out)
            for index, member in enumerate(found.members):
                for ema, z in ((True, found.averaged[index]), (False, found.raw[index])):
                    if z is None:
                        continue
                    arm = asdict(replace(member.arm, ema=ema))
                    own = {**fields, "split": member.split, "seed": member.seed, **arm}
                    path = self.scratch / f"{time.monotonic_ns()}.npy"
                    np.save(path, z)
                    before = member.arm.loss == "torch"
                    pending.append(self.pool.apply_async(network, (own, path, held[member.split], before)))
                    if ema and member.both and (member.split, arm["lr"], arm["features"]) == (0, 1e-3, "raw"):
                        scores["-".join([cell.name, *(f"{value}" for value in arm.values())])] = z[-1]
        for split in splits:
            one = held[split]
            scores[f"{cell.name}-{split}-labels"] = np.concatenate([one.labels_select, one.labels_pool]).astype(np.int8)
        return pending


# ---- what the processes do


def begin() -> None:
    import warnings

    warnings.filterwarnings("ignore", category=RuntimeWarning)  # shares of nothing
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def network(fields: dict[str, Any], path: Path, held, before: bool) -> list[dict[str, Any]]:
    """The rows of one network, whose file of log-odds (epochs, cases) is read and removed."""
    from defaults_outcomes import rows_of_network

    z = np.load(path)
    path.unlink()
    size = len(held.labels_select)
    return rows_of_network(fields, z[:, :size], z[:, size:], held, before)


PEERS = ("logistic", "logistic_tuned")


def peer(
    kind: str, fields: dict[str, Any], file: Path, parts: dict[str, np.ndarray], labels: dict[str, np.ndarray], held
) -> list[dict[str, Any]]:
    """The rows of a logistic regression: as it comes, or standardised, balanced and with C chosen on val_select."""
    from defaults_outcomes import rows_of_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    stored = np.load(file, mmap_mode="r")
    inputs = {name: np.asarray(stored[index]) for name, index in parts.items()}
    if kind == "logistic":
        made = [LogisticRegression(max_iter=3000)]
    else:
        made = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=3000))
            for c in (1e-4, 1e-3, 1e-2, 0.1)
        ]
    fitted = [model.fit(inputs["train"], labels["train"]) for model in made]
    select = [model.decision_function(inputs["val_select"]) for model in fitted]
    best = int(np.argmax([roc_auc_score(labels["val_select"], z) for z in select]))
    pool = fitted[best].decision_function(inputs["pool"])
    own = {**fields, "network": kind, "features": "raw", "monitor": "none", "patience": 0}
    return [{**own, **row} for row in rows_of_scores(select[best], pool, held, before=False)]


if __name__ == "__main__":
    main()

"""Masks on real data: nuclei in 2D, the hippocampus in 3D, and ways of admission; a GPU makes it minutes.

    python benchmarks/segmentation.py nuclei --data nuclei_128px.zip --out out
    python benchmarks/segmentation.py hippocampus --data hippocampus_msd.zip --out out
    python benchmarks/segmentation.py admission --data nuclei_128px.zip --out out --seeds 6 --jobs 8
    python benchmarks/segmentation.py speed --data hippocampus_msd.zip --out out --workers 8      (or nuclei_128px.zip)
Every run goes through the scripts that users call. Finished runs are not repeated, so a killed benchmark goes on.
Writes OUT/<what>.json and prints the table.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import blake2b
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np
import yaml
from segmentation_admission import ARMS, FULL, print_tables, results, rows_of, settings_of

from stage1_pro.core.metrics.selective import spearman

SCRIPTS = REPOSITORY / "stage1_pro" / "scripts"
CONFIGS = REPOSITORY / "configs"
NOTHING_CERTIFIED = 3
FOLDS = 5
SELECTING, CALIBRATING = 6, 4
"""Volumes of the hippocampus that choose the epoch, and that a run must have to be calibrated."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["nuclei", "hippocampus", "admission", "speed"])
    parser.add_argument("--data", type=Path, required=True, help="the zip file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the result")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="trainings of admission at a time")
    parser.add_argument("--epochs", type=int, default=12, help="of each training whose speed is measured")
    parser.add_argument("--rounds", type=int, default=2, help="of speed")
    parser.add_argument("--side", type=int, default=192, help="voxels of the volume whose scoring is timed, an edge")
    parser.add_argument("--patch", type=int, default=96, help="of its windows")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, as in epochs=20")
    args = parser.parse_args()
    data = args.out.resolve() / args.data.stem
    if not data.exists():
        with zipfile.ZipFile(args.data) as archive:
            archive.extractall(data)
    if args.what == "speed":
        return speed(data, args)
    rows = list({"nuclei": nuclei, "hippocampus": hippocampus, "admission": admission}[args.what](data, args))
    (args.out / f"{args.what}.json").write_text(json.dumps(rows, indent=1))
    print_tables(rows) if args.what == "admission" else table(rows)
    return 0


def nuclei(data: Path, args: argparse.Namespace) -> Iterator[dict]:
    for seed in range(args.seeds):
        settings = {**of_nuclei(data, args.workers), "seed": seed, "epochs": 100}
        run = trained(args.out / "runs" / f"nuclei-{seed}", settings, args.set)
        yield {"seed": seed, **measured(run)}


def of_nuclei(data: Path, workers: int) -> dict:
    params = {
        "sources": [{"name": "nuclei", "labels": str(data / "cases.csv")}],
        "class_names": ["background", "nucleus"],
        "positive_class": "nucleus",
        "val_select_ratio": 0.12,
        "val_calib_ratio": 0.26,
        "val_test_ratio": 0.14,
        "num_workers": workers,
    }
    return {"dataset_params": params}


def hippocampus(data: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Folds by a hash of the case; both classes count, and each case is positive."""
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (data / "imagesTr").glob("*.nii.gz"))
    ids.sort(key=lambda case: blake2b(case.encode(), digest_size=8).digest())
    for fold in range(FOLDS):
        table_of = data / f"fold-{fold}.csv"
        test, rest = ids[fold::FOLDS], [case for case in ids if case not in ids[fold::FOLDS]]
        bounds = SELECTING, SELECTING + CALIBRATING
        split = dict.fromkeys(test, "val_test") | dict.fromkeys(rest[: bounds[0]], "val_select")
        split |= dict.fromkeys(rest[bounds[0] : bounds[1]], "val_calib") | dict.fromkeys(rest[bounds[1] :], "train")
        rows = [f"imagesTr/{case}.nii.gz,labelsTr/{case}.nii.gz,{case},{split[case]}" for case in ids]
        table_of.write_text("\n".join(["path,mask,case_id,split", *rows, ""]))
        params = {
            "sources": [{"name": "hippocampus", "root": str(data), "labels": str(table_of)}],
            "class_names": ["background", "anterior", "posterior"],
            "positive_class": "any",
            "num_workers": args.workers,
        }
        settings = {"dataset_params": params, "model_path": "monai:dynunet", "use_ema": True}
        settings |= {"epochs": 120, "batch_size": 4, "early_stop_patience": 40}
        run = trained(args.out / "runs" / f"hippocampus-{fold}", settings, args.set)
        yield {"fold": fold, **measured(run)}


def admission(data: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Cases until 95 and 98 % of the Dice that a training on all cases reaches, over all and by kind of image."""
    runs, seeds = args.out / "runs", range(args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        begun = [
            pool.submit(by_stages, runs / f"{arm}-{seed}", {**base_of(data, args, seed), **settings_of(arm)}, args.set)
            for seed in seeds
            for arm in (FULL, *ARMS)
        ]
        try:
            for one in as_completed(begun):
                one.result()
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise
    yield from results(runs, data / "cases.csv", seeds)


def speed(data: Path, args: argparse.Namespace) -> int:
    """Print what the project adds to MONAI's time; return 1 where a target is missed."""
    from run import print_table
    from segmentation_speed import measure

    volumes = {
        "sources": [{"name": "hippocampus", "root": str(data)}],
        "class_names": ["background", "anterior", "posterior"],
        "positive_class": "any",
        "num_workers": args.workers,
    }
    flat = (data / "cases.csv").exists()
    settings = of_nuclei(data, args.workers) if flat else {"dataset_params": volumes, "batch_size": 4}
    rows = list(measure({**settings, **dict(plain_setting(pair) for pair in args.set)}, args))
    print_table(rows)
    return 0 if all(row.passed for row in rows) else 1


def plain_setting(pair: str) -> tuple[str, Any]:
    """A setting of the command line; those within a section are not taken."""
    name, _, value = pair.partition("=")
    return name, yaml.safe_load(value)


def base_of(data: Path, args: argparse.Namespace, seed: int) -> dict:
    return {**of_nuclei(data, args.workers), "seed": seed}


def by_stages(run: Path, settings: dict, further: list[str]) -> None:
    """A run, trained, with the Dice of its stages."""
    if (run / "stage_dice.csv").exists():
        return
    if "incremental_params" not in settings:  # a training on all cases has no stages that could be set
        further = [pair for pair in further if not pair.startswith("incremental_params.")]
    words = words_of(run, settings, further)
    if not (run / "splits.json").exists():
        call("00_make_splits", *words, "--run", run)
    command = [sys.executable, str(Path(__file__).with_name("segmentation_stages.py")), str(run), *words]
    with open(run / "training.log", "a") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        raise SystemExit(f"{run}: its training ended with {status}; see {run / 'training.log'}")
    print(f"{run}: done", flush=True)


def words_of(run: Path, settings: dict, further: list[str]) -> list[str]:
    """Flags of 00 and 20: the shipped config, these settings over it, and those of the command line over both."""
    config = run.with_suffix(".yaml")
    run.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(settings))
    flags = [word for pair in further for word in (f"--{pair.partition('=')[0]}", pair.partition("=")[2])]
    return ["--config", str(CONFIGS / "segmentation.yaml"), "--config", str(config), *flags]


def trained(run: Path, settings: dict, further: list[str]) -> Path:
    """A run, trained and with the scores of its test cases, calibrated where it can be."""
    words = words_of(run, settings, further)
    if not (run / "splits.json").exists():
        call("00_make_splits", *words, "--run", run)
    if not (run / "config.json").exists():
        call("20_train", *words, "--run", run)
    elif not (run / "scores" / "val_calib.parquet").exists():
        call("20_train", "--resume", run)
    if not (run / "cases" / "val_test.csv").exists():
        call("40_eval_selective", "--run", run, "--scores_only")
    if not (run / "thresholds.json").exists() and not (run / "looks").exists():
        call("25_threshold_sweep", "--run", run, allowed=(0, NOTHING_CERTIFIED))
    return run


def call(script: str, *words: object, allowed: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, words)]
    status = subprocess.run(command).returncode
    if status not in allowed:
        raise SystemExit(f"{' '.join(command)} ended with {status}")


def measured(run: Path) -> dict:
    """Dice on val_test, how doubt ranks it, and what was certified."""
    rows = rows_of(run / "cases" / "val_test.csv")
    dice = np.array([float(row["dice"]) for row in rows])
    doubt = np.array([float(row["uncertainty"]) for row in rows])
    each = {
        name: float(np.mean([float(row[name]) for row in rows if row[name]]))
        for name in rows[0]
        if name.startswith(("dice_", "hd95_"))
    }
    policy = run / "thresholds.json"
    certified = json.loads(policy.read_text()) if policy.exists() else None
    made = json.loads((run / "environment.json").read_text())
    return {
        "parameters": made["parameters"]["total"],
        "dice": float(dice.mean()),
        **each,
        "spearman": spearman(doubt, dice),
        "certified": certified is not None,
        "coverage": certified["coverage"] if certified else None,
        "misses": certified["misses"] if certified else None,
        "exited_positives": certified["exited_positives"] if certified else None,
        "epoch_seconds": float(np.median([float(row["epoch_seconds"]) for row in rows_of(run / "metrics.csv")])),
    }


def table(rows: list[dict]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names)
            + " |"
        )
    for name in names:
        values = [row[name] for row in rows if isinstance(row[name], float)]
        if len(values) == len(rows):
            print(f"mean {name} {np.mean(values):.4f}")


if __name__ == "__main__":
    sys.exit(main())

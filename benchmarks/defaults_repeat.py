"""Whether the study of defaults says what the product does: cells of it trained again by the scripts.

    python benchmarks/defaults_repeat.py --data DIR --cells pullover-natural eight-0.05 --jobs 8 --out rows
    python benchmarks/defaults_repeat.py --table --out rows     # beside the study's rows of the same folder
reads   data sets below --data (see defaults_data.py), weights of EfficientNet-Lite0 (`make data`)
writes  under --out: repeat-*.parquet; with --table the comparison, to the screen

The study trains many heads at a time in a loop of its own. Here 00_make_splits.py, 20_train.py and 40_eval_selective.py
get the same images, splits and seed as a user would give them, with the project's defaults, and the log-odds that they
leave are judged by the study's own certificate.
"""

import argparse
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SAMPLE = {
    "demo": ("red-natural",),
    "fashion": ("pullover-natural", "coat-natural", "shirt-0.05", "bag-0.02"),
    "digits": ("eight-natural", "eight-0.05"),
    "signs": ("speed-0.1", "roadworks-natural", "stop-natural"),
}
"""Ten cells, from easy to hard and from 44 % positives to 2 %."""
KEYS = ["cell", "target", "calib", "split", "seed"]


def main() -> None:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    args = parse()
    if args.table:
        print(table(args.out))
        return
    from defaults_data import cells_of, read_images

    for data in args.sets:
        images = read_images(args.data, data)
        cells = [cell for cell in cells_of(data, images) if cell.name in (args.cells or SAMPLE[data])]
        work = list(product(cells, range(args.splits), range(args.seeds)))
        with ThreadPoolExecutor(args.jobs) as pool:
            rows = [
                row for found in pool.map(lambda one: repeated(one[0], one[1], one[2], args), work) for row in found
            ]
        import pandas as pd

        args.out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(args.out / f"repeat-{data}.parquet", index=False)
        print(f"{data}: {len(work)} runs", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the data sets' folders")
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "demo" / "efficientnet_lite0.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/defaults"), help="folder of the rows")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults-repeat"), help="folder of images and runs")
    parser.add_argument("--sets", nargs="+", choices=SAMPLE, default=list(SAMPLE), help="data sets of this portion")
    parser.add_argument("--cells", nargs="+", help="cells of this portion (default: the sample of ten)")
    parser.add_argument("--splits", type=int, default=3, help="training splits")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--table", action="store_true", help="train nothing, compare")
    return parser.parse_args()


def repeated(cell, split: int, seed: int, args: argparse.Namespace) -> list[dict]:
    """The rows of one run. Raises CalledProcessError where a script fails."""
    from defaults_outcomes import Held, rows_of_scores

    parts = cell.splits(split)
    files = image_files(cell, np.concatenate(list(parts.values())), args)
    run = args.work / "runs" / f"{cell.name}-{split}-{seed}"
    words = ["--config", ROOT / "configs" / "phase2.yaml", "--config", settings(cell, split, parts, files, args)]
    if not (run / "scores" / "val_test.parquet").exists():
        script("00_make_splits.py", *words, "--seed", seed, "--run", run)
        script("20_train.py", *words, "--seed", seed, "--run", run)
        script("40_eval_selective.py", "--run", run, "--scores_only")
    z = log_odds(run)
    held = Held(cell.name, split, *(cell.labels[parts[name]] for name in ("val_select", "pool")))
    select, pool = (np.array([z[files[index].stem] for index in parts[name]]) for name in ("val_select", "pool"))
    fields = {"cell": cell.name, "split": split, "seed": seed}
    return [{**fields, **row} for row in rows_of_scores(select, pool, held, before=False)]


def script(name: str, *words) -> None:
    command = [sys.executable, str(ROOT / "stage1_pro" / "scripts" / name), *map(str, words)]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, check=True)


def settings(cell, split: int, parts: dict, files: dict[int, Path], args: argparse.Namespace) -> Path:
    """A label table with the study's splits (the pool's first half as val_calib), and a config."""
    import yaml

    half = len(parts["pool"]) // 2
    named = {**parts, "val_calib": parts["pool"][:half], "val_test": parts["pool"][half:]}
    lines = [
        f"{files[index]},{'positive' if cell.labels[index] else 'rest'},{name}"
        for name in ("train", "val_select", "val_calib", "val_test")
        for index in named[name]
    ]
    labels = args.work.resolve() / f"{cell.name}-{split}.csv"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("\n".join(["path,label,split", *lines]) + "\n")
    config = labels.with_suffix(".yaml")
    data = {
        "sources": [{"name": "study", "labels": str(labels)}],
        "class_names": ["rest", "positive"],
        "positive_class": "positive",
        "image_size": 96,
    }
    weights = f"file:{args.weights.resolve()}:tf_efficientnet_lite0"
    config.write_text(yaml.safe_dump({"model_path": weights, "target_fnr_exit": 0.05, "dataset_params": data}))
    return config


def image_files(cell, indices: np.ndarray, args: argparse.Namespace) -> dict[int, Path]:
    """Index → file, as users have it: the demo's own, elsewhere written as PNG. A case's id ends with its stem."""
    if cell.task.data == "demo":
        return dict(enumerate(demo_files(args.data / "demo")))
    from PIL import Image

    folder = (args.work / "images" / cell.task.data).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = {int(index): folder / f"{index}.png" for index in indices}
    for index, path in found.items():
        if not path.exists():
            waiting = path.with_name(f"{path.name}.{threading.get_ident()}")  # cells of a set are written side by side
            Image.fromarray(cell.images.pixels[index]).save(waiting, "PNG")
            waiting.replace(path)
    return found


def demo_files(folder: Path) -> list[Path]:
    import pandas as pd

    return [(folder / path).resolve() for path in pd.read_csv(folder / "labels.csv")["path"]]


def log_odds(run: Path) -> dict[str, float]:
    """Stem of the image's file → log-odds before answers were placed."""
    from stage1_pro.core.records.run import Run

    found = {}
    for split in ("val_select", "val_calib", "val_test"):
        scores = Run.open(str(run)).scores(split)
        z = scores.logits[:, 1].astype(float) - scores.logits[:, 0] - scores.answer_shift
        found.update({Path(str(case)).stem: value for case, value in zip(scores.case_id, z, strict=True)})
    return found


def table(folder: Path) -> str:
    """Right exits of the scripts less those of the study, by cell; ± is the standard error over splits and evidence."""
    import pandas as pd
    from defaults_table import CHOSEN, pick, read_rows

    study = pick(read_rows(folder), CHOSEN).set_index(KEYS)["right_exits"].rename("study")
    again = pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("repeat-*.parquet"))]).set_index(KEYS)
    both = again[["right_exits"]].join(study, how="inner")
    both["gain"] = both["right_exits"] - both["study"]
    lines = ["| cell | runs | study | by the scripts | difference |", "| --- | --- | --- | --- | --- |"]
    for cell, part in (*both.groupby(level="cell"), ("all", both)):
        runs = len(part.groupby(level=["cell", "split", "seed"]).size())
        means = [f"{part[name].mean():.3f}" for name in ("study", "right_exits")]
        by_run = part["gain"].groupby(level=["cell", "split", "seed"]).mean()
        error = by_run.std(ddof=1) / np.sqrt(len(by_run))
        lines.append(f"| {cell} | {runs} | {' | '.join(means)} | {by_run.mean():+.4f} ± {error:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

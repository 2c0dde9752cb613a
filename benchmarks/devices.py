"""One device against two, same code: training, stages, resume, scoring and prediction.

    python benchmarks/devices.py --out runs/devices --page docs/production.md      # on a machine with two GPUs
    python benchmarks/devices.py --short                                           # two processes on a CPU: a look
writes  under --out: generated images, runs, devices.json; the table to the screen and between the page's markers

Each row is what a user would start: 20_train.py with --devices 1 and with --devices 2, 60_predict.py in one process and
in two, each with half of the images, 61_predict_ray.py with an actor and with two. Images per second are those of the
training steps, the median of the epochs but the first; of 60, those of the whole command; of 61, those between the
first part and the last. A training is stopped after the epochs that are measured. `equal` trains the same stages with
the same cases a step, so that admissions and scores can be compared, and again with two devices, killed in the middle
and resumed; `equal masks` does so with masks, for fewer steps, since the steps of a network that starts from nothing
enlarge each rounding error.
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "stage1_pro" / "scripts"
MARKERS = "<!-- devices table: begin -->", "<!-- devices table: end -->"
PARTS = 12
"""Parts that 61 decides, of as many rows each as it takes on a GPU by itself."""
CPU_STRATEGY = {"strategy": "ddp"}


@dataclass(frozen=True, slots=True)
class Row:
    """A training, by the images that it reads and its settings."""

    name: str
    images: str
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 4


LIVE = {"freeze_backbone": False, "feature_cache": "off", "lr_backbone": 1e-5}
MOST_TO_TRAIN = {f"dataset_params.{split}_ratio": 0.01 for split in ("val_select", "val_calib", "val_test")}
STAGES = {"enabled": True, "initial_cases": 64, "add_cases": 64, "max_stages": 3, "max_epochs_per_stage": 6}
MASKS = {
    "phase": 1,
    "lr_head": 2e-3,
    "dataset_params.task": "segmentation",
    "dataset_params.class_names": '["background", "disc"]',
    "dataset_params.image_size": None,
}


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """The trainings, the dearest first."""
    live = {**LIVE, "dataset_params.augmentation": "moderate"}
    few = {"enabled": True, "initial_cases": 400, "add_cases": 400, "max_stages": 2, "max_epochs_per_stage": 6}
    stages = {f"incremental_params.{name}": value for name, value in few.items()}
    yield Row("live fine-tuning, 256 px", "256", live)
    yield Row("live fine-tuning, 640 × 480 px", "640", live)
    large = {**live, "model_path": f"random:{args.large}", "batch_size": 2 * args.batch, **MOST_TO_TRAIN}
    yield Row(f"live fine-tuning, {args.large}, 256 px", "256", large, 2)
    yield Row("phase 3 on cached features", "256", {"phase": 3, "exit_policy": "gate"}, 10)
    yield Row("phase 6 on cached features", "256", {"phase": 6, "exit_policy": "scrc"}, 10)
    yield Row("stages with masks", "masks", {**MASKS, **stages, "model_path": args.network}, 10)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    args = parse()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name, size in args.pictures.items():
        make_images(args.out / name, size, args.counts[name], masks=name == "masks")
    found = []
    for row in rows(args):
        if not args.only or any(part in row.name for part in args.only):
            found.append(trained(row, args))
            print(json.dumps(found[-1]), flush=True)
    for name, measure in MEASURES.items():
        if not args.only or name in args.only:
            found.append(measure(args))
            print(json.dumps(found[-1]), flush=True)
    args.out.joinpath("devices.json").write_text(json.dumps(found, indent=2) + "\n")
    print(write_table(found, args.page))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/devices"))
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    parser.add_argument("--short", action="store_true", help="small images, a tiny model, few cases, on the CPU")
    parser.add_argument("--only", nargs="+", help=f"rows whose name holds one of these; {', '.join(MEASURES)}")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 2) // 2 - 2), help="loaders a device")
    parser.add_argument("--images", type=int, default=12_000, help="images of 256 px; a third as many of the others")
    parser.add_argument("--large", default="vit_large_patch16_224", help="a model so large that no loader is the limit")
    args = parser.parse_args()
    args.model, args.batch, args.network = "vit_small_patch16_224", 128, "monai:unet"
    args.pictures, args.size = {"256": (256, 256), "640": (640, 480), "masks": (128, 128)}, 224
    args.counts = {"256": args.images, "640": args.images // 3, "masks": args.images // 3}
    if args.short:
        args.model = args.large = "test_vit"
        args.size, args.batch, args.workers, args.network = 32, 16, 0, "monai:unet:channels=8-16-32,res_units=1"
        args.pictures = {"256": (64, 64), "640": (96, 72), "masks": (32, 32)}
        args.counts = {"256": 1500, "640": 300, "masks": 1200}
    return args


# ---- images


def make_images(folder: Path, size: tuple[int, int], count: int, *, masks: bool) -> None:
    """Smooth noise, a fifth of it with a bright disc, and labels.csv. masks: a disc in each, and the discs as masks."""
    if (folder / "labels.csv").exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        every = [1 if masks else 5] * count
        for name, image, mask in pool.map(one_image, range(count), [size] * count, every, chunksize=64):
            (folder / "images" / f"{name}.jpg").write_bytes(image)
            if masks:
                (folder / "images" / f"{name}.png").write_bytes(mask)
    if masks:
        lines = ["path,mask", *(f"images/{index}.jpg,images/{index}.png" for index in range(count))]
    else:
        lines = ["path,label", *(f"images/{index}.jpg,{'none' if index % 5 else 'disc'}" for index in range(count))]
    folder.joinpath("labels.csv").write_text("\n".join([*lines, ""]))


def one_image(index: int, size: tuple[int, int], every: int = 5) -> tuple[int, bytes, bytes]:
    """Its number, a JPEG, and the disc as a PNG."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    picture, mask = coarse.resize(size, Image.Resampling.BICUBIC), Image.new("L", size)
    if index % every == 0:
        radius = min(size) // 6
        x, y = (int(rng.integers(radius, side - radius)) for side in size)
        for canvas, colour in ((picture, (250, 230, 60)), (mask, 1)):
            ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    files = io.BytesIO(), io.BytesIO()
    picture.save(files[0], "JPEG", quality=90)
    mask.save(files[1], "PNG")
    return index, files[0].getvalue(), files[1].getvalue()


# ---- trainings


def trained(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Speeds on one device and on two."""
    found: dict[str, Any] = {"name": row.name}
    for devices in (1, 2):
        run = args.out / "runs" / f"{re.sub('[^a-z0-9]+', '-', row.name)}-{devices}"
        settings = {"devices": devices, "epochs": row.epochs}
        seconds = stop_when(lambda run=run: len(epochs_of(run)) >= row.epochs, run, row, args, settings)
        epochs = epochs_of(run).iloc[1:]
        speed, waited = (float(epochs[name].median()) for name in ("images_per_second", "data_wait_share"))
        found[f"{devices}"] = {"images_per_second": speed, "data_wait_share": waited, "seconds": seconds}
    return found


def train(run: Path, row: Row, args: argparse.Namespace, settings: dict[str, Any]) -> float:
    """Train anew; wall-clock seconds of the training command."""
    split(run, row, args, settings)
    started = time.monotonic()
    script("20_train.py", *settings_of(run, row, args, settings))
    return time.monotonic() - started


def stop_when(
    enough: Callable[[], bool], run: Path, row: Row, args: argparse.Namespace, settings: dict[str, Any]
) -> float | None:
    """Train anew, and kill every process once enough was seen. Wall-clock seconds until then, None if it ended."""
    split(run, row, args, settings)
    started = time.monotonic()
    command = [sys.executable, str(SCRIPTS / "20_train.py"), *settings_of(run, row, args, settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment(), start_new_session=True)
    while process.poll() is None and not enough():
        time.sleep(0.05)
    seconds = time.monotonic() - started
    if process.poll() is not None:
        if process.returncode:
            raise RuntimeError(f"20_train.py ended with {process.returncode}")
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return seconds


def split(run: Path, row: Row, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    shutil.rmtree(run, ignore_errors=True)
    script("00_make_splits.py", *settings_of(run, row, args, settings))


def script(name: str, *words: Any) -> None:
    command = [sys.executable, str(SCRIPTS / name), *map(str, words)]
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(), check=True)


def settings_of(run: Path, row: Row, args: argparse.Namespace, settings: dict[str, Any]) -> list[str]:
    base: dict[str, Any] = {
        "model_path": f"random:{args.model}",
        "phase": 2,
        "batch_size": args.batch,
        "precision": "32" if args.short else "bf16-mixed",
        "early_stop_patience": 99,
        "target_fnr_exit": 0.1,
        "dataset_params.class_names": '["none", "disc"]',
        "dataset_params.positive_class": "disc",
        "dataset_params.image_size": args.size,
        "dataset_params.num_workers": args.workers,
        **{f"dataset_params.{name}_ratio": 0.1 for name in ("val_select", "val_calib", "val_test")},
    }
    sources = json.dumps([{"name": "made", "labels": str((args.out / row.images / "labels.csv").resolve())}])
    words = ["--run", str(run), "--dataset_params.sources", sources]
    distributed = CPU_STRATEGY if args.short and settings["devices"] > 1 else {}
    for name, value in {**base, **row.settings, **settings, **distributed}.items():
        if value is None:
            continue
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


def environment(**more: str) -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    # with the 10 bits that a GPU keeps of a float32 in convolutions, two that share a batch differ by their rounding
    full_float32 = {"NVIDIA_TF32_OVERRIDE": "0"}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **full_float32, **more}


def epochs_of(run: Path) -> "pd.DataFrame":
    """The rows of metrics.csv so far."""
    import pandas as pd

    path = run / "metrics.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


# ---- equality, kill and resume


def equality(args: argparse.Namespace) -> dict[str, Any]:
    return equal_stages(Row("equal", "256", {"dropout": 0, "weight_decay": 0.01}), args)


def equality_of_masks(args: argparse.Namespace) -> dict[str, Any]:
    # as many cases a stage as are asked for, so that they come out even on two
    few = {"incremental_params.max_epochs_per_stage": 2, "incremental_params.selection_threshold": 0}
    return equal_stages(Row("equal masks", "masks", {**MASKS, **few, "model_path": args.network}), args)


def equal_stages(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Stages on one device, on two, and on two with a kill and a resume: picks and scores compared."""
    stages = {f"incremental_params.{name}": value for name, value in STAGES.items()}
    row = replace(row, settings={**stages, "precision": "32", "deterministic": True, **row.settings})
    halves = {"devices": 2, "batch_size": args.batch // 4}
    runs = [args.out / "runs" / f"{row.name.replace(' ', '-')}-{name}" for name in ("one", "two", "killed")]
    train(runs[0], row, args, {"devices": 1, "batch_size": args.batch // 2})
    seconds = train(runs[1], row, args, halves)
    was_running = kill_and_resume(runs[2], row, args, halves)
    scores = [scores_of(run) for run in runs]
    return {
        "name": row.name,
        "same_picks_on_two": admitted(runs[0]) == admitted(runs[1]),
        "largest_difference_on_two": float(np.abs(scores[0] - scores[1]).max()),
        "same_picks_resumed": admitted(runs[1]) == admitted(runs[2]),
        "largest_difference_resumed": float(np.abs(scores[1] - scores[2]).max()),
        "seconds": seconds,
        "killed_while_running": was_running,
    }


def kill_and_resume(run: Path, row: Row, args: argparse.Namespace, settings: dict[str, Any]) -> bool:
    """Kill a training once its first stage has ended, resume it, and say whether it was still running."""
    if stop_when((run / "stages.csv").exists, run, row, args, settings) is None:
        return False
    script("20_train.py", "--resume", run)
    return True


def admitted(run: Path) -> list[Any]:
    return json.loads((run / "state.json").read_text())["active"]


def scores_of(run: Path) -> np.ndarray:
    """(N, C) logits of val_calib, placed answers taken out."""
    from stage1_pro.core.records.run import Run

    scores = Run.open(str(run)).scores("val_calib")
    z = scores.logits.astype(float)
    z[:, 1] -= scores.answer_shift
    return z


# ---- prediction


def prediction(args: argparse.Namespace) -> dict[str, Any]:
    """60 over one folder in one process, and over its halves in two, each with a GPU of its own."""
    bundle = made_bundle(args)
    images = sorted((args.out / "256" / "images").iterdir(), key=lambda path: path.name)
    halves = [args.out / "halves" / str(part) for part in range(2)]
    for part, folder in enumerate(halves):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in images[part::2]:
            (folder / path.name).hardlink_to(path)
    one = predicted(bundle, [halves], args)
    two = predicted(bundle, [[halves[0]], [halves[1]]], args)
    speeds = [len(images) / seconds for seconds, _ in (one, two)]
    return {
        "name": "prediction by 60, 256 px",
        "1": {"images_per_second": speeds[0]},
        "2": {"images_per_second": speeds[1]},
        "same_decisions": one[1] == two[1],
    }


def made_bundle(args: argparse.Namespace) -> Path:
    """Bundle of a head trained on cached features."""
    run = args.out / "runs" / "prediction"
    row = Row("prediction", "256", {"phase": 2, "dataset_params.val_calib_ratio": 0.4})
    if not (run / "bundle").exists():
        train(run, row, args, {"devices": 1, "epochs": 10})
        for words in (["calibrate", "--run", run], ["evaluate", "--run", run], ["export", "--run", run]):
            subprocess.run([sys.executable, "-m", "stage1_pro", *map(str, words)], env=environment(), check=True)
    return run / "bundle"


def predicted(bundle: Path, parts: list[list[Path]], args: argparse.Namespace) -> tuple[float, dict[str, str]]:
    """Seconds of so many processes at a time, and image → row."""
    outs = [args.out / f"decisions-{len(parts)}-{part}.jsonl" for part in range(len(parts))]
    started = time.monotonic()
    base = [sys.executable, str(SCRIPTS / "60_predict.py"), str(bundle), "--overwrite"]
    base += ["--num_workers", str(args.workers)]
    processes = [
        subprocess.Popen(
            [*base, *map(str, folders), "--out", str(out)],
            env=environment(CUDA_VISIBLE_DEVICES=str(part)),
            stdout=subprocess.DEVNULL,
        )
        for part, (folders, out) in enumerate(zip(parts, outs, strict=True))
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise RuntimeError(f"60_predict.py ended with {statuses}")
    lines = [line for out in outs for line in out.read_text().splitlines()]
    return time.monotonic() - started, {Path(json.loads(line)["id"]).name: line for line in lines}


def actors(args: argparse.Namespace) -> dict[str, Any]:
    """61 over a table of the same images with an actor and with two, each with a GPU of its own where there are two."""
    import pandas as pd

    bundle, table = made_bundle(args), args.out / "images.parquet"
    images = sorted(map(str, (args.out / "256" / "images").resolve().iterdir()))
    rows = 64 if args.short else 4096
    pd.DataFrame({"path": list(islice(cycle(images), PARTS * rows))}).to_parquet(table)
    found: dict[str, Any] = {"name": "61 on Ray, 256 px"}
    decided = []
    for count in (1, 2):
        out = args.out / f"actors-{count}"
        shutil.rmtree(out, ignore_errors=True)
        words = [bundle, table, out, "--rows_per_part", rows, "--actors", count]
        words += [] if args.short else ["--device", "cuda", "--num_workers", args.workers]
        started = time.monotonic()
        script("61_predict_ray.py", *words)
        ended = sorted(path.stat().st_mtime for path in out.glob("done-*.json"))
        steady = rows * (PARTS - count) / (ended[-1] - ended[count - 1])  # without the first part of each
        found[f"{count}"] = {"images_per_second": steady, "seconds": time.monotonic() - started}
        decided.append([path.read_bytes() for path in sorted(out.glob("part-*.parquet"))])
    return {**found, "same_bytes": decided[0] == decided[1]}


MEASURES = {"equal": equality, "equal masks": equality_of_masks, "prediction": prediction, "ray": actors}

# ---- the table


def write_table(found: list[dict[str, Any]], page: Path | None) -> str:
    lines = [
        "| what | one device | two | ratio | of the time spent waiting for images |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found:
        if "1" in row:
            one, two = row["1"], row["2"]
            speeds = [one["images_per_second"], two["images_per_second"]]
            waits = [f"{part['data_wait_share']:.0%}" for part in (one, two) if "data_wait_share" in part]
            shown = [f"{speed:,.0f} images/s" for speed in speeds]
            lines.append(f"| {row['name']} | {' | '.join(shown)} | {speeds[1] / speeds[0]:.2f} | {', '.join(waits)} |")
    text = "\n".join(lines)
    if page is not None:
        before, rest = page.read_text().split(MARKERS[0])
        page.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")
    return text


if __name__ == "__main__":
    main()

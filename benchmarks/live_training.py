"""Training on live images: against a bare loop, and the wall clock of a run against its epochs.

    python benchmarks/live_training.py --out runs/live                  # on a machine with a GPU
    python benchmarks/live_training.py --short                          # small images on a CPU: a look
writes  under --out: generated JPEGs, runs, live_training.json; the figures to the screen

The bare loop has the same images, transforms, model, optimizer and arithmetic, workers that stay, and nothing else: no
validation, no metrics, no files. The runs are what a user would start: 20_train.py on a run that 00 has prepared. Speed
is that of the training steps, waiting for images included, of all epochs but the first; the epochs of a wall clock are
their training steps too. The modules that training imports are compiled before, as pip leaves them: a machine that
keeps no bytecode compiles them at every start, for seven seconds and more.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "stage1_pro" / "scripts"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
LIVE = {"freeze_backbone": False, "dataset_params.augmentation": "moderate", "lr_backbone": 1e-5}
DRAWN = 256
KEEPS_NONE = "PYTHONDONTWRITEBYTECODE"
SHARES = {f"dataset_params.{name}_ratio": 0.1 for name in ("val_select", "val_calib", "val_test")}


def main() -> None:
    args = parse()
    os.environ["HF_HUB_OFFLINE"] = "1"
    make_images(args.out / "data", args.size, args.images)
    found: dict[str, Any] = {"workers": args.workers, "images": args.images, "size": args.size}
    compile_modules()
    prepare(args)
    for epochs in args.epochs:
        found[f"run of {epochs} epochs"] = measured(args, epochs)
        print(json.dumps(found), flush=True)
    if args.bare_epochs:
        bare = bare_loop(args, args.bare_epochs)
        first = found[f"run of {args.epochs[0]} epochs"]
        found |= {"bare": bare, "ratio_to_bare": first["images_per_second"] / bare}
    args.out.joinpath("live_training.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/live"))
    parser.add_argument("--short", action="store_true", help="small images, a tiny model, few cases, on the CPU")
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 10], help="a run for each")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 2) - 2), help="loaders")
    parser.add_argument("--decode", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--bare_epochs", type=int, default=3, help="of the bare loop; 0: leave it out")
    args = parser.parse_args()
    args.model, args.batch, args.side, args.precision = "vit_small_patch16_224", 128, 224, "bf16-mixed"
    if args.short:
        args.images, args.size, args.epochs = min(args.images, 600), (96, 72), args.epochs[:1]
        args.model, args.batch, args.side, args.precision, args.workers = "test_vit", 16, 32, "32", 2
    return args


# ---- images


def make_images(folder: Path, size: tuple[int, int], count: int) -> None:
    """JPEGs and labels.csv: DRAWN pictures are encoded, the others are copies with a comment of their own."""
    from devices import one_image

    if (folder / "labels.csv").exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    contents = [one_image(index, tuple(size))[1] for index in range(min(DRAWN, count))]
    for index in range(count):
        content, comment = contents[index % len(contents)], f"{index:012d}".encode()
        marked = content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]
        (folder / "images" / f"{index}.jpg").write_bytes(marked)
    lines = [f"images/{index}.jpg,{label_of(index % len(contents))}" for index in range(count)]
    folder.joinpath("labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")


def label_of(drawn: int) -> str:
    return "disc" if drawn % 5 == 0 else "none"


# ---- runs


def compile_modules() -> None:
    """Import what training imports, once."""
    names = ["fit", "conclude", "trainer", "start", "suspects"]
    imports = ", ".join(f"stage1_pro.core.training.{name}" for name in names)
    subprocess.run([sys.executable, "-c", f"import {imports}"], env=environment(), check=True)


def environment() -> dict[str, str]:
    """Python finds this repository, and keeps bytecode."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {name: value for name, value in os.environ.items() if name != KEEPS_NONE} | {"PYTHONPATH": path}


def prepare(args: argparse.Namespace) -> None:
    """Draw the splits once; every run begins from a copy of them."""
    shutil.rmtree(args.out / "runs", ignore_errors=True)
    script("00_make_splits.py", "--run", args.out / "runs" / "splits", *settings(args, args.epochs[0]))


def measured(args: argparse.Namespace, epochs: int) -> dict[str, float]:
    """Seconds of a training command and of its epochs, and images per second of the steps."""
    run = args.out / "runs" / f"{epochs}"
    shutil.copytree(args.out / "runs" / "splits", run)
    started = time.monotonic()
    script("20_train.py", "--run", run, *settings(args, epochs))
    wall = time.monotonic() - started
    import pandas as pd

    rows, cases = pd.read_csv(run / "metrics.csv"), train_cases(run)
    steps = float((cases / rows["images_per_second"]).sum())
    return {
        "images_per_second": float(rows["images_per_second"].iloc[1:].median()),
        "first_epoch_images_per_second": float(rows["images_per_second"].iloc[0]),
        "data_wait_share": float(rows["data_wait_share"].iloc[1:].median()),
        "wall_seconds": wall,
        "epochs_seconds": steps,
        "epochs_seconds_with_validation": float(rows["epoch_seconds"].sum()),
        "wall_to_epochs": wall / steps,
        "wall_to_epochs_with_validation": wall / float(rows["epoch_seconds"].sum()),
    }


def train_cases(run: Path) -> int:
    return len(json.loads((run / "splits.json").read_text())["train_indices"])


def script(name: str, *words: Any) -> None:
    command = [sys.executable, *os.environ.get("LIVE_RUNNER", "").split(), str(SCRIPTS / name), *map(str, words)]
    subprocess.run(command, env=environment(), check=True)


def settings(args: argparse.Namespace, epochs: int) -> list[str]:
    chosen = {
        "model_path": f"random:{args.model}",
        "phase": 2,
        "epochs": epochs,
        "batch_size": args.batch,
        "precision": args.precision,
        "devices": 1,
        "early_stop_patience": 99,
        "target_fnr_exit": 0.1,
        "dataset_params.class_names": '["none", "disc"]',
        "dataset_params.positive_class": "disc",
        "dataset_params.image_size": args.side,
        "dataset_params.num_workers": args.workers,
        **({"dataset_params.decode": "gpu"} if args.decode == "gpu" else {}),
        **LIVE,
        **SHARES,
    }
    sources = [{"name": "made", "labels": str((args.out / "data" / "labels.csv").resolve())}]
    words = ["--dataset_params.sources", json.dumps(sources)]
    for name, value in chosen.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


# ---- the bare loop


class Pictures:
    """Images as a plain loop reads them: opened, converted, transformed."""

    def __init__(self, folder: Path, count: int, transform: Any):
        self.folder, self.count, self.transform = folder, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.folder / f"{index}.jpg") as image:
            return self.transform(image.convert("RGB")), int(label_of(index % DRAWN) == "disc")


def bare_loop(args: argparse.Namespace, epochs: int = 3) -> float:
    """Images per second of a plain loop over as many images: the median of its epochs but the first."""
    import torch
    from torch.utils.data import DataLoader

    from stage1_pro.core.models.backbone import load_backbone

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone, spec = load_backbone(f"random:{args.model}", args.side)
    count = args.images * 7 // 10
    dataset = Pictures(args.out / "data" / "images", count, spec.preprocessing.transform("moderate"))
    model = torch.nn.Sequential(backbone, torch.nn.LazyLinear(2)).to(device)
    with torch.no_grad():
        model(torch.zeros(1, 3, args.side, args.side, device=device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    threads = {"num_workers": args.workers, "persistent_workers": args.workers > 0, "worker_init_fn": one_thread}
    loader = DataLoader(dataset, args.batch, shuffle=True, pin_memory=device.type == "cuda", **threads)
    half, speeds = args.precision != "32", []
    for _ in range(epochs):
        started = time.perf_counter()
        for images, answers in loader:
            images, answers = images.to(device, non_blocking=True), answers.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = torch.nn.functional.cross_entropy(model(images).float(), answers)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        speeds.append(count / (time.perf_counter() - started))
    return median(speeds[1:])


def one_thread(_: int) -> None:
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()

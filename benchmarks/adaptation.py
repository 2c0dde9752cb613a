"""Whether adapters, sharpness-aware optimizers and an adapted backbone are worth their time, on real images.

    python benchmarks/adaptation.py --data DIR --weights vits14.safetensors --jobs 12 --page docs/adaptation.md
    python benchmarks/adaptation.py --data DIR --weights random --sizes 300 200 400 300 --seeds 2 --epochs 1   # a look
reads   the files of Fashion-MNIST (Debian: dataset-fashion-mnist), a ViT-S/14 under timm's names (vits14_weights.py)
writes  under --out: images, an A/B test (43_ab_test.py) of each question; the tables into --page

Shirt against the rest, a tenth of positives, enlarged to 98 px. Three questions, each a list of arms and a reference:
adapters on the frozen backbone, optimizers on LoRA, and the backbone as it is or adapted by 10_explora_pretrain.py to
the training images without their labels. Given again, the command goes on where it stopped.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "stage1_pro" / "scripts"
ARCH = "vit_small_patch14_dinov2"
POSITIVE = "shirt"
LORA = {"phase": 4, "peft_type": "lora"}
QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "adapters": {
        "frozen": {"phase": 4, "peft_type": "none"},
        "lora": LORA,
        "dora": {**LORA, "peft_type": "dora"},
        "doran": {**LORA, "peft_type": "doran"},
    },
    "optimizers": {
        "adamw": {**LORA, "phase": 5},
        "sam": {**LORA, "phase": 5, "optimizer": "sam"},
        "fsam": {**LORA, "phase": 5, "optimizer": "fsam"},
    },
    "backbones": {
        "as_it_is": {"phase": 4, "peft_type": "none"},
        "explora": {"phase": 4, "peft_type": "none", "model_path": "{adapted}"},
    },
}
"""Question → arm → settings over the base; {adapted}: the backbone that ExPLoRA made."""
EXPLORA = {"objective": "dino", "steps": 150, "probe_every": 50, "colour": 0}
"""Settings of 10_explora_pretrain.py; the images are grey."""


def main() -> None:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    args = parse()
    from adaptation_data import prepare
    from adaptation_table import write_tables

    begun = time.monotonic()
    prepare(args.data, args.out / "images", dict(zip(SPLITS, args.sizes, strict=True)), args.side)
    base = write_yaml(args.out / "base.yaml", base_settings(args))
    asked = [name for name in args.questions if name != "backbones"]
    with ThreadPoolExecutor(2) as pool:  # the backbone is adapted while the other questions are answered
        adapted = pool.submit(adapt, base, args) if "backbones" in args.questions else None
        statuses = [ask(name, base, args) for name in asked]
        if adapted is not None and adapted.result():
            statuses.append(ask("backbones", base, args))
    pages = {name: args.out / name / "ab.json" for name in args.questions if (args.out / name / "ab.json").exists()}
    print(write_tables(pages, args.page or args.out / "table.md"))
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    sys.exit(max(statuses, default=0))


SPLITS = ("train", "val_select", "val_calib", "val_test")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--weights", default="random", help="safetensors of the ViT-S, or random")
    parser.add_argument("--out", type=Path, default=Path("runs/ab/adaptation"))
    parser.add_argument("--page", type=Path, help="page whose tables are replaced (default: table.md under --out)")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument(
        "--sizes", type=int, nargs=4, default=[3000, 2000, 4000, 4000], metavar="CASES", help=str(SPLITS)
    )
    parser.add_argument("--side", type=int, default=98, help="pixels, a multiple of 14")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; they share the GPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings over the base")
    return parser.parse_args()


def base_settings(args: argparse.Namespace) -> dict[str, Any]:
    import yaml

    changes = {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    backbone = f"random:{ARCH}" if args.weights == "random" else f"file:{Path(args.weights).resolve()}:{ARCH}"
    shares = [size / sum(args.sizes) for size in args.sizes]
    return {
        "model_path": backbone,
        "phase": 3,
        "exit_policy": "gate",
        "target_fnr_exit": 0.05,
        "epochs": args.epochs,
        "early_stop_patience": args.epochs,
        "batch_size": 128,
        "lr_head": 1e-3,
        "precision": "bf16-mixed" if cuda() else "32",
        "devices": 1,
        "dataset_params": {
            "sources": [{"name": "fashion", "labels": str((args.out / "images" / "labels.csv").resolve())}],
            "class_names": ["rest", POSITIVE],
            "positive_class": POSITIVE,
            "image_size": args.side,
            "num_workers": 1,
            **{f"{split}_ratio": share for split, share in zip(SPLITS[1:], shares[1:], strict=True)},
        },
        **changes,
    }


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def write_yaml(path: Path, settings: dict[str, Any]) -> Path:
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def ask(question: str, base: Path, args: argparse.Namespace) -> int:
    """One A/B test; returns its status."""
    place = {"adapted": f"local-dir:{(args.out / 'explora').resolve()}"}
    files = []
    for name, settings in QUESTIONS[question].items():
        filled = {key: value.format(**place) if isinstance(value, str) else value for key, value in settings.items()}
        files.append(write_yaml(args.out / "arms" / question / f"{name}.yaml", filled))
    words = [
        "--config",
        base,
        "--arms",
        *files,
        "--seeds",
        args.seeds,
        "--jobs",
        args.jobs,
        "--out",
        args.out / question,
    ]
    return script("43_ab_test.py", *words)


def adapt(base: Path, args: argparse.Namespace) -> bool:
    """Adapt the backbone to the training images; whether there is one. Its guard may refuse to export it."""
    folder = args.out / "explora"
    if (folder / "backbone.safetensors").exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    words = [word for name, value in EXPLORA.items() for word in (f"--{name}", value)]
    status = script(
        "10_explora_pretrain.py", "--config", base, "--images", args.out / "images", "--out", folder, *words
    )
    if status:
        print(f"10_explora_pretrain.py ended with status {status}: no adapted backbone to compare", file=sys.stderr)
    return status == 0


def script(name: str, *words: Any) -> int:
    command = [sys.executable, str(SCRIPTS / name), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, stdout=sys.stderr, env=environment, check=False).returncode


if __name__ == "__main__":
    main()

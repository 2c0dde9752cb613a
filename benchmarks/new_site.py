"""A bundle at a site whose camera differs: what its promise is worth there, and what 38_recalibrate.py makes of it.

    python benchmarks/new_site.py                                      (the demo's traffic lights, `make data`)
    python benchmarks/new_site.py --signs gtsrb_roadwork_32px.zip      (road works, by track)
writes  --out, a folder with a run of the old site and one for every shift

One half of the groups trains and certifies the bundle; the other half is the new site, its images altered in one of the
ways of SHIFTS, which were written down before the first of them was tried. Each shift is measured with 40 --on and
certified with 38, apart from each other, so that neither counts as a look of the other.
"""

import argparse
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "stage1_pro" / "scripts"
WEIGHTS = ROOT / "data" / "demo" / "efficientnet_lite0.safetensors"
POSITIVE = "positive"
SETTINGS = {"lights": (0.05, 96), "signs": (0.1, 64)}
"""target_fnr_exit, and pixels of the input; half of the signs' tracks are too few for .05."""
ALLOWED = 30.0
"""Seconds that 38 may take beside scoring."""


def darker(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * 0.4).astype(np.uint8))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.04 * min(image.size)))


def bluer(image: Image.Image) -> Image.Image:
    """Another white balance, and a third of the resolution."""
    small = image.resize([max(1, side // 3) for side in image.size]).resize(image.size)
    return Image.fromarray(np.clip(np.asarray(small) * np.array([0.7, 1.0, 1.3]), 0, 255).astype(np.uint8))


SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it was": lambda image: image,
    "darker": darker,
    "blurred": blurred,
    "darker and blurred": lambda image: blurred(darker(image)),
    "another camera": bluer,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--signs", type=Path, help="zip of crops of traffic signs with their manifest.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/new_site"), help="new folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    table = signs(arguments.signs, arguments.out) if arguments.signs else lights()
    groups = table["group"].unique()
    old = table["group"].isin(np.random.default_rng(0).permutation(groups)[: len(groups) // 2])
    settings = SETTINGS["signs" if arguments.signs else "lights"]
    bundle = old_bundle(table[old], arguments.out / "old", *settings)
    rows = [one(name, table[~old], bundle, arguments.out / name.replace(" ", "_")) for name in SHIFTS]
    print(pd.DataFrame(rows).to_string(index=False))
    return 0 if all(row["seconds beside scoring"] <= ALLOWED for row in rows) else 1


def lights() -> pd.DataFrame:
    """Table (path, label, group) of the demo's images."""
    table = pd.read_csv(ROOT / "data" / "demo" / "labels.csv")
    path = [str(ROOT / "data" / "demo" / name) for name in table["path"]]
    label = np.where(table["label"] == "red", POSITIVE, "rest")
    return pd.DataFrame({"path": path, "label": label, "group": table["path"]})


def signs(archive: Path, folder: Path) -> pd.DataFrame:
    """The same of traffic signs: road works against the rest, grouped by track."""
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder / "signs")
    table = pd.read_csv(folder / "signs" / "manifest.csv", dtype={"track": str})
    path = [str((folder / "signs" / name).resolve()) for name in table["file"]]
    label = np.where(table["label"] == 1, POSITIVE, "rest")
    group = table["track"].fillna(table["file"])
    # a fourth of the negatives is enough, and of a track all frames or none
    kept = dict(zip(group.unique(), np.random.default_rng(1).random(group.nunique()) < 0.25, strict=True))
    found = pd.DataFrame({"path": path, "label": label, "group": group})
    return found[(label == POSITIVE) | group.map(kept)]


def old_bundle(table: pd.DataFrame, folder: Path, target: float, side: int) -> Path:
    """Train and certify on the old site; returns the bundle."""
    folder.mkdir()
    table.to_csv(folder / "labels.csv", index=False)
    config = {
        "model_path": f"file:{WEIGHTS}:tf_efficientnet_lite0",
        "target_fnr_exit": target,
        "dataset_params": {
            "sources": [{"labels": str(folder / "labels.csv")}],
            "class_names": ["rest", POSITIVE],
            "positive_class": POSITIVE,
            "image_size": side,
            "val_select_ratio": 0.2,
            "val_calib_ratio": 0.33,
            "val_test_ratio": 0.2,
        },
    }
    (folder / "old.yaml").write_text(json.dumps(config))
    run = folder / "runs" / "old"
    call("00_make_splits", "--config", folder / "old.yaml", "--phase", "2", "--run", run)
    call("20_train", "--config", folder / "old.yaml", "--phase", "2", "--run", run)
    for name in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
        call(name, "--run", run)
    return run / "bundle"


def one(name: str, table: pd.DataFrame, bundle: Path, folder: Path) -> dict[str, Any]:
    """Alter the images of the new site, measure the old bundle on them, certify it anew; a row of the table."""
    (folder / "images").mkdir(parents=True)
    for index, path in enumerate(table["path"]):
        with Image.open(path) as image:
            SHIFTS[name](image.convert("RGB")).save(folder / "images" / f"{index:05d}.png")
    names = [f"images/{index:05d}.png" for index in range(len(table))]
    table.assign(path=names).to_csv(folder / "labels.csv", index=False)
    (folder / "site.yaml").write_text(json.dumps({"dataset_params": {"sources": [{"labels": f"{folder}/labels.csv"}]}}))
    site = folder / "site.yaml"
    scoring = call(
        "40_eval_selective", "--bundle", bundle, "--on", site, "--out", folder / "measured" / "runs" / "look"
    )
    whole = call("38_recalibrate", bundle, "--config", site, "--out", folder / "runs" / "site", allowed=(0, 3))
    old = json.loads((folder / "measured" / "runs" / "look" / "eval.json").read_text())
    path = folder / "runs" / "site" / "eval.json"
    new = json.loads(path.read_text()) if path.exists() else None
    return {
        "site": name,
        "positives": old["positives"],
        **{f"old {key}": value for key, value in figures(old).items()},
        **{f"new {key}": value for key, value in (figures(new) if new else {"verdict": "nothing certified"}).items()},
        "seconds of 40": round(scoring, 1),
        "seconds beside scoring": round(whole - scoring, 1),
    }


def figures(evaluation: dict) -> dict[str, str]:
    fnr, exits = evaluation["exits"]["fnr_on_exits"], evaluation["exits"]
    return {
        "verdict": evaluation["promise"]["verdict"],
        "missed": f"{fnr['misses']}/{fnr['exited_positives']}",
        "right exits": f"{exits['right_exits']['value']:.3f}",
        "FPR": f"{exits['fpr_on_exits']['value']:.3f}",
    }


def call(name: str, *words: object, allowed: tuple[int, ...] = (0,)) -> float:
    """Run a script; returns its seconds."""
    begun = time.monotonic()
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode not in allowed:
        raise SystemExit(f"{name}: status {done.returncode}\n{done.stdout}")
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())

"""The sub-commands of `stage1`, and how the command in use names a script.

Messages name scripts by their files: `Run 40_eval_selective.py --run runs/a`. Whoever installed the wheel has no such
file at hand, so what is said under `stage1` passes `spoken`, which puts the sub-command in its place.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table of sub-commands. scripts: one, or one for each exit policy."""

    name: str
    scripts: tuple[str, ...]
    summary: str


COMMANDS = {
    row.name: row
    for row in (
        Command("demo-data", ("prepare_demo.py",), "prepare a set of images to try the pipeline on"),
        Command("splits", ("00_make_splits.py",), "check the labelled images and split them"),
        Command("pretrain", ("10_explora_pretrain.py",), "adapt a backbone to images without labels (ExPLoRA)"),
        Command("train", ("20_train.py",), "train the model of a run, or resume one"),
        Command(
            "calibrate",
            ("25_threshold_sweep.py", "33_calibrate_gate.py", "36_calibrate_scrc.py"),
            "certify the exit policy that a run is trained for",
        ),
        Command("recalibrate", ("38_recalibrate.py",), "certify a bundle anew for another site, without training"),
        Command("evaluate", ("40_eval_selective.py",), "measure a run on its test split, or compare runs"),
        Command("ab", ("43_ab_test.py",), "decide whether a way of training is worth its time"),
        Command("price", ("45_cascade.py",), "what a run costs as the first stage of a cascade"),
        Command("export", ("50_export_bundle.py",), "export the bundle of a run, or verify a bundle"),
        Command("predict", ("60_predict.py",), "decide images with a bundle: exit or defer"),
        Command("predict-ray", ("61_predict_ray.py",), "decide a table of any number of images on a Ray cluster"),
        Command("monitor", ("65_monitor.py",), "watch whether the promise of a bundle holds in production"),
        Command("serve", ("70_serve.py",), "decide images over HTTP with a bundle"),
    )
}
"""In the order in which a user meets them."""

NAMES = {script: row.name for row in COMMANDS.values() for script in row.scripts}
SCRIPT = re.compile(r"(?:python stage1_pro/scripts/)?\b(\d\d_\w+|prepare_demo)\.py\b")

_in_use: list[str] = []  # `stage1` or `python -m stage1_pro`, then the sub-command; empty where a script runs by itself


def use(launcher: str, name: str | None = None) -> None:
    """From now on this process speaks as `launcher`, at work on the sub-command `name`."""
    _in_use[:] = [launcher] if name is None else [launcher, name]


def spoken(text: str) -> str:
    """`text` with every script named as the command in use names it; unchanged where a script runs by itself."""

    def name(found: re.Match[str]) -> str:
        command = NAMES.get(f"{found[1]}.py")
        return f"{_in_use[0]} {command}" if command else found[0]

    return SCRIPT.sub(name, text) if _in_use else text


def described(doc: str) -> str:
    """The docstring of a script as its help; its number is dropped where the script has a name."""
    text = spoken(doc.strip())
    return text.partition(": ")[2] if _in_use and text[:2].isdigit() else text


def current() -> str:
    """The command in use: `20_train.py`, `stage1 train`."""
    return " ".join(_in_use) or Path(sys.argv[0]).name

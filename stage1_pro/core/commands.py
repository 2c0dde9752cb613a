"""The sub-commands of `stage1`, and how the command in use names a script.

Messages name scripts by their files: `Run 40_eval_selective.py --run runs/a`. Whoever installed the wheel has no such
file at hand, so what is said under `stage1` passes `spoken`, which puts the sub-command in its place. A whole command
line passes `runnable`, so that it runs when it is pasted.
"""

import os
import re
import shlex
import shutil
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
LINE = re.compile(r"python stage1_pro/scripts/(\w+\.py)\b")

_in_use: list[str] = []  # `stage1` or `python -m stage1_pro`, then the sub-command; empty where a script runs by itself
_called: list[str] = []  # the same launcher as it is found from the working directory


def use(launcher: str, name: str | None = None) -> None:
    """From now on this process speaks as `launcher`, at work on the sub-command `name`."""
    _in_use[:] = [launcher] if name is None else [launcher, name]
    if name is None:  # a script that runs under it changes sys.argv[0]
        module = launcher.removeprefix("python ")
        _called[:] = [_found(sys.argv[0], launcher) if module == launcher else f"{_interpreter()} {module}"]


def spoken(text: str) -> str:
    """`text` with every script named as the command in use names it; unchanged where a script runs by itself."""

    def name(found: re.Match[str]) -> str:
        command = NAMES.get(f"{found[1]}.py")
        return f"{_in_use[0]} {command}" if command else found[0]

    return SCRIPT.sub(name, text) if _in_use else text


def runnable(text: str) -> str:
    """`spoken`, with every whole command line as it runs from the working directory: where `python` on the path is not
    the interpreter in use, or the scripts lie elsewhere, both are named by their paths."""

    def line(found: re.Match[str]) -> str:
        own, name = Path(sys.argv[0]), found[1]
        if _in_use:
            return f"{_called[0]} {NAMES[name]}" if name in NAMES else found[0]
        begun_by_a_script = own.name in NAMES and own.is_file()
        return f"{_interpreter()} {_from_here(own.with_name(name))}" if begun_by_a_script else found[0]

    return spoken(LINE.sub(line, text))


def _interpreter() -> str:
    return _found(sys.executable, "python", "python3")


def _found(program: str, *names: str) -> str:
    """The first of these names that means the program, else its path."""
    for name in names:
        if (found := shutil.which(name)) and os.path.abspath(found) == os.path.abspath(program):
            return name
    return _from_here(Path(program)) if os.sep in program else names[0]


def _from_here(path: Path) -> str:
    """A path as a word of a command line: relative where it lies below the working directory."""
    path = Path(os.path.abspath(path))  # links stay: an environment is found through them
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return shlex.quote(str(shown) if len(shown.parts) > 1 else f".{os.sep}{shown}")


def described(doc: str) -> str:
    """The docstring of a script as its help; its number is dropped where the script has a name."""
    text = spoken(doc.strip())
    return text.partition(": ")[2] if _in_use and text[:2].isdigit() else text


def current() -> str:
    """The command in use: `20_train.py`, `stage1 train`."""
    return " ".join(_in_use) or Path(sys.argv[0]).name

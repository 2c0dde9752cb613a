"""How soon the package answers: import and --help against what they cannot do without, and who imports what."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from result import Result

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "stage1_pro" / "scripts"
ROUNDS = 9
FORBIDDEN = {"25_threshold_sweep.py": ("torch",), "50_export_bundle.py": ("torch",), "60_predict.py": ("lightning",)}
ARGUMENTS = {"60_predict.py": ["no/such/bundle", "no/such/image"]}

PROBE = """
import runpy, sys
sys.path.insert(0, {root!r})
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 2, end.code
print(*[name for name in {forbidden!r} if name in sys.modules])
"""


def measure() -> list[Result]:
    return [door_row(), *help_rows(), *map(import_row, FORBIDDEN)]


def door_row() -> Result:
    ratio = time_ratio(["-c", "import stage1_pro"], ["-c", "import importlib.metadata"])
    return Result("import stage1_pro / importlib.metadata", ratio, 1.2, "at most", f"medians of {ROUNDS} processes")


def help_rows() -> list[Result]:
    """`--help` of a script and of `stage1`, and the list of sub-commands."""
    commands = {
        "20_train.py --help": [str(SCRIPTS / "20_train.py"), "--help"],
        "stage1 train --help": ["-m", "stage1_pro", "train", "--help"],
        "stage1 --help": ["-m", "stage1_pro", "--help"],
    }
    note = f"against importing jsonargparse and yaml, medians of {ROUNDS}"
    imports = ["-c", "import jsonargparse, yaml"]
    return [
        Result(f"{name} / imports", time_ratio(words, imports), 2, "at most", note) for name, words in commands.items()
    ]


def time_ratio(words: list[str], reference: list[str]) -> float:
    """How long Python takes with `words`, relative to `reference`: medians of processes started in turn."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, command in zip(seconds, (words, reference), strict=True):
            start = perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT, env=environment)
            times.append(perf_counter() - start)
    return median(seconds[0]) / median(seconds[1])


def import_row(script: str) -> Result:
    """Run the script's main on a path that does not exist, and count the heavy packages it has imported."""
    forbidden = FORBIDDEN[script]
    argv = [str(SCRIPTS / script), *ARGUMENTS.get(script, ["--run", "no/such/run"])]
    code = PROBE.format(root=str(ROOT), argv=argv, forbidden=forbidden)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    found = done.stdout.split()
    return Result(f"{script} imports {', '.join(forbidden)}", len(found), 0, "at most", "packages imported by main")

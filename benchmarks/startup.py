"""How soon the scripts answer: --help against the imports that it cannot do without, and who imports what."""

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
    return [help_row(), *map(import_row, FORBIDDEN)]


def help_row() -> Result:
    commands = {
        "help": [sys.executable, str(SCRIPTS / "20_train.py"), "--help"],
        "imports": [sys.executable, "-c", "import jsonargparse, yaml"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            start = perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            seconds[name].append(perf_counter() - start)
    ratio = median(seconds["help"]) / median(seconds["imports"])
    note = f"against importing jsonargparse and yaml, medians of {ROUNDS}"
    return Result("20_train.py --help / imports", ratio, 2, "at most", note)


def import_row(script: str) -> Result:
    """Run the script's main on a path that does not exist, and count the heavy packages it has imported."""
    forbidden = FORBIDDEN[script]
    argv = [str(SCRIPTS / script), *ARGUMENTS.get(script, ["--run", "no/such/run"])]
    code = PROBE.format(root=str(ROOT), argv=argv, forbidden=forbidden)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    found = done.stdout.split()
    return Result(f"{script} imports {', '.join(forbidden)}", len(found), 0, "at most", "packages imported by main")

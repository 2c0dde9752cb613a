"""65 killed by SIGKILL at every file that it touches: it ends as a monitor that was never disturbed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import SCRIPTS

from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.monitor.files import MONITOR, read_monitor

DAYS = [f"2026-03-{day:02}" for day in range(1, 5)]
CASES = 120
FORKS = """
import json, os, runpy, signal, sys
import filelock, jinja2, jsonargparse, jsonschema, pandas, pyarrow.csv, scipy.stats
import stage1_pro.core.monitor.watching, stage1_pro.core.report.monitor.page, stage1_pro.core.report.monitor.figures

script = sys.argv[1]

def die_at(moment, folder):
    moments = 0
    def touched(event, arguments):
        nonlocal moments
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(folder):
            if moments == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            moments += 1
    sys.addaudithook(touched)

for line in sys.stdin:
    moment, folder, words = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        die_at(moment, folder)
        sys.argv = [script, *words]
        runpy.run_path(script, run_name="__main__")
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""A process that has imported everything and forks a reading for each line, killed before that touch of the folder."""

Killed = Callable[..., bool]


@pytest.fixture
def killed() -> Iterator[Killed]:
    """killed(moment, folder, words): whether the reading died there; False: it came to its end before."""
    words = [sys.executable, "-c", FORKS, str(SCRIPTS / "65_monitor.py")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forks:
        assert forks.stdin
        assert forks.stdout

        def one(moment: int, folder: Path, words: list[object]) -> bool:
            forks.stdin.write(json.dumps([moment, str(folder), list(map(str, words))]) + "\n")
            forks.stdin.flush()
            status = int(forks.stdout.readline())
            died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            assert died or os.waitstatus_to_exitcode(status) in (0, 5), status
            return died

        yield one
        forks.stdin.close()


def files(bundle: Path, folder: Path) -> Iterator[list[object]]:
    """The words of each day's reading: its decisions, and the labels of the day before."""
    rng, labels = np.random.default_rng(3), []
    for at, day in enumerate(DAYS):
        red = rng.random(CASES) < 0.5
        misses = red & (rng.random(CASES) < (0.02 if at < 2 else 0.5))
        rows = pd.DataFrame({"id": [f"{day}/{number}" for number in range(CASES)], "group": None, "time": day})
        rows["answer"] = np.where(red & ~misses, "red", "blue")
        rows = rows.assign(probability=rng.uniform(0.5, 1, CASES), decision="exit", audit=True, audit_probability=1.0)
        rows.assign(bundle=digest_file(bundle / "bundle.json")).to_csv(folder / f"{day}.csv", index=False)
        given = rows.assign(label=np.where(red, "red", "blue"), label_time=f"{day}T12:00:00Z")
        given[["id", "label", "label_time"]].to_csv(folder / f"{day}-labels.csv", index=False)
        labels.append(folder / f"{day}-labels.csv")
        yield ["--decisions", folder / f"{day}.csv", "--labels", *labels[-2:], "--as_of", f"{day}T23:59:59Z"]


@pytest.mark.slow
def test_killed_at_every_touch_of_its_folder_it_ends_as_one_that_was_not(
    exported_once, tmp_path, killed: Killed
) -> None:
    bundle, calm, hurt = exported_once / "bundle", tmp_path / "calm", tmp_path / "hurt"
    readings = list(files(bundle, tmp_path))
    for words in readings:
        assert not killed(10**6, calm, [bundle, "--out", calm, *words])
    moment, revision = 0, 0
    for at, words in enumerate(readings):
        arguments, last = [bundle, "--out", hurt, *words], at == len(readings) - 1
        # the first days die at a few moments each, the last one at all that are left
        for _ in range(5 if not last else 100):
            if not killed(moment, hurt, arguments):
                break
            moment += 1
            if (hurt / MONITOR).exists():
                found = read_monitor(hurt)
                assert found.revision >= revision
                revision = found.revision
        else:
            assert not killed(10**6, hurt, arguments)
    assert moment > 15
    one, other = read_monitor(calm), read_monitor(hurt)
    assert (other.days, other.certificate) == (one.days, one.certificate)
    assert one.certificate == "alarm"
    assert [path.name for path in hurt.iterdir() if "cases" in path.name] == [f"cases-{other.revision}.npz"]

"""Scripts on Ray as processes of their own, and the check that nothing of Ray outlives them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from chain import SCRIPTS

MARK = "STAGE1_TEST_OF_RAY"
EXTRA = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]
STORE = [
    *EXTRA,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("s3fs", "moto", "flask_cors")),
        reason="no local object store: make test-ray installs s3fs and moto",
    ),
]
FOUND = [Path(spec.origin).parents[1] for name in ("ray", "s3fs") if (spec := find_spec(name)) and spec.origin]
PYTHONPATH = os.pathsep.join(map(str, [SCRIPTS.parents[1], *FOUND]))


@contextmanager
def started(script: str, *words: object, **environment: str) -> Iterator[subprocess.Popen]:
    """A script as a process and a group of its own; at the end of the block neither it nor one of Ray is left."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, MARK: mark, **environment}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, words)]
    process: Any = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True, **pipes)
    process.mark = mark
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        until(lambda: not marked(mark), 90)  # a worker notices that its raylet is gone


def finished(script: str, *words: object, **environment: str) -> tuple[int, str, str]:
    """Status, output and errors of a script."""
    with started(script, *words, **environment) as process:
        out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def marked(mark: str) -> dict[int, str]:
    """Processes that carry this mark in their environment: their ids and command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
    return found


def ended(process: Any, title: str) -> bool:
    """Kill the actors of a script that are at a method; whether there was one."""
    found = [pid for pid, command in marked(process.mark).items() if title in command]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def until(happened: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)

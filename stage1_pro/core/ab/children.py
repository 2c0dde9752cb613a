"""Scripts run as processes of their own: what one of them breaks, or the memory that it takes, is its own.

The processes are copies of one that has imported what they need, since imports take longer than a small training.
"""

import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Stopped(Exception):
    """No new process may begin: this one is being interrupted."""


class Children:
    """The processes of an A/B test. side_by_side: how many of them share the machine."""

    def __init__(self, side_by_side: int):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["stage1_pro.core.ab.preload"])
        self._running: set[BaseProcess] = set()
        self._lock, self._stopped = threading.Lock(), False
        self._threads = _cores() // side_by_side if side_by_side > 1 and "OMP_NUM_THREADS" not in os.environ else None

    def call(self, words: Sequence[str], log: Path) -> int:
        """Run a script with its arguments, output appended to `log`; returns its status, negative for a signal.

        Raises Stopped after `stop`.
        """
        process = self._context.Process(target=_run_script, args=(words, log, Path.cwd(), self._threads))
        with self._lock:
            if self._stopped:
                raise Stopped
            process.start()
            self._running.add(process)
        process.join()
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                raise Stopped
        return process.exitcode or 0

    def stop(self) -> None:
        """Ask all of them to end, as a scheduler would: training leaves a checkpoint to resume from."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _run_script(words: Sequence[str], log: Path, folder: Path, threads: int | None) -> None:
    """What the new process does: become the script, with its output in the log."""
    os.chdir(folder)
    with open(log, "ab") as output:
        output.write(f"$ python stage1_pro/scripts/{' '.join(words)}\n".encode())
        output.flush()
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    command = [str(SCRIPTS / words[0]), *words[1:]]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda._is_in_bad_fork():  # an import has touched the GPU: a copy could not use it
        os.execv(sys.executable, [sys.executable, *command])
    if torch is not None and threads is not None:
        torch.set_num_threads(max(1, threads))
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

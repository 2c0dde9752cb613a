"""Scripts run as processes of their own: what one of them breaks, or the memory that it takes, is its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from stage1_pro.core.commands import spoken
from stage1_pro.core.records import provenance

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Stopped(Exception):
    """No new process may start: the A/B test is being interrupted."""


THREADS = "OMP_NUM_THREADS"


def threads_of(side_by_side: int, cores: int) -> str | None:
    """OMP_NUM_THREADS of a process of which so many share the cores; None: as many threads as it likes."""
    return os.environ.get(THREADS) or (str(max(1, cores // side_by_side)) if side_by_side > 1 else None)


def environment(threads: str | None) -> dict[str, str]:
    """The environment of a process with this OMP_NUM_THREADS, or without one."""
    others = {name: value for name, value in os.environ.items() if name != THREADS}
    return others if threads is None else {**others, THREADS: threads}


class Children:
    """The processes of an A/B test. side_by_side: how many of them share the machine."""

    def __init__(self, side_by_side: int):
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopped, self._folder = threading.Lock(), False, None
        self._environment = environment(threads_of(side_by_side, provenance.cores()))

    @classmethod
    def elsewhere(cls, threads: str | None, folder: str) -> "Children":
        """Processes of a test that runs in `folder` of another machine. threads: as `threads_of` says there."""
        made = cls(1)
        made._environment, made._folder = environment(threads), folder
        return made

    def call(self, words: Sequence[str], log: Path) -> int:
        """Run a script with its arguments, output appended to `log`; returns its status, negative for a signal.

        Raises Stopped after `stop`.
        """
        with open(log, "ab") as output:
            output.write(f"$ {spoken('python stage1_pro/scripts/' + ' '.join(words))}\n".encode())
            output.flush()
            with self._lock:
                if self._stopped:
                    raise Stopped
                process = subprocess.Popen(
                    [sys.executable, str(SCRIPTS / words[0]), *words[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=self._folder,
                    process_group=0,  # Ctrl-C reaches this process alone, which then asks its children to end
                )
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                raise Stopped
        return status

    def stop(self) -> None:
        """Ask all of them to end, as a scheduler would: training leaves a checkpoint to resume from."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

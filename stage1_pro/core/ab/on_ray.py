"""Scripts of trials as tasks of a Ray cluster: each is a process of its own, on whatever node has room."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stage1_pro.core.ab.processes import Children, Stopped, threads_of
from stage1_pro.core.cluster.session import Resources, connected
from stage1_pro.core.errors import UserError, first_line

LOOK = 0.2
"""Seconds between two looks whether a script has ended: Ray's interruption is seen between them only."""


@contextmanager
def ray_children(address: str | None, jobs: int | None, trials: int) -> Iterator[tuple[int, "RayChildren"]]:
    """Within the block scripts run on Ray. Yields how many trials run side by side, and what runs their scripts.

    address: of a running cluster, None to start Ray on this machine; jobs: None for as many of the trials as there are
    CPUs, or GPUs where the cluster has some.
    """
    with connected(address, jobs or 0) as found:
        side_by_side = jobs or max(1, min(trials, found.gpus or found.cpus))
        yield side_by_side, RayChildren(found, side_by_side)


class RayChildren:
    """What `Children` is, on a cluster whose nodes see the folder of the test under the same path."""

    def __init__(self, found: Resources, side_by_side: int):
        import ray  # pyright: ignore[reportMissingImports]

        cpus = max(1, min(found.node_cpus, found.cpus // side_by_side))
        # a script that is run a second time finds a run begun: what a lost node left is for the next command
        limits = {"num_cpus": cpus, "num_gpus": 1 if found.gpus else 0, "max_retries": 0}
        self._task = ray.remote(**limits)(run_script)
        self._threads = threads_of(side_by_side, found.cpus)
        self._running: set[Any] = set()
        self._lock, self._stopped = threading.Lock(), False

    def call(self, words: Sequence[str], log: Path) -> int:
        """Run a script with its arguments, output appended to `log`; returns its status, negative for a signal.

        Raises Stopped after `stop`, and UserError where the worker was lost.
        """
        import ray  # pyright: ignore[reportMissingImports]

        with self._lock:
            if self._stopped:
                raise Stopped
            task = self._task.remote(list(words), str(log.absolute()), os.getcwd(), self._threads)
            self._running.add(task)
        try:
            return ray.get(task)
        except ray.exceptions.RayError as error:
            if self._stopped:
                raise Stopped from None
            raise UserError(f"{words[0]}: its Ray worker was lost: {first_line(error)} (see {log})") from None
        finally:
            with self._lock:
                self._running.discard(task)

    def stop(self) -> None:
        """Ask all of them to end, as a scheduler would: training leaves a checkpoint to resume from."""
        import ray  # pyright: ignore[reportMissingImports]

        with self._lock:
            self._stopped = True
            for task in self._running:
                ray.cancel(task)


def run_script(words: list[str], log: str, folder: str, threads: str | None) -> int:
    """What runs on a node: the script as a child, which is asked to end where this task is cancelled."""
    children = Children.elsewhere(threads, folder)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(children.call, words, Path(log))
        try:
            while not ended.done():
                time.sleep(LOOK)
        except KeyboardInterrupt:
            children.stop()
            raise
        return ended.result()

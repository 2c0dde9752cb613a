"""Two gloo processes on this machine."""

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def two_ranks() -> Callable[[Callable], list[Any]]:
    """Call work(rank, port, queue) in two processes; returns what each puts into the queue."""

    def run(work: Callable) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")  # a fork would share this process's threads
        queue = context.Queue()
        ranks = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
        for process in ranks:
            process.start()
        found = [queue.get(timeout=120) for _ in ranks]  # before joining: a full pipe would hold a process back
        for process in ranks:
            process.join(30)
        assert [process.exitcode for process in ranks] == [0, 0]
        return found

    return run

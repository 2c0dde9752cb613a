"""Two processes on this machine that speak with each other through gloo."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")  # a fork of this process would share its threads
CONTEXT.set_forkserver_preload(["stage1_pro.core.training.trainer"])  # imported once for all ranks of all tests
WORLD = 2
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = iter(range(20_000 + 200 * WORKER, 20_200 + 200 * WORKER))
"""Of this worker alone, and below those that the system gives out: it may give one port to two who ask."""


def on_two_ranks(work: Callable[[int], Any]) -> list[Any]:
    """What work(rank) returns in each of two processes, in their order.

    work: a function of a module, which finds the address that the ranks meet at in the environment.
    """
    port = next(port for port in PORTS if _free(port))
    queue = CONTEXT.Queue()
    ranks = [CONTEXT.Process(target=_on_rank, args=(work, rank, port, queue)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    found = dict(queue.get(timeout=120) for _ in ranks)  # before joining: a full pipe would hold a process back
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0, 0]
    return [pickle.loads(found[rank]) for rank in range(WORLD)]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _on_rank(work: Callable[[int], Any], rank: int, port: int, queue: Any) -> None:
    import torch

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    queue.put((rank, pickle.dumps(work(rank))))  # bytes: shared tensors would end with this process


@contextmanager
def group(rank: int) -> Iterator[None]:
    """Within the block this process is a rank of the default group."""
    from torch import distributed

    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    yield
    distributed.destroy_process_group()

"""Ray for the time of one job: joined where a cluster runs, else started on this machine and ended with the job."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.errors import UserError, first_line
from stage1_pro.core.records.provenance import cores

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names a running cluster."""
NAME_ONE = f"Name a running cluster with --address, or leave it out, and {ADDRESS} unset, for a Ray of this machine."
THREADS = "OMP_NUM_THREADS"
OBJECT_STORE = 200_000_000
"""Bytes of shared memory for a Ray of our own: what travels is a bundle and counts, never images."""
CONNECT_S = 10
"""Seconds that a cluster has to answer."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cluster has. node_cpus: CPUs of its largest node."""

    cpus: int
    gpus: int
    node_cpus: int


def threads_each() -> int:
    """Threads of a forward pass: OMP_NUM_THREADS, else one, so that as many actors fit as there are cores.

    Raises UserError where the variable is no number.
    """
    text = os.environ.get(THREADS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{THREADS} is {text!r}; allowed 1 or more. Set it anew, or unset it for 1.")
    return int(text)


@contextmanager
def connected(address: str | None, cpus: int = 0) -> Iterator[Resources]:
    """Within the block this process is the driver of a Ray cluster.

    address: of a running cluster; None: RAY_ADDRESS, else Ray is started on this machine, with its cores or `cpus`,
    whichever is more, and no process of it outlives the block, whichever way that ends. Raises UserError where Ray is
    not installed or the cluster does not answer.
    """
    demand_extra("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report what it runs on
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised as well
    import ray  # pyright: ignore[reportMissingImports]

    address = address or os.environ.get(ADDRESS)
    own = {"num_cpus": max(cores(), cpus), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        if address:
            _demand_listening(address)
        with _silenced():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
        # Ray ends the process at SIGTERM, with a status of its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
        found = ray.cluster_resources()
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        yield Resources(int(found.get("CPU", 0)), int(found.get("GPU", 0)), int(largest))
    except (ConnectionError, ValueError, RuntimeError) as error:
        if ray.is_initialized():
            raise
        where = address or "on this machine"
        raise UserError(f"Ray {where}: {first_line(error)}. {NAME_ONE}") from None
    finally:
        ray.shutdown()


def _demand_listening(address: str) -> None:
    """Raise UserError where nothing listens at the address of a cluster: Ray itself would try for minutes, also at that
    of one that was killed, which "auto" finds."""
    from ray._private.services import canonicalize_bootstrap_address  # pyright: ignore[reportMissingImports]

    place = None if "://" in address else canonicalize_bootstrap_address(address)
    if place is None:
        return
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(f"Ray {address}: nothing answers at {place} ({first_line(error)}). {NAME_ONE}") from None


@contextmanager
def _silenced() -> Iterator[None]:
    """Within the block standard error leads nowhere, for Ray's C++ as well, which tells there how loud it will be."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

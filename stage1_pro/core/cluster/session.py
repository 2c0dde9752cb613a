"""Ray for the time of one job: joined where a cluster runs, else started on this machine and ended with the job."""

import atexit
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import Any

from stage1_pro.core.cluster.pool import PAUSE_S
from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.errors import Interrupted, UserError, first_line
from stage1_pro.core.records.provenance import cores

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names a running cluster."""
NAME_ONE = f"Name a running cluster with --address, or leave it out, and {ADDRESS} unset, for a Ray of this machine."
TOKEN = "RAY_AUTH_TOKEN"
"""Environment variable with the secret that processes of one Ray know each other by."""
ASKS_TOKEN = "Where the cluster demands a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray holds it."
THREADS = "OMP_NUM_THREADS"
OBJECT_STORE = 200_000_000
"""Bytes of shared memory for a Ray of our own: what travels is a bundle and counts, never images."""
CONNECT_S = 10
"""Seconds that a cluster has to answer."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RayLost(UserError):
    """What was started of Ray for this job is gone."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cluster has. node_cpus: CPUs of its largest node; gpu_cpus: those that fall to a GPU where they are
    fewest."""

    cpus: int
    gpus: int
    node_cpus: int
    gpu_cpus: int


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
    if not address:  # else Ray keeps one in the user's home, where there is a home that may be written to
        os.environ.setdefault(TOKEN, secrets.token_hex(32))
    own = {"num_cpus": max(cores(), cpus), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    end: Callable[[], Any] = ray.shutdown
    try:
        if address:
            _demand_listening(address)
        with _signals_later(), _silenced():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
        # a worker that died, in a paragraph on standard output; it is raised as well
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        found = ray.cluster_resources()
        nodes = [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in _of_nodes(ray.nodes())]
        yield Resources(
            cpus=int(found.get("CPU", 0)),
            gpus=int(found.get("GPU", 0)),
            node_cpus=max((cpus for cpus, _ in nodes), default=0),
            gpu_cpus=min((cpus // gpus for cpus, gpus in nodes if gpus), default=0),
        )
    except (Interrupted, RayLost) as stop:
        end = partial(_leave_at_exit, stop.exit_status)
        raise
    except (ConnectionError, ValueError, RuntimeError) as error:
        if ray.is_initialized():
            raise
        where, token = (address, f" {ASKS_TOKEN}") if address else ("on this machine", "")
        raise UserError(f"Ray {where}: {first_line(error)}. {NAME_ONE}{token}") from None
    finally:
        end()


def demand_own_ray() -> None:
    """Raise RayLost where the Ray that was started for this job is gone: within a quarter of a minute it would end this
    process, with status 1 and without a word. Of a cluster that was joined no process is known here."""
    import ray  # pyright: ignore[reportMissingImports]

    node = ray._private.worker._global_node  # None for a client of ray://
    gone = {kind for kind, _ in node.dead_processes()} if node else set()
    if gone & {"raylet", "gcs_server"}:
        sleep(PAUSE_S)  # whoever ends all processes of a job has come to this one by then
        raise RayLost("Ray's own process on this machine was killed, or crashed. Run the same command again.")


def _of_nodes(nodes: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [node["Resources"] for node in nodes if node["Alive"]]


def _leave_at_exit(status: int) -> None:
    """Let this process end, as its last act, what Ray has started from it and itself, without Ray's farewell.

    Whoever stops a job often stops all of its processes, and a driver that says farewell to a Ray which is gone ends
    with 1. What Ray has started would end by itself, but for agents that were just starting, which stayed.
    """
    import psutil  # Ray brings it

    def leave() -> None:
        sys.stdout.flush()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        os._exit(status)

    atexit.register(leave)


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
def _signals_later() -> Iterator[None]:
    """Within the block signals wait for its end, but for a second one. Ray starts meanwhile: what a handler raises in
    its callbacks is lost, and handlers that it sets would end this process with statuses of their own."""
    from ray._private import utils  # pyright: ignore[reportMissingImports]

    its, handlers = utils.set_sigterm_handler, {number: signal.getsignal(number) for number in SIGNALS}
    caught: list[int] = []

    def later(number: int, _frame: Any) -> None:
        if caught:
            _set(handlers)
            signal.raise_signal(number)
        caught.append(number)

    utils.set_sigterm_handler = lambda handler: None
    _set(dict.fromkeys(SIGNALS, later))
    try:
        yield
    finally:
        utils.set_sigterm_handler = its
        _set(handlers)
        for number in caught[:1]:
            signal.raise_signal(number)


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


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

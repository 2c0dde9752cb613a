"""The process: a socket, an event loop, signals, and an end without anything left behind."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stage1_pro.core.errors import Interrupted, UserError
from stage1_pro.core.serving.app import DECIDING, create_app
from stage1_pro.core.serving.protocol import refusing
from stage1_pro.core.serving.service import Service

_KEEP_ALIVE_S = 75
_LAST_ANSWERS_S = 5


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that nobody else takes the port; 0 takes a free one. Raises UserError."""
    found = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen()  # two that are only bound may share a port
    except (OSError, OverflowError) as error:
        if found is not None:
            found.close()
        raise UserError(f"--host {host} --port {port}: {str(error).rstrip('.')}. Name another one.") from None
    return found


def serve(service: Service, bound: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, which lets everything that was taken on be answered first.

    Raises UserError where the model does not load or the golden inputs come out otherwise, and Interrupted after
    Ctrl-C; a second Ctrl-C waits for nothing.
    """
    failures: list[Exception] = []

    async def start() -> None:
        try:
            await service.start()
        except Exception as error:
            failures.append(error)
            server.should_exit = True
        else:
            if service.state == "ready":  # a signal may have come first
                on_ready()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(start())
        yield
        await loading  # a thread that loads cannot be stopped
        await service.close()

    config = uvicorn.Config(
        create_app(service, lifespan),
        http=refusing(service, DECIDING),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # a line for each request that is no HTTP would fill a disk; the measures count them
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing looks at the client's address
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(service.limits.deadline_s) + _LAST_ANSWERS_S,
    )
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # nor a line for each form that is none
    server = _Server(config, service)
    server.run(sockets=[bound])
    if failures:
        raise failures[0]
    if server.interrupted:
        raise Interrupted(128 + signal.SIGINT)


class _Server(uvicorn.Server):
    """uvicorn's server, which on a signal goes on answering until nothing is in flight."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service, self.interrupted = service, False
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.interrupted and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # it would print the trace of what is cut off
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drained())

    async def _drained(self) -> None:
        await self.service.drain()
        self.should_exit = True

"""A server of the bundle as a process, and clients that ask it as fast as they can."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import uvloop

SERVER = Path(__file__).parents[1] / "stage1_pro" / "scripts" / "70_serve.py"


@dataclass
class Server:
    """A server that is ready."""

    process: subprocess.Popen
    port: int

    def metric(self, name: str) -> float:
        text = urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode()
        return float(re.findall(rf"^{name} (\S+)", text, re.MULTILINE)[0])


@contextmanager
def serving(bundle: str, *options: str) -> Iterator[Server]:
    """The server of a bundle within the block; it ends with it."""
    command = [sys.executable, str(SERVER), bundle, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        assert process.stdout.readline() == "ready\n"
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


@dataclass
class Load:
    """What clients saw: seconds to each answer, by status; where they are kept, bodies by the number of the request."""

    seconds: float = 0.0
    answers: dict[int, list[float]] = field(default_factory=dict)
    bodies: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def rate(self, status: int = 200) -> float:
        return len(self.answers.get(status, [])) / self.seconds

    def quantile(self, status: int, share: float) -> float:
        return float(np.quantile(self.answers.get(status) or [np.nan], share))


def request(content: bytes) -> bytes:
    return b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content


_LENGTH = re.compile(rb"content-length: (\d+)")


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    assert length
    return int(head[9:12]), await reader.readexactly(int(length[1]))


@dataclass
class Clients:
    """Clients, each with one connection, that ask until `stop_at` or `limit` answers.

    rate: requests a second of all `count` of them together; None: each asks again when it has its answer.
    """

    requests: list[bytes]
    count: int
    stop_at: float
    limit: int
    rate: float | None
    keep: bool
    load: Load = field(default_factory=Load)
    asked: int = 0

    async def run(self, port: int) -> Load:
        loop, begun = asyncio.get_running_loop(), time.perf_counter()
        pause = self.count / self.rate if self.rate else 0.0
        lines = [_Line(self, begun + pause * number / self.count, pause, loop) for number in range(self.count)]
        for line in lines:
            await loop.create_connection(lambda line=line: line, "127.0.0.1", port)
        await asyncio.gather(*(line.ended for line in lines))
        self.load.seconds = time.perf_counter() - begun
        return self.load


class _Line(asyncio.Protocol):
    """One client, as callbacks: a stream and a task each would take the server's cores three times as long."""

    def __init__(self, clients: Clients, due: float, pause: float, loop: asyncio.AbstractEventLoop):
        self.clients, self.due, self.pause, self.loop = clients, due, pause, loop
        self.ended: asyncio.Future[None] = loop.create_future()
        self.own, self.sent, self.read = 0, 0.0, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._next()

    def _next(self) -> None:
        clients, now = self.clients, time.perf_counter()
        if now >= clients.stop_at or clients.asked >= clients.limit:
            self.ended.set_result(None)
            self.transport.close()
            return
        self.own, clients.asked = clients.asked, clients.asked + 1
        if self.due > now:
            self.loop.call_later(self.due - now, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.clients.requests[self.own % len(self.clients.requests)])

    def data_received(self, data: bytes) -> None:
        self.read += data
        head, _, body = self.read.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None or len(body) < int(length[1]):
            return
        status, load = int(head[9:12]), self.clients.load
        load.answers.setdefault(status, []).append(time.perf_counter() - self.sent)
        if self.clients.keep:
            load.bodies[self.own] = (status, json.loads(body))
        self.read, self.due = b"", max(self.due + self.pause, self.sent)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the server closed a connection"))


def _run(job: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the clients share the server's machine
        return runner.run(job)


def ask(
    server: Server,
    contents: list[bytes],
    count: int,
    *,
    seconds: float = 1e9,
    limit: int = 10**9,
    rate: float | None = None,
    keep: bool = False,
) -> Load:
    requests = [request(content) for content in contents]

    async def asked() -> Load:
        return await Clients(requests, count, time.perf_counter() + seconds, limit, rate, keep).run(server.port)

    return _run(asked())


async def _ended(server: Server, content: bytes, count: int) -> list[int]:
    lines = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(count)]
    whole = request(content)
    for _, writer in lines:
        writer.write(whole[:-20])
    while await asyncio.to_thread(server.metric, "stage1_inflight_images") < count:
        await asyncio.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    while await asyncio.to_thread(server.metric, "stage1_ready"):
        await asyncio.sleep(0.01)
    for _, writer in lines:
        writer.write(whole[-20:])
    statuses = [(await answer(reader))[0] for reader, _ in lines]
    for _, writer in lines:
        writer.close()
    return statuses


def ended(server: Server, content: bytes, count: int) -> tuple[list[int], int]:
    """SIGTERM while so many requests are in flight: the statuses of their answers, and that of the process."""
    statuses = _run(_ended(server, content, count))
    return statuses, server.process.wait(60)

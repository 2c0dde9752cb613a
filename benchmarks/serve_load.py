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


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    return int(head[9:12]), await reader.readexactly(int(length[1]))


async def clients(
    port: int, contents: list[bytes], count: int, stop_at: float, limit: int, rate: float | None, keep: bool
) -> Load:
    """So many clients, each with one connection, ask until `stop_at` or `limit` answers.

    rate: requests a second of all of them together; None: each asks again when it has its answer.
    """
    load, asked, begun = Load(), 0, time.perf_counter()

    async def client(number: int) -> None:
        nonlocal asked
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due = begun + (number / rate if rate else 0)
        while time.perf_counter() < stop_at and asked < limit:
            own, asked = asked, asked + 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()) if rate else 0)
            sent = time.perf_counter()
            writer.write(request(contents[own % len(contents)]))
            status, body = await answer(reader)
            load.answers.setdefault(status, []).append(time.perf_counter() - sent)
            if keep:
                load.bodies[own] = (status, json.loads(body))
            due = max(due + (count / rate if rate else 0), sent)
        writer.close()

    await asyncio.gather(*map(client, range(count)))
    load.seconds = time.perf_counter() - begun
    return load


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
    return _run(clients(server.port, contents, count, time.perf_counter() + seconds, limit, rate, keep))


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

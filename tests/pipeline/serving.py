"""A server as a process of its own, and a client that sends many requests at once."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).parents[2] / "stage1_pro" / "scripts" / "70_serve.py"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        """Of an error, which defers."""
        assert self.body["decision"] == "defer"
        return self.body["error"]["code"]


class Server:
    """70_serve.py on a free port: ready where the block begins, and killed at its end.

    first: Python that its process runs before the script.
    """

    def __init__(self, bundle: Path, *options: object, first: str = "", **environment: str):
        script = f"{first}\nimport runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
        begin = ["-c", script] if first else [str(SCRIPT)]
        command = [sys.executable, *begin, str(bundle), "--port", "0", *map(str, options)]
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # as 60 in this process has
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
        assert self.process.stdout is not None
        self.port, self.said = 0, []
        for line in self.process.stdout:
            self.said.append(line.strip())
            if "http://" in line:
                self.port = int(line.rpartition(":")[2])
            if line.startswith("ready"):
                break

    def __enter__(self) -> "Server":
        assert self.said[-1] == "ready", self.end()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: status, stdout, stderr."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, "\n".join([*self.said, out]), err

    def ask(self, path: str, content: bytes | None = None, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET" if content is None else "POST", path, content, named)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def decide(self, contents: Sequence[bytes], at_once: int) -> list[Answer]:
        """One request an image, so many at a time, in the order given."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda content: self.ask("/v1/decide", content), contents))


def form(*fields: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its content type; a field named image is a file."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (name.encode(), b'; filename="x"' if name == "image" else b"", content)
        for name, content in fields
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


class Slow:
    """A request whose body is sent in two halves, so that it is in flight in between."""

    def __init__(self, server: Server, content: bytes, **headers: str):
        self.connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.connection.putrequest("POST", "/v1/decide")
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.connection.putheader(name, value)
        self.connection.endheaders(content[:20])
        self.rest = content[20:]

    def finish(self) -> Answer:
        try:
            self.connection.send(self.rest)
            response = self.connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            self.connection.close()


def eventually(happened: Any, seconds: float = 20) -> None:
    """Wait until `happened()`; fails after that time."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if happened():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen")

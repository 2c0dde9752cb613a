"""The HTTP protocol: uvicorn's, which refuses what there is no room for before anything is made of it."""

import asyncio
import json
from functools import lru_cache
from typing import Any, ClassVar

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stage1_pro.core.serving.refusals import Refusal
from stage1_pro.core.serving.service import Service

HEAD_BYTES = 512 * 1024
"""Longest head that comes in more pieces than one (of 256 KB). The parser takes one of any length, and copies what it
has of a header for each piece: with 91 MB of it one client made /livez wait for 3.7 s."""


class RefusingProtocol(HttpToolsProtocol):
    """One connection. Under four times the load that a server can take, three of four responses are refusals.

    What computes shares the cores with them, so they are written as soon as the request is here: no task, no app. Of
    requests that did not arrive in one piece, or wait behind another one, or need a token, the app takes care.

    Where uvicorn would wait for a head for ever, or take one of any length, the connection ends, and what is not HTTP
    hears `defer` as well.
    """

    service: ClassVar[Service]
    deciding: ClassVar[frozenset[bytes]]
    """Paths that ask for decisions."""

    def __init__(self, *args: Any, **rest: Any):
        super().__init__(*args, **rest)
        self.parser = _Http1Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._refusal: Refusal | None = None
        self._held: list[bytes] = []
        self.offered, self._in_head = False, False
        self._head_ends: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._refusal is not None:  # the rest of the body is still on its way
            self._refusal, held = None, self._held
            super().on_headers_complete()
            for part in held:
                super().on_body(part)
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(b"other", Refusal("bad_request", f"the head is longer than {HEAD_BYTES} bytes"), False)
            elif self._head_ends is None:
                self._head_ends = self.loop.call_later(self.service.limits.deadline_s, self._head_is_late)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):
            self.offered = True
            return
        self._in_head = False
        self._head_is_here()
        self._unset_keepalive_if_required()  # of a refusal that stood before this request in the same piece
        # of the requests that are read at one go the app has admitted none as yet, so they are counted here
        needs_room, coming = self._needs_room(), self.service.coming
        self._refusal, self._held = self.service.no_room(1 + coming) if needs_room else None, []
        if self._refusal is None:
            super().on_headers_complete()
            if needs_room:
                self.service.coming += 1
                self.loop.call_soon(self._came)  # after the first step of the app, which admits it

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        refusal, self._refusal = self._refusal, None
        if self.offered:
            return
        if refusal is None:
            super().on_message_complete()
            return
        assert self.parser is not None
        self._refuse(self._path, refusal, self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive())
        self.on_response_complete()

    def head_again(self) -> bytes:
        """The head that has been read, without what it offers."""
        assert self.parser is not None
        self.offered, version = False, self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"other", Refusal("bad_request", msg), False)

    def _refuse(self, path: bytes, refusal: Refusal, keep_alive: bool) -> None:
        self.transport.write(_response(refusal.code, str(refusal), keep_alive))
        self.service.metrics.responded(path.decode("ascii"), refusal.status, 0)
        self.service.metrics.refused(refusal.code)
        if not keep_alive:
            self.transport.close()

    def _head_is_late(self) -> None:
        seconds = self.service.limits.deadline_s
        self._refuse(b"other", Refusal("deadline", f"the head did not arrive within {seconds:g} s"), False)

    def _head_is_here(self) -> None:
        self._head_bytes = 0
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None

    @property
    def _path(self) -> bytes:
        return self.url.partition(b"?")[0]

    def _needs_room(self) -> bool:
        """Whether a request asks for a decision, and where there is no room nothing else matters of it."""
        assert self.parser is not None
        waits = self.cycle is not None and not self.cycle.response_complete
        asks = self._path in self.deciding and self.parser.get_method() == b"POST"
        return asks and not waits and not self.expect_100_continue and self.service.token is None

    def _came(self) -> None:
        self.service.coming -= 1


class _Http1Parser(HttpRequestParser):
    """Reads on as HTTP/1.1 where a client offers another protocol, as HTTP clients of Java do: RFC 9110, 7.8.

    The parser itself would take the body for that other protocol.
    """

    def __init__(self, protocol: RefusingProtocol):
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: bytes) -> None:
        try:
            super().feed_data(data)
        except HttpParserUpgrade as offer:
            if not self._protocol.offered:  # CONNECT
                raise
            self.feed_data(self._protocol.head_again() + data[offer.args[0] :])


def refusing(service: Service, deciding: frozenset[str]) -> type[RefusingProtocol]:
    """The protocol of a server. deciding: paths that ask for decisions."""
    paths = frozenset(path.encode() for path in deciding)
    return type("RefusingProtocol", (RefusingProtocol,), {"service": service, "deciding": paths})


@lru_cache(maxsize=64)  # under overload nearly all are the same
def _response(code: str, message: str, keep_alive: bool) -> bytes:
    refusal = Refusal(code, message)
    body = json.dumps(refusal.body(), separators=(",", ":")).encode()
    headers = {"content-length": str(len(body)), "content-type": "application/json", **refusal.headers()}
    headers |= {} if keep_alive else {"connection": "close"}
    lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[refusal.status] + lines.encode() + b"\r\n" + body

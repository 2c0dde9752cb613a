"""The HTTP protocol: uvicorn's, which refuses what there is no room for before anything is made of it."""

import json
from functools import lru_cache
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stage1_pro.core.serving.refusals import Refusal
from stage1_pro.core.serving.service import Service


class RefusingProtocol(HttpToolsProtocol):
    """One connection. Under four times the load that a server can take, three of four responses are refusals.

    What computes shares the cores with them, so they are written as soon as the request is here: no task, no app. Of
    requests that did not arrive in one piece, or wait behind another one, or need a token, the app takes care.
    """

    service: ClassVar[Service]
    deciding: ClassVar[frozenset[bytes]]
    """Paths that ask for decisions."""

    def __init__(self, *args: Any, **rest: Any):
        super().__init__(*args, **rest)
        self._refusal: Refusal | None = None
        self._held: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._refusal is not None:  # the rest of the body is still on its way
            self._refusal, held = None, self._held
            super().on_headers_complete()
            for part in held:
                super().on_body(part)

    def on_headers_complete(self) -> None:
        self._unset_keepalive_if_required()  # of a refusal that stood before this request in the same piece
        self._refusal, self._held = self._refused_at_once(), []
        if self._refusal is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is None:
            super().on_message_complete()
            return
        assert self.parser is not None
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self.transport.write(_response(refusal.code, str(refusal), keep_alive))
        self.service.metrics.refused_at_once(self._path.decode("ascii"), refusal)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    @property
    def _path(self) -> bytes:
        return self.url.partition(b"?")[0]

    def _refused_at_once(self) -> Refusal | None:
        assert self.parser is not None
        waits = self.cycle is not None and not self.cycle.response_complete
        asks = self._path in self.deciding and self.parser.get_method() == b"POST"
        if waits or not asks or self.expect_100_continue or self.service.token is not None:
            return None
        return self.service.no_room(1)


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

"""The endpoints."""

import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stage1_pro import __version__
from stage1_pro.core.serving import openapi
from stage1_pro.core.serving.reading import Body, is_form, read_form, read_group, read_one, read_within
from stage1_pro.core.serving.refusals import INTERNAL, Refusal
from stage1_pro.core.serving.service import GroupUpload, Service, Upload
from stage1_pro.core.serving.settings import BATCH_BODIES, Limits

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
DECIDING = frozenset({"/v1/decide", "/v1/decide/batch"})
"""Paths that ask for decisions."""

Handler = Callable[[Request], Awaitable[Response]]
_logger = logging.getLogger(__name__)
_ROUTING = {404: "not_found", 405: "method_not_allowed"}
_INLINE = "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_PAGE_POLICY = f"default-src 'none'; {_INLINE}; connect-src 'self'; img-src blob:; frame-ancestors 'none'"
_FACTS = "class_names positive_class active_exit_policy preprocessing forward_batch eval created_at expires"
_OF_GROUPS = ("decide_by", "views", "view_rule", "certificate_groups")


def create_app(service: Service, lifespan: Lifespan) -> ASGIApp:
    """The app of a service, which `lifespan` starts and closes."""
    pages: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
    app = FastAPI(title="stage1_pro", version=__version__, lifespan=lifespan, **pages)
    for kind in (Refusal, HTTPException, Exception):
        app.add_exception_handler(kind, lambda _, error: _refused(service, error))
    deciding = _add_decisions(app, service)
    _add_state(app, service)
    return Watched(app, service, frozenset(app.openapi()["paths"]) | {"/", "/openapi.json"}, deciding)


def _add_decisions(app: FastAPI, service: Service) -> dict[str, Handler]:
    """Path → what answers a POST to it."""
    limits = service.limits

    async def decide(request: Request) -> Response:
        if service.views is not None:
            return await _decide_group(service, request)
        body = Body(request, limits.max_bytes + (openapi.FORM_BYTES if is_form(request) else 0))
        ((_, outcome),) = await _decided(service, request, body, 1, lambda: read_one(request, body, limits))
        return _answer(service, outcome)

    async def decide_batch(request: Request) -> Response:
        if service.views is not None:
            raise Refusal("bad_request", "this bundle decides groups: send the images of one group to /v1/decide")
        body = Body(request, limits.batch_bytes)
        share = _share(body, limits)  # memory is bounded by the images that were admitted
        outcomes = await _decided(service, request, body, share, lambda: read_form(request, body, limits))
        for _, outcome in outcomes:
            if isinstance(outcome, Refusal):
                service.metrics.refused(outcome.code)
        return JSONResponse({"decisions": [_element(*pair) for pair in outcomes]})

    app.post("/v1/decide", summary="Decide one image", **openapi.DECIDE)(decide)
    app.post("/v1/decide/batch", summary="Decide several images", **openapi.BATCH)(decide_batch)
    return {"/v1/decide": decide, "/v1/decide/batch": decide_batch}


async def _decide_group(service: Service, request: Request) -> Response:
    """One decision on all images of a request."""
    limits = service.limits
    body = Body(request, limits.batch_bytes)
    expires = time.monotonic() + limits.deadline_s
    upload = await _admitted(service, request, body, _share(body, limits), lambda: read_group(request, body, limits))
    outcome = await service.decide_group(upload, expires)
    return _answer(service, outcome)


def _answer(service: Service, outcome: dict[str, Any] | Refusal) -> Response:
    # not raised: its trace would hold the images' bytes until a collection of garbage
    return _refused(service, outcome) if isinstance(outcome, Refusal) else JSONResponse(outcome)


def _share(body: Body, limits: Limits) -> int:
    """Images that are admitted before a body is read: so many as it could fill."""
    share = BATCH_BODIES if body.length is None else math.ceil(body.length / limits.max_bytes)
    return min(max(1, share), limits.max_inflight)


async def _decided(
    service: Service, request: Request, body: Body, share: int, read: Callable[[], Any]
) -> list[tuple[Upload, dict[str, Any] | Refusal]]:
    """Admit, read, decide. share: images that are admitted before anything is read."""
    expires = time.monotonic() + service.limits.deadline_s
    uploads = await _admitted(service, request, body, share, read)
    return list(zip(uploads, await service.decide(uploads, expires), strict=True))


async def _admitted(service: Service, request: Request, body: Body, share: int, read: Callable[[], Any]) -> Any:
    """What `read` reads, each image of it admitted; a refused body is taken off the line."""
    try:
        _demand_token(service, request)
        body.demand_length()
        service.admit(share)
        return await _read(service, share, read)
    except Refusal:
        await body.discard()
        raise


def _element(upload: Upload, outcome: dict[str, Any] | Refusal) -> dict[str, Any]:
    """One element of the answer to a batch."""
    return {"id": upload.id, **outcome.body()} if isinstance(outcome, Refusal) else outcome


async def _read(service: Service, share: int, read: Callable[[], Any]) -> Any:
    """The uploads, each image of them admitted."""
    try:
        uploads = await read_within(service.limits.deadline_s, read)
        images = len(uploads.contents if isinstance(uploads, GroupUpload) else uploads)
        if images > share:
            service.admit(images - share)
    except BaseException:
        service.release(share)
        raise
    service.release(max(0, share - images))
    return uploads


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", summary="The bundle that decides, and the limits of this server", **openapi.MODEL)
    async def model(request: Request) -> Response:
        _demand_token(service, request)
        return JSONResponse(_about(service))

    @app.head("/livez", include_in_schema=False)  # some balancers ask so
    @app.get("/livez", summary="The process answers", **openapi.STATE)
    async def livez() -> Response:
        return JSONResponse(_status(service))

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Decisions are given", **openapi.READY)
    async def readyz() -> Response:
        ready = service.state == "ready"
        return JSONResponse(_status(service), 200 if ready else 503, headers=None if ready else {"Retry-After": "1"})

    @app.get("/metrics", summary="Measures for Prometheus", **openapi.TEXT)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _PAGE_POLICY})


def _status(service: Service) -> dict[str, str]:
    status = {"status": service.state, "certificate": service.certificate}
    return status | ({"reason": service.trouble} if service.state == "failing" else {})


def _about(service: Service) -> dict[str, Any]:
    manifest, limits = service.contents.manifest, service.limits
    return {
        **{name: manifest.get(name) for name in _FACTS.split()},
        **{name: manifest[name] for name in _OF_GROUPS if name in manifest},
        "bundle": service.bundle,
        "certificate": service.certificate,
        "audits": service.watch.audits,
        "version": __version__,
        "limits": {
            "max_inflight": limits.max_inflight,
            "max_bytes": limits.max_bytes,
            "max_pixels": limits.max_pixels,
            "batch_images": limits.batch_images,
            "batch_bytes": limits.batch_bytes,
            "deadline_s": limits.deadline_s,
        },
    }


def _demand_token(service: Service, request: Request) -> None:
    if service.token is None:
        return
    scheme, _, word = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(word.strip().encode(), service.token.encode())
    if scheme.lower() != "bearer" or not same:
        raise Refusal("unauthorized", "send the header 'Authorization: Bearer TOKEN'")


def _refused(service: Service, error: Exception) -> Response:
    """The response to whatever an endpoint raised."""
    refusal, more = Refusal("internal", INTERNAL), {}
    if isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, HTTPException):
        refusal, more = Refusal(_ROUTING.get(error.status_code, "bad_request"), str(error.detail)), error.headers or {}
    service.metrics.refused(refusal.code)
    return JSONResponse(refusal.body(), refusal.status, headers={**refusal.headers(), **more})


@cache
def _page() -> str:
    return files("stage1_pro.core.serving").joinpath("page.html").read_text(encoding="utf-8")


class Watched:
    """Counts responses and their time, and answers what asks for decisions.

    Those pass neither FastAPI's layers nor its routing, a third of what a response costs beside the model. paths: those
    that are told apart in the measures; deciding: path → what answers a POST to it.
    """

    def __init__(self, app: FastAPI, service: Service, paths: frozenset[str], deciding: dict[str, Handler]):
        self.app, self.service, self.metrics = app, service, service.metrics
        self.paths, self.deciding = paths, deciding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, path = time.monotonic(), scope["path"] if scope["path"] in self.paths else "other"

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responded(path, message["status"], time.monotonic() - begun)
            await send(message)

        if scope["method"] != "POST" or path not in self.deciding:
            return await self.app(scope, receive, watched)
        response = await self._decided(path, Request(scope, receive))
        return await response(scope, receive, watched)

    async def _decided(self, path: str, request: Request) -> Response:
        try:
            return await self.deciding[path](request)
        except Exception as error:
            if not isinstance(error, Refusal | HTTPException):
                _logger.exception("no response to %s", path)
            return _refused(self.service, error)

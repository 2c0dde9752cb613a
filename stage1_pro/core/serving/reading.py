"""Reading requests: never more bytes than were admitted, never longer than the deadline."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from stage1_pro.core.serving.refusals import Refusal
from stage1_pro.core.serving.service import GroupUpload, Upload
from stage1_pro.core.serving.settings import Limits

WORD = r"^[^\u0000-\u001f\u007f-\u009f\ufffd]{1,256}$"
"""What an id or a group may be: at most 256 characters, none of them a control character, nor what stands for bytes
that are not UTF-8, by which two ids would be one."""

IMAGES = "image"
"""The form's field of an image; NAMES stand beside it, in the same order."""

NAMES = ("id", "group", "certificate_group")
"""What a client may say of an image."""

Uploads = TypeVar("Uploads", list[Upload], GroupUpload)
_WORD = re.compile(WORD)
_UNREAD_S = 2.0


class _FormParser(MultiPartParser):
    """Keeps images in memory, where they were admitted: no disk sees them, full or read-only or anybody's."""

    spool_max_size = 2**40


class Body:
    """The body of one request as a source of messages that ends above a limit.

    Raises Refusal where the body is longer than `limit`, declared or not.
    """

    def __init__(self, request: Request, limit: int):
        self._request, self._receive, self.limit = request, request.receive, limit
        self.length = _declared_length(request)
        self._taken, self._ended = 0, self.length == 0

    def demand_length(self) -> None:
        if self.length is not None and self.length > self.limit:
            raise self._too_large()

    async def receive(self) -> Any:
        message = await self._next()
        if self._taken > self.limit:
            raise self._too_large()
        return message

    async def content(self) -> bytes:
        """All of it."""
        parts = []
        while not self._ended:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
        return b"".join(parts)

    async def discard(self) -> None:
        """Take the rest of a body that is of no use, as far as it is bearable: who is still sending hears no answer."""
        if self._ended or self._request.headers.get("expect"):
            return
        try:
            async with asyncio.timeout(_UNREAD_S):
                while not self._ended and self._taken <= 2 * self.limit:
                    await self._next()
        except TimeoutError:
            pass

    async def _next(self) -> Any:
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    def _too_large(self) -> Refusal:
        return Refusal("too_large", f"the body is longer than {self.limit} bytes")


async def read_within(seconds: float, job: Callable[[], Awaitable[Uploads]]) -> Uploads:
    """What `job` reads. Raises Refusal."""
    try:
        async with asyncio.timeout(seconds):
            return await job()
    except TimeoutError:
        raise Refusal("deadline", f"the body did not arrive within {seconds:g} s") from None
    except ClientDisconnect:
        raise Refusal("bad_request", "the connection ended before the body did") from None


async def read_one(request: Request, body: Body, limits: Limits) -> list[Upload]:
    """The one image of a request: the body itself, or a form. Raises Refusal."""
    if not is_form(request):
        content = await body.content()
        named = [_one(request.query_params.getlist(name), name) for name in NAMES]
        uploads = [Upload(content, *_named(named, limits))]
    else:
        uploads = await read_form(request, body, limits)
    if len(uploads) > 1:
        raise Refusal("too_many_images", f"{len(uploads)} images: send them to /v1/decide/batch")
    if not uploads[0].content:
        raise Refusal("empty", "the body is empty: send the bytes of an image file")
    return uploads


async def read_form(request: Request, body: Body, limits: Limits) -> list[Upload]:
    """The images of a form in their order. Raises Refusal."""
    contents, found = await _form_parts(request, body, limits)
    names = [_column(values, field, len(contents)) for field, values in found.items()]
    named = zip(contents, *names, strict=True)
    return [Upload(content, *_named(words, limits)) for content, *words in named]


async def _form_parts(request: Request, body: Body, limits: Limits) -> tuple[list[bytes], dict[str, list[Any]]]:
    """The images of a form in their order, and the values of its fields NAMES. Raises Refusal."""
    if not is_form(request):
        raise Refusal("bad_request", "send multipart/form-data with one field 'image' for each image file")
    if stray := [name for name in NAMES if name in request.query_params]:
        raise Refusal("bad_request", f"{' and '.join(stray)} in the query, and a form brings its own: name them there")
    try:
        form = await _FormParser(request.headers, Request(request.scope, body.receive).stream()).parse()
    except MultiPartException as error:
        raise Refusal("bad_request", error.message) from None
    files = form.getlist(IMAGES)
    if not files:
        raise Refusal("empty", f"the form has no field '{IMAGES}'")
    if len(files) > limits.batch_images:
        raise Refusal("too_many_images", f"{len(files)} images; a request may hold {limits.batch_images}")
    contents = [await file.read() for file in files if isinstance(file, UploadFile)]
    if len(contents) < len(files):  # its bytes are lost where it has become text
        raise Refusal("bad_request", f"'{IMAGES}' is a file: give it a file name, as curl -F image=@photo.jpg does")
    names = {field: form.getlist(field) for field in NAMES}
    if oversize := next((len(content) for content in contents if len(content) > limits.max_bytes), None):
        raise Refusal("too_large", f"an image of {oversize} bytes; allowed {limits.max_bytes}")
    return contents, names


async def read_group(request: Request, body: Body, limits: Limits) -> GroupUpload:
    """The images of one group: a form with an `image` for each of them in their order, or the one image as the body.

    `id` and `group` stand in the form, or in the query, once at most. Raises Refusal.
    """
    if not is_form(request):
        (one,) = await read_one(request, body, limits)
        return GroupUpload((one.content,), one.id, one.group)
    contents, names = await _form_parts(request, body, limits)
    id, group, _ = _named([_one(values, field) for field, values in names.items()], limits)
    return GroupUpload(tuple(contents), id, group)


def _one(values: list[Any], field: str) -> str | None:
    if len(values) > 1:
        raise Refusal("bad_request", f"{len(values)} times '{field}', and one decision has one")
    return _words(values, field)[0] if values else None


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _column(values: list[Any], field: str, images: int) -> list[str | None]:
    if values and len(values) != images:
        raise Refusal("bad_request", f"{len(values)} times '{field}' for {images} times '{IMAGES}'")
    return list(_words(values, field)) or [None] * images


def _words(values: list[Any], field: str) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise Refusal("bad_request", f"'{field}' is text, not a file")
    return values


def _named(words: Sequence[str | None], limits: Limits) -> tuple[str, str | None, str | None]:
    """The client's NAMES; an image without an id gets a random one, so that its label finds it later.

    Where ids are demanded a random one would let a client that asks again draw again.
    """
    id, group, certificate_group = words
    if id is None and limits.named:
        raise Refusal("bad_request", "this server audits: name an 'id' for each image, the same when you ask again")
    for field, value in zip(NAMES, words, strict=True):
        if value is not None and not _WORD.match(value):
            raise Refusal("bad_request", f"'{field}' must be 1 to 256 characters in UTF-8 without control characters")
    return str(uuid4()) if id is None else id, group, certificate_group


def _declared_length(request: Request) -> int | None:
    text = request.headers.get("content-length")
    if text is None:
        return None if request.headers.get("transfer-encoding") else 0
    return int(text)  # the protocol's parser has checked it

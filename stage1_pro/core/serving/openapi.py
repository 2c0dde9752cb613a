"""What /openapi.json says of requests and responses, where FastAPI cannot read it off."""

from typing import Any

from stage1_pro.core.schemas import schema
from stage1_pro.core.serving.reading import IMAGES, NAMES, WORD
from stage1_pro.core.serving.refusals import STATUS

FORM_BYTES = 64 * 1024
"""What the frame of a form may add to an image."""

_BINARY = {"type": "string", "format": "binary"}
_IMAGE = {**_BINARY, "minLength": 1}  # in a batch an empty one is an element with an error
_WORD = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": WORD}
_ROW = {key: value for key, value in schema("decision").items() if not key.startswith("$")}
_ERROR = {
    "type": "object",
    "required": ["decision", "error"],
    "properties": {
        "decision": {"const": "defer"},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"enum": sorted(STATUS)}, "message": {"type": "string"}},
        },
    },
}
_PROBE = {
    "type": "object",
    "required": ["status", "certificate"],
    "properties": {
        "status": {"enum": ["starting", "ready", "draining", "failing"]},
        "certificate": {"enum": ["in force", "alarm", "expired", "none"]},
        "reason": {"type": "string"},  # where it is failing
    },
}


def _json(node: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": node}}}


def _responses(done: dict[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    codes = {status: ", ".join(code for code, of in STATUS.items() if of == status) for status in statuses}
    return {200: done, **{status: _json(_ERROR, names) for status, names in codes.items()}}


def _form(*, many: bool) -> dict[str, Any]:
    def field(node: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": node} if many else node

    image = {**field(_BINARY), "minItems": 1} if many else _IMAGE  # a form cannot tell no names from an empty list
    properties = {IMAGES: image, **{name: field(_WORD) for name in NAMES}}
    return {"schema": {"type": "object", "required": [IMAGES], "properties": properties}}


_NAMES = [{"name": name, "in": "query", "required": False, "schema": _WORD} for name in NAMES]
_REFUSALS = (400, 401, 413, 500, 503)
_ROWS = {
    "type": "object",
    "required": ["decisions"],
    "properties": {"decisions": {"type": "array", "items": {"anyOf": [_ROW, _ERROR]}}},
}

DECIDE: dict[str, Any] = {
    "responses": _responses(_json(_ROW, "the decision"), *_REFUSALS, 422, 504),
    "openapi_extra": {
        "parameters": _NAMES,
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": _IMAGE}, "multipart/form-data": _form(many=False)},
        },
    },
}
BATCH: dict[str, Any] = {
    "responses": _responses(_json(_ROWS, "one decision or error an image, in their order"), *_REFUSALS, 504),
    "openapi_extra": {"requestBody": {"required": True, "content": {"multipart/form-data": _form(many=True)}}},
}
MODEL: dict[str, Any] = {"responses": _responses(_json({"type": "object"}, "the bundle"), 401, 500)}
STATE: dict[str, Any] = {"responses": {200: _json(_PROBE, "state")}}
READY: dict[str, Any] = {"responses": {200: _json(_PROBE, "ready"), 503: _json(_PROBE, "no decisions now")}}
TEXT: dict[str, Any] = {"responses": {200: {"description": "measures", "content": {"text/plain": {}}}}}

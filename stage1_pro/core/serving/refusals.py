"""Why a request gets no decision. Every body says `defer`, so that a careless client still defers."""

from typing import Any

from stage1_pro.core.data.image_files import BadImage

STATUS = {
    "bad_request": 400,
    "empty": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "too_many_images": 413,
    "too_many_pixels": 413,
    "unreadable": 422,
    "internal": 500,
    "starting": 503,
    "draining": 503,
    "failing": 503,
    "overloaded": 503,
    "deadline": 504,
}
"""Code of an error → HTTP status. The list is closed."""

INTERNAL = "a bug of ours, or a full disk: the server's error output says which"
RETRY_AFTER_S = 1
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Refusal(Exception):
    """A request without a decision. code: a key of STATUS; `str()` of it says why, in words."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.status = code, STATUS[code]

    def body(self) -> dict[str, Any]:
        return {"decision": "defer", "error": {"code": self.code, "message": str(self)}}

    def headers(self) -> dict[str, str]:
        if self.status == 503:
            return {"Retry-After": str(RETRY_AFTER_S)}
        return _CHALLENGE if self.status == 401 else {}


def refusal_of(bad: BadImage) -> Refusal:
    """The refusal of an image that cannot be read, in the words of 60."""
    return Refusal({"empty": "empty", "too_large": "too_many_pixels"}.get(bad.code, "unreadable"), str(bad))

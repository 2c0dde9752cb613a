"""Limits of a server, and what it is started with."""

import os
from dataclasses import dataclass

from stage1_pro.core.errors import UserError, raise_problems

TOKEN = "STAGE1_TOKEN"
"""Environment variable with the bearer token that /v1 demands; without it everybody may ask."""

UNBATCHED = 8
"""Images of a forward pass for a bundle that records no forward_batch."""

WAITING = 8
"""Forward passes that may be waiting: the default of max_inflight is so many times a pass."""

BATCH_IMAGES = 64
BATCH_BODIES = 8
"""Limits of one batch request: its images, and its body in multiples of max_bytes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on. forward_batch, max_inflight: images; wait_s, deadline_s: seconds; max_bytes: of a body;
    max_pixels: of an image; named: every image needs an id."""

    forward_batch: int
    wait_s: float
    max_inflight: int
    deadline_s: float
    max_bytes: int
    max_pixels: int
    named: bool = False

    @property
    def batch_images(self) -> int:
        return min(BATCH_IMAGES, self.max_inflight)

    @property
    def batch_bytes(self) -> int:
        return min(BATCH_BODIES, self.max_inflight) * self.max_bytes


def limits(
    forward_batch: int | None,
    *,
    wait_ms: float,
    max_inflight: int | None,
    deadline_s: float,
    max_bytes: float,
    max_pixels: float,
) -> Limits:
    """Resolve the limits for a bundle with this forward_batch. Raises UserError with every value out of range."""
    batch = forward_batch or UNBATCHED
    inflight = WAITING * batch if max_inflight is None else max_inflight
    ranges = {
        "wait_ms": (wait_ms, 0, 10_000),
        "max_inflight": (inflight, 1, 100_000),
        "deadline_s": (deadline_s, 0.001, 3600),
        "max_bytes": (max_bytes, 1, 2**31),
        "max_pixels": (max_pixels, 1, 2**31),
    }
    wrong = [
        f"--{name} {value:g}: allowed {low:g} to {high:g}"
        for name, (value, low, high) in ranges.items()
        if not low <= value <= high
    ]
    raise_problems("limits out of range:", wrong)
    whole = (inflight, float(deadline_s), int(max_bytes), int(max_pixels))
    return Limits(batch, wait_ms / 1000, *whole)


def token_of_environment() -> str | None:
    """The bearer token, or None where none is set. Raises UserError for one that no client could send."""
    token = os.environ.get(TOKEN)
    if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(f"{TOKEN} must be one word of printable ASCII; unset it to serve without a token.")
    return token

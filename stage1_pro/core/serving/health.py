"""Whether a server can decide: what has failed in a row, and the check by which it finds out that it can again."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from stage1_pro.core.serving.metrics import Metrics

FAILURES = 3
"""Failures in a row before a server checks whether it can decide. One or two may be of a moment, as where another
process had the GPU's memory; a GPU that is lost, or a full disk, fails every time: three are over within a second."""

CHECK_S = 2.0
"""Seconds between two checks of a failing server: balancers look at /readyz hardly more often."""

COMPUTING, LOG = "computing", "log"
_WORDS = {COMPUTING: "no image could be computed", LOG: "the log could not be written"}
_logger = logging.getLogger(__name__)


class Health:
    """Counts failures of a kind that follow each other; where they are too many, its check decides.

    A balancer sends nothing to a server that is not ready, so nothing but a check of its own could make it ready again.
    The first check comes at once, and the server is failing only where that fails as well: else the fault was the
    inputs', and whoever sends three such images would take one server after the other off its balancer. checks: kind →
    what raises as long as that kind would fail again.
    """

    def __init__(self, checks: Mapping[str, Callable[[], Awaitable[object]]], metrics: Metrics):
        self.checks, self.metrics = checks, metrics
        for kind in checks:
            metrics.failures.labels(kind)  # 0 from the start, so that an alert can look at it
        self._in_a_row: Counter[str] = Counter()
        self._checking: asyncio.Task[None] | None = None
        self.reason = ""
        """Why no decision can be given; "" where one can."""

    def worked(self, kind: str) -> None:
        self._in_a_row[kind] = 0

    def failed(self, kind: str, error: BaseException) -> None:
        self.metrics.failures.labels(kind).inc()
        self._in_a_row[kind] += 1
        if self._in_a_row[kind] >= FAILURES and self._checking is None:
            fault = f"{FAILURES} times in a row {_WORDS[kind]}, the last time because of {said(error)}"
            self._checking = asyncio.create_task(self._until_it_works(kind, fault))

    async def close(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)

    async def _until_it_works(self, kind: str, fault: str) -> None:
        while error := await self._error_of_check(kind):
            if not self.reason:
                _logger.error("not ready: %s; checked every %g s", fault, CHECK_S)
            self.reason = f"{fault}; the check after that: {said(error)}"
            await asyncio.sleep(CHECK_S)
        if self.reason:
            _logger.error("ready again")
        self.reason, self._checking = "", None
        self.worked(kind)

    async def _error_of_check(self, kind: str) -> Exception | None:
        try:
            await self.checks[kind]()
        except Exception as error:
            return error
        return None


def said(error: BaseException) -> str:
    r"""An error in one line: its kind and the first line of its words.

    >>> from stage1_pro.core.serving.health import said
    >>> said(RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …"))
    'RuntimeError: CUDA error: unspecified launch failure'
    """
    first = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__

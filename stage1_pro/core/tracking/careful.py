"""Calls of a tracking server that must not end what they tell about."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

from stage1_pro.core.console import say

RETRY_S = 300
"""Seconds without a further try after a call that failed."""

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Where the user sets nothing else: by itself MLflow tries for minutes, in every call."""


class Careful:
    """Makes calls of one server; the first that fails is said, and none is tried again for a while."""

    def __init__(self, server: str):
        self.server, self._again, self._said = server, 0.0, False
        be_brief()

    def call(self, job: Callable[[], object]) -> bool:
        """Return whether the call went well."""
        if time.monotonic() < self._again:
            return False
        try:
            job()
        except Exception as error:  # whatever a client or its network raises
            self._again = time.monotonic() + RETRY_S
            if not self._said:
                say(f"warning: {self.server} does not take what is tracked ({reason(error)}); the run keeps it")
            self._said = True
            return False
        return True


def be_brief() -> None:
    """Let MLflow's client give up soon."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)


def reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def quietly(job: Callable[[], object]) -> None:
    """Without a word where it fails."""
    with suppress(Exception):
        job()

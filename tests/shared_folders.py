"""Folders that are made once a session, by whichever worker of pytest-xdist comes first; tests take copies of them."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, the same one for all workers.

    make: called with the empty folder by the first worker that needs it, while the others wait.
    """
    base = factory.getbasetemp()  # a worker's own one lies in the session's
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)
    folder, made = root / name, root / f"{name}.made"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what an attempt left that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder

"""Return what a result depends on beside its config: versions, commit, command, threads."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from stage1_pro.core.commands import current

ROOT = Path(__file__).parents[3]


PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "peft",
    "lightning",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "stage1-pro",
)


def environment(seed: int) -> dict[str, Any]:
    """What a result depends on beside its config: versions, commit, command, threads."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {
        "created_at": utc_now(),
        "command": " ".join([current(), *sys.argv[1:]]),
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git_commit": commit,
        "git_dirty": None if commit is None else bool(status),
        "threads": cores(),
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def utc_now() -> str:
    """The time as 2026-11-29T13:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """Answer of a git command about the source tree; None outside a checkout."""
    if not (ROOT / ".git").exists():  # installed into an environment inside a repository of the user's, maybe
        return None
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

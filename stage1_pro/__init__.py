"""Train, certify and ship the first stage of a classifier cascade.

The public interface is three names. It is stable: code that uses only them, and what their docstrings name, keeps
working from one version to the next; everything below `stage1_pro.core` may change.

    Stage1Predictor    images in, decisions out
    load_exit_policy   the certified rule alone, for a host that computes logits by itself: numpy, no torch
    verify_bundle      every check of a bundle, and what it says about itself: no torch either

They are imported when they are first asked for, so that `import stage1_pro` costs nothing. They need nothing that only
POSIX has. A mistake in what they are given raises `stage1_pro.core.errors.UserError`, whose text says what, where and
what to do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage1_pro.core.bundle.contents import load_exit_policy, verify_bundle
    from stage1_pro.core.inference.predictor import Stage1Predictor

__version__ = "0.1.0"
__all__ = ["Stage1Predictor", "load_exit_policy", "verify_bundle"]

_HOME = {
    "Stage1Predictor": "stage1_pro.core.inference.predictor",
    "load_exit_policy": "stage1_pro.core.bundle.contents",
    "verify_bundle": "stage1_pro.core.bundle.contents",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

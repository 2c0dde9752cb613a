"""Train, certify and ship the first stage of a classifier cascade.

The names below are the public interface, and stable: code that uses only them keeps working. They are imported when
they are first asked for, so that `import stage1_pro` costs nothing, and a host that only reads policies needs no torch.
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

"""Lightning and timm without the packages that they look for and training does not use.

Lightning wants two classes of torchmetrics. The whole of it imports each of its functions, and for them scipy,
matplotlib and transformers, where these are installed; timm imports wandb. That is a quarter of the modules of a
training, and a third of the time in which they are imported.
"""

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

PACKAGE = "torchmetrics"


def import_lightly() -> None:
    """Import timm, and of torchmetrics what Lightning takes; whoever asks for more of it later gets all of it."""
    if PACKAGE in sys.modules:
        return
    try:
        with unseen("wandb"):
            import timm  # noqa: F401
        with unseen("matplotlib"):
            _import_core()
    except (ImportError, AttributeError):  # of other versions: as they come
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


@contextmanager
def unseen(name: str) -> Iterator[None]:
    """Within the block a package that has not been imported passes for one that is not installed."""
    if name in sys.modules:
        yield
        return
    looks: Any = importlib.import_module("lightning_utilities.core.imports")
    version = looks._version  # by which it finds what is installed

    def of_others(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(name)
        return version(asked)

    sys.modules[name] = None  # pyright: ignore[reportArgumentType] (what Python takes for "not there")
    looks._version = of_others
    try:
        yield
    finally:
        del sys.modules[name]
        looks._version = version


def _import_core() -> None:
    """Have `torchmetrics` hold the two classes, and run its own code when any other name is asked of it."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    package: Any = importlib.util.module_from_spec(spec)

    def ask(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del package.__getattr__
        package.__loader__.exec_module(package)
        return getattr(package, name)

    package._logger, package.__getattr__ = logging.getLogger(PACKAGE), ask
    sys.modules[PACKAGE] = package
    package.__version__ = _part("__about__").__version__
    _part("utilities")  # before the others, which it imports itself
    package.Metric = _part("metric").Metric
    package.MetricCollection = _part("collections").MetricCollection


def _part(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")

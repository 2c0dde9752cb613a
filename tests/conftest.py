"""Tiny data for every test; nothing here touches a network."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported anywhere
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # subprocesses find the package from any folder

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 00.png … 59.png, 24 × 24 pixels of noise, no two alike."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(60):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def labels_csv(tmp_path: Path) -> Callable[..., str]:
    """Write lines as a CSV and return its path."""

    def write(*lines: str, name: str = "labels.csv") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return write

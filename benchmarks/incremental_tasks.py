"""The tasks on which `benchmarks/incremental.py` compares ways of admission: features, labels, and a split by seed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "runs" / ".feature_cache"
WRONG_SHARE = 0.1
DEMO_CONFIGS = ("configs/phase2.yaml", "configs/incremental.yaml")


@dataclass(frozen=True, eq=False)
class Cases:
    """features: (N, D) float32; labels: (N,), those of the pool wrong where planted; planted: positions of these;
    pool, select, test: positions, disjoint."""

    features: np.ndarray
    labels: np.ndarray
    planted: np.ndarray
    pool: np.ndarray
    select: np.ndarray
    test: np.ndarray

    @property
    def names(self) -> np.ndarray:
        """(N,) case ids."""
        return np.array([f"case{index:05d}" for index in range(len(self.labels))], dtype=object)


@dataclass(frozen=True)
class Task:
    """A source of features and labels with the sizes of its parts, and how it is trained."""

    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    pool: int
    select: int
    settings: dict[str, Any]

    def drawn(self, seed: int, wrong: bool) -> Cases:
        """The cases assigned to splits by seed; with `wrong` a tenth of the pool is given another label."""
        features, labels = self.load()
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(labels))
        pool, select, test = np.split(order, [self.pool, self.pool + self.select])
        labels, planted = labels.copy(), np.array([], dtype=np.int64)
        if wrong:
            classes = labels.max() + 1
            planted = rng.choice(pool, round(WRONG_SHARE * self.pool), replace=False)
            labels[planted] = (labels[planted] + rng.integers(1, classes, len(planted))) % classes
        return Cases(features, labels, planted, np.sort(pool), np.sort(select), np.sort(test))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 64), 0 to 1, and labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return (bunch.data / 16).astype(np.float32), bunch.target


def demo() -> tuple[np.ndarray, np.ndarray]:
    """Features (1484, D) of the demo's images by its frozen backbone, and their labels."""
    import torch

    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.data.cases import load_cases
    from stage1_pro.core.models.backbone import load_backbone
    from stage1_pro.core.training.feature_cache import cached_features

    config = merge_configs([(name, ROOT / name) for name in DEMO_CONFIGS])
    frame = load_cases(config.dataset_params, decode=False).frame
    backbone, spec = load_backbone(config.model_path, config.dataset_params.image_size)
    settings = {"batch_size": 64, "workers": 0, "device": torch.device("cpu"), "progress": lambda *_: None}
    features = cached_features(backbone, spec, list(frame["path"]), list(frame["content"]), CACHE, **settings)
    return features, frame["label"].to_numpy()


TASKS = {
    "digits": Task(partial(digits), 1000, 400, {"batch_size": 32, "lr_head": 3e-3}),
    "demo": Task(partial(demo), 700, 390, {"batch_size": 16, "lr_head": 1e-3}),
}

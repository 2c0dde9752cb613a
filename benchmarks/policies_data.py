"""The cases of the study of policies: Fashion-MNIST, its splits, the inputs of both arms, and score files."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.records.scores import Scores, read_scores
from stage1_pro.core.records.splits import SPLITS

SIZES = {"train": 12_000, "val_select": 8_000, "val_calib": 12_000, "val_test": 20_000}
SPLIT_SEED = 20261123
CLASS_OF = {"shirt": 6, "coat": 4}
SIDE, CHUNK = 96, 1000


def prepare(data: Path, weights: Path, out: Path) -> None:
    """Write the inputs of both arms and the classes as .npy, once."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "classes.npy").exists():
        return
    images, classes = read_fashion_mnist(data)
    np.save(out / "cnn.npy", (images / 255 - 0.286).astype(np.float32))
    np.save(out / "frozen.npy", lite0_features(images, weights))
    np.save(out / "classes.npy", classes)


def read_fashion_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(70000, 28, 28) uint8 images and (70000,) classes 0 to 9, the two official files joined."""

    def read(kind: str, header: int) -> np.ndarray:
        files = (folder / f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k"))
        parts = [np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header) for file in files]
        return np.concatenate(parts)

    return read("images-idx3", 16).reshape(-1, 28, 28), read("labels-idx1", 8).astype(np.int64)


@torch.no_grad()
def lite0_features(images: np.ndarray, weights: Path) -> np.ndarray:
    """(N, 1280) float32 features of the images, enlarged to 96 px."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False
    backbone, spec = load_backbone(f"file:{weights}:tf_efficientnet_lite0", SIDE)
    backbone = backbone.to(device).eval()
    mean, deviation = (torch.tensor(spec.preprocessing.to_dict()[name], device=device) for name in ("mean", "std"))
    parts = []
    for start in range(0, len(images), CHUNK):
        grey = torch.from_numpy(images[start : start + CHUNK].copy()).to(device).float()[:, None] / 255
        large = interpolate(grey, size=SIDE, mode="bicubic", antialias=True).clamp(0, 1).expand(-1, 3, -1, -1)
        parts.append(backbone((large - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)).float().cpu())
    return torch.cat(parts).numpy()


def labelled(classes: np.ndarray, positive: str) -> np.ndarray:
    """(N,) 1 for the positive class."""
    return (classes == CLASS_OF[positive]).astype(np.int64)


def split_indices(classes: np.ndarray, split: int) -> dict[str, np.ndarray]:
    """Disjoint indices by name, stratified by the ten classes: each is a tenth of every split."""
    rng = np.random.default_rng([SPLIT_SEED, split])
    shuffled = [rng.permutation(np.flatnonzero(classes == label)) for label in range(10)]
    found, start = {}, 0
    for name, size in SIZES.items():
        part = np.concatenate([members[start : start + size // 10] for members in shuffled])
        found[name], start = rng.permutation(part), start + size // 10
    return found


def write_runs_scores(folder: Path, scores: dict[str, Scores]) -> None:
    """One file a split; the folder appears when all are there."""
    building = folder.with_name(folder.name + ".part")
    building.mkdir(parents=True, exist_ok=True)
    for name, split in scores.items():
        split.write(building / f"{name}.parquet")
    building.rename(folder)


def read_runs_scores(folder: Path) -> dict[str, Scores]:
    return {name: read_scores(folder / f"{name}.parquet", "Delete the folder.") for name in SPLITS[1:]}

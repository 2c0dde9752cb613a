"""MaskModel: a network for masks, the maps that it makes of whole cases, and the one file that holds a trained one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stage1_pro.core.config.sections import MissRule, SegmentationParams
from stage1_pro.core.data.masks.batches import network_size
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.mask_networks import MaskSpec, demand_monai
from stage1_pro.core.models.stage1 import read_tensors, write_tensors

FORMAT = 1
TASK = "segmentation"
ON_CPU_FROM = 1 << 30
"""Bytes of a stitched map from which on it is kept in main memory."""
CONVOLUTIONAL = "Name a convolutional backbone, such as tf_efficientnet_lite0."


class MaskModel(nn.Module):
    """Images (B, C, *S) → class logits (B, K, *S).

    class_names: of a case, as in the splits: without and with the positive class; facts: of the masks; params: of the
    windows that `maps` takes a case in, and how a mask is judged.
    """

    frozen = False
    answer_shift = 0.0
    kind = "network"
    """The word for what model_path names."""

    def __init__(
        self,
        spec: MaskSpec,
        facts: MaskFacts,
        class_names: tuple[str, ...],
        params: SegmentationParams = SegmentationParams(),  # noqa: B008 (frozen)
    ):
        super().__init__()
        self.spec, self.facts, self.class_names = spec, facts, class_names
        self.params = params
        try:
            self.net = spec.build(len(facts.class_names))
        except (ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
            why = " ".join(str(error).split())[:200].rstrip(".")
            mend = f" {CONVOLUTIONAL}" if "encoder" in spec.options and spec.preprocessing.dims == 2 else ""
            raise UserError(f"model_path: {spec.arch} with {spec.options}: {why}.{mend}") from None
        self._pooled: list[Tensor] = []
        self._watch_bottleneck()

    @property
    def words(self) -> str:
        """The model in a few words."""
        made = self.spec.preprocessing
        sees = "whole cases" if made.patch is None else f"patches of {' × '.join(map(str, made.patch))}"
        return f"{made.dims}D, {made.channels} channels, {len(self.facts.class_names)} classes, {sees}"

    def take_encoder(self, weights: dict[str, Tensor]) -> None:
        """Fill the encoder with a backbone's weights. Raises UserError where it has tensors that these lack."""
        encoder: Any = self.net.encoder
        own = encoder.model.state_dict()
        lacking = [name for name, tensor in own.items() if name not in weights or weights[name].shape != tensor.shape]
        if lacking:
            raise UserError(
                f"model_path: this backbone's weights do not fit an encoder ({len(lacking)} tensors such as "
                f"{lacking[0]}). {CONVOLUTIONAL}"
            )
        encoder.model.load_state_dict({name: weights[name] for name in own})

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def maps(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (logits (K, *S), embedding (E,)) of each image (C, *S), in order; on the device of the images.

        Cases go through whole, or in windows that overlap and are stitched with gaussian weights. No case depends on
        those beside it: a forward pass has windows of one case alone, or, of whole cases, always window_batch of one
        shape, filled up with zeros.
        """
        if self.spec.preprocessing.patch is not None:
            yield from (self._stitched(image) for image in images)
            return
        held: list[tuple[int, Tensor]] = []
        found: dict[int, tuple[Tensor, Tensor]] = {}
        sizes = [network_size(image.shape[1:], self.spec.divisor) for image in images]
        for size in dict.fromkeys(sizes):
            held = [(at, filled(images[at], size)) for at in range(len(images)) if sizes[at] == size]
            for start in range(0, len(held), self.params.window_batch):
                part = held[start : start + self.params.window_batch]
                logits, embedding = self._full_pass(torch.stack([image for _, image in part]))
                for row, (at, _) in enumerate(part):
                    inside = tuple(slice(side) for side in images[at].shape[1:])
                    found[at] = logits[(row, slice(None), *inside)], embedding[row]
        yield from (found[at] for at in range(len(images)))

    def _stitched(self, image: Tensor) -> tuple[Tensor, Tensor]:
        from monai.inferers.utils import sliding_window_inference  # pyright: ignore[reportMissingImports]

        patch = network_size(self.spec.preprocessing.patch or (), self.spec.divisor)
        pooled: list[Tensor] = []

        def windows(part: Tensor) -> Tensor:
            logits, embedding = self._pass(part)
            pooled.append(embedding)
            return logits

        voxels = image[0].numel() * len(self.facts.class_names) * 4
        device = torch.device("cpu") if voxels >= ON_CPU_FROM else image.device
        whole: Any = sliding_window_inference(
            image[None],
            patch,
            self.params.window_batch,
            windows,
            overlap=self.params.window_overlap,
            roi_weight_map=window_weights(patch, image.device),
            sw_device=image.device,
            device=device,
        )
        return whole[0], torch.cat(pooled).mean(dim=0)

    def _full_pass(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, pooled bottleneck) of at most window_batch whole cases of one shape, float32."""
        missing = self.params.window_batch - len(images)
        whole = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing > 0 else images
        logits, embedding = self._pass(whole)
        return logits[: len(images)], embedding[: len(images)]

    def _pass(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, pooled bottleneck) of windows, float32."""
        self._pooled.clear()
        logits = self(windows).float()
        return logits, self._pooled[-1].float()

    def _watch_bottleneck(self) -> None:
        """Keep what the deepest layer makes, pooled: the last of those whose output has the fewest voxels."""
        seen: list[tuple[int, nn.Module]] = []

        def note(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == self.spec.preprocessing.dims + 2:
                seen.append((output[0, 0].numel(), module))

        leaves = [module for module in self.net.modules() if not list(module.children())]
        hooks = [module.register_forward_hook(note) for module in leaves]
        made = self.spec.preprocessing
        with torch.no_grad():
            self.net.eval()(torch.zeros(1, made.channels, *(2 * self.spec.divisor,) * made.dims))
        self.net.train()
        for hook in hooks:
            hook.remove()
        least = min(size for size, _ in seen)
        deepest = [module for size, module in seen if size == least][-1]
        deepest.register_forward_hook(lambda *found: self._pool(found[2]))

    def _pool(self, output: Tensor) -> None:
        if not self.training:
            self._pooled.append(output.flatten(2).mean(dim=2))


@lru_cache(maxsize=8)
def window_weights(patch: tuple[int, ...], device: torch.device) -> Tensor:
    """(*patch) gaussian weights that windows are stitched with. MONAI would make them anew for each case, and wait for
    the GPU to say the least of them."""
    from monai.data.utils import compute_importance_map  # pyright: ignore[reportMissingImports]

    return compute_importance_map(patch, mode="gaussian", device=device)


def filled(image: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (C, *S) with zeros at the far end of each axis."""
    lack = [want - have for want, have in zip(size, image.shape[1:], strict=True)]
    return pad(image, [side for after in reversed(lack) for side in (0, after)])


def save_mask_model(model: MaskModel, path: Path) -> None:
    """Write the model as plain tensors and values; equal weights give equal bytes."""
    spec = model.spec
    plain = {
        "format": FORMAT,
        "task": TASK,
        "arch": spec.arch,
        "options": spec.options,
        "dropout": spec.dropout,
        "preprocessing": spec.preprocessing.to_dict(),
        "license": spec.license,
        "class_names": list(model.class_names),
        "facts": asdict(model.facts),
        "params": asdict(model.params),
    }
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    # pickle writes an object that it has met as a reference: strings of one parse are as often the same for any model
    content = json.loads(json.dumps(plain))
    write_tensors(path, {**content, "state_dict": tensors})


def load_mask_model(path: Path) -> MaskModel:
    """Read a model file, in eval mode. Raises UserError for anything but plain tensors and values."""
    content = read_tensors(path)
    if content.get("task") != TASK:
        raise UserError(f"{path}: holds a model that classifies images, not one that makes masks.")
    demand_monai()
    try:
        if content["format"] != FORMAT:
            raise UserError(f"{path}: written by another version (format {content['format']}, not {FORMAT}).")
        spec = MaskSpec(
            content["arch"],
            _tuples(content["options"]),
            content["dropout"],
            MaskPreprocessing.from_dict(content["preprocessing"]),
            content["license"],
        )
        facts = MaskFacts(**_tuples(content["facts"]))
        judged = content["params"]
        params = SegmentationParams(**{**judged, "miss_rule": MissRule(**judged["miss_rule"])})
        model = MaskModel(spec, facts, tuple(content["class_names"]), params)
        model.load_state_dict(content["state_dict"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole model file ({' '.join(str(error).split())[:200]}).") from None
    return model.eval()


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}

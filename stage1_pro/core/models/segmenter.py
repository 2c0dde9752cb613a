"""MaskModel: a network from MONAI, the maps that it makes of whole cases, and the one file that holds a trained one.

`model_path` names it: monai:unet, monai:dynunet or monai:segresnet, with options as in
monai:unet:channels=16-32-64,res_units=2; or in 2D a U-Net around a backbone of timm, named as for classifiers
(timm:NAME, random:NAME, file:PATH:NAME), whose decoder is segmentation-models-pytorch's.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stage1_pro.core import artifacts
from stage1_pro.core.config.sections import MissRule, SegmentationParams
from stage1_pro.core.data.masks.batches import network_size
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.licenses import RANDOM
from stage1_pro.core.models.stage1 import dump_tensors, read_tensors
from stage1_pro.core.schemas import did_you_mean

FORMAT = 1
TASK = "segmentation"
ON_CPU_FROM = 1 << 30
"""Bytes of a stitched map from which on it is kept in main memory."""
ENCODER_DIVISOR = 32
"""Of a U-Net around a backbone of timm, which halves its input five times."""
ENCODED = "encoder-unet"
Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """options: their defaults, whole numbers or several of them; build: (dims, channels, classes, dropout, options)."""

    options: Options
    build: Callable[[int, int, int, float, Options], nn.Module]

    def divisor(self, options: Options) -> int:
        """Of the sizes that the network takes."""
        if "encoder" in options:
            return ENCODER_DIVISOR
        return 2 ** (len(options.get("channels", options.get("blocks", ()))) - 1)


def _unet(dims: int, channels: int, classes: int, dropout: float, options: Options) -> nn.Module:
    from monai.networks.nets.unet import UNet  # pyright: ignore[reportMissingImports]

    return UNet(
        spatial_dims=dims,
        in_channels=channels,
        out_channels=classes,
        channels=options["channels"],
        strides=(2,) * (len(options["channels"]) - 1),
        num_res_units=options["res_units"],
        norm=("instance", {"affine": True}),
        dropout=dropout,
    )


def _dynunet(dims: int, channels: int, classes: int, dropout: float, options: Options) -> nn.Module:
    from monai.networks.nets.dynunet import DynUNet  # pyright: ignore[reportMissingImports]

    filters = options["channels"]
    strides = [1, *[2] * (len(filters) - 1)]
    return DynUNet(
        spatial_dims=dims,
        in_channels=channels,
        out_channels=classes,
        kernel_size=[3] * len(filters),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(filters),
        dropout=dropout or None,
        res_block=True,
    )


def _segresnet(dims: int, channels: int, classes: int, dropout: float, options: Options) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet  # pyright: ignore[reportMissingImports]

    return SegResNet(
        spatial_dims=dims,
        in_channels=channels,
        out_channels=classes,
        init_filters=options["filters"],
        blocks_down=options["blocks"],
        blocks_up=(1,) * (len(options["blocks"]) - 1),
        dropout_prob=dropout or None,
        upsample_mode="deconv",  # trilinear upsampling has no deterministic gradient on a GPU
    )


def _around_encoder(dims: int, channels: int, classes: int, _: float, options: Options) -> nn.Module:
    from segmentation_models_pytorch import Unet  # pyright: ignore[reportMissingImports]

    if dims != 2:
        raise ValueError("backbones of timm see flat images: name a monai network for volumes")
    return Unet(f"tu-{options['encoder']}", encoder_weights=None, in_channels=channels, classes=classes)


ARCHITECTURES = {
    "unet": Architecture({"channels": (16, 32, 64, 128, 256), "res_units": 2}, _unet),
    "dynunet": Architecture({"channels": (32, 64, 128, 256)}, _dynunet),
    "segresnet": Architecture({"filters": 16, "blocks": (1, 2, 2, 4)}, _segresnet),
    ENCODED: Architecture({"encoder": ""}, _around_encoder),
}
NAMED = [name for name in ARCHITECTURES if name != ENCODED]
"""After monai: in a model_path."""


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """Enough to build the same network again, and to read a case as it was trained on."""

    arch: str
    options: Options
    dropout: float
    preprocessing: MaskPreprocessing
    license: str = RANDOM

    @property
    def divisor(self) -> int:
        return ARCHITECTURES[self.arch].divisor(self.options)

    def build(self, classes: int) -> nn.Module:
        """The network with random weights."""
        made = self.preprocessing
        return ARCHITECTURES[self.arch].build(made.dims, made.channels, classes, self.dropout, self.options)


def named_network(model_path: str) -> tuple[str, Options]:
    """(architecture, options) of a model_path. Raises UserError for what does not exist, or MONAI is missing.

    >>> named_network("monai:unet:channels=8-16")
    ('unet', {'channels': (8, 16), 'res_units': 2})
    """
    demand_monai()
    _, _, rest = model_path.partition(":")
    name, _, text = rest.partition(":")
    if name not in NAMED:
        known = NAMED
        raise UserError(f"model_path {model_path}: no network '{name}'{did_you_mean(name, known)}; {', '.join(known)}.")
    defaults, options = ARCHITECTURES[name].options, {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in defaults:
            raise UserError(
                f"model_path {model_path}: {name} has no option '{key}'{did_you_mean(key, list(defaults))}; it has "
                f"{', '.join(defaults)}."
            )
        options[key] = _option(model_path, key, value, isinstance(defaults[key], tuple))
    return name, {**defaults, **options}


def _option(model_path: str, key: str, value: str, several: bool) -> Any:
    parts = value.split("-")
    fits = all(part.isdecimal() for part in parts) and (len(parts) > 1 if several else len(parts) == 1)
    if not fits or (several and min(map(int, parts)) < 1):
        wanted = "two or more numbers such as 16-32-64" if several else "a number"
        raise UserError(f"model_path {model_path}: {key} must be {wanted}, and is '{value}'.")
    return tuple(map(int, parts)) if several else int(value)


def encoder_of(model_path: str) -> tuple[str, Options, dict[str, Tensor], str]:
    """(architecture, options, weights of the encoder, licence) of a backbone that model_path names as for classifiers.

    Raises what `load_backbone` raises, and where the decoder's package is missing.
    """
    demand_monai()
    try:
        import segmentation_models_pytorch  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "a U-Net around a backbone needs segmentation-models-pytorch: pip install 'stage1-pro[seg]'."
        ) from None
    backbone, spec = load_backbone(model_path, None)
    weights: dict[str, Tensor] = {} if model_path.startswith("random:") else backbone.net.state_dict()
    return ENCODED, {"encoder": spec.arch.split(".")[0]}, weights, spec.license


def demand_monai() -> None:
    """Raise UserError where MONAI is not installed."""
    try:
        import monai.inferers  # pyright: ignore[reportMissingImports]
        import monai.networks.nets  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "masks are trained with MONAI, which is not installed: pip install 'stage1-pro[seg]'."
        ) from None


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
            raise UserError(
                f"model_path: {spec.arch} with {spec.options}: {' '.join(str(error).split())[:200]}."
            ) from None
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
                f"{lacking[0]}). Name a convolutional one, such as tf_efficientnet_lite0."
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
            mode="gaussian",
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
    artifacts.write_bytes(path, dump_tensors({**content, "state_dict": tensors}))


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


@torch.no_grad()
def case_row(logits: Tensor, labels: Tensor, positives: Sequence[int]) -> Tensor:
    """The sums of one case, (6 F + 10,) float64 on the CPU, in the order of the fields of `MaskSums`.

    logits: (K, *S) of the whole case; labels: (*S) int64, −1 is in no sum with the truth; positives: values of the
    positive class. An answer is the class of the largest logit, of equal ones the last.
    """
    truth, flat = labels.flatten(), logits.flatten(1).float()
    answer, log_p = answered(flat), torch.log_softmax(flat, dim=0)
    p = log_p.exp()
    classes = torch.arange(1, len(flat), device=flat.device)[:, None]
    positive = p[list(positives)].sum(dim=0)[None]
    alone = (_sums(p[1:], answer == classes), _sums(positive, _among(answer, positives)[None]))
    entropy = -(p * log_p.clamp(min=-1e3)).sum(dim=0).sum(dtype=torch.float64) / math.log(len(flat))
    rest = [positive.amax().clamp(max=1), entropy, p[1:].amax(), torch.tensor(p.shape[1])]
    decided = truth >= 0
    if not decided.all():  # a copy, which most cases need not pay for
        truth, answer = truth[decided], answer[decided]
    compared = (
        _counts(answer == classes, truth == classes),
        _counts(_among(answer, positives)[None], _among(truth, positives)[None]),
    )
    blocks = [block for parts in zip(compared, alone, strict=True) for part in parts for block in part]
    return torch.cat([*blocks, *(value.double().reshape(1).to(flat.device) for value in rest)]).cpu()


def answered(logits: Tensor) -> Tensor:
    """(*S) int64 class of each voxel of logits (K, *S): the largest, of equal ones the last.

    >>> answered(torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 3.0]])).tolist()
    [1, 0, 1]
    """
    best, answer = logits[0], torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    # argmax along the first of many axes, and filling under a mask, are ten times slower
    for code in range(1, len(logits)):
        answer = torch.maximum(answer, (logits[code] >= best).view(torch.uint8) * code)
        best = torch.maximum(best, logits[code])
    return answer.long()


def _among(codes: Tensor, values: Sequence[int]) -> Tensor:
    found = codes == values[0]
    for value in values[1:]:
        found |= codes == value
    return found


def _counts(answered: Tensor, true: Tensor) -> list[Tensor]:
    """(I, P, Y) of each of F classes, float64 (F,), which is exact up to 2**53."""
    return [part.sum(dim=1).double() for part in (answered & true, answered, true)]


def _sums(p: Tensor, answered: Tensor) -> list[Tensor]:
    """(Σ ŷ, Σ p, Σ p ŷ) of each of F classes, float64 (F,)."""
    # class by class: a sum along the second of two axes takes ten times as long
    agreed = [(chances * drawn).sum(dtype=torch.float64) for chances, drawn in zip(p, answered, strict=True)]
    return [answered.sum(dim=1).double(), p.sum(dim=1, dtype=torch.float64), torch.stack(agreed)]

"""Networks for masks by name, and what it takes to build one again.

`model_path` names them: monai:unet, monai:dynunet or monai:segresnet, with options as in
monai:unet:channels=16-32-64,res_units=2; or in 2D a U-Net around a backbone of timm, named as for classifiers
(timm:NAME, random:NAME, file:PATH:NAME), whose decoder is segmentation-models-pytorch's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.licenses import RANDOM
from stage1_pro.core.schemas import did_you_mean

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
    if len(filters) < 3:
        raise ValueError("it takes three or more channels, such as channels=16-32-64")
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

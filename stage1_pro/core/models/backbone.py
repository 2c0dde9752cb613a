"""Backbones from timm, named by one string: timm:NAME, random:NAME, file:PATH:NAME, local-dir:PATH."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters, load_state_dict
from timm.models._hub import load_model_config_from_path, load_state_dict_from_path
from torch import Tensor, nn

from stage1_pro.core import artifacts
from stage1_pro.core.data.decoding import CONTRACT
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.licenses import RANDOM, UNKNOWN
from stage1_pro.core.schemas import did_you_mean

RECORD, WEIGHTS = "backbone.json", "backbone.safetensors"
"""The two files of a backbone that was adapted here; `local-dir:` takes their folder."""


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Enough to build the same architecture again without its weights."""

    arch: str
    kwargs: dict[str, Any]
    preprocessing: Preprocessing
    license: str

    def record(self) -> dict[str, Any]:
        """What a model file says of it; `of_record` reads it back."""
        return {
            "arch": self.arch,
            "arch_kwargs": self.kwargs,
            "preprocessing": self.preprocessing.to_dict(),
            "license": self.license,
        }

    @classmethod
    def of_record(cls, facts: Mapping[str, Any]) -> "BackboneSpec":
        """Raises KeyError, TypeError or ValueError where something is missing or wrong."""
        preprocessing = Preprocessing.from_dict(facts["preprocessing"])
        return cls(facts["arch"], facts["arch_kwargs"], preprocessing, facts["license"])

    def build(self) -> "Backbone":
        """The architecture with random weights, to be filled from a state dict; nothing else is read."""
        if not timm.is_model(self.arch.split(".")[0]):
            raise ValueError(f"timm has no architecture '{self.arch}'")
        return Backbone(_create(self.arch, **{**self.kwargs, "pretrained": False}))


class Backbone(nn.Module):
    """Image batch (B, 3, H, W) → features (B, D).

    Transformers with a class token give [cls token, mean of patch tokens] (D = 2 × width); everything
    else gives its global pool, also one whose only prefix tokens are registers.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.prefix_tokens = getattr(net, "num_prefix_tokens", 0) if getattr(net, "cls_token", None) is not None else 0
        self.layer_ids = _layer_ids(net)
        """name of each parameter of the bare net → its layer, counted from the input"""

    def forward(self, images: Tensor) -> Tensor:
        if not self.prefix_tokens:
            return self.net(images.contiguous(memory_format=torch.channels_last))  # what convolutions are fastest in
        tokens = self.net.forward_features(images)  # pyright: ignore[reportCallIssue]
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)], dim=1)


def _layer_ids(net: nn.Module) -> dict[str, int]:
    """timm's grouping into layers, from 0 at the input; one layer where timm knows none."""
    matcher: Any = getattr(net, "group_matcher", None)
    if matcher is None:
        return dict.fromkeys((name for name, _ in net.named_parameters()), 0)
    return group_parameters(net, matcher(coarse=False), reverse=True)  # pyright: ignore[reportReturnType]


def load_backbone(model_path: str, image_size: int | None) -> tuple[Backbone, BackboneSpec]:
    """Build the backbone that `model_path` names, with its weights.

    Raises UserError for an unknown architecture, weights that cannot be had, or weights that do not
    fit.
    """
    kind, _, rest = model_path.partition(":")
    file, _, name = rest.rpartition(":") if kind == "file" else ("", "", rest)
    if kind == "local-dir":
        if (Path(rest) / RECORD).exists():
            return _load_adapted(Path(rest), image_size)
        return _load_local_dir(Path(rest), image_size)
    _demand_known(name)
    sizes = _size_kwargs(name, image_size)
    spec = BackboneSpec(name, sizes, _preprocessing(name, image_size), _license(kind, name, file))
    if kind == "file" and not Path(file).is_file():
        raise UserError(f"model_path: weights file {file} does not exist. `make data` prepares the demo's.")
    _demand_architecture(file, name, model_path)
    try:
        if kind == "file":
            net = _filled(name, sizes, load_state_dict(file))
        else:
            net = _create(name, **sizes, pretrained=kind == "timm")
    except Exception as error:  # timm raises whatever the hub, torch or safetensors raise
        raise UserError(_load_failure(model_path, error)) from error
    return Backbone(net), spec


def feature_dim(backbone: Backbone, size: int, device: torch.device | str = "cpu") -> int:
    """D of the features, found by one forward pass: timm's own attributes differ by family.

    Raises UserError for a size that the architecture cannot take.
    """
    patch = getattr(getattr(backbone.net, "patch_embed", None), "patch_size", (1,))[0]
    if size % patch:
        raise UserError(
            f"$.dataset_params.image_size is {size}; allowed a multiple of the backbone's patch, such as "
            f"{size // patch * patch} or {(size // patch + 1) * patch}."
        )
    training = backbone.training  # in training mode the pass over zeros would enter the norms' statistics
    try:
        with torch.inference_mode():
            width = backbone.eval()(torch.zeros(1, 3, size, size, device=device)).shape[1]
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        where = f"$.dataset_params.image_size is {size}"
        raise UserError(f"{where}, which the backbone cannot take ({reason}). Choose another.") from error
    backbone.train(training)
    return width


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of tensors by name, whatever file they came from."""
    return artifacts.digest_json({name: artifacts.digest_bytes(_bytes(tensor)) for name, tensor in tensors.items()})


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _load_adapted(folder: Path, image_size: int | None) -> tuple[Backbone, BackboneSpec]:
    """A folder of ours: the record, and weights that must be the ones it was written for."""
    record = artifacts.read_json(folder / RECORD, "backbone")
    file, arch = folder / WEIGHTS, record["architecture"]
    if not file.is_file():
        raise UserError(f"model_path local-dir:{folder}: {WEIGHTS} is not there. {artifacts.MENDS['backbone']}")
    _demand_architecture(str(file), arch, f"local-dir:{folder}")
    if artifacts.digest_file(file) != record["sha256"]:
        raise UserError(
            f"model_path local-dir:{folder}: {WEIGHTS} is not the file that {RECORD} was written for (other SHA-256). "
            f"{artifacts.MENDS['backbone']}"
        )
    _demand_known(arch)
    known = record["preprocessing"]
    kwargs = {**record["architecture_args"], **_size_kwargs(arch, image_size)}
    images = CONTRACT.to_dict()  # training decodes by today's contract, whatever the weights were adapted on
    preprocessing = Preprocessing.from_dict({**known, **images, "size": image_size or known["size"]})
    spec = BackboneSpec(arch, kwargs, preprocessing, record["license"])
    try:
        net = _filled(arch, kwargs, load_state_dict(str(file)))
    except Exception as error:
        raise UserError(_load_failure(f"local-dir:{folder}", error)) from error
    return Backbone(net), spec


def _load_local_dir(folder: Path, image_size: int | None) -> tuple[Backbone, BackboneSpec]:
    """A folder as timm's `save_for_hf` writes it: config.json beside the weights."""
    try:
        cfg, arch, model_args = load_model_config_from_path(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model_path local-dir:{folder}: no model there ({error}). It needs config.json and weights."
        ) from None
    kwargs = {**(model_args or {}), **_size_kwargs(arch, image_size)}
    kwargs.pop("num_classes", None)  # ours are heads without a classifier
    preprocessing = _preprocessing(arch, image_size, cfg)
    spec = BackboneSpec(arch, kwargs, preprocessing, str(cfg.get("license") or UNKNOWN))
    try:
        net = _filled(arch, kwargs, load_state_dict_from_path(folder))
    except Exception as error:
        raise UserError(_load_failure(f"local-dir:{folder}", error)) from error
    return Backbone(net), spec


def _create(name: str, **kwargs: Any) -> nn.Module:
    return timm.create_model(name, num_classes=0, **{"pretrained": False, **kwargs})


def _filled(arch: str, kwargs: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The architecture with these weights, every tensor of it, less a classifier's.

    By itself timm stops being strict where the classifier is dropped, and the weights of another
    architecture would leave the net random without a word.
    """
    cfg = get_pretrained_cfg(arch)
    classifier = (cfg.classifier if cfg else None) or ()
    layers = (classifier,) if isinstance(classifier, str) else classifier
    kept = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[0] not in layers}
    overlay = {"state_dict": kept, "num_classes": 0, "label_offset": 0}
    net = _create(arch, **kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
    net.pretrained_cfg.pop("state_dict", None)  # pyright: ignore  # or every copy of the net would carry the weights twice
    return net


def _demand_known(name: str) -> None:
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"model_path: timm has no architecture '{name}'{did_you_mean(name, timm.list_models())}.")
    if "." in name and name not in timm.list_pretrained(f"{name.split('.')[0]}.*"):
        raise UserError(f"model_path: timm has no weights '{name}'{did_you_mean(name, timm.list_pretrained())}.")


def _size_kwargs(arch: str, image_size: int | None) -> dict[str, Any]:
    """Fixed-size architectures (position embeddings) are built for the size in use."""
    cfg = get_pretrained_cfg(arch)
    fixed = cfg is not None and cfg.fixed_input_size
    return {"img_size": image_size} if fixed and image_size else {}


def _preprocessing(arch: str, image_size: int | None, cfg: dict[str, Any] | None = None) -> Preprocessing:
    defaults = get_pretrained_cfg(arch)
    known = {**(defaults.to_dict() if defaults else {}), **(cfg or {})}
    return Preprocessing(
        size=image_size or known.get("input_size", (3, 224, 224))[-1],
        crop_pct=known.get("crop_pct") or 0.875,
        interpolation=known.get("interpolation") or "bicubic",
        mean=known.get("mean") or (0.485, 0.456, 0.406),
        std=known.get("std") or (0.229, 0.224, 0.225),
    )


def _license(kind: str, name: str, file: str) -> str:
    """Licence of the weights: what a safetensors file says of itself, or what timm says of its own."""
    if kind == "random":
        return RANDOM
    if kind == "timm":
        return str(getattr(get_pretrained_cfg(name), "license", None) or UNKNOWN)
    return _said(file).get("license", UNKNOWN)


def _demand_architecture(file: str, name: str, model_path: str) -> None:
    """Raise UserError where a weights file says that it is of another architecture."""
    found = _said(file).get("architecture", name)
    if found.split(".")[0] != name.split(".")[0]:
        raise UserError(
            f"model_path {model_path}: the file holds weights of {found}, not of {name}. Name {found}, or another file."
        )


def _said(file: str) -> dict[str, str]:
    """Return the metadata of a safetensors file; nothing for any other file."""
    if not file.endswith(".safetensors"):
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return weights.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _load_failure(model_path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    mend = "Is it of this architecture?"
    if model_path.startswith("timm:"):
        from huggingface_hub.constants import HF_HUB_OFFLINE

        mend = "Without a network use file:PATH:NAME or random:NAME."
        if HF_HUB_OFFLINE:
            mend = f"HF_HUB_OFFLINE is set: run once with HF_HUB_OFFLINE=0 to download them. {mend}"
    return f"model_path {model_path}: weights could not be loaded ({type(error).__name__}: {reason}). {mend}"

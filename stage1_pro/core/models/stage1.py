"""Stage1Model: a backbone and its heads, and the one file that holds a trained one."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stage1_pro.core import artifacts
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import Backbone, BackboneSpec, feature_dim

HIDDEN = 768
FORMAT = 1


class Outputs(NamedTuple):
    """logits: (B, C); gate_logit: (B,), or None for a model without a gate."""

    logits: Tensor
    gate_logit: Tensor | None = None


class ClassHead(nn.Sequential):
    """Linear → ReLU → Dropout → Linear: features (B, D) → logits (B, C)."""

    def __init__(self, features: int, classes: int, dropout: float):
        super().__init__(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(dropout), nn.Linear(HIDDEN, classes))


class Stage1Model(nn.Module):
    """Images (B, 3, H, W) → Outputs. `head` alone takes cached features (B, D)."""

    def __init__(
        self, backbone: Backbone, spec: BackboneSpec, class_names: tuple[str, ...], features: int, dropout: float
    ):
        super().__init__()
        self.spec, self.class_names, self.features, self.dropout = spec, class_names, features, dropout
        self.backbone = backbone
        self.cls = ClassHead(features, len(class_names), dropout)
        self.frozen = False

    @classmethod
    def new(cls, backbone: Backbone, spec: BackboneSpec, class_names: tuple[str, ...], dropout: float) -> "Stage1Model":
        return cls(backbone, spec, class_names, feature_dim(backbone, spec.preprocessing.size), dropout)

    def forward(self, images: Tensor) -> Outputs:
        return self.head(self.backbone(images))

    def head(self, features: Tensor) -> Outputs:
        return Outputs(self.cls(features))

    def freeze_backbone(self) -> None:
        """Take the backbone out of training: no gradients, and its norms keep their statistics."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Stage1Model":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def save_model(model: Stage1Model, path: Path) -> None:
    """Write the model as plain tensors and values; equal weights give equal bytes."""
    spec = model.spec
    content = {
        "format": FORMAT,
        "arch": spec.arch,
        "arch_kwargs": spec.kwargs,
        "preprocessing": spec.preprocessing.to_dict(),
        "license": spec.license,
        "class_names": list(model.class_names),
        "features": model.features,
        "dropout": model.dropout,
        "state_dict": {name: _plain(tensor) for name, tensor in model.state_dict().items()},
    }
    artifacts.write_bytes(path, dump_tensors(content))


def load_model(path: Path) -> Stage1Model:
    """Read a model file, in eval mode. Raises UserError for anything but plain tensors and values."""
    content = read_tensors(path)
    try:
        if content["format"] != FORMAT:
            raise UserError(f"{path}: written by another version (format {content['format']}, not {FORMAT}).")
        preprocessing = Preprocessing.from_dict(content["preprocessing"])
        spec = BackboneSpec(content["arch"], content["arch_kwargs"], preprocessing, content["license"])
        model = Stage1Model(spec.build(), spec, tuple(content["class_names"]), content["features"], content["dropout"])
        model.load_state_dict(content["state_dict"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole model file ({' '.join(str(error).split())[:200]}).") from None
    return model.eval()


def _plain(tensor: Tensor) -> Tensor:
    """A copy with a storage and strides of its own: neither a larger buffer nor a memory format enters the file."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def dump_tensors(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()  # a path would put its own name into the archive
    torch.save(content, buffer)
    return buffer.getvalue()


def read_tensors(path: Path) -> dict[str, Any]:
    """torch.load with weights_only, and never otherwise."""
    try:
        return torch.load(io.BytesIO(artifacts.read_bytes(path)), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises whatever zip and pickle raise
        raise UserError(f"{path}: not a safe, whole tensor file ({' '.join(str(error).split())[:200]}).") from None

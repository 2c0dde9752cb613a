"""Stage1Model: a backbone and its heads, and the one file that holds a trained one."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import Backbone, BackboneSpec, feature_dim
from stage1_pro.core.models.heads import ClassHead, Members, SelectiveHeads, signed_gate

FORMAT = 1


class Outputs(NamedTuple):
    """logits: (B, C); gate_logit: (B,), log-odds that the answer is right; members: what each head says; features:
    (B, D) that they were computed from.

    gate_logit and members are None for a model without a gate.
    """

    logits: Tensor
    gate_logit: Tensor | None = None
    members: Members | None = None
    features: Tensor | None = None


class Stage1Model(nn.Module):
    """Images (B, 3, H, W) → Outputs. `head` alone takes cached features (B, D).

    members: None for a single class head; a number for that many heads side by side, with gate and auxiliary.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: BackboneSpec,
        class_names: tuple[str, ...],
        features: int,
        dropout: float,
        members: int | None = None,
    ):
        super().__init__()
        self.spec, self.class_names, self.features, self.dropout = spec, class_names, features, dropout
        self.backbone = backbone
        self.cls = ClassHead(features, len(class_names), dropout) if members is None else None
        self.heads = SelectiveHeads(features, len(class_names), members, dropout) if members else None
        self.frozen, self.answer_shift = False, 0.0

    kind = "backbone"
    """The word for what model_path names."""

    @property
    def words(self) -> str:
        """The model in a few words."""
        return f"{self.spec.preprocessing.size} px, {self.features} features"

    @property
    def gated(self) -> bool:
        """Whether there is a gate, whose logit the outputs hold."""
        return self.heads is not None

    @classmethod
    def new(
        cls,
        backbone: Backbone,
        spec: BackboneSpec,
        class_names: tuple[str, ...],
        dropout: float,
        members: int | None = None,
    ) -> "Stage1Model":
        return cls(backbone, spec, class_names, feature_dim(backbone, spec.preprocessing.size), dropout, members)

    def forward(self, images: Tensor) -> Outputs:
        return self.head(self.backbone(images))

    def head(self, features: Tensor) -> Outputs:
        if self.heads is None:
            assert self.cls is not None
            return Outputs(self.cls(features), features=features)
        members = self.heads(features, self.answer_shift)
        logits = members.logits.mean(dim=0)  # of logits: an average of probabilities has no z to shift or calibrate
        gate = signed_gate(logits, members.evidence.mean(dim=0), self.answer_shift)
        return Outputs(logits, gate, members, features)

    def penultimate(self, features: Tensor, outputs: Outputs) -> Tensor:
        """(B, H) what the last layer of the class head reads, of the first of several heads; without dropout.

        features: (B, D); outputs: what `head` made of them in eval mode.
        """
        if outputs.members is not None:
            return outputs.members.hidden[0]
        assert self.cls is not None
        return self.cls[1](self.cls[0](features))

    @torch.no_grad()
    def shift_answers(self, shift: float) -> None:
        """Add b to the log-odds of the positive class, in the class head's bias: argmax of the logits stays the answer.

        The gate goes on reading the log-odds that it was trained on. Placing anew takes the old shift out first.
        """
        bias = self.get_parameter("cls.3.bias" if self.heads is None else "heads.cls.bias")
        half = (shift - self.answer_shift) / 2  # to either class: z moves, the mean of the logits stays
        bias.view(-1, 2).add_(torch.tensor([-half, half], device=bias.device))
        self.answer_shift = shift

    @torch.no_grad()
    def take_weights(self, source: "Stage1Model") -> None:
        """Start from another model's weights as far as both have them; a single class head goes to the first member.

        A gate is left at zero: the other's may have been fitted on val_select, which chooses the checkpoint.
        """
        if source.answer_shift:
            source.shift_answers(0.0)  # placed on val_select, for the other run's target and prices
        own = self.state_dict()
        fitting = {name: t for name, t in source.state_dict().items() if name in own and own[name].shape == t.shape}
        self.load_state_dict({**own, **{name: t for name, t in fitting.items() if not name.startswith("heads.")}})
        if self.heads is not None and source.heads is not None:
            self.heads.take_members(source.heads)
        elif self.heads is not None and source.cls is not None:
            self.heads.take_class_head(source.cls)

    def freeze_backbone(self) -> None:
        """Take the backbone out of training: no gradients, and its norms keep their statistics."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Stage1Model":
        super().train(mode)
        if self.frozen:  # Lightning calls train() on the whole module; batch norms would take up new statistics
            self.backbone.eval()
        return self


def save_model(model: Stage1Model, path: Path) -> None:
    """Write the model as plain tensors and values; equal weights give equal bytes."""
    content = {
        "format": FORMAT,
        **model.spec.record(),
        "class_names": list(model.class_names),
        "features": model.features,
        "dropout": model.dropout,
        **({"answer_shift": model.answer_shift} if model.answer_shift else {}),
        **({} if model.heads is None else {"heads": ["cls", "gate", "aux"], "members": model.heads.members}),
        "state_dict": {name: _plain(tensor) for name, tensor in model.state_dict().items()},
    }
    write_tensors(path, content)


def load_model(path: Path) -> Stage1Model:
    """Read a model file, in eval mode. Raises UserError for anything but plain tensors and values."""
    content = read_tensors(path)
    try:
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: written by another version (format {content['format']}, not {FORMAT}). Use that version."
            )
        spec = BackboneSpec.of_record(content)
        names, members = tuple(content["class_names"]), content.get("members")
        model = Stage1Model(spec.build(), spec, names, content["features"], content["dropout"], members)
        model.load_state_dict(content["state_dict"])
        model.answer_shift = float(content.get("answer_shift", 0.0))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a whole model file ({' '.join(str(error).split())[:200]}). Restore it from a copy."
        ) from None
    return model.eval()


def _plain(tensor: Tensor) -> Tensor:
    """A copy with a storage and strides of its own: neither a larger buffer nor a memory format enters the file."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values for `read_tensors`, as `artifacts.writing` does, without a copy in memory; equal
    contents give equal bytes. A signal that comes meanwhile is handled when the file is whole."""
    # given a path, torch would put its name into the archive
    with _undisturbed(), artifacts.writing(path) as file:
        try:
            torch.save(_interned(content), file)
        except RuntimeError as error:
            # in the place of the file's own error, say of a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off signals for which there is a handler in Python to the end of the block.

    What a handler raises within torch's writer ends the process there ("terminate called"), or comes out as an error of
    the writer.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler runs in another one
        yield
        return
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    came: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _interned(value: Any) -> Any:
    """The same with one object for equal strings: pickle writes an object once, and then refers to it."""
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_interned(key): _interned(part) for key, part in value.items()}
    return type(value)(map(_interned, value)) if type(value) in (list, tuple) else value


def read_tensors(path: Path, way_out: str = "Restore it from a copy.") -> dict[str, Any]:
    """torch.load with weights_only, and never otherwise. way_out: what to do where the file is damaged."""
    try:
        return torch.load(io.BytesIO(artifacts.read_bytes(path)), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises whatever zip and pickle raise
        raise UserError(f"{path}: not a safe, whole tensor file ({_reason(error)}). {way_out}") from None


def _reason(error: Exception) -> str:
    """What torch says of a file that it refuses, without its advice to load the file unsafely."""
    text = " ".join(str(error).split())
    if "weights_only" in text or "Weights only" in text:
        return "it is damaged, or holds more than tensors and plain values"
    return text[:200]

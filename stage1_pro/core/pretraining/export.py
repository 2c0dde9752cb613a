"""The adapted backbone on disk: plain weights under timm's names, and a record of where they come from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import RECORD, WEIGHTS, Backbone, BackboneSpec
from stage1_pro.core.pretraining.adapt import merge


def plain_weights(backbone: Backbone, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put trained tensors into an adapted backbone, merge it in place, and return what timm's net would hold.

    Raises UserError for tensors that are not finite.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{len(broken)} tensors are not finite, {broken[0]} among them: no backbone can be made of them. Begin "
            "anew with a lower --lr."
        )
    missing = set(tensors) - set(dict(backbone.named_parameters()))
    if missing:
        raise UserError(
            f"the best checkpoint holds other tensors than this backbone ({min(missing)}). Begin in another folder."
        )
    backbone.load_state_dict(tensors, strict=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in merge(backbone).net.state_dict().items()}


def write_backbone(folder: Path, spec: BackboneSpec, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write backbone.safetensors, then backbone.json: without the record there is no backbone.

    facts: origin, training, pool, probe and provenance, as the schema has them.
    """
    said = {"architecture": spec.arch, "license": spec.license, "origin": facts["origin"]["model_path"]}
    content = safetensors_bytes(weights, said)
    artifacts.write_bytes(folder / WEIGHTS, content)
    record = {
        "schema_version": artifacts.SCHEMA_VERSION,
        "architecture": spec.arch,
        "architecture_args": spec.kwargs,
        "preprocessing": spec.preprocessing.to_dict(),
        "license": spec.license,
        "sha256": artifacts.digest_bytes(content),
        "bytes": len(content),
        **facts,
    }
    artifacts.write_json(folder / RECORD, record, "backbone")


def safetensors_bytes(weights: dict[str, Tensor], said: dict[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content alone: the library writes its notes in random order."""
    plain = save(weights)
    start = 8 + int.from_bytes(plain[:8], "little")
    header = {"__metadata__": dict(sorted({"format": "pt", **said}.items())), **json.loads(plain[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + plain[start:]

"""Write a trained model as an ONNX file, in float32 or with 8-bit weights and activations, and place its answers anew.

Preprocessing stays outside of the graph. Equal weights give equal bytes, with one version of the packages.
"""

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stage1_pro.core import artifacts
from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.heads import margin
from stage1_pro.core.models.onnx_model import FORMAT, INPUT, METADATA, OUTPUTS, load_onnx
from stage1_pro.core.models.stage1 import Outputs, Stage1Model

TOLERANCE = 1e-4
"""Largest difference of a logit from torch's."""

OFFSETS = "answer_offsets"
"""The initializer that holds what placing adds to the logits, (C,)."""

_BATCHES = (1, 3)
"""Batches that an export is tried on; the exporter sees two images."""

_QUANTIZED = ("Conv", "Gemm", "MatMul", "Clip", "Relu")
"""Clip and Relu too: otherwise a convolution's 256 steps are spent on what its activation cuts off."""


class _Graph(nn.Module):
    """What the file computes. The shift of the answers stands apart, so that it can be changed without torch."""

    def __init__(self, model: Stage1Model):
        super().__init__()
        shift, self.model = model.answer_shift, copy.deepcopy(model).eval()
        if shift:
            self.model.shift_answers(0.0)
        self.register_buffer(OFFSETS, torch.tensor(_offsets(shift, len(model.class_names))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images)
        logits = outputs.logits + self.get_buffer(OFFSETS)
        if outputs.members is None:
            return (logits,)
        evidence = outputs.members.evidence.mean(dim=0)
        sign = torch.where(margin(logits) >= 0, 0.5, -0.5)  # as heads.signed_gate
        return logits, sign * (margin(outputs.logits) + evidence)


def export_onnx(model: Stage1Model, path: Path, calibration: np.ndarray | None = None) -> None:
    """Write `model` as an ONNX file that gives the same logits, for any number of images.

    calibration: prepared images (N, 3, S, S) float32 that show how large activations get; with them the backbone
    computes with 8 bits, and the logits are others. Raises UserError where the file does not compute what torch does.
    """
    demand_extra("onnx")
    graph = _exported(_Graph(model), model)
    backbone = _backbone_nodes(graph)
    if calibration is not None:
        graph = _quantized(graph, backbone, calibration)
    _strip(graph)
    _describe(graph, model)
    artifacts.write_bytes(path, graph.SerializeToString(deterministic=True))
    try:
        _demand_same(path, model, exact=calibration is None)
    except UserError:
        path.unlink()
        raise


def shift_onnx(source: Path, target: Path, shift: float) -> None:
    """Write the model of `source` with its answers placed at another shift, everything else unchanged."""
    demand_extra("onnx")
    import onnx  # pyright: ignore[reportMissingImports]

    graph = onnx.load_from_string(artifacts.read_bytes(source))
    offsets = next(tensor for tensor in graph.graph.initializer if tensor.name == OFFSETS)
    classes = offsets.dims[0]
    offsets.CopyFrom(onnx.numpy_helper.from_array(np.array(_offsets(shift, classes), dtype=np.float32), OFFSETS))
    entry = next(entry for entry in graph.metadata_props if entry.key == METADATA)
    entry.value = _text({**json.loads(entry.value), "answer_shift": shift})
    artifacts.write_bytes(target, graph.SerializeToString(deterministic=True))


def unshifted(logits: np.ndarray, shift: float) -> np.ndarray:
    """(N, C) logits as they were before the answers were placed at `shift`."""
    return logits - np.array(_offsets(shift, logits.shape[1]), dtype=np.float32)


def _offsets(shift: float, classes: int) -> list[float]:
    """What placing adds to each logit: half to either of two classes, as Stage1Model.shift_answers does."""
    return [-shift / 2, shift / 2] if classes == 2 else [0.0] * classes


def _exported(graph: _Graph, model: Stage1Model) -> Any:
    size = model.spec.preprocessing.size
    names = list(OUTPUTS if model.gated else OUTPUTS[:1])
    any_batch = torch.export.Dim("n", min=1, max=4096)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=({0: any_batch},),
                external_data=False,
                verbose=False,
            )
        assert program is not None
        proto: Any = program.model_proto
    except Exception as error:  # whatever the exporter meets in an architecture
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{model.spec.arch} cannot be written as ONNX ({reason}). Set scoring_backend: torch."
        ) from None
    finally:
        logger.setLevel(level)
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(f"{model.spec.arch}: the ONNX exporter fixed the batch. Set scoring_backend: torch.")
    return proto


def _backbone_nodes(graph: Any) -> list[str]:
    """Names of the nodes that come from the backbone; what the exporter says nothing of is not among them."""
    return [
        node.name
        for node in graph.graph.node
        if any(entry.key == "namespace" and "model.backbone" in entry.value for entry in node.metadata_props)
    ]


def _quantized(graph: Any, backbone: list[str], calibration: np.ndarray) -> Any:
    """The graph with an 8-bit backbone; heads stay as they are, or scores would come in 256 steps.

    Weights take 7 bits: with 8, processors without VNNI saturate and compute something else.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, images: np.ndarray):
            self.batches: Iterator[np.ndarray] = iter(np.array_split(images, max(1, len(images) // 8)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a pass that the exporter has made already
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            target = Path(folder) / "quantized.onnx"
            quantization.quantize_static(
                graph,
                target,
                Reader(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_quantize=backbone,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return onnx.load(target)
    finally:
        logger.setLevel(level)


def _strip(graph: Any) -> None:
    """Take out what the exporter notes on its own source: paths of this machine, and what changes from run to run."""
    parts = [graph, graph.graph, *graph.functions]
    for body in (graph.graph, *graph.functions):
        parts += [*body.node, *body.value_info]
    parts += [*graph.graph.initializer, *graph.graph.input, *graph.graph.output]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _describe(graph: Any, model: Stage1Model) -> None:
    facts = {
        "format": FORMAT,
        **model.spec.record(),
        "class_names": list(model.class_names),
        "gated": model.gated,
        "answer_shift": model.answer_shift,
    }
    graph.metadata_props.add(key=METADATA, value=_text(facts))


def _text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, allow_nan=False, ensure_ascii=False)


def _demand_same(path: Path, model: Stage1Model, exact: bool) -> None:
    """Raise UserError unless the file computes what torch does, whatever the batch.

    exact: within TOLERANCE of torch; otherwise batches of different sizes are compared with each other alone.
    """
    size = model.spec.preprocessing.size
    images = torch.randn(max(_BATCHES), 3, size, size, generator=torch.Generator().manual_seed(0))
    written = load_onnx(path)
    found = [written(images[:count]) for count in _BATCHES]
    with torch.inference_mode():
        expected = model.eval()(images) if exact else found[-1]
    worst = max(_difference(outputs, expected) for outputs in found)
    if not worst <= TOLERANCE:
        raise UserError(
            f"{model.spec.arch} as ONNX gives logits that differ by up to {worst:.2g} (allowed {TOLERANCE:g}): the "
            "exporter does not carry it. Set scoring_backend: torch."
        )


def _difference(found: Outputs, expected: Outputs) -> float:
    pairs = [(found.logits, expected.logits)]
    if found.gate_logit is not None and expected.gate_logit is not None:
        pairs.append((found.gate_logit, expected.gate_logit))
    return max(float((one - other[: len(one)]).abs().max()) for one, other in pairs)

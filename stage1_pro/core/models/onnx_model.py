"""OnnxModel: a trained model as one ONNX file, computed by ONNX Runtime on the CPU.

The file holds in its metadata what a model file of torch holds beside its tensors. Needs the extra `onnx`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stage1_pro.core import artifacts
from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.config.phases import MODEL_FILES
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import BackboneSpec
from stage1_pro.core.models.stage1 import Outputs, Stage1Model, load_model

FORMAT = 1
METADATA = "stage1_pro"
INPUT, OUTPUTS = "images", ("logits", "gate_logit")
"""Names in the graph: images (N, 3, S, S), prepared; logits (N, C); with a gate gate_logit (N,); all float32."""


class OnnxModel:
    """Images (B, 3, H, W) → Outputs, as Stage1Model in eval mode; B may be any number.

    spec, class_names, answer_shift, gated: as in Stage1Model.
    """

    def __init__(self, session: Any, facts: dict[str, Any]):
        self.session = session
        self.spec = BackboneSpec.of_record(facts)
        self.class_names, self.gated = tuple(facts["class_names"]), bool(facts["gated"])
        self.answer_shift = float(facts["answer_shift"])

    def __call__(self, images: Tensor) -> Outputs:
        logits, *gate = map(torch.from_numpy, self.session.run(None, {INPUT: images.numpy()}))
        return Outputs(logits, gate[0] if gate else None)


ScoringModel = Stage1Model | OnnxModel
"""What images are scored with: the file that ships."""


def load_onnx(path: Path) -> OnnxModel:
    """Read an ONNX file that `onnx_export` wrote. Raises UserError for anything else, and without the extra."""
    demand_extra("onnx")
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the threads that decode need the cores
    try:
        # from memory: tensors in a file beside it, which no digest covers, are refused
        session = onnxruntime.InferenceSession(artifacts.read_bytes(path), options, providers=["CPUExecutionProvider"])
        facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
        if facts["format"] != FORMAT:
            raise UserError(f"{path}: written by another version (format {facts['format']}, not {FORMAT}).")
        model = OnnxModel(session, facts)
        _demand_interface(session, model)
        return model
    except UserError:
        raise
    except Exception as error:  # the runtime raises its own kinds, which share no base but this
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole ONNX file of a stage 1 model ({reason}).") from None


def _demand_interface(session: Any, model: OnnxModel) -> None:
    size, classes = model.spec.preprocessing.size, len(model.class_names)
    expected = [(INPUT, [3, size, size]), (OUTPUTS[0], [classes]), *([(OUTPUTS[1], [])] if model.gated else [])]
    found = [(value.name, list(value.shape[1:])) for value in [*session.get_inputs(), *session.get_outputs()]]
    if found != expected:
        raise ValueError(f"inputs and outputs are {found}, not {expected}")


_LOADERS = {MODEL_FILES["torch"]: load_model, MODEL_FILES["onnx"]: load_onnx}


def load_scoring_model(path: Path) -> ScoringModel:
    """Read the file that a run or a bundle is scored with, by its name, in eval mode. Raises UserError."""
    return _LOADERS[path.name](path)

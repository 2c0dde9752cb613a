"""model.onnx of a run, written from its trained weights."""

from pathlib import Path

import numpy as np
import pandas as pd

from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.decoding import decode
from stage1_pro.core.models.onnx_export import export_onnx
from stage1_pro.core.models.stage1 import Stage1Model, load_model
from stage1_pro.core.records.run import Run
from stage1_pro.core.seeds import rng_of

CALIBRATION = 128
"""Training images that the ranges of 8-bit activations are taken from."""


def write_onnx(run: Run, target: Path, quantize: str, cases: CaseTable | None = None) -> None:
    """Write the run's model_best.pth as ONNX. cases: of the run, for quantize `static`.

    Raises UserError where the file does not compute what torch does.
    """
    model = load_model(run.model_path)
    if quantize == "none":
        say("writing the model as ONNX")
        return export_onnx(model, target)
    assert cases is not None
    frame = cases.frame.iloc[run.splits.indices("train")]
    say(f"writing the model as ONNX, 8 bits by {min(CALIBRATION, len(frame))} training images")
    return export_onnx(model, target, _prepared(model, _stratified(frame, run.config.seed)))


def _stratified(frame: pd.DataFrame, seed: int) -> list[str]:
    """Paths of CALIBRATION cases, or of all: each class in proportion, at least one, in a fixed order."""
    rng, share = rng_of(seed, "quantize"), min(1.0, CALIBRATION / len(frame))
    paths = [
        rng.permutation(rows["path"].to_numpy())[: max(1, round(share * len(rows)))]
        for _, rows in frame.groupby("label", sort=True)
    ]
    return list(rng.permutation(np.concatenate(paths)))


def _prepared(model: Stage1Model, paths: list[str]) -> np.ndarray:
    """(N, 3, S, S) float32, as scoring prepares them."""
    preprocessing = model.spec.preprocessing
    transform = preprocessing.transform()
    return np.stack([transform(decode(path, preprocessing.images)).numpy() for path in paths])

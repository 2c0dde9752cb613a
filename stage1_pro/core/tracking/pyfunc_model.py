"""What MLflow runs to load a registered bundle and decide with it: code instead of a pickle.

A table with the column `path` (files) or `content` (bytes of image files) gives the rows of 60_predict.py; with a
bundle that certifies each camera or site by itself the column `certificate_group` names that of each image.
"""

from typing import Any

import mlflow  # pyright: ignore[reportMissingImports]
import pandas as pd
from mlflow.pyfunc import PythonModel  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

from stage1_pro import Stage1Predictor
from stage1_pro.core.inference.decisions import decisions_of


class RegisteredBundle(PythonModel):
    """A bundle, verified when it is loaded."""

    def load_context(self, context: Any) -> None:
        self.predictor = Stage1Predictor.load(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        groups = None
        if self.predictor.certificate_groups is not None and "certificate_group" in model_input:
            groups = model_input["certificate_group"].fillna("").astype(str).tolist()
        if model_input.get("path") is not None and model_input["path"].notna().all():
            paths, options = list(model_input["path"]), {"batch_size": None, "workers": 0}
            frames = decisions_of(self.predictor, paths, **options, certificate_groups=groups)
            return pd.concat(frames, ignore_index=True)
        if model_input.get("content") is not None:
            records = self.predictor.predict(list(model_input["content"]), groups=groups)
            return pd.DataFrame([{"id": str(number), **_row(record)} for number, record in enumerate(records)])
        raise ValueError("name images in the column path, or give their bytes in the column content")


def _row(record: Any) -> dict[str, Any]:
    sets = record.prediction_set
    row = {name: getattr(record, name) for name in ("answer", "probability", "decision", "score", "reason")}
    return row if sets is None else {**row, "prediction_set": "|".join(sets)}


mlflow.models.set_model(RegisteredBundle())  # pyright: ignore[reportPrivateImportUsage]

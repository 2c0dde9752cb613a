"""What MLflow runs to load a registered bundle and decide with it: code instead of a pickle.

A table with the columns `path` (files), `content` (bytes of image files, which go before a path) or both gives the
rows of 60_predict.py; with a bundle that certifies each camera or site by itself the column `certificate_group` names
that of each image.
"""

from typing import Any

import mlflow  # pyright: ignore[reportMissingImports]
import pandas as pd
from mlflow.pyfunc import PythonModel  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

from stage1_pro import Stage1Predictor
from stage1_pro.core.data.image_files import BadImage, shown
from stage1_pro.core.inference.decisions import decision_rows

PATH, CONTENT, CERTIFICATE_GROUP = "path", "content", "certificate_group"
ROW = ["id", "answer", "probability", "decision", "score", "reason"]


class RegisteredBundle(PythonModel):
    """A bundle, verified when it is loaded."""

    def load_context(self, context: Any) -> None:
        self.predictor = Stage1Predictor.load(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        if not {PATH, CONTENT} & set(model_input):
            raise ValueError(f"name images in the column {PATH}, or give their bytes in the column {CONTENT}")
        paths, contents = (_values(model_input, name) for name in (PATH, CONTENT))
        ids = [str(number if path is None else shown(path)) for number, path in enumerate(paths)]
        images = [path if content is None else content for path, content in zip(paths, contents, strict=True)]
        images = [BadImage("missing") if image is None else image for image in images]
        named = None
        if self.predictor.certificate_groups is not None:
            named = [str(name or "") for name in _values(model_input, CERTIFICATE_GROUP)]
        frames, done = [], 0
        for outputs in self.predictor.outputs(images):
            own = slice(done, done + len(outputs))
            frames.append(decision_rows(self.predictor.records(outputs, named and named[own]), ids[own]))
            done += len(outputs)
        rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ROW)
        return rows if named is None else rows.assign(**{CERTIFICATE_GROUP: named})


def _values(table: pd.DataFrame, name: str) -> list[Any]:
    """A column, with None where nothing is given."""
    return [None if pd.isna(value) else value for value in table[name]] if name in table else [None] * len(table)


mlflow.models.set_model(RegisteredBundle())  # pyright: ignore[reportPrivateImportUsage]

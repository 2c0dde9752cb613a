"""What a classification does after its last epoch: place answers, fit the gate, score, and list suspect labels.

All images are read once, by processes that go on reading while the model is finished.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.inference.onnx_files import write_onnx
from stage1_pro.core.inference.placing import place
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.scoring import write_scores
from stage1_pro.core.models.adapters import merge_adapters
from stage1_pro.core.models.stage1 import Stage1Model, save_model
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks.last_reading import LastReading
from stage1_pro.core.training.crossfit import group_folds, refit_gate
from stage1_pro.core.training.fit import cached, load_best
from stage1_pro.core.training.suspects import write_suspects


def conclude(run: Run, config: Stage1ProConfig, model: Stage1Model, cases: CaseTable, reading: LastReading) -> None:
    """Write model_best.pth, model.onnx where that is scored, the scores of both validation splits, and suspects.csv."""
    ending = Ending(run, config, model, cases, reading)
    _ = reading.images  # begun before the weights are loaded
    held_out = ending.finish()
    ending.score(held_out)
    ending.list_suspects()


@dataclass(slots=True)
class Ending:
    """The steps, and what they share: the images as they are read, and the features of val_select."""

    run: Run
    config: Stage1ProConfig
    model: Stage1Model
    cases: CaseTable
    reading: LastReading
    features: Tensor | None = None

    def finish(self) -> dict[str, np.ndarray]:
        """Put the best checkpoint's weights into model_best.pth, its answers placed and its gate fitted on val_select.

        Returns split → gate logits from folds that did not see the case, for the split that the gate was fitted on.
        """
        load_best(self.run, self.model)
        # before the gate is fitted again: it must see the features that will be served
        merge_adapters(self.model.backbone)
        held_out = {}
        if self.reading.places or self.reading.refits:
            frame = self.reading.frame("val_select")
            self.features = self._features(frame, "placing answers on val_select")
            if self.reading.places:
                place(self.model, self.config, self.run.splits, frame, self.features)
            if self.reading.refits:
                held_out = self._refitted(frame, self.features)
        save_model(self.model, self.run.model_path)
        if self.config.scoring_backend == "onnx":
            write_onnx(self.run, self.run.onnx_path, self.config.quantize, self.cases)
        return held_out

    def score(self, held_out: dict[str, np.ndarray]) -> None:
        """Write the scores of val_select and val_calib, by the file that ships."""
        splits = ("val_select", "val_calib")
        write_scores(self.run, self.cases, splits, held_out, images=self.reading.images, features=self.features)

    def list_suspects(self) -> None:
        """Write suspects.csv from the features of the training split: cached ones, those that training computed, else
        the trained backbone's."""
        if self.config.reads_cached_features:
            features = cached(self.run, self.config, self.model, self.cases, "train")
        else:
            features = self._training_features()
        write_suspects(self.run, self.cases, features, self.config.seed)

    def _training_features(self) -> np.ndarray:
        """(N, D) float32; only images that no epoch showed, or kept features of, are read for them."""
        frame, mean, unseen = self.reading.frame("train"), self.reading.features.mean, self.reading.unseen
        features = np.empty((len(frame), self.model.features), dtype=np.float32)
        if mean is not None:
            features[:] = mean.numpy()
        if len(unseen):
            features[unseen] = self._features(frame.iloc[unseen], "features of train").numpy()
        return features

    def _features(self, frame: pd.DataFrame, title: str) -> Tensor:
        """(N, D) features of these cases as scoring computes them, on the CPU, where the model goes as well.

        title: of the bar.
        """
        predictor = Stage1Predictor(self.model, images=self.reading.images, **self.config.scoring_options)
        with bar(title) as progress:
            features = predictor.features(
                list(frame["path"]),
                batch_size=self.config.batch_size,
                workers=self.config.dataset_params.num_workers,
                progress=progress,
            )
        self.model.cpu()
        return features

    def _refitted(self, frame: pd.DataFrame, features: Tensor) -> dict[str, np.ndarray]:
        labels, groups = frame["label"].to_numpy(), frame["group"].to_numpy()
        fold = group_folds(labels, groups, self.config.seed)
        if fold is None:
            say("warning: val_select has too few groups of a class to fit the gate again; the trained gate is kept")
            return {}
        return {"val_select": refit_gate(self.model, features, labels, fold)}

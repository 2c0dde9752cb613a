"""One run directory: how it begins, and its config, splits and scores, checked to belong together."""

import os
import shlex
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.config.load import merge_configs, save_config
from stage1_pro.core.config.phases import MODEL_FILES, MONITOR_OF_2026, POLICY_TABLE, PolicyRow
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import LARGEST_TARGET, LEAST_CONFIDENCE, Risk
from stage1_pro.core.records.group_scores import in_groups
from stage1_pro.core.records.paths import LATEST, RUNS, RunPaths, point_latest, shortest, unused_name
from stage1_pro.core.records.provenance import environment
from stage1_pro.core.records.scores import Scores, read_scores
from stage1_pro.core.records.splits import Splits, read_splits
from stage1_pro.core.records.weights import WEIGHED, Weights, read_weights

TRACES = ("state.json", "metrics.csv", "checkpoints", "model_best.pth")
"""What training leaves in a run, after config.json."""


class Run(RunPaths):
    """A run directory on disk. `create` begins one, `open` takes one up; what it holds is read once.

    Its policy file is read and written by `policy_file`, its looks at val_calib are recorded by `looks`.
    """

    @classmethod
    def create(cls, path: str | None, phase: int) -> "Run":
        """Make the directory of a new run, and point runs/latest to it.

        Raises UserError where the run exists already: a run is never overwritten.
        """
        cls.demand_new(path)
        target = Path(path) if path else unused_name(f"p{phase}")
        try:
            target.mkdir(parents=True, exist_ok=path is not None)
        except OSError as error:
            raise UserError(f"{target} cannot be made: {error.strerror}. Choose another --run.") from None
        point_latest(target)
        return cls(shortest(target))

    @staticmethod
    def demand_new(path: str | None) -> None:
        """Raise UserError where a new run cannot be called so."""
        target = Path(path or RUNS)
        home = next(place for place in (target.absolute(), *target.absolute().parents) if place.exists())
        if not os.access(home, os.W_OK):
            raise UserError(f"{target} cannot be made: {home} may not be written to. Choose another --run.")
        if path is None:
            return
        if target == Path(LATEST):
            raise UserError(f"{target} is the link to the newest run. Choose another --run.")
        if (target / "splits.json").exists() and not (target / "config.json").exists():
            Run(target)._demand_no_trace()
            raise UserError(
                f"{target} holds the splits of a run that awaits its training, and runs are never overwritten. Go on "
                f"with 20_train.py --run {shlex.quote(str(target))} and the same settings, or choose another --run."
            )
        if (target / "config.json").exists():
            raise UserError(f"{target} already holds a run, and runs are never overwritten. Choose another --run.")

    def discard(self) -> None:
        """Remove a run that could not be begun, where nothing is in it, and the link that names it."""
        latest = Path(LATEST)
        with suppress(OSError):  # it may hold files of others
            named = latest.is_symlink() and latest.resolve() == self.path.resolve()
            self.path.rmdir()
            if named:
                latest.unlink()

    @classmethod
    def open(cls, path: str) -> "Run":
        """Take up an existing run. Raises UserError where there is none."""
        target = Path(path)
        if not target.exists():
            known = sorted(child.name for child in target.parent.glob("*/")) if target.parent.is_dir() else []
            raise UserError(
                f"{target} does not exist{schemas.did_you_mean(target.name, known)}. Prepare it with 00_make_splits.py."
            )
        if not (target / "splits.json").is_file():
            raise UserError(
                f"{target} is not a run (no splits.json in it). Begin one with 00_make_splits.py or 20_train.py."
            )
        return cls(shortest(target))

    @cached_property
    def config(self) -> Stage1ProConfig:
        if not self.config_path.exists():
            self._demand_no_trace()
            raise UserError(f"{self.path} is not trained yet. Run 20_train.py --run {self.path} first.")
        settings = artifacts.read_json(self.config_path, "config")
        if settings["phase"] > 1 and settings.get("gate_refit", True):
            settings.setdefault("checkpoint_by", MONITOR_OF_2026)
        return merge_configs([(str(self.config_path), settings)], trains=False)

    @cached_property
    def splits(self) -> Splits:
        return read_splits(self.splits_path)

    @property
    def scored_path(self) -> Path:
        """The file that scores are computed with, which ships: model_best.pth or model.onnx."""
        return self.path / MODEL_FILES[self.config.scoring_backend]

    @cached_property
    def model_digest(self) -> str:
        """Digest of the file that scores are computed with."""
        return self._digest_of(self.scored_path)

    @property
    def weights_digest(self) -> str:
        """Digest of the trained weights, model_best.pth."""
        return self._digest_of(self.model_path)

    def _digest_of(self, path: Path) -> str:
        if not path.exists():
            raise UserError(
                f"{self.path} has no {path.name}. Run 20_train.py --resume {self.path} to finish its training."
            )
        return artifacts.digest_file(path)

    @property
    def policy_row(self) -> PolicyRow:
        """The row of the policy that this run is trained for."""
        return POLICY_TABLE[self.config.exit_policy]

    @property
    def policy_path(self) -> Path:
        return self.path / self.policy_row.file

    def demand_untrained(self) -> None:
        """Raise UserError where training has begun already."""
        if self.config_path.exists():
            raise UserError(
                f"{self.path} has been trained already, and runs are never overwritten. "
                f"Continue it with --resume {self.path}, or choose another --run."
            )
        self._demand_no_trace()

    def _demand_no_trace(self) -> None:
        """Raise UserError where training has begun, and config.json was lost: begun anew it would overwrite the run."""
        begun = [name for name in TRACES if (self.path / name).exists()]
        if begun:
            raise UserError(
                f"{self.config_path} is gone, and training had begun (there is {begun[0]}). Restore config.json, or "
                "begin a new run."
            )

    def begin_training(self, config: Stage1ProConfig, model_facts: dict[str, Any]) -> None:
        """Record the config and where it is trained; from here on the run can be resumed.

        model_facts: preprocessing, backbone and backbone_license.
        """
        artifacts.write_json(self.environment_path, {**environment(config.seed), **model_facts}, "environment")
        save_config(config, self.config_path)

    def train_on(self, config: Stage1ProConfig) -> None:
        """Record the config of a training that goes on after its end."""
        save_config(config, self.config_path)
        self.__dict__["config"] = config

    def scores(self, split: str) -> Scores:
        """What counts in one split: what gets a decision, and of val_calib and val_test what known weights keep."""
        cases = self.unweighted(split)
        return cases if self.weights is None or split not in WEIGHED else self.weights.thinned(cases)

    def unweighted(self, split: str) -> Scores:
        """What gets a decision in one split: its images, or with decide_by: group one row a group."""
        views = self.config.group_views
        images = self.image_scores(split)
        return images if views is None else in_groups(images, views, self.config.dataset_params.group_label)

    @cached_property
    def weights(self) -> Weights | None:
        """The known weights that the run's policy was certified with; None without them, or without a policy."""
        if not self.policy_path.exists():
            return None
        named = artifacts.read_json(self.policy_path, self.policy_row.schema).get("weights")
        return None if named is None else read_weights(self.scores_path("weights"), named["digest"])

    def weigh(self, weights: Weights | None) -> None:
        """From now on take these weights: those of a calibration under way, whose policy is not written yet."""
        self.__dict__["weights"] = weights

    def image_scores(self, split: str) -> Scores:
        """Scores of one split, a row an image, checked to belong to this run's weights and splits."""
        path = self.scores_path(split)
        script = f"{'40_eval_selective.py --run' if split == 'val_test' else '20_train.py --resume'} {self.path}"
        mend = f"Remove it and run {script} to write it." if path.exists() else f"Run {script} to write it."
        scores = read_scores(path, mend)
        for what, found, expected in (
            ("split", scores.split, split),
            ("weights", scores.model_digest, self.model_digest),
            ("splits", scores.splits_digest, self.splits.digest),
        ):
            if found != expected:
                raise UserError(f"{path}: these scores are of other {what} ({found[:12]}, not {expected[:12]}). {mend}")
        expected = [self.splits.counts(split)[name] for name in self.splits.class_names]
        counts = np.bincount(scores.labels[scores.labels >= 0], minlength=len(expected)).tolist()
        if counts != expected or len(np.unique(scores.case_id)) < len(scores):
            raise UserError(f"{path}: it does not hold every case of {split} once. {mend}")
        return scores

    def risk(self, target_fnr_exit: float | None = None, fnr_confidence: float | None = None) -> Risk:
        """The level to certify for the run's target and its confidence, or for the ones given in their place."""
        target = self.config.target_fnr_exit if target_fnr_exit is None else target_fnr_exit
        confidence = self.config.fnr_confidence if fnr_confidence is None else fnr_confidence
        if not 0 < target <= LARGEST_TARGET:
            raise UserError(f"--target_fnr_exit is {target}; allowed above 0, up to {LARGEST_TARGET}.")
        if not LEAST_CONFIDENCE <= confidence < 1:
            raise UserError(f"--fnr_confidence is {confidence}; allowed {LEAST_CONFIDENCE} to below 1.")
        return Risk(self.config.certified_level(target), confidence)

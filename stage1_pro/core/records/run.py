"""One run directory: its paths, what may be written when, and its provenance."""

import os
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.config.load import merge_configs, save_config
from stage1_pro.core.config.phases import POLICY_TABLE, PolicyRow
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.records import ledger
from stage1_pro.core.records.provenance import environment, utc_now
from stage1_pro.core.records.scores import Scores, read_scores
from stage1_pro.core.records.splits import Splits, read_splits

RUNS = Path("runs")


LATEST = str(RUNS / "latest")


class Run:
    """A run directory on disk. `create` begins one, `open` takes one up."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: str | None, phase: int) -> "Run":
        """Make the directory of a new run, and point runs/latest to it.

        Raises UserError where the run exists already: a run is never overwritten.
        """
        target = Path(path) if path else unused_name(f"p{phase}")
        if target == Path(LATEST):
            raise UserError(f"{target} is the link to the newest run. Choose another --run.")
        if (target / "splits.json").exists() or (target / "config.json").exists():
            raise UserError(f"{target} already holds a run, and runs are never overwritten. Choose another --run.")
        try:
            target.mkdir(parents=True, exist_ok=path is not None)
        except OSError as error:
            raise UserError(f"{target} cannot be made: {error.strerror}. Choose another --run.") from None
        run = cls(_short(target))
        run._point_latest()
        return run

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
        return cls(_short(target))

    # ---- paths

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def splits_path(self) -> Path:
        return self.path / "splits.json"

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def model_path(self) -> Path:
        return self.path / "model_best.pth"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def eval_path(self) -> Path:
        return self.path / "eval.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def figures_path(self) -> Path:
        return self.path / "figures"

    @property
    def bundle_path(self) -> Path:
        return self.path / "bundle"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def ledger_path(self) -> Path:
        """One ledger for all runs below a folder `runs`; beside the run where there is no such folder."""
        real = self.path.resolve()
        roots = [parent for parent in real.parents if parent.name == RUNS.name]
        return (roots[-1] if roots else real.parent) / "calibrations.csv"

    @property
    def _ledger_key(self) -> str:
        """What tells runs of one ledger apart, also after all of them have been moved together."""
        return self.path.resolve().relative_to(self.ledger_path.parent).as_posix()

    def scores_path(self, split: str) -> Path:
        return self.path / "scores" / f"{split}.parquet"

    # ---- content

    @cached_property
    def config(self) -> Stage1ProConfig:
        if not self.config_path.exists():
            raise UserError(f"{self.path} is not trained yet. Run 20_train.py --run {self.path} first.")
        return merge_configs([(str(self.config_path), artifacts.read_json(self.config_path, "config"))])

    @cached_property
    def splits(self) -> Splits:
        return read_splits(self.splits_path)

    @cached_property
    def model_digest(self) -> str:
        if not self.model_path.exists():
            raise UserError(
                f"{self.path} has no model_best.pth. Run 20_train.py --resume {self.path} to finish its training."
            )
        return artifacts.digest_file(self.model_path)

    @property
    def policy_row(self) -> PolicyRow:
        """The row of the policy that this run is trained for."""
        return POLICY_TABLE[self.config.exit_policy]

    @property
    def policy_path(self) -> Path:
        return self.path / self.policy_row.file

    def policy_files(self) -> list[Path]:
        """The policy files that are there, of whatever policy."""
        return [self.path / row.file for row in POLICY_TABLE.values() if (self.path / row.file).exists()]

    def demand_untrained(self) -> None:
        """Raise UserError where training has begun already."""
        if self.config_path.exists():
            raise UserError(
                f"{self.path} has been trained already, and runs are never overwritten. "
                f"Continue it with --resume {self.path}, or choose another --run."
            )

    def begin_training(self, config: Stage1ProConfig, model_facts: dict[str, Any]) -> None:
        """Record the config and where it is trained; from here on the run can be resumed.

        model_facts: preprocessing, backbone and backbone_license.
        """
        artifacts.write_json(self.environment_path, {**environment(config.seed), **model_facts}, "environment")
        save_config(config, self.config_path)

    def scores(self, split: str) -> Scores:
        """Scores of one split, checked to belong to this run's weights and splits."""
        path = self.scores_path(split)
        script = "40_eval_selective.py" if split == "val_test" else f"20_train.py --resume {self.path}"
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
        """The run's target and confidence, or the ones given in their place."""
        target = self.config.target_fnr_exit if target_fnr_exit is None else target_fnr_exit
        confidence = self.config.fnr_confidence if fnr_confidence is None else fnr_confidence
        if not 0 < target <= 0.1:
            raise UserError(f"--target_fnr_exit is {target}; allowed above 0, up to 0.1.")
        if not 0.5 <= confidence < 1:
            raise UserError(f"--fnr_confidence is {confidence}; allowed 0.5 to below 1.")
        return Risk(target, confidence)

    # ---- calibration

    def demand_uncalibrated(self, policy: str) -> None:
        """Raise UserError unless `policy` is this run's and no policy file exists yet."""
        if policy != self.config.exit_policy:
            row = self.policy_row
            raise UserError(f"{self.path}: exit_policy is '{row.name}'. Run {row.script} --run {self.path} instead.")
        for path in self.policy_files():
            raise UserError(
                f"{path} exists: this run is calibrated already. A second look at val_calib spends the confidence "
                "again; to calibrate anew, train a new run with new splits."
            )

    def record_attempt(self, policy: str, risk: Risk, certified: bool) -> int:
        """Append one certification attempt to the ledger; returns how often this val_calib has been used."""
        entry = ledger.Entry(
            time=utc_now(),
            val_calib_digest=self.splits.metadata["val_calib_digest"],
            run=self.name,
            policy=policy,
            target_fnr_exit=risk.target_fnr,
            fnr_confidence=risk.confidence,
            outcome="certified" if certified else ledger.NOTHING_CERTIFIED,
            run_path=self._ledger_key,
            model_digest=self.model_digest,
        )
        return ledger.append(self.ledger_path, entry)

    def attempts(self) -> list[ledger.Entry]:
        """The certification attempts of this run's weights here, oldest first."""
        sought = self._ledger_key, self.model_digest, self.config.exit_policy, self.splits.metadata["val_calib_digest"]
        return [
            entry
            for entry in ledger.read(self.ledger_path)
            if (entry.run_path, entry.model_digest, entry.policy, entry.val_calib_digest) == sought
        ]

    def refused_attempt(self) -> ledger.Entry | None:
        """The newest of these attempts, where it ended with nothing certified."""
        attempts = self.attempts()
        return attempts[-1] if attempts and attempts[-1].outcome == ledger.NOTHING_CERTIFIED else None

    def policy_header(self, risk: Risk, calib_use_count: int) -> dict[str, Any]:
        """The fields that every policy file carries about where it came from."""
        return {
            "schema_version": artifacts.SCHEMA_VERSION,
            "run_id": self.name,
            "created_at": utc_now(),
            "target_fnr_exit": risk.target_fnr,
            "fnr_confidence": risk.confidence,
            "calib_use_count": calib_use_count,
            "model_digest": self.model_digest,
            "splits_digest": self.splits.digest,
        }

    def write_policy(self, policy: dict[str, Any]) -> Path:
        artifacts.write_json(self.policy_path, policy, self.policy_row.schema)
        return self.policy_path

    def read_policy(self) -> dict[str, Any]:
        """The run's one policy file, checked to belong to these weights and splits."""
        files = self.policy_files()
        if len(files) > 1:
            raise UserError(
                f"{self.path}: Multiple policy files found! Only {self.policy_row.file} should exist. Remove the other."
            )
        mend = f"Run {self.policy_row.script} --run {self.path} first."
        if files and files[0] != self.policy_path:
            raise UserError(f"{files[0]} is not the policy of this run ('{self.policy_row.name}'). {mend}")
        if not files:
            raise UserError(f"{self.policy_path} does not exist: the run has no certified policy. {mend}")
        policy = artifacts.read_json(self.policy_path, self.policy_row.schema)
        for key, expected in (("model_digest", self.model_digest), ("splits_digest", self.splits.digest)):
            if policy.get(key) != expected:
                raise UserError(
                    f"{self.policy_path}: $.{key} is of another model or other splits. Train and calibrate a new run."
                )
        return policy

    def _point_latest(self) -> None:
        if self.path.resolve().parent != RUNS.resolve():
            return
        temporary = RUNS / f".latest.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.name)
        os.replace(temporary, RUNS / "latest")


def unused_name(kind: str) -> Path:
    """runs/<kind>-<UTC time>, with a number where another one began in the same second."""
    name = f"{kind}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (RUNS / name, *(RUNS / f"{name}-{number}" for number in range(2, 100)))
    return next(path for path in names if not path.exists())


def _short(path: Path) -> Path:
    """The real path of a run, relative to the working directory where it lies inside it."""
    real = path.resolve()
    return real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else real

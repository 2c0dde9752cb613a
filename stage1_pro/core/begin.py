"""How a training run begins: checked cases, drawn splits, and what they can and cannot carry."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.cli import say
from stage1_pro.core.config import BINARY, DatasetParams, Stage1ProConfig
from stage1_pro.core.data.assign import evidence_warning, make_splits
from stage1_pro.core.data.cases import CaseTable, load_cases
from stage1_pro.core.errors import UserError
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.plan import plan_lines, planned
from stage1_pro.core.metrics.binomial import minimum_positives, positives_for_power
from stage1_pro.core.phases import PHASES
from stage1_pro.core.run import Run
from stage1_pro.core.splits import SPLITS, Splits

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
LAUNCHED_RUN = "STAGE1_PRO_RUN"
"""Names the run to all processes of a distributed training: set by the user under torchrun or SLURM, by
the first process for those that Lightning's own launcher starts."""


def new_run(path: str | None, config: Stage1ProConfig) -> tuple[Run, CaseTable]:
    """Make a run directory with its splits.json; nothing is made where the cases have problems."""
    cases, splits = preview(config)
    run = Run.create(path, config.phase)
    artifacts.write_json(run.splits_path, splits.data, "splits")
    return run, cases


def preview(config: Stage1ProConfig) -> tuple[CaseTable, Splits]:
    """Check the cases, draw their splits and describe them, without writing anything."""
    cases = load_cases(config.dataset_params, decode=True)
    _demand_classes(config, cases)
    splits = make_splits(cases, config)
    _demand_initial_cases(config, cases, splits)
    for warning in cases.warnings:
        say(f"warning: {warning}")
    describe(splits, config)
    return cases, splits


def prepared_run(path: str | None, config: Stage1ProConfig) -> tuple[Run, CaseTable]:
    """The run that 00 prepared at `path`, or a new one where none is named."""
    path = os.environ.get(LAUNCHED_RUN) or path
    if path is None:
        if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
            raise UserError(
                "several processes cannot begin one run: prepare it with 00_make_splits.py and name it by "
                f"{LAUNCHED_RUN}=runs/NAME."
            )
        return new_run(None, config)
    run = Run.open(path)
    if not is_first_process():
        return run, cases_of(run, config.dataset_params)
    run.demand_untrained()
    cases = cases_of(run, config.dataset_params)
    _demand_classes(config, cases)
    _demand_initial_cases(config, cases, run.splits)
    describe(run.splits, config)
    return run, cases


def run_to_resume(
    path: str, others: dict[str, Any], layers: list[tuple[str, Any]]
) -> tuple[Run, Stage1ProConfig, CaseTable, Run | None]:
    """An interrupted run with its own config, its cases, and the run that its weights came from.

    Raises UserError where other options are given beside it.
    """
    given = [f"--{name}" for name, value in others.items() if value] + ["--config or settings"] * bool(layers)
    if given:
        raise UserError(f"--resume takes the run's own config and no other option; drop {', '.join(given)}.")
    run = Run.open(path)
    config = run.config
    made = artifacts.read_json(run.environment_path, "environment")
    if made.get("backbone_digest") not in (None, backbone_digest(config.model_path)):
        raise UserError(
            f"{run.path}: the weights of model_path {config.model_path} have changed since its training began, and "
            "checkpoints leave frozen weights out. Restore them, or train a new run."
        )
    begun_from, source = made.get("init_from"), None
    if begun_from:
        source = source_run(begun_from["run"], run)
        if source.model_digest != begun_from["model_digest"]:
            raise UserError(f"{source.path}: its weights have changed since {path} began from them. Begin a new run.")
    return run, config, cases_of(run, config.dataset_params), source


def backbone_digest(model_path: str) -> str | None:
    """Digest of the files that `model_path` names; None where it names none, or they are not there."""
    kind, _, rest = model_path.partition(":")
    inside = (path for path in sorted(Path(rest).glob("*")) if path.suffix in WEIGHT_SUFFIXES)
    named = {"file": [Path(rest.rpartition(":")[0])], "local-dir": list(inside)}.get(kind, [])
    found = {path.name: artifacts.digest_file(path) for path in named if path.is_file()}
    return artifacts.digest_json(found) if found else None


def source_run(path: str, run: Run) -> Run:
    """The run named by --init_from, which must have the same splits: its model has seen their train cases."""
    return source_with(path, run.splits, str(run.path))


def source_with(path: str, splits: Splits, where: str) -> Run:
    """The run named by --init_from, which must have these splits; `where` names theirs in messages."""
    source = Run.open(path)
    if source.splits.digest != splits.digest:
        raise UserError(f"--init_from {path}: its splits differ from those of {where}. Use runs with equal splits.")
    return source


def cases_of(run: Run, params: DatasetParams) -> CaseTable:
    """The case table of an existing run, checked to be the one its splits were drawn from."""
    cases = load_cases(params, decode=params.on_bad_image == "skip")
    found, expected = len(cases), run.splits.metadata["cases"]
    if cases.digest != run.splits.metadata["case_table_digest"]:
        count = f"{found} cases, not {expected}" if found != expected else "as many cases with other content"
        raise UserError(
            f"{run.splits_path}: images or labels have changed since the splits were drawn ({count}). "
            "Restore them, or begin a new run with 00_make_splits.py."
        )
    if list(cases.class_names) != run.splits.class_names:
        drawn, now = ", ".join(run.splits.class_names), ", ".join(cases.class_names)
        raise UserError(
            f"{run.splits_path}: drawn for the classes {drawn}; the config now names {now}. Give both the same config."
        )
    split = np.empty(len(cases), dtype=object)
    for name in SPLITS:
        split[run.splits.indices(name)] = name
    crossing = cases.frame["group"][cases.frame.assign(split=split).groupby("group")["split"].transform("nunique") > 1]
    if len(crossing):
        raise UserError(f"{run.splits_path}: group {crossing.iloc[0]} crosses splits. {artifacts.MENDS['splits']}")
    return cases


def _demand_classes(config: Stage1ProConfig, cases: CaseTable) -> None:
    count = len(cases.class_names)
    if PHASES[config.phase].gated and count != 2:
        raise UserError(
            f"the labels have {count} classes ({', '.join(cases.class_names)}); {BINARY.format(phase=config.phase)}."
        )


def _demand_initial_cases(config: Stage1ProConfig, cases: CaseTable, splits: Splits) -> None:
    """Raise UserError where the first stage of an incremental training cannot be drawn."""
    if config.incremental_params.enabled:
        _, labels, content = _pool(cases, splits)
        initial_cases(labels, content, len(cases.class_names), config.incremental_params, config.seed)


def _pool(cases: CaseTable, splits: Splits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(case_id, label, content), each (N,), of the training split."""
    frame = cases.frame.iloc[splits.indices("train")]
    return frame["case_id"].to_numpy(), frame["label"].to_numpy(), frame["content"].to_numpy()


def is_first_process() -> bool:
    """Whether this is the process that writes, under torchrun, SLURM or Lightning's own launcher."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def describe(splits: Splits, config: Stage1ProConfig) -> None:
    """Counts per split and class, and whether val_calib can carry the certificate."""
    width = max(6, *map(len, splits.class_names))
    say(" " * 12 + "  ".join(f"{name:>{width}}" for name in splits.class_names))
    for split in SPLITS:
        say(f"{split:<12}" + "  ".join(f"{splits.counts(split)[name]:>{width}}" for name in splits.class_names))
    if len(splits.class_names) > 2:
        return say("more than two classes: this run can be trained, but exit policies are binary")
    target, delta = config.target_fnr_exit, 1 - config.fnr_confidence
    say(
        f"val_calib: {splits.metadata['evidence']['val_calib_positive_groups']} independent positives; target_fnr_exit "
        f"{target:g} needs {minimum_positives(target, delta)} exits without a miss, and about "
        f"{positives_for_power(target / 4, target, delta)} if a quarter of that rate is missed (80 % power)"
    )
    warning = evidence_warning(splits, config)
    if warning:
        say(f"warning: {warning}")
    return None


def print_stages(config: Stage1ProConfig, cases: CaseTable, splits: Splits) -> None:
    """The stages of an incremental training at their longest."""
    case_id, labels, content = _pool(cases, splits)
    plan = planned(case_id, labels, content, len(cases.class_names), config.incremental_params, config.seed)
    for line in plan_lines(plan, config.incremental_params, config.batch_size):
        say(line)

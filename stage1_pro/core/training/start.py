"""How a training run begins: checked cases, drawn splits, and what they can and cannot carry."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.extras import demand_extras_of
from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.config.rules import BINARY
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.decided_groups import demand_groups
from stage1_pro.core.data.overview import describe
from stage1_pro.core.data.run_cases import cases_of, own_cases
from stage1_pro.core.data.splitting import make_splits
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.plan import plan_lines, planned
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import Splits

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


LAUNCHED_RUN = "STAGE1_PRO_RUN"
"""Names the run to all processes of a distributed training: set by the user under torchrun or SLURM, by
the first process for those that Lightning's own launcher starts."""


def new_run(path: str | None, config: Stage1ProConfig, *, trains: bool = False) -> tuple[Run, CaseTable]:
    """Make a run directory with its splits.json; nothing is made where the cases have problems, or where training
    would refuse the backbone and `trains` says that it follows."""
    Run.demand_new(path)  # before minutes of reading
    cases, splits = preview(config)
    if trains:
        demand_protected(config.model_path, splits)
    run = Run.create(path, config.phase)
    try:
        artifacts.write_json(run.splits_path, splits.data, "splits")
    except OSError:  # a full disk: no empty run is left
        run.discard()
        raise
    return run, cases


def preview(config: Stage1ProConfig) -> tuple[CaseTable, Splits]:
    """Check the cases, draw their splits and describe them, without writing anything."""
    cases: CaseTable = config.task.part("read_cases")(config, decode=True)
    raise_problems("before splits are drawn:", cases.questions)
    _demand_classes(config, cases)
    demand_groups(cases, config)
    splits = make_splits(cases, config)
    _demand_initial_cases(config, cases, splits)
    for note in cases.notes:
        say(note)
    for warning in cases.warnings:
        say(f"warning: {warning}")
    describe(cases, splits, config)
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
        return new_run(None, config, trains=True)
    run = Run.open(path)
    if not is_first_process():
        return run, cases_of(run, config)
    run.demand_untrained()
    demand_protected(config.model_path, run.splits)
    cases = cases_of(run, config)
    _demand_classes(config, cases)
    demand_groups(cases, config)
    _demand_initial_cases(config, cases, run.splits)
    describe(cases, run.splits, config)
    return run, cases


def run_to_resume(
    path: str, others: dict[str, Any], layers: list[tuple[str, Any]], roots: Sequence[str] | None = None
) -> tuple[Run, Stage1ProConfig, CaseTable, Run | None]:
    """An interrupted run with its own config, its cases, and the run that its weights came from.

    roots: NAME=PATH of each source whose images have moved. Raises UserError where other options are given beside it.
    """
    given = [f"--{name}" for name, value in others.items() if value] + ["--config or settings"] * bool(layers)
    if given:
        raise UserError(
            "--resume takes the run's own config and no other option but --root, --restore_state and --epochs N; drop "
            f"{', '.join(given)}."
        )
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
        source = source_run(begun_from["run"], run, config)
        if source.weights_digest != begun_from["model_digest"]:
            raise UserError(f"{source.path}: its weights have changed since {path} began from them. Begin a new run.")
    return run, config, own_cases(run, roots), source


def backbone_digest(model_path: str) -> str | None:
    """Digest of the files that `model_path` names; None where it names none, or they are not there."""
    kind, _, rest = model_path.partition(":")
    inside = (path for path in sorted(Path(rest).glob("*")) if path.suffix in WEIGHT_SUFFIXES)
    named = {"file": [Path(rest.rpartition(":")[0])], "local-dir": list(inside)}.get(kind, [])
    found = {path.name: artifacts.digest_file(path) for path in named if path.is_file()}
    return artifacts.digest_json(found) if found else None


def source_run(path: str, run: Run, config: Stage1ProConfig) -> Run:
    """The run named by --init_from, which must have the same splits: its model has seen their train cases."""
    return source_with(path, run.splits, str(run.path), config)


def source_with(path: str, splits: Splits, where: str, config: Stage1ProConfig) -> Run:
    """The run named by --init_from, which must have these splits; `where` names theirs in messages."""
    source = Run.open(path)
    task = source.config.task.name
    if task != config.task.name:
        raise UserError(
            f"--init_from {path}: a run of task {task}, and {where} is of {config.task.name}. Name another."
        )
    if source.splits.digest != splits.digest:
        raise UserError(f"--init_from {path}: its splits differ from those of {where}. Use runs with equal splits.")
    return source


def demand_protected(model_path: str, splits: Splits) -> None:
    """Raise UserError for a backbone that was adapted while other splits were kept out of its images."""
    kind, _, folder = model_path.partition(":")
    if kind != "local-dir":
        return
    from stage1_pro.core.models.backbone import RECORD  # imports timm, which drawing splits need not wait for

    if not (Path(folder) / RECORD).is_file():
        return
    record = artifacts.read_json(Path(folder) / RECORD, "backbone")
    protected = record["pool"]["splits_digest"]
    if protected != splits.digest:
        origin = record["origin"]["model_path"]
        raise UserError(
            f"model_path {model_path}: it was adapted with val_calib and val_test of other splits kept out "
            f"({RECORD}: $.pool.splits_digest is {protected[:12]}…; these splits have {splits.digest[:12]}…), so it "
            f"may have learnt from images that certify or report here. Adapt {origin} for these splits "
            f"(10_explora_pretrain.py --model_path {origin} --run RUN, of a run that 00_make_splits.py made), or set "
            f"model_path to {origin}."
        )


def demand_machine(config: Stage1ProConfig) -> None:
    """Raise UserError where this machine lacks what the config needs: an extra, or a GPU that decodes."""
    demand_extras_of(config)
    if config.dataset_params.decode == "gpu":
        from stage1_pro.core.data.on_device import demand_gpu  # imports torch, which drawing splits need not wait for
        from stage1_pro.core.devices import fastest_device

        demand_gpu(fastest_device())


def _demand_classes(config: Stage1ProConfig, cases: CaseTable) -> None:
    count = len(cases.class_names)
    if PHASES[config.phase].gated and count != 2:
        raise UserError(
            f"the labels have {count} classes ({', '.join(cases.class_names)}); {BINARY.format(phase=config.phase)}."
        )


def _demand_initial_cases(config: Stage1ProConfig, cases: CaseTable, splits: Splits) -> None:
    """Raise UserError where the first stage of an incremental training cannot be drawn."""
    if config.incremental_params.enabled:
        _, strata, content = _pool(cases, splits)
        initial_cases(strata, content, cases.strata, config.incremental_params, config.seed)


def _pool(cases: CaseTable, splits: Splits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(case_id, stratum, content), each (N,), of the training split."""
    rows = splits.indices("train")
    frame = cases.frame.iloc[rows]
    return frame["case_id"].to_numpy(), cases.stratum[rows], frame["content"].to_numpy()


def is_first_process() -> bool:
    """Return whether this is the process that writes, under torchrun, SLURM or Lightning's own launcher."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def print_stages(config: Stage1ProConfig, cases: CaseTable, splits: Splits) -> None:
    """The stages of an incremental training at their longest."""
    case_id, strata, content = _pool(cases, splits)
    plan = planned(case_id, strata, content, cases.strata, config.incremental_params, config.seed)
    for line in plan_lines(plan, config.incremental_params, config.batch_size):
        say(line)

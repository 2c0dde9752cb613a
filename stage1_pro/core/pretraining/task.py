"""How a self-supervised adaptation begins: settings, labelled cases that guard it, unlabelled images it learns from."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.load import merge_configs, to_dict
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.run_cases import cases_of
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.pretraining.pool import Pool, find_pool, protected_contents
from stage1_pro.core.pretraining.settings import Pretraining
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.training.start import demand_protected, is_first_process, preview

JOURNAL = "pretraining.json"


@dataclass(frozen=True, slots=True)
class Task:
    """One adaptation: where it writes, how, and on what. source, run: as they were named on the command line."""

    folder: Path
    settings: Pretraining
    config: Stage1ProConfig
    source: str
    run: str | None
    cases: CaseTable
    splits: Splits
    pool: Pool

    def journal(self, weights_digest: str) -> dict[str, Any]:
        """Return what a resumed adaptation must find unchanged."""
        return {
            "schema_version": artifacts.SCHEMA_VERSION,
            "settings": self.settings.values(),
            "config": to_dict(self.config),
            "images": self.source,
            "run": self.run,
            "pool_digest": self.pool.digest,
            "splits_digest": self.splits.digest,
            "weights_digest": weights_digest,
        }


def new_task(
    images: str | None, out: str | None, run: str | None, settings: Pretraining, layers: list[tuple[str, Any]]
) -> Task:
    """Check everything that a new adaptation would use; nothing is written."""
    missing = ["--images FOLDER: unlabelled images, or a CSV file with a column 'path'"] * (not images)
    missing += ["--out FOLDER: where the adapted backbone goes"] * (not out)
    raise_problems("these options are needed", missing)
    settings.demand_valid()
    folder = Path(str(out))
    if is_first_process() and ((folder / JOURNAL).exists() or (folder / "backbone.json").exists()):
        raise UserError(f"{out} holds an adaptation already. Continue it with --resume {out}, or choose another --out.")
    if run:
        layers = [*_config_of(Run.open(run)), *layers]
    return _task(folder, settings, merge_configs(layers), str(images), run)


def task_to_resume(path: str, others: dict[str, Any], layers: list[tuple[str, Any]]) -> Task:
    """An adaptation that was interrupted, with its own settings.

    others: the options of this command line that differ from their defaults, --force aside.
    """
    given = [f"--{name}" for name in others] + ["--config or settings"] * bool(layers)
    if given:
        raise UserError(f"--resume takes the adaptation's own settings, and --force; drop {', '.join(given)}.")
    folder = Path(path)
    if not (folder / JOURNAL).exists():
        raise UserError(f"{folder} holds no adaptation to resume (no {JOURNAL} in it). Begin one with --out {folder}.")
    journal = artifacts.read_json(folder / JOURNAL, "pretraining")
    config = merge_configs([(str(folder / JOURNAL), journal["config"])])
    task = _task(folder, Pretraining(**journal["settings"]), config, journal["images"], journal["run"])
    for what, now in (("pool", task.pool.digest), ("splits", task.splits.digest)):
        if journal[f"{what}_digest"] != now:
            raise UserError(
                f"{folder}: the {what} changed since the adaptation began. Restore it, or begin in a new --out."
            )
    return task


def demand_same_weights(task: Task, digest: str) -> None:
    """Raise UserError where the backbone that a resumed adaptation began with has changed."""
    path = task.folder / JOURNAL
    if path.exists() and artifacts.read_json(path, "pretraining")["weights_digest"] != digest:
        raise UserError(
            f"{task.folder}: the weights of model_path {task.config.model_path} changed since the adaptation began. "
            "Restore them, or begin in a new --out."
        )


def changed(args: Any, *apart: str) -> dict[str, Any]:
    """Options of a command line that are not at their defaults, but for those named."""
    fields = [field for field in dataclasses.fields(args) if field.name not in apart]
    return {field.name: getattr(args, field.name) for field in fields if getattr(args, field.name) != field.default}


def _task(folder: Path, settings: Pretraining, config: Stage1ProConfig, images: str, run: str | None) -> Task:
    if config.task.has_masks:
        raise UserError("ExPLoRA adapts backbones of classifiers, and the task is segmentation: leave 10 out.")
    if run:
        cases, splits = cases_of(opened := Run.open(run), config), opened.splits
    else:
        cases, splits = preview(config)
    demand_protected(config.model_path, splits)  # what an adaptation has learnt stays in those that begin from it
    pool = find_pool(images, protected_contents(cases, splits), config.dataset_params.on_bad_image)
    return Task(folder, settings, config, images, run, cases, splits, pool)


def _config_of(run: Run) -> list[tuple[str, Any]]:
    """The run's own config, where it is trained already."""
    if not run.config_path.exists():
        return []
    return [(str(run.config_path), artifacts.read_json(run.config_path, "config"))]

"""A self-supervised adaptation from a checked task to a backbone that model_path takes."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml

from stage1_pro.core import artifacts
from stage1_pro.core.config.load import to_dict
from stage1_pro.core.console import say
from stage1_pro.core.errors import NoGain, UserError
from stage1_pro.core.models.backbone import feature_dim, load_backbone, weights_digest
from stage1_pro.core.models.licenses import demanded_license
from stage1_pro.core.models.parameters import trainable
from stage1_pro.core.models.stage1 import read_tensors
from stage1_pro.core.pretraining import guard
from stage1_pro.core.pretraining.adapt import adapt, adaptable
from stage1_pro.core.pretraining.export import plain_weights, write_backbone
from stage1_pro.core.pretraining.figure import draw_pretraining
from stage1_pro.core.pretraining.guard import Guard, Row, Verdict
from stage1_pro.core.pretraining.loader import PoolModule
from stage1_pro.core.pretraining.module import ExploraModule
from stage1_pro.core.pretraining.probe import NEIGHBOURS, Probe, features_of, measure, probe_cases
from stage1_pro.core.pretraining.task import JOURNAL, Task, demand_same_weights
from stage1_pro.core.records.provenance import environment
from stage1_pro.core.records.run import Run
from stage1_pro.core.report.common.style import render
from stage1_pro.core.training.callbacks.checkpoints import LAST, RunCheckpoint, checkpoint
from stage1_pro.core.training.start import is_first_process
from stage1_pro.core.training.trainer import lightning_trainer

SETTINGS = "train.yaml"
"""Settings for 20_train.py, which trains from the adapted backbone."""


class Adaptation:
    """The parts of one task that need torch: the module to train and what its backbone was."""

    def __init__(self, task: Task):
        config = task.config
        pl.seed_everything(config.seed, verbose=False)
        backbone, self.spec = load_backbone(config.model_path, config.dataset_params.image_size)
        self.spec = replace(self.spec, license=demanded_license(self.spec.license, config))
        feature_dim(backbone, self.spec.preprocessing.size)  # raises for a size that the backbone cannot take
        self.origin_digest = weights_digest(backbone.net.state_dict())
        demand_same_weights(task, self.origin_digest)
        self.backbone = adaptable(backbone, self.spec)
        self.trained = adapt(self.backbone, task.settings.lora_rank, task.settings.full_blocks)
        pl.seed_everything(config.seed, verbose=False)
        self.module = ExploraModule(
            self.backbone, self.spec.preprocessing, task.settings, config.seed, config.weight_decay
        )


def print_plan(task: Task, adaptation: Adaptation) -> None:
    """Print what the adaptation would do, in a few lines."""
    settings, spec, config = task.settings, adaptation.spec, task.config
    task.pool.describe()
    moving = sum(parameter.numel() for _, parameter in trainable(adaptation.backbone))
    total = sum(parameter.numel() for parameter in adaptation.backbone.parameters())
    say(f"backbone    {config.model_path} ({spec.license}), {spec.preprocessing.size} px")
    say(
        f"trained     {moving:,} of its {total:,} parameters: the last {settings.full_blocks} whole, rank "
        f"{settings.lora_rank} on query and value of the others, norms, class token"
    )
    say(f"objective   {settings.objective}, {settings.steps} steps, batch {config.batch_size}, lr {settings.lr:g}")
    cases = probe_cases(task.cases, task.splits, settings.probe_cases, config.seed)
    say(
        f"guard       kNN probe (k={NEIGHBOURS}, cosine) on {len(cases)} labelled train cases "
        f"every {settings.probe_every} steps"
    )


def record_begin(task: Task, adaptation: Adaptation) -> None:
    """Write down what a resumed adaptation must find unchanged."""
    if not is_first_process() or (task.folder / JOURNAL).exists():
        return
    guard.best_path(task.folder).parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(task.folder / JOURNAL, task.journal(adaptation.origin_digest), "pretraining")


def fit(task: Task, adaptation: Adaptation) -> None:
    """Train to the end, from the last checkpoint where there is one."""
    last = _last(task.folder)
    if last.exists() and read_tensors(last)["callbacks"]["Guard"]["ended"]:
        return
    config, preprocessing = task.config, adaptation.spec.preprocessing
    workers = config.dataset_params.num_workers
    pool = PoolModule(
        task.pool.paths, preprocessing, config.seed, config.batch_size, task.settings.probe_every, workers
    )
    trainer = lightning_trainer(
        config,
        task.folder,
        [
            Guard(_prober(task, adaptation), task.folder, plain_lines=not sys.stdout.isatty()),
            checkpoint(RunCheckpoint, task.folder / "checkpoints", LAST),
        ],
        max_epochs=task.settings.probes,
        gradient_clip_val=config.max_grad_norm or None,
        logger=False,
    )
    try:
        trainer.fit(adaptation.module, pool, ckpt_path=last if last.exists() else None, weights_only=True)
    except torch.OutOfMemoryError:
        half = max(1, config.batch_size // 2)
        raise UserError(f"out of GPU memory at batch_size {config.batch_size}: try --batch_size {half}.") from None


def finish(task: Task, adaptation: Adaptation, force: bool) -> None:
    """Let the guard speak; write the figure, and the backbone unless it is worse than the one it came from.

    Raises NoGain where the guard blocks the export.
    """
    rows: list[Row] = read_tensors(_last(task.folder))["callbacks"]["Guard"]["rows"]
    judged = guard.verdict(rows)
    artifacts.write_bytes(
        task.folder / "pretraining.png", render(lambda f: draw_pretraining(f, rows), 7.2, "pretraining").png
    )
    say(f"figures     {task.folder / 'pretraining.png'}, pretraining.csv")
    for warning in guard.warnings_of(rows):
        say(f"warning: {warning}")
    if judged.kept is None:
        raise NoGain(
            "guard: pretraining diverged: no features after step 0 are usable, so nothing can be exported, --force "
            "or not. Begin in a new --out with a lower --lr."
        )
    if not judged.passed and not force:
        raise NoGain(_blocked(task, judged))
    say(_passed(judged))
    _export(task, adaptation, rows, judged)


def _export(task: Task, adaptation: Adaptation, rows: list[Row], judged: Verdict) -> None:
    best = read_tensors(guard.best_path(task.folder))
    if best["step"] != judged.kept_step:
        raise UserError(
            f"{guard.best_path(task.folder)}: of step {best['step']}, not {judged.kept_step}. Begin in a new --out."
        )
    weights = plain_weights(adaptation.backbone.cpu(), best["tensors"])
    adaptation.spec.build().net.load_state_dict(weights)  # our invariant: the net without crops of other sizes takes it
    pool, spec = task.pool, adaptation.spec
    facts = {
        "origin": {
            "model_path": task.config.model_path,
            "weights_digest": adaptation.origin_digest,
            "license": spec.license,
        },
        "training": {
            **task.settings.values(),
            "batch_size": task.config.batch_size,
            "seed": task.config.seed,
            "precision": task.config.precision,
        },
        "pool": {
            "images": len(pool),
            "excluded": pool.excluded,
            "duplicates": pool.duplicates,
            "unreadable": pool.unreadable,
            "digest": pool.digest,
            "splits_digest": task.splits.digest,
        },
        "probe": {
            "neighbours": NEIGHBOURS,
            "start": judged.start,
            "final": judged.final,
            "kept": judged.kept,
            "kept_step": judged.kept_step,
            "forced": not judged.passed,
            "curve": [_point(row) for row in rows],
        },
        "provenance": environment(task.config.seed),
    }
    write_backbone(task.folder, spec, weights, facts)
    _write_settings(task, spec.preprocessing.size)


def words_to_train(task: Task) -> list[str]:
    """Return the words after 20_train.py that train from the adapted backbone: the task's run, if it is untrained."""
    awaits = task.run is not None and not Run.open(task.run).config_path.exists()
    return ["--config", str(task.folder / SETTINGS), *(["--run", str(task.run)] if awaits else [])]


def _write_settings(task: Task, size: int) -> None:
    """Write the config of this adaptation as one that trains from its backbone."""
    settings = to_dict(task.config)
    settings |= {"model_path": f"local-dir:{task.folder}", "backbone_license": None}
    settings["dataset_params"] |= {"image_size": size}
    artifacts.write_bytes(task.folder / SETTINGS, yaml.safe_dump(settings, allow_unicode=True).encode())


def _point(row: Row) -> dict[str, float]:
    return {"step": int(row["step"]), **{name: row[name] for name in ("knn", "feature_std", "effective_rank")}}


def _blocked(task: Task, judged: Verdict) -> str:
    return (
        f"guard: not exported. The probe ended at {judged.final:.4f} (step {judged.final_step}), below "
        f"{judged.start:.4f} at step 0: pretraining has made these features worse at telling your classes apart. Its "
        f"best was {judged.kept:.4f} at step {judged.kept_step}. Try a lower --lr, fewer --steps, --colour 0 where "
        f"colour tells the classes apart, or the other --objective. --resume {task.folder} --force exports that best "
        "all the same."
    )


def _passed(judged: Verdict) -> str:
    words = (
        f"guard: the probe stood at {judged.start:.4f} at step 0 and ended at {judged.final:.4f} "
        f"({judged.final - judged.start:+.4f}); kept is its best, {judged.kept:.4f} at step {judged.kept_step}"
    )
    if not judged.passed:
        return f"{words}. It ended below step 0 and is exported by --force alone"
    return (
        words if judged.kept != judged.start else f"{words}. That is no gain: the backbone it came from serves as well"
    )


def _prober(task: Task, adaptation: Adaptation) -> Callable[[ExploraModule], Probe]:
    config, preprocessing = task.config, adaptation.spec.preprocessing
    cases = probe_cases(task.cases, task.splits, task.settings.probe_cases, config.seed)
    workers = config.dataset_params.num_workers

    def probe(module: ExploraModule) -> Probe:
        features = features_of(module.judged, cases, preprocessing, config.batch_size, workers, module.device)
        return measure(features, cases)

    return probe


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"

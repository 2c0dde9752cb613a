"""One training run from a checked case table to model_best.pth and its scores."""

import os
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.errors import UserError
from stage1_pro.core.incremental.resume import Course
from stage1_pro.core.models.adapters import add_adapters
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.licenses import demanded_license
from stage1_pro.core.models.parameters import parameter_counts
from stage1_pro.core.models.stage1 import Stage1Model, load_model
from stage1_pro.core.optim.fsam import perturbed_parameters
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.training.callbacks.checkpoints import FEATURES, judged_weights, way_back
from stage1_pro.core.training.callbacks.epochs import write_epochs
from stage1_pro.core.training.callbacks.last_reading import LastReading
from stage1_pro.core.training.crossfit import GateTargets
from stage1_pro.core.training.extension import ended_after, epochs_of, saved_by
from stage1_pro.core.training.feature_cache import cached_features
from stage1_pro.core.training.modules.base import Stage1Module
from stage1_pro.core.training.modules.conformal import ConformalModule
from stage1_pro.core.training.modules.selective import SelectiveModule
from stage1_pro.core.training.stages import course_of_run, prepare_stages, print_first_admission
from stage1_pro.core.training.start import LAUNCHED_RUN, backbone_digest, is_first_process

MODULES: dict[str, type[Stage1Module]] = {
    "cross_entropy": Stage1Module,
    "selective": SelectiveModule,
    "conformal": ConformalModule,
}
"""The Lightning module by the phase's loss."""


def build_model(config: Stage1ProConfig, class_names: tuple[str, ...], init_from: Run | None = None) -> Stage1Model:
    """The untrained model: backbone as `model_path` names it, heads by seed, or another run's weights."""
    pl.seed_everything(config.seed, verbose=False)
    backbone, spec = load_backbone(config.model_path, config.dataset_params.image_size)
    spec = replace(spec, preprocessing=spec.preprocessing.decoded_by(config.dataset_params.decode))
    members = config.head_ensemble if PHASES[config.phase].gated else None
    model = Stage1Model.new(backbone, spec, class_names, config.dropout, members)
    if init_from is not None:
        _take_weights(model, init_from)
    model.spec = replace(model.spec, license=demanded_license(model.spec.license, config))
    if config.freeze_backbone:
        # before the adapters are added, which train where the backbone does not
        model.freeze_backbone()
    elif config.batch_size == 1 and any(isinstance(part, _BatchNorm) for part in model.backbone.modules()):
        raise UserError(
            "$.batch_size is 1, and the backbone's batch norms take their statistics from the batch: set batch_size: 2 "
            "or more, or freeze_backbone: true."
        )
    if config.adapted:
        add_adapters(model.backbone, config, model.spec.preprocessing.size)
    if config.sharpness_aware:
        perturbed_parameters(model, config.fsam_target)  # refuses a target that this model does not have
    return model


def model_for_images(config: Stage1ProConfig, cases: CaseTable, _: Splits, source: Run | None) -> Stage1Model:
    """The untrained model of a classification."""
    return build_model(config, cases.class_names, source)


def record_begin(run: Run, config: Stage1ProConfig, model: Any, source: Run | None, resume: bool) -> None:
    """Record config, environment and the source of the weights of a new run; a resumed one has them."""
    # one process writes; the others meet at the first step
    if resume or not is_first_process():
        return
    spec = model.spec
    facts = {
        spec.preprocessing.name: spec.preprocessing.to_dict(),
        "backbone": config.model_path,
        "backbone_license": spec.license,
        "backbone_digest": backbone_digest(config.model_path),
        "parameters": parameter_counts(model),
        "init_from": None if source is None else {"run": str(source.path), "model_digest": source.weights_digest},
    }
    run.begin_training(config, facts)


def print_plan(config: Stage1ProConfig, model: Any, cases: CaseTable) -> None:
    """Print what training would do with these cases, in a few lines."""
    phase, spec, counts = PHASES[config.phase], model.spec, parameter_counts(model)
    say(
        f"phase       {phase.number} {phase.name}: heads {', '.join(phase.heads)}; "
        f"checkpoint by {config.monitor} ({config.monitor_mode})"
    )
    say(
        f"policy      {config.exit_policy}, target_fnr_exit {config.target_words()} "
        f"at confidence {config.fnr_confidence:g}"
    )
    if config.places_answers and len(cases.class_names) == 2:
        say(
            f"exits       one-sided; answers placed on val_select at {config.false_alarm_price:g} deferrals a "
            f"false alarm, {config.miss_price:g} a miss"
        )
    else:
        say(f"exits       {config.exit_rule.replace('_', '-')}; answers as they are trained")
    say(f"{model.kind:<11} {config.model_path} ({spec.license}), {model.words}")
    say(f"parameters  {counts['trainable']:,} trainable of {counts['total']:,}; adapters: {config.peft_words}")
    stages = config.incremental_params
    span = f"stages of up to {stages.max_epochs_per_stage} epochs" if stages.enabled else f"{config.epochs} epochs"
    say(f"training    {span}, batch {config.batch_size} x {config.grad_accum_steps}, seed {config.seed}")
    for sentence in config.without_effect:
        say(f"no effect   {sentence}")


def first_admission(config: Stage1ProConfig, model: Any, cases: CaseTable, splits: Splits, trainer: pl.Trainer) -> None:
    """Print whom a trained model would admit to the initial cases. trainer: of one device, which scores them."""
    data = config.task.part("data_module")(config, model, cases, splits)
    module = config.task.part("module")(config, model, data)
    print_first_admission(config, module, data, trainer)


def fit(
    run: Run, config: Stage1ProConfig, model: Any, cases: CaseTable, trainer: pl.Trainer, restore_state: bool
) -> LastReading:
    """Train to the end or to early stopping, from the last checkpoint where there is one.

    restore_state: put state.json of an incremental training back from the checkpoint's copy first. Returns the images
    that are read after it.
    """
    reading = LastReading(run, config, model, cases)
    if not config.task.has_masks:
        trainer.callbacks.append(reading)  # pyright: ignore[reportAttributeAccessIssue]
    data = config.task.part("data_module")(config, model, cases, run.splits)
    course = None
    if config.incremental_params.enabled:
        course = course_of_run(run, config, data, restore_state)
        finished = course is not None and course.finished
    else:
        # a run may have been killed between its last epoch and model_best.pth: then only `finish` is left to do
        finished = ended_after(run, config) is not None
        if finished:
            reading.load_state_dict(saved_by(FEATURES, run, config))
    if not finished:
        data.features = _features(run, config, model, cases)
        fit_on(run, config, model, data, trainer, course)
    elif is_first_process() and not run.metrics_path.exists() and (run.checkpoints_path / "last.ckpt").exists():
        write_epochs(run.metrics_path, epochs_of(run, config)["rows"])
    if not (run.checkpoints_path / "best.ckpt").exists():
        raise UserError(f"{config.monitor} was never finite: training diverged. Lower lr_head and lr_backbone.")
    return reading


def fit_on(
    run: Run,
    config: Stage1ProConfig,
    model: Any,
    data: Stage1DataModule,
    trainer: pl.Trainer,
    course: Course | None = None,
) -> None:
    """Train on the loaders of a datamodule, from the last checkpoint where there is one.

    course: how an incremental training goes on.
    """
    last = run.checkpoints_path / "last.ckpt"
    module = config.task.part("module")(config, model, data)
    if config.incremental_params.enabled:
        prepare_stages(trainer, run, config, data, course)  # each stage tells the module of its own cases
    else:
        module.train_on(data.active, data.class_counts)
    if config.compile:
        model.compile()
    os.environ[LAUNCHED_RUN] = str(run.path)  # Lightning's launcher starts this script again, once a device
    try:
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except torch.OutOfMemoryError:
        half = max(1, config.batch_size // 2)
        raise UserError(
            f"out of GPU memory at batch_size {config.batch_size}: train a new run with --batch_size {half} "
            f"--grad_accum_steps {2 * config.grad_accum_steps}."
        ) from None
    finally:
        del os.environ[LAUNCHED_RUN]


def load_best(run: Run, model: Any) -> None:
    """The best checkpoint's weights, their average where EMA is on."""
    state = judged_weights(run.checkpoints_path / "best.ckpt", way_back(run, run.config))
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    model.cpu().load_state_dict({**model.state_dict(), **weights})


def module_class(config: Stage1ProConfig) -> type[Stage1Module]:
    """Return the Lightning module that trains this config."""
    return MODULES[PHASES[config.phase].loss]


def make_module(
    config: Stage1ProConfig,
    model: Stage1Model,
    class_counts: np.ndarray,
    features: np.ndarray | None,
    labels: np.ndarray,
    groups: np.ndarray,
) -> Stage1Module:
    """The config's Lightning module, to be told by `train_on` of the cases in training.

    features: (N, D) of the training split where they are cached; labels, groups: (N,) of the same cases, from which a
    gate's out-of-fold targets are made.
    """
    kind = module_class(config)
    if features is not None and issubclass(kind, SelectiveModule):
        targets = GateTargets(features, labels, groups, config, fastest_device())
        return kind(model, config, class_counts, True, targets)
    return kind(model, config, class_counts, features is not None)


def images_of(config: Stage1ProConfig, model: Stage1Model, cases: CaseTable, splits: Splits) -> Stage1DataModule:
    """The loaders of a classification."""
    return Stage1DataModule(cases, splits, config, model.spec.preprocessing)


def module_for_images(config: Stage1ProConfig, model: Stage1Model, data: Stage1DataModule) -> Stage1Module:
    """The Lightning module of a classification, for the cases and features that `data` has."""
    cached = None if data.features is None else data.features["train"]
    groups = data.frames["train"]["group"].to_numpy()
    return make_module(config, model, data.class_counts, cached, data.labels("train"), groups)


def _features(run: Run, config: Stage1ProConfig, model: Any, cases: CaseTable) -> dict[str, np.ndarray] | None:
    """Cached features of the two splits that training reads, where the config allows a cache."""
    if not config.reads_cached_features:
        return None
    features = {split: cached(run, config, model, cases, split) for split in ("train", "val_select")}
    model.backbone.cpu()
    return features


def cached(run: Run, config: Stage1ProConfig, model: Stage1Model, cases: CaseTable, split: str) -> np.ndarray:
    """(N, D) features of a split by the frozen backbone, out of the cache where they are in it."""
    frame, stages = cases.frame.iloc[run.splits.indices(split)], config.incremental_params
    block = stages.score_batch_size if stages.enabled else config.batch_size  # stages: no pick depends on batch_size
    with bar(f"features of {split}") as progress:
        return cached_features(
            model.backbone,
            model.spec,
            list(frame["path"]),
            list(frame["content"]),
            run.path.resolve().parent / ".feature_cache",
            batch_size=block,
            workers=config.dataset_params.num_workers,
            device=fastest_device(),
            progress=progress,
        )


def _take_weights(model: Stage1Model, other: Run) -> None:
    """Start from the weights of another run, as far as both models have them."""
    source = load_model(other.model_path)
    if source.spec.arch != model.spec.arch or source.features != model.features:
        raise UserError(
            f"--init_from {other.path}: its backbone is {source.spec.arch}, this run's is {model.spec.arch}."
        )
    model.take_weights(source)
    model.spec = replace(model.spec, license=source.spec.license)  # its weights are what is trained on

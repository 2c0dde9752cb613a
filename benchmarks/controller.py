"""What training by stages costs in an epoch of live images that ends no stage, and how long loaders take to make."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from result import Result, fastest

ROOT = Path(__file__).parents[1]
CONFIGS = ("configs/phase2.yaml", "configs/incremental.yaml")
EPOCHS, CASES, WORKERS = 4, 128, 2


def measure() -> list[Result]:
    import lightning.pytorch as pl
    import torch

    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.data.cases import load_cases
    from stage1_pro.core.data.datamodule import Stage1DataModule
    from stage1_pro.core.data.splitting import make_splits
    from stage1_pro.core.records.run import Run
    from stage1_pro.core.training.callbacks.epochs import EpochTable
    from stage1_pro.core.training.callbacks.stage_controller import IncrementalStageController, LRFloorStop, StageLine
    from stage1_pro.core.training.fit import build_model, fit_on
    from stage1_pro.core.training.trainer import make_trainer

    torch.set_num_threads(1)
    changes = {"feature_cache": "off", "devices": 1, "incremental_params": {"initial_cases": CASES}}
    config = merge_configs([*((name, ROOT / name) for name in CONFIGS), ("benchmark", {**changes, **workers(0)})])
    cases = load_cases(config.dataset_params, decode=False)
    model = build_model(config, cases.class_names)
    data = Stage1DataModule(cases, make_splits(cases, config), config, model.spec.preprocessing)
    spent = {"stages": 0.0, "epochs": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = make_trainer(Run(Path(folder)), config)
        trainer.fit_loop.max_epochs = EPOCHS
        for callback in trainer.callbacks:
            if isinstance(callback, IncrementalStageController | LRFloorStop | StageLine):
                for hook in ("on_train_epoch_start", "on_validation_end", "on_train_epoch_end", "state_dict"):
                    setattr(callback, hook, counted(getattr(callback, hook), spent, "stages"))
        trainer.fit_loop.advance = counted(trainer.fit_loop.advance, spent, "epochs")
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, EpochTable | pl.callbacks.ProgressBar)]
        fit_on(Run(Path(folder)), config, model, data, trainer)
    reload = {count: remade(Stage1DataModule, data, config, count) for count in (0, WORKERS)}
    note = (
        f"of {spent['epochs'] / EPOCHS:.2f} CPU s for {CASES} images and val_select; loaders made anew: "
        f"{1000 * reload[0]:.1f} ms, with {WORKERS} workers {1000 * reload[WORKERS]:.0f} ms"
    )
    return [Result("controller / epoch without a transition", spent["stages"] / spent["epochs"], 0.03, "at most", note)]


def workers(count: int) -> dict[str, Any]:
    return {"dataset_params": {"num_workers": count}}


def counted(function: Callable, spent: dict[str, float], name: str) -> Callable:
    """The function, whose CPU seconds are added up."""

    def call(*arguments: Any) -> Any:
        begun = process_time()
        try:
            return function(*arguments)
        finally:
            spent[name] += process_time() - begun

    return call


def remade(kind: Any, data: Any, config: Any, count: int) -> float:
    """Seconds in which both loaders are made and begin, with so many workers."""
    from dataclasses import replace

    config = replace(config, dataset_params=replace(config.dataset_params, num_workers=count))
    fresh = kind.__new__(kind)
    fresh.__dict__.update(data.__dict__, config=config)

    def once() -> None:
        for loader in (fresh.train_dataloader(), fresh.val_dataloader()):
            iter(loader)

    return fastest({"loaders": once}, 3)["loaders"]

"""Training on after an end: the config takes a later one, and a schedule that begins anew where training stands."""

import math
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.stage1 import read_tensors
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks.checkpoints import way_back


def ended_after(run: Run, config: Stage1ProConfig) -> int | None:
    """Epochs after which the training of a run came to its end, planned or by patience; None where it has not."""
    if not (run.checkpoints_path / "last.ckpt").exists():
        return None
    table = epochs_of(run, config)
    done = int(table["rows"][-1]["epoch"]) + 1
    return done if table["finished"] and done not in config.schedule_restarts else None


def epochs_of(run: Run, config: Stage1ProConfig) -> dict[str, Any]:
    """What the last checkpoint holds of the epochs: rows of metrics.csv, and whether training is finished."""
    return saved_by("EpochTable", run, config)


def saved_by(callback: str, run: Run, config: Stage1ProConfig) -> dict[str, Any]:
    """What a callback left in the last checkpoint; nothing where it had no state."""
    return read_tensors(run.checkpoints_path / "last.ckpt", way_back(run, config))["callbacks"].get(callback, {})


def later_ends(layers: list[tuple[str, Any]]) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return the layers of a command line that set epochs alone, and the others."""
    found: tuple[list[tuple[str, Any]], list[tuple[str, Any]]] = ([], [])
    for layer in layers:
        found[not (isinstance(layer[1], dict) and list(layer[1]) == ["epochs"])].append(layer)
    return found


def extended(run: Run, layers: list[tuple[str, Any]]) -> Stage1ProConfig:
    """The run's config with another end, asked for by `--resume RUN --epochs N`.

    layers: the settings of the command line, epochs alone. Asked again after a kill it goes on like --resume. Raises
    UserError where there is nothing to train on from, or what follows from these weights would no longer hold.
    """
    config, saved = run.config, artifacts.read_json(run.config_path, "config")
    epochs = merge_configs([(str(run.config_path), {**saved, "schedule_restarts": []}), *layers]).epochs
    if config.incremental_params.enabled:
        raise UserError(
            f"--epochs: {run.path} trains by stages, which have ends of their own. Begin a new run with other "
            "incremental_params."
        )
    done = ended_after(run, config)
    if epochs == config.epochs and (done is None or done == epochs):
        return config
    if done is None:
        raise UserError(
            f"--epochs: {run.path} has not come to its end yet, after {config.epochs} epochs at most. Finish it with "
            f"--resume {run.path} first."
        )
    least = done + max(1, math.ceil(config.warmup_epochs))
    if epochs < least:
        raise UserError(
            f"--epochs is {epochs}, and {run.path} has trained {done}; with a warm-up of {config.warmup_epochs:g}, "
            f"which begins anew, allowed {least} or more."
        )
    _demand_uncalibrated(run)
    say(f"training goes on from epoch {done} to {epochs}: warm-up, cosine and patience begin anew")
    return merge_configs(
        [(str(run.config_path), saved), *layers, ("--epochs", {"schedule_restarts": [*config.schedule_restarts, done]})]
    )


def _demand_uncalibrated(run: Run) -> None:
    """Raise UserError where a policy was calibrated for the weights that training would replace."""
    if run.policy_path.exists():
        raise UserError(
            f"--epochs: {run.policy_path} is certified for the present weights. Train on in a new run: "
            f"00_make_splits.py --config {run.config_path} --run NEW, then 20_train.py --config {run.config_path} "
            f"--run NEW --init_from {run.path}."
        )

"""The guard: probes the features while they change, keeps the best, and says whether the result may be used."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from stage1_pro.core import artifacts
from stage1_pro.core.console import say
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.models.stage1 import write_tensors
from stage1_pro.core.pretraining.module import ExploraModule
from stage1_pro.core.pretraining.probe import Probe

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probe said: at step 0, at the end, and at the best step after 0 (None where there is none)."""

    start: float
    final: float
    final_step: int
    kept: float | None
    kept_step: int | None

    @property
    def passed(self) -> bool:
        return self.final >= self.start


class Guard(pl.Callback):
    """Probes at step 0 and after every epoch, which is the stretch of probe_every steps.

    The rows are part of the checkpoint, so a resumed training has them all. The best step's tensors are written before
    the checkpoint is: a kill between the two repeats the stretch and finds the same best again.
    """

    def __init__(self, probe: Callable[[ExploraModule], Probe], folder: Path, plain_lines: bool):
        self.probe, self.folder, self.plain_lines = probe, folder, plain_lines
        self.rows: list[Row] = []
        self.ended = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.rows:
            assert isinstance(pl_module, ExploraModule)
            self._record(trainer, {"step": 0, **self.probe(pl_module).to_dict()})

    def on_train_epoch_start(self, *_: Any) -> None:
        self.begun, self.images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.images += len(batch.labels)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ExploraModule)
        speed = self.images * trainer.world_size / max(1e-9, time.perf_counter() - self.begun)
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        probe = self.probe(pl_module).to_dict()
        row = {"step": trainer.global_step, **dict(sorted(figures.items())), **probe, "images_per_second": speed}
        # collapsed features are all neighbours of each other: their vote may look good and is worth nothing
        if probe["feature_std"] and probe["knn"] > max((row["knn"] for row in self.rows[1:]), default=-1.0):
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.adapted.items()}
            if trainer.is_global_zero:
                write_tensors(best_path(self.folder), {"step": row["step"], "tensors": tensors})
        if not math.isfinite(figures.get("train_loss", math.nan)):
            trainer.should_stop = True
        self.ended = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._record(trainer, row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.ended = list(state_dict["rows"]), state_dict["ended"]

    def _record(self, trainer: pl.Trainer, row: Row) -> None:
        self.rows.append(row)
        if trainer.is_global_zero:
            columns = dict.fromkeys(name for row in reversed(self.rows) for name in row)  # step 0 has no loss
            artifacts.write_csv(self.folder / "pretraining.csv", self.rows, list(columns))
            if self.plain_lines:
                steps = getattr(trainer.lightning_module, "settings").steps  # noqa: B009
                say("  " + line(row, steps))


def best_path(folder: Path) -> Path:
    return folder / "checkpoints" / "best.pth"


def line(row: Row, steps: int) -> str:
    """One probe in words."""
    parts = [f"step {int(row['step'])}/{steps}", f"probe {row['knn']:.4f}"]
    parts += [f"loss {row['train_loss']:.4f}"] if "train_loss" in row else []
    parts += [f"feature std {row['feature_std']:.3f}", f"effective rank {row['effective_rank']:.1f}"]
    parts += [f"{row['images_per_second']:.0f} images/s"] if "images_per_second" in row else []
    return "  ".join(parts)


def verdict(rows: list[Row]) -> Verdict:
    """Judge a finished training. A step whose features are not finite, or all one, is never the best."""
    usable = [row for row in rows[1:] if row["feature_std"]]
    best = max(usable, key=lambda row: row["knn"], default=None)  # the earliest of equals
    kept, step = (best["knn"], int(best["step"])) if best else (None, None)
    return Verdict(rows[0]["knn"], rows[-1]["knn"], int(rows[-1]["step"]), kept, step)


def warnings_of(rows: list[Row]) -> list[str]:
    """Signs of collapse, in words."""
    start, end, found = rows[0], rows[-1], []
    if end["effective_rank"] < start["effective_rank"] / 2:
        found.append(
            f"the features use {end['effective_rank']:.1f} directions, {start['effective_rank']:.1f} at step 0: they "
            "are collapsing"
        )
    if end["feature_std"] < start["feature_std"] / 2:
        found.append("images have come to look alike to the backbone: their features spread less than half as wide")
    return found

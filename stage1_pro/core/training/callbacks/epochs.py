"""One row per epoch: metrics.csv for machines, one plain line for people, throughput for both."""

import resource
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from stage1_pro.core import artifacts
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.devices import Moment

DATA_WAIT_WARNING = 0.3


class Throughput(pl.Callback):
    """Logs what an epoch cost: images per second of the training steps on all devices, the share of their time in which
    the device had nothing to do until the next batch came, the seconds of the whole epoch, validation and what came
    between it and the last one included, and the largest memory so far."""

    ended: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = self.step_ended = Moment(module.device)
        self.images, self.waits = 0, list[tuple[Moment, Moment]]()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, *_: Any) -> None:
        self.waits.append((self.step_ended, Moment(module.device)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self.images += len(batch.labels) * trainer.world_size
        self.step_ended = Moment(module.device)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        elapsed = max(1e-9, self.step_ended.seconds_since(self.started))
        waited = sum(came.seconds_since(ended) for ended, came in self.waits)
        self.figures = {"images_per_second": self.images / elapsed, "data_wait_share": waited / elapsed}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        last, self.ended = self.ended, time.perf_counter()
        whole = {"epoch_seconds": self.ended - (self.started.clock if last is None else last)}
        module.log_dict(self.figures | whole | peak_memory(module.device), rank_zero_only=True)
        # cached features have no workers to add, and a step of heads alone is shorter than any wait
        if self.figures["data_wait_share"] > DATA_WAIT_WARNING and not getattr(module, "from_features", False):
            trainer.print(
                f"  {self.figures['data_wait_share']:.0%} of the epoch waited for data: "
                "raise dataset_params.num_workers"
            )


def peak_memory(device: torch.device) -> dict[str, float]:
    """Largest memory of this process so far, in MiB: of the GPU's tensors where there is a GPU, else resident."""
    if device.type == "cuda":
        return {"peak_gpu_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    return {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def write_epochs(path: Path, rows: list[dict[str, float]]) -> None:
    """Write metrics.csv: a row an epoch, with the columns of any."""
    artifacts.write_csv(path, rows, list(dict.fromkeys(name for row in rows for name in row)))


class EpochTable(pl.Callback):
    """Rewrites metrics.csv after every epoch, and prints the epoch's line where there is no live bar.

    shown: columns of an epoch's line, beside the monitor. The rows are part of the checkpoint: after a resume the file
    is the one of an uninterrupted run.
    (Lightning's CSVLogger starts the file anew on resume and spreads an epoch over several rows.)
    """

    def __init__(self, path: Path, monitor: str, plain_lines: bool, shown: tuple[str, ...] = ()):
        self.path, self.monitor, self.plain_lines, self.shown = path, monitor, plain_lines, shown
        self.rows: list[dict[str, float]] = []
        self.finished = False

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        figures = {name.replace("/", "_"): float(value) for name, value in trainer.callback_metrics.items()}
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **dict(sorted(figures.items()))})
        if trainer.is_global_zero:
            write_epochs(self.path, self.rows)
            if self.plain_lines:
                print(self._line(trainer), flush=True)

    def _line(self, trainer: pl.Trainer) -> str:
        row, names = self.rows[-1], dict.fromkeys((*self.shown, self.monitor))
        stage = f"stage {int(row['stage'])}, {int(row['active_cases'])} cases  " if "stage" in row else ""
        figures = [f"{name} {row[name]:.{5 if name.endswith('augrc') else 4}f}" for name in names if name in row]
        epoch, speed = f"epoch {int(row['epoch']) + 1}/{trainer.max_epochs}", f"{row['images_per_second']:.0f} images/s"
        return "  " + stage + "  ".join([epoch, *figures, speed])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "finished": self.finished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

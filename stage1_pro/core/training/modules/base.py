"""Stage1Module: the Lightning module that trains a Stage1Model."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.devices import gather
from stage1_pro.core.errors import UserError
from stage1_pro.core.losses.cross_entropy import ClassLoss, balanced_weights
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.metrics.epochs import epoch_metrics
from stage1_pro.core.models.parameters import trainable
from stage1_pro.core.models.stage1 import Outputs
from stage1_pro.core.optim.schedule import parameter_groups, warmup_cosine
from stage1_pro.core.seeds import seed_of
from stage1_pro.core.training.modules.sharp import SharpTraining


@dataclass(frozen=True, slots=True)
class Clock:
    """Where a schedule of learning rates stands: it had run for `epochs_before` epochs at optimizer step `first_step`,
    and an epoch has `steps_per_epoch` steps since then."""

    first_step: int
    steps_per_epoch: int
    epochs_before: float = 0.0

    def epochs(self, step: int) -> float:
        """Epochs of the schedule that are done at a step of the run."""
        return self.epochs_before + (step - self.first_step) / self.steps_per_epoch


class Stage1Module(pl.LightningModule):
    """Cross entropy with class weights and label smoothing.

    class_counts: (C,) training cases per class. from_features: batches hold cached features, not
    images. Dropout is seeded by epoch, so that a resumed run goes on as if it had never stopped.
    """

    first_epoch = 0
    """The epoch in which the schedule in force began, which is that of a stage in incremental training."""
    fresh = True
    """Whether the weights were untrained when it began."""
    clock = Clock(0, 1)
    """Of the learning rates of an incremental training."""
    seen: Tensor | None = None
    """(B, D) features of the last batch of images that went through the model."""

    def __init__(self, model: Any, config: Stage1ProConfig, class_counts: np.ndarray, from_features: bool):
        super().__init__()
        self.schedule_epochs = config.schedule_epochs
        self.strict_loading = False  # checkpoints leave out what is frozen of a backbone
        self.model, self.config, self.from_features = model, config, from_features
        self._make_losses(class_counts)
        self.sharp = SharpTraining(self) if config.sharpness_aware else None
        self.automatic_optimization = self.sharp is None  # Lightning's own step makes one pass, not two
        self._validated: list[tuple[Tensor, ...]] = []
        self._of_pool: list[tuple[Tensor, ...]] | None = None

    def _make_losses(self, class_counts: np.ndarray) -> None:
        # its weights are not in checkpoints: they follow from the cases in training, which the datamodule restores
        self.class_loss = ClassLoss(self._weights(class_counts), self.config.label_smoothing)
        self.validation_loss = ClassLoss(balanced_weights(class_counts), self.config.label_smoothing)

    @property
    def settled_epoch(self) -> int:
        """The first epoch of the schedule in which the phase's own loss is in force."""
        return self.first_epoch

    @property
    def stage_epoch(self) -> int:
        """Epochs since the schedule began."""
        return self.current_epoch - self.first_epoch

    def start_stage(self, first_epoch: int, fresh: bool, clock: Clock) -> None:
        """Be in a stage of an incremental training, from this epoch on."""
        self.first_epoch, self.fresh, self.clock = first_epoch, fresh, clock

    def train_on(self, active: IntArray, class_counts: np.ndarray) -> None:
        """Take up the cases in training. active: (A,) their positions in `train`; class_counts: (C,)."""
        self.class_loss.weigh(self._weights(class_counts))
        self.validation_loss.weigh(balanced_weights(class_counts))

    def rate(self, step: int) -> float:
        """Factor of the peak learning rates at an optimizer step of an incremental training."""
        config, per_epoch = self.config, self.clock.steps_per_epoch
        factor = warmup_cosine(round(config.warmup_epochs * per_epoch), self.schedule_epochs * per_epoch)
        return factor(self.clock.epochs(step) * per_epoch)

    @torch.no_grad()
    def score(self, batch: Any) -> tuple[Tensor, ...]:
        """(positions, dice, entropy, embedding) of a batch, as `case_metrics` has them, on the CPU."""
        # whatever the precision of training: equal weights must admit the same cases
        with torch.autocast(batch.labels.device.type, enabled=False):
            features = batch.inputs if self.from_features else self.model.backbone(batch.inputs)
            outputs = self.model.head(features)
            embedding = self.model.penultimate(features, outputs)
            # on the CPU: not every device has float64
            return batch.positions.cpu(), *case_metrics(outputs.logits.cpu(), batch.labels.cpu(), embedding.cpu())

    def forward(self, inputs: Tensor) -> Any:
        if self.from_features:
            return self.model.head(inputs)
        outputs = self.model(inputs)
        features = getattr(outputs, "features", None)  # networks for masks have none
        self.seen = None if features is None else features.detach()
        return outputs

    def on_train_start(self) -> None:
        if self.current_epoch not in self.config.schedule_restarts:
            return
        # trained on after an end, whose rates are those that were saved; a scheduler sets rates after a step
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            for group, peak, factor in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = peak * factor(scheduler.last_epoch)

    def on_train_epoch_start(self) -> None:
        if self.config.schedule_restarts:
            begun = [schedule for schedule in self.config.schedules if schedule[0] <= self.current_epoch]
            self.first_epoch, self.schedule_epochs = begun[-1]
            self.fresh = self.first_epoch == 0
        # by epoch and rank: a resumed run drops the same units, and no two ranks the same
        torch.manual_seed(seed_of(self.config.seed, self.current_epoch, self.global_rank))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.sharp is not None:
            return self.sharp.training_step(batch, index)
        loss, figures = self.losses(batch)
        self.log_means(figures, len(batch.labels))
        return loss

    def losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what training descends, and the batch's figures for metrics.csv, `train_loss` among them."""
        loss = self.class_loss(self(batch.inputs).logits, batch.labels)
        return loss, {"train_loss": loss}

    def log_means(self, figures: dict[str, Tensor], weight: int) -> None:
        """For metrics.csv: the epoch's means of these figures, each call counting this much."""
        self.log_dict(figures, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True)

    @property
    def remembered(self) -> list[Tensor]:
        """Buffers that computing the loss reads and moves."""
        return []

    @property
    def generators(self) -> list[torch.Generator]:
        """Return what computing the loss draws from."""
        cuda = [torch.cuda.default_generators[self.device.index or 0]] if self.device.type == "cuda" else []
        return [torch.default_generator, *cuda]

    @contextmanager
    def scoring_pool(self) -> Iterator[list[tuple[Tensor, ...]]]:
        """Within the block a validation is of the pool: its batches are scored into the list that this yields."""
        self._of_pool = []
        try:
            yield self._of_pool
        finally:
            self._of_pool = None

    def validation_step(self, batch: Any, _: int) -> None:
        if self._of_pool is not None:
            self._of_pool.append(self.score(batch))
        else:
            self._validated.append(self._judged(batch))

    def _judged(self, batch: Any) -> tuple[Tensor, ...]:
        """(positions, labels, what `_figures` needs …) of a validation batch."""
        return batch.positions, batch.labels, *self._kept(self(batch.inputs))

    def on_validation_epoch_end(self) -> None:
        if self._of_pool is not None:
            return
        parts = tuple(torch.cat(part).cpu() for part in zip(*self._validated, strict=True))
        self._validated.clear()
        # figures are of all cases at once: a mean of batch figures is no AUGRC
        _, labels, *outputs = gather(parts)
        values = self._figures(labels, *outputs)
        if not all(bool(output.isfinite().all()) for output in outputs):  # ranks and shares of NaN look like figures
            values = dict.fromkeys(values, float("nan"))
        # in float32 epochs that are close would be equal
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})

    def _kept(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """Return what validation keeps of a batch's outputs, float32."""
        return (outputs.logits.float(),)

    def _figures(self, labels: Tensor, *kept: Tensor) -> dict[str, float]:
        """Columns of metrics.csv from a whole validation pass."""
        (logits,) = kept
        # balanced by weights, whether training is by weights or by draws: val_select is as it comes
        loss = self.validation_loss(logits.to(self.device), labels.to(self.device))
        threshold = self.config.legacy_exit_threshold_for_logging
        figures = epoch_metrics(logits.double().numpy(), labels.numpy(), threshold)
        return {"val_loss": float(loss), **{f"val_{name}": value for name, value in figures.items()}}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self._optimizer()
        factor = self.rate if self.config.incremental_params.enabled else self._whole_run()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        stepwise = {"scheduler": schedule, "interval": "step", "name": "lr-AdamW"}  # its columns' name in metrics.csv
        return {"optimizer": optimizer, "lr_scheduler": stepwise}

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        layers = None if config.layer_decay == 1 else self.model.backbone.layer_ids
        rates = config.lr_head, config.backbone_lr
        groups = parameter_groups(self.model, *rates, config.weight_decay, layers, config.layer_decay)
        fused = config.precision != "16-mixed"  # there a fused optimizer unscales, and clipping would come before
        inner = torch.optim.AdamW(groups, fused=fused)
        return inner if self.sharp is None else self.sharp.around(inner)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By torch: Lightning's own refuses to clip for a fused optimizer in mixed precision."""
        if gradient_clip_val:
            for part in self._clipped_together(optimizer):
                torch.nn.utils.clip_grad_norm_(part, gradient_clip_val)

    def _clipped_together(self, optimizer: torch.optim.Optimizer) -> Iterable[list[nn.Parameter]]:
        """The parameters whose gradients share one norm."""
        return [[parameter for group in optimizer.param_groups for parameter in group["params"]]]

    def _steps(self) -> int:
        """Optimizer steps of the whole run."""
        counted = int(self.trainer.estimated_stepping_batches)
        return counted if self.sharp is None else self.sharp.steps(counted)

    def _whole_run(self) -> Callable[[int], float]:
        """One schedule after the other, of all epochs."""
        per_epoch = self._steps() / self.config.epochs  # a whole number: all epochs are alike
        begins, factors = [], []
        for first, epochs in self.config.schedules:
            total = round(per_epoch * epochs)
            begins.append(round(per_epoch * first))
            factors.append(warmup_cosine(round(total * self.config.warmup_epochs / epochs), total))

        def factor(step: int) -> float:
            index = bisect_right(begins, step) - 1
            return factors[index](step - begins[index])

        return factor

    def _weights(self, class_counts: np.ndarray) -> Tensor:
        """(C,) float32 weights of the classes in the loss."""
        if self.config.dataset_params.class_balanced_sampling:  # the draws are balanced already
            return torch.ones(len(class_counts))
        return balanced_weights(class_counts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave what is frozen of a backbone out: it is rebuilt from `model_path`."""
        if self.model.frozen:
            state: Mapping[str, Tensor] = checkpoint["state_dict"]
            kept = {name for name, _ in trainable(self)}
            checkpoint["state_dict"] = {
                name: tensor for name, tensor in state.items() if name in kept or not name.startswith("model.backbone.")
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without a tensor that training moves: loading is not strict and would go on without."""
        moved = [
            *(name for name, _ in trainable(self)),
            *(name for name in self.state_dict() if name.startswith("loss.")),
        ]
        missing = [name for name in moved if name not in checkpoint["state_dict"]]
        if missing:
            raise UserError(f"the checkpoint has no {', '.join(missing[:3])}: it is of another model. Train a new run.")


def case_metrics(logits: Tensor, labels: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dice (B,) float64, entropy (B,) float64, embedding (B, D) float32).

    logits: (B, C), C >= 2; labels: (B,). For one label a case the Dice coefficient 2Σpy / (Σp + Σy) is the probability
    of the true class; entropy is in units of log C, so 0 to 1. What is not finite stays so.
    """
    log_p = torch.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    dice = p.gather(1, labels[:, None]).squeeze(1)
    entropy = -(p * log_p.clamp(min=-1e3)).sum(1) / math.log(logits.shape[1])  # 0 · log 0 is 0
    return dice, entropy.clamp(0, 1), embedding.float()

"""SelectiveModule: the Lightning module that trains class and auxiliary heads, and a gate that reads them."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.losses.conformal import ConformalRiskLoss
from stage1_pro.core.losses.selective import SelectiveLoss, SelectiveSettings
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.metrics.epochs import gate_metrics
from stage1_pro.core.models.stage1 import Outputs, Stage1Model
from stage1_pro.core.training.crossfit import GateTargets
from stage1_pro.core.training.modules.base import Stage1Module

# while answers are guesses, a gate can only learn which of them were lucky
WARM_SHARE = 0.25
# of the target: certification asks for room between the rate and the target
TARGET_SHARE = 0.65
# from here on "the answer is right" is nearly a constant, which teaches nothing
CONSTANT_TARGET = 0.98
# below it few positives exit, and those may all be misses: the commonest trap under imbalance
LEAST_POSITIVE_COVERAGE = 0.05
LEAST_SPREAD = 0.01


class SelectiveModule(Stage1Module):
    """Class and auxiliary loss for the first quarter of the epochs, then SelectiveLoss.

    targets: gives the gate's targets for the cases in training, None to use the model's own answers. The soft
    constraint aims below the target, since it has no confidence in hand.
    """

    correct: Tensor | None
    """(N,) 1 where a model that did not see the training case answers it rightly; NaN outside training."""
    loss: SelectiveLoss | ConformalRiskLoss

    def __init__(
        self,
        model: Stage1Model,
        config: Stage1ProConfig,
        class_counts: np.ndarray,
        from_features: bool,
        targets: GateTargets | None = None,
    ):
        super().__init__(model, config, class_counts, from_features)
        assert model.heads is not None
        settings = SelectiveSettings(
            target=TARGET_SHARE * config.certified_level(),
            aux_weight=config.aux_weight,
            coverage_reward=config.coverage_reward,
            gate_loss_weight=config.gate_loss_weight,
            label_smoothing=config.label_smoothing,
        )
        self.loss = self._loss_of(settings, model.heads.members)
        self.targets = targets
        # not in checkpoints either: it is made anew from the cases in training
        self.register_buffer("correct", None, persistent=False)

    def _loss_of(self, settings: SelectiveSettings, members: int) -> SelectiveLoss | ConformalRiskLoss:
        return SelectiveLoss(members, self.class_loss.class_weights, settings)

    def train_on(self, active: IntArray, class_counts: np.ndarray) -> None:
        super().train_on(active, class_counts)
        self.loss.weigh(self.class_loss.class_weights)
        correct = None if self.targets is None else self.targets.of(active)
        self.correct = None if correct is None else correct.to(self.device)

    @property
    def warm_epochs(self) -> int:
        """Epochs of the schedule on class and auxiliary loss alone; none for weights that are trained already."""
        epochs = self.schedule_epochs
        return math.ceil(WARM_SHARE * epochs) if self.fresh and epochs > 1 else 0

    @property
    def settled_epoch(self) -> int:
        return self.first_epoch + (0 if self.config.gate_refit else self.warm_epochs)

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = self(batch.inputs)
        correct = None if self.correct is None else self.correct[batch.positions]
        losses = self.loss(outputs.members, batch.labels, correct, warm=self.stage_epoch < self.warm_epochs)
        right = (outputs.logits.argmax(dim=1) == batch.labels).float().mean()
        loss = losses.sum() / math.sqrt(len(losses))  # clipping treats M heads as one
        return loss, {"train_loss": losses.mean(), "train_accuracy": right}

    @property
    def remembered(self) -> list[Tensor]:
        return list(self.loss.buffers())

    def _clipped_together(self, optimizer: torch.optim.Optimizer) -> Iterable[list[torch.nn.Parameter]]:
        """The gate is clipped apart from the rest: its gradient must not scale the answers' steps."""
        assert self.model.heads is not None
        gate = list(self.model.heads.gate.parameters())
        own = set(map(id, gate))
        (moved,) = super()._clipped_together(optimizer)
        return gate, [parameter for parameter in moved if id(parameter) not in own]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.loss.dual_step()

    def on_train_epoch_end(self) -> None:
        for words in self._alarms():
            self.trainer.print(f"  warning: {words}")

    def _kept(self, outputs: Outputs) -> tuple[Tensor, ...]:
        assert outputs.gate_logit is not None
        return outputs.logits.float(), outputs.gate_logit.float()

    def _figures(self, labels: Tensor, *kept: Tensor) -> dict[str, float]:
        logits, gate_logit = kept
        gate = gate_metrics(logits.double().numpy(), labels.numpy(), gate_logit.double().numpy())
        if self.stage_epoch < self.warm_epochs:
            del gate["gate_augrc"]  # the monitor: no checkpoint is chosen before the gate is trained
        return {
            **super()._figures(labels, logits),
            **{f"val_{name}": value for name, value in gate.items()},
            **self.loss.figures(),
        }

    def _alarms(self) -> list[str]:
        """Signs that the gate learns nothing or gives a class up."""
        if self.stage_epoch < self.warm_epochs:
            return []
        found = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        alarms = []
        right = found["train_accuracy"] if self.correct is None else float(self.correct.nanmean())
        if right > CONSTANT_TARGET and not self.config.gate_refit:
            alarms.append(
                f"{right:.3f} of the training cases are answered rightly, so the gate's target is nearly constant: "
                "set gate_refit: true, or freeze a backbone that has not seen them, without augmentation, for "
                "out-of-fold targets"
            )
        if found["val_gate_soft_coverage_pos"] < LEAST_POSITIVE_COVERAGE:
            alarms.append("the gate lets hardly any positive exit: raise coverage_reward or lower lr_head")
        if found["val_gate_std"] < LEAST_SPREAD:
            alarms.append("the gate gives every case the same score: raise gate_loss_weight")
        return alarms

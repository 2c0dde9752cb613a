"""ConformalModule: the Lightning module of SelectiveLoss first and ConformalRiskLoss after it."""

import torch

from stage1_pro.core.losses.conformal import ConformalRiskLoss
from stage1_pro.core.losses.selective import SelectiveSettings
from stage1_pro.core.seeds import seed_of
from stage1_pro.core.training.modules.selective import SelectiveModule

# hot first: a cold sigmoid has a gradient only for the cases beside the threshold
HOTTEST, COLDEST = 0.5, 0.1


class ConformalModule(SelectiveModule):
    """SelectiveLoss until `conformal_after` epochs are over, then ConformalRiskLoss at a temperature that falls
    from .5 to .1 standard deviations of the gate.

    The halves of the batches are drawn by seed and epoch, so that a resumed run goes on as if it had never stopped.
    """

    loss: ConformalRiskLoss

    def _loss_of(self, settings: SelectiveSettings, members: int) -> ConformalRiskLoss:
        return ConformalRiskLoss(members, self.class_loss.class_weights, settings, self.config.positive_bank)

    @property
    def generators(self) -> list[torch.Generator]:
        return [*super().generators, self.loss.generator]

    @property
    def settled_epoch(self) -> int:
        # a gate that is fitted again has no part in the monitor, so no change of loss interrupts patience
        return self.first_epoch if self.config.gate_refit else self.conformal_epoch

    @property
    def conformal_epoch(self) -> int:
        """The first of ConformalRiskLoss in this schedule; at once where its weights were trained before."""
        if not self.fresh:
            return self.first_epoch
        chosen, epochs = self.config.conformal_after, self.schedule_epochs
        return self.first_epoch + max(self.warm_epochs, epochs // 2 if chosen is None else chosen)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        seed = seed_of(self.config.seed, "halves", self.current_epoch)
        self.loss.start_epoch(self._temperature(), seed)

    def _temperature(self) -> float | None:
        """Of this epoch; it falls by the same factor every epoch. None before ConformalRiskLoss takes over."""
        first = self.conformal_epoch
        done, last = self.current_epoch - first, self.first_epoch + self.schedule_epochs - 1 - first
        return None if done < 0 else HOTTEST * (COLDEST / HOTTEST) ** (done / max(1, last))

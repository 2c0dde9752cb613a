"""SharpTraining: how a Lightning module makes its steps where its optimizer is sharpness-aware.

Each optimizer step takes two passes over the same batches, so optimization is manual: the module accumulates, clips
and moves the schedule itself. The optimizer that Lightning has wrapped makes one step a window, which is what
global_step counts, and with it the moving average, the checkpoints and the schedule.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stage1_pro.core.data.batches import Batch
from stage1_pro.core.optim.fsam import SharpnessAware, perturbed_parameters

if TYPE_CHECKING:  # which makes one of these
    from stage1_pro.core.training.modules.base import Stage1Module


class SharpTraining:
    """Trains a module's `losses` by SAM or F-SAM; the module hands its training steps on to it.

    Of the module it asks what a pass computes (`losses`), what a pass draws from and moves (`generators`,
    `remembered`), and how gradients are clipped.

    The second pass computes the very function of the first one, at other weights: the same batches with the same
    dropout masks and random halves, under the same duals and bank. Else ε would not lead uphill on it, and the loss
    gap would be noise. It leaves no trace: duals, bank, generators and running statistics move by the first pass.
    """

    def __init__(self, module: "Stage1Module"):
        self.module = module
        self._window: list[_Past] = []

    def around(self, inner: torch.optim.Optimizer) -> SharpnessAware:
        """The optimizer of the config, whose steps `inner` makes."""
        config = self.module.config
        return SharpnessAware(
            inner,
            perturbed_parameters(self.module.model, config.fsam_target),
            rho=config.fsam_rho,
            sigma=config.fsam_sigma if config.optimizer == "fsam" else 0.0,
            lambda_=config.fsam_lambda,
        )

    def steps(self, batches: int) -> int:
        """Optimizer steps of a run of so many batches: Lightning is not told of the accumulation."""
        config = self.module.config
        return config.epochs * math.ceil(batches / config.epochs / config.grad_accum_steps)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The first pass over a batch, and the step where the batch is the last of its window."""
        module, moment = self.module, self._moment()
        with self._unsynchronised():
            loss, figures = module.losses(batch)
            # of what is perturbed alone: the first pass serves ε, and the step takes the gradients of the second
            self._backward(loss, inputs=self._optimizer.parameters)
        module.log_means(figures, len(batch.labels))
        self._window.append(_Past(batch, moment, figures["train_loss"].detach()))
        last = index + 1 == module.trainer.num_training_batches
        if last or len(self._window) == module.config.grad_accum_steps:
            self._step()
            self._window.clear()
        return loss.detach()

    def _step(self) -> None:
        optimizer, schedule = self.module.optimizers(), self.module.lr_schedulers()
        gaps: list[Tensor] = []
        # the wrapped step, once a window, is what global_step counts: by the bare one it would stay 0, and neither the
        # moving average nor the checkpoints nor max_steps would see a step
        optimizer.step(lambda: gaps.extend(self._second_pass()))  # pyright: ignore
        optimizer.zero_grad()  # pyright: ignore
        schedule.step()  # pyright: ignore
        figures = {"loss_gap": torch.stack(gaps).mean(), **self._optimizer.figures}
        self.module.log_means({f"sharpness_{name}": figure for name, figure in figures.items()}, 1)

    def _second_pass(self) -> list[Tensor]:
        """Leave the clipped gradients at w + ε. Returns how much each batch's loss is higher there."""
        module, now, gaps = self.module, self._moment(), []
        with self._optimizer.perturbed(), still_statistics(module.model):
            for past in self._window:
                past.moment.restore()
                # ranks exchange gradients once a window, with its last batch, as in automatic optimization
                with nullcontext() if past is self._window[-1] else self._unsynchronised():
                    loss, figures = module.losses(past.batch)
                    self._backward(loss)
                gaps.append(figures["train_loss"].detach() - past.loss)
        now.restore()
        module.configure_gradient_clipping(self._optimizer, module.config.max_grad_norm, "norm")
        return gaps

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        with torch.autocast(self.module.device.type, enabled=False):  # as in automatic optimization
            self.module.manual_backward(loss / self.module.config.grad_accum_steps, **kwargs)

    def _unsynchronised(self) -> AbstractContextManager:
        """Within the block, forward included, ranks keep their gradients to themselves."""
        strategy = self.module.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _moment(self) -> "Moment":
        return Moment.now(self.module.generators, self.module.remembered)

    @property
    def _optimizer(self) -> SharpnessAware:
        optimizer = self.module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, SharpnessAware)
        return optimizer


@dataclass(frozen=True, slots=True)
class Moment:
    """What a pass over a batch draws from and moves, as it stood before."""

    generators: list[tuple[torch.Generator, Tensor]]
    buffers: list[tuple[Tensor, Tensor]]

    @classmethod
    def now(cls, generators: list[torch.Generator], buffers: list[Tensor]) -> "Moment":
        states = [(generator, generator.get_state()) for generator in generators]
        return cls(states, [(buffer, buffer.clone()) for buffer in buffers])

    @torch.no_grad()
    def restore(self) -> None:
        for generator, state in self.generators:
            generator.set_state(state)
        for buffer, value in self.buffers:
            buffer.copy_(value)


class _Past(NamedTuple):
    """A batch of the window: what its first pass began from, and its loss there, ()."""

    batch: Batch
    moment: Moment
    loss: Tensor


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block norms in training use a batch's statistics and leave the running ones as they are."""
    norms = [one for one in model.modules() if isinstance(one, _NormBase) and one.training and one.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True

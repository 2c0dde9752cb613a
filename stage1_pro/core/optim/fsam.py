"""SAM and F-SAM: steps by the gradient at the worst weights nearby, so that training ends where the loss is flat.

    d = g − σ·m                   g: gradient at w; m: its running average; d = g at the first step
    ε = ρ·d / ‖d‖                 one norm over all perturbed parameters
    m ← λ·m + (1 − λ)·g           m = g at the first step
    w ← step of the inner optimizer at w, by the gradient at w + ε of the same batch

σ = 0 is SAM (arXiv 2010.01412), ρ = 0 the inner optimizer. F-SAM (arXiv 2403.12350) subtracts the average after it has
moved; at σ = 1 that is g − (λ·m + (1 − λ)·g) = λ·(g − m), the same direction.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stage1_pro.core.devices import mean_of_ranks
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.parameters import is_adapter, trainable

HEADS = ("cls.", "heads.")
TARGETS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "heads": lambda name: name.startswith(HEADS),
    "adapter": is_adapter,
}
"""Which parameters are perturbed, by their names in the model."""


def perturbed_parameters(model: nn.Module, target: str) -> list[nn.Parameter]:
    """The trainable parameters that the target names. Raises UserError where there are none."""
    found = [parameter for name, parameter in trainable(model) if TARGETS[target](name)]
    if not found:
        mend = "set peft_type, or fsam_target: all" if target == "adapter" else "set fsam_target: all"
        raise UserError(f"$.fsam_target is {target!r}, and the model trains no such parameter: {mend}.")
    return found


class SharpnessAware(torch.optim.Optimizer):
    """An optimizer whose gradients are to be taken within `perturbed()`:

        loss().backward()                 # the gradient at w
        with optimizer.perturbed():       # clears it, and moves to w + ε
            loss().backward()
        optimizer.step()

    inner: makes the step, and shares its parameter groups with this one. parameters: those that are perturbed. Under
    several ranks ε comes from the mean of their gradients, so that the average is the same on each. A gradient of
    zero, or one that is not finite, perturbs nothing; the average does not take up the latter.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        rho: float = 0.05,
        sigma: float = 1.0,
        lambda_: float = 0.9,
    ):
        super().__init__(inner.param_groups, {})
        self.inner, self.parameters = inner, list(parameters)
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self.rho, self.sigma, self.lambda_ = rho, sigma, lambda_
        self.average: Tensor | None = None
        """m of all perturbed parameters, one after the other; None before the first step, and where σ is 0."""
        self.figures: dict[str, Tensor] = {}
        """Of the last perturbation: gradient_norm ‖g‖ and, where there was an average, cosine of g with it."""
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.inner.step(closure)

    def _share(self) -> None:
        """Share with the inner optimizer what is read or changed of this one: rates by the schedule, moments."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Within the block the weights are w + ε, the gradients at w gone; after it they are w again, bit for bit."""
        offsets = self._offsets()
        self.zero_grad()
        # copies, since w + ε − ε is not w in floating point
        kept = self._like_parameters(torch.cat([parameter.detach().flatten() for parameter in self.parameters]))
        self._move(torch._foreach_add_, offsets)  # pyright: ignore[reportPrivateImportUsage]
        try:
            yield
        finally:
            self._move(torch._foreach_copy_, kept)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def _move(self, change: Callable[[Any, Any], Any], values: list[Tensor]) -> None:
        change(self.parameters, values)
        torch.clear_autocast_cache()  # it holds the weights as they were, for as long as autocast is in force

    @torch.no_grad()
    def _offsets(self) -> list[Tensor]:
        """ε of each parameter; moves the average. Nothing here waits for the device."""
        gradient = mean_of_ranks(torch.cat([_gradient(parameter).flatten() for parameter in self.parameters]))
        average = self.average
        direction = gradient if average is None else gradient.sub(average, alpha=self.sigma)
        norm, length = gradient.norm(), direction.norm()
        self.figures = {"gradient_norm": norm}
        if average is not None:
            self.figures["cosine"] = (gradient @ average) / (norm * average.norm()).clamp(min=1e-30)
        if self.sigma:
            self._take_up(gradient, norm.isfinite())
        usable = length.isfinite() & (length > 0)
        # by a choice on the device, not by an `if`: that would wait for the norm at every step
        offset = direction.mul(torch.where(usable, self.rho / length, 0.0)).nan_to_num_(0.0, 0.0, 0.0)
        return self._like_parameters(offset)

    def _like_parameters(self, values: Tensor) -> list[Tensor]:
        """Views into one long tensor, in the parameters' shapes."""
        parts = values.split(self._sizes)
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _take_up(self, gradient: Tensor, finite: Tensor) -> None:
        """m ← λ·m + (1 − λ)·g, where all of g is finite."""
        if self.average is None:
            self.average = torch.where(finite, gradient, 0.0)
        else:
            self.average.lerp_(torch.where(finite, gradient, self.average), 1 - self.lambda_)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        average: Tensor | None = state_dict["average"]
        self.average = None if average is None else average.to(self.parameters[0].device, copy=True)
        self.inner.load_state_dict(state_dict["inner"])
        self._share()


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Drop what an optimizer remembers of earlier steps."""
    optimizer.state.clear()
    if isinstance(optimizer, SharpnessAware):
        optimizer.average = None


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

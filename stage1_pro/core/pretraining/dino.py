"""Self-distillation without labels: DINO's head, loss and teacher (arXiv 2104.14294).

lightly's DINOLoss computes the same to rounding, but the package brings hydra along for forty lines.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STUDENT_TEMPERATURE = 0.1
COLD, WARM = 0.04, 0.07
CENTRE_MOMENTUM = 0.9
TEACHER_WARMUP = 0.3
LAST_LAYER_FROZEN = 0.1
"""Shares of the steps: while the teacher's temperature rises, and while the head's last layer is held."""


class DinoHead(nn.Module):
    """Features (B, D) → prototype scores (B, K): three layers, a bottleneck of unit length, and prototypes of
    unit length (the original's weight norm with its gain fixed to 1)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        unit = functional.normalize(self.mlp(features), dim=-1)
        return functional.linear(unit, functional.normalize(self.last_layer.weight, dim=-1))


class DinoLoss(nn.Module):
    """Cross entropy of the student's views against the teacher's other views; keeps the centre of the teacher."""

    centre: Tensor

    def __init__(self, prototypes: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, student: list[Tensor], teacher: list[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
        """(loss, entropy of the teacher's mean answer in units of log K: 0 where all images are one).

        student: V tensors (B, K), whose first ones are of the views that the teacher saw; teacher: (B, K) each.
        """
        answers = [functional.softmax((scores.float() - self.centre) / temperature, dim=-1) for scores in teacher]
        # centred and sharper than the student: without both the teacher gives all images one answer
        log_q = [functional.log_softmax(scores.float() / STUDENT_TEMPERATURE, dim=-1) for scores in student]
        terms = [
            -(answer * guess).sum(dim=-1).mean()
            for seen, answer in enumerate(answers)
            for view, guess in enumerate(log_q)
            if view != seen  # matching a view with itself teaches nothing
        ]
        mean = torch.stack(answers).mean(dim=(0, 1))
        entropy = torch.special.entr(mean).sum() / torch.log(torch.tensor(float(mean.numel())))
        return torch.stack(terms).mean(), entropy

    @torch.no_grad()
    def follow(self, centre: Tensor) -> None:
        """Move the centre towards the mean score (K,) of a batch."""
        self.centre.mul_(CENTRE_MOMENTUM).add_(centre.float(), alpha=1 - CENTRE_MOMENTUM)


class Average(nn.Module):
    """Exponential moving average of the trained tensors alone; frozen ones need no second copy."""

    def __init__(self, trained: dict[str, Tensor]):
        super().__init__()
        self.names = list(trained)
        for index, tensor in enumerate(trained.values()):
            self.register_buffer(f"t{index}", tensor.detach().clone())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"t{index}") for index, name in enumerate(self.names)}

    @torch.no_grad()
    def follow(self, trained: dict[str, Tensor], momentum: float) -> None:
        for name, held in self.tensors.items():
            held.lerp_(trained[name].detach(), 1 - momentum)


def teacher_temperature(done: float) -> float:
    """Linear warm-up; done: the share of the steps that is over."""
    return COLD + (WARM - COLD) * min(1.0, done / TEACHER_WARMUP)

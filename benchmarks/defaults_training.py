"""Many small networks trained at a time, each as a training of its own would go.

The networks are copies of one prototype (a class head on features, or a small network with its head), stacked along a
first dimension. What a run of the project does to one, this does to each: batches of 64 from a permutation an epoch,
the project's class loss, clipping to norm 1, AdamW without decay of biases, warm-up and cosine, the average of the
weights. Rates, schedules, smoothing and class weights are each network's own.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from stage1_pro.core.losses.cross_entropy import ClassLoss, balanced_weights
from stage1_pro.core.models.heads import ClassHead
from stage1_pro.core.optim.schedule import warmup_cosine

BATCH, WARMUP_EPOCHS, WEIGHT_DECAY, MAX_NORM = 64, 1, 0.01, 1.0
DROPOUT, EMA_DECAY = 0.3, 0.9999
BETAS, EPSILON = (0.9, 0.999), 1e-8
CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Arm:
    """How a network is trained. loss: `right` (the project's) or `torch` (its weighted, smoothed cross entropy, which
    the project used before); weighted: whether classes are; ema: whether the average of the weights answers."""

    lr: float
    smoothing: float
    epochs: int
    loss: str = "right"
    weighted: bool = True
    network: str = "head"
    features: str = "raw"
    ema: bool = True


DEFAULT = Arm(3e-4, 0.0, 30)
"""The product's default, whose own weights answer."""


@dataclass(frozen=True, slots=True)
class Member:
    """One network: an arm, and the numbers of its training split and of its seed."""

    arm: Arm
    split: int
    seed: int
    both: bool = False
    """Whether the weights themselves are scored as well as their average."""


class SmallCnn(nn.Sequential):
    """(B, C, H, W) → (B, F): three convolutions with max pooling."""

    def __init__(self, channels: int):
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten())


def prototype(network: str, inputs: Tensor) -> nn.Module:
    """An untrained network for inputs (N, ...): `head`, `linear` or `cnn`."""
    if network == "linear":
        return nn.Linear(inputs.shape[1], 2)
    if network == "head":
        return ClassHead(inputs.shape[1], 2, DROPOUT)
    backbone = SmallCnn(inputs.shape[1])
    with torch.no_grad():
        width = backbone(torch.zeros_like(inputs[:1], device="cpu")).shape[1]
    return nn.Sequential(backbone, ClassHead(width, 2, DROPOUT))


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """What the networks said of held-out cases after each of their epochs. members: (M,); averaged, raw: for each
    member (epochs, N) log-odds of the cases of its split, float32, by the average of the weights and by the weights
    themselves, where those are scored."""

    members: list[Member]
    averaged: list[np.ndarray]
    raw: list[np.ndarray | None]


def train(
    members: list[Member],
    inputs: Tensor,
    labels: np.ndarray,
    taken: dict[int, np.ndarray],
    held_out: dict[int, np.ndarray],
) -> Histories:
    """Train networks of one kind. inputs: (N, ...) on the device; labels: (N,); taken, held_out: split → indices to
    train on, and to score after every epoch; all splits of one size."""
    members = sorted(members, key=lambda member: (-member.arm.epochs, _recipe(member.arm), member.split, member.seed))
    stack = _Stack(members, inputs, labels, taken)
    averaged, raw = ([[] for _ in members] for _ in range(2))
    for epoch in range(members[0].arm.epochs):
        stack.keep(sum(member.arm.epochs > epoch for member in members))
        stack.run_epoch(epoch)
        every = range(len(stack.members))
        for weights, history, scored in (
            (stack.average, averaged, list(every)),
            (stack.weights, raw, [i for i in every if members[i].both]),
        ):
            for index, z in stack.log_odds(weights, held_out, scored):
                history[index].append(z)
    return Histories(members, [np.stack(part) for part in averaged], [np.stack(part) if part else None for part in raw])


def _recipe(arm: Arm) -> tuple[str, float, bool]:
    """What decides the loss: members that share it are computed together."""
    return arm.loss, arm.smoothing, arm.weighted


class _Stack:
    """The networks in training, those with the longest schedules first."""

    def __init__(self, members: list[Member], inputs: Tensor, labels: np.ndarray, taken: dict[int, np.ndarray]):
        self.members, self.inputs, self.taken = members, inputs, taken
        self.labels = torch.from_numpy(labels).to(inputs.device)
        self.counts = np.bincount(labels[next(iter(taken.values()))], minlength=2)
        self.network = prototype(members[0].arm.network, inputs)
        self.decays = {name: tensor.ndim > 1 for name, tensor in self.network.named_parameters()}
        self.weights = self._initial()
        self.average = {name: tensor.clone() for name, tensor in self.weights.items()}
        self.moments = [{name: torch.zeros_like(tensor) for name, tensor in self.weights.items()} for _ in range(2)]
        self.steps = 0
        size = len(next(iter(taken.values())))
        self.per_epoch = -(-size // BATCH)
        self.factors = [
            warmup_cosine(WARMUP_EPOCHS * self.per_epoch, member.arm.epochs * self.per_epoch) for member in members
        ]

    def _initial(self) -> dict[str, Tensor]:
        """Networks of one seed begin alike, whatever their arm."""
        made = {}
        for seed in {member.seed for member in self.members}:
            torch.manual_seed(seed)
            made[seed] = prototype(self.members[0].arm.network, self.inputs)
        stacked, _ = stack_module_state([made[member.seed] for member in self.members])
        return {name: tensor.detach().to(self.inputs.device).clone() for name, tensor in stacked.items()}

    def keep(self, count: int) -> None:
        """Go on with the first networks alone: the others' schedules are over."""
        if count < len(self.members):
            self.members = self.members[:count]
            for tensors in (self.weights, self.average, *self.moments):
                tensors.update({name: tensor[:count].clone() for name, tensor in tensors.items()})

    def run_epoch(self, epoch: int) -> None:
        network = copy.deepcopy(self.network).to(self.inputs.device).train()
        forward = vmap(lambda weights, x: functional_call(network, weights, (x,)), randomness="different")
        torch.manual_seed(1000 * epoch + 1)
        draws = sorted({(member.split, member.seed) for member in self.members})
        of_member = torch.tensor([draws.index((m.split, m.seed)) for m in self.members], device=self.inputs.device)
        rows = [
            self.taken[split][np.random.default_rng([seed, epoch]).permutation(len(self.taken[split]))]
            for split, seed in draws
        ]
        orders = torch.from_numpy(np.stack(rows)).to(self.inputs.device)
        losses, rates = self._losses(), self._rates()
        for batch, rate in zip(orders.split(BATCH, dim=1), rates, strict=True):
            inputs, labels = self.inputs[batch][of_member], self.labels[batch][of_member]
            weights = {name: tensor.requires_grad_() for name, tensor in self.weights.items()}
            logits = forward(weights, inputs)
            total = torch.stack([loss(logits[part], labels[part]).sum() for part, loss in losses]).sum()
            self._step(dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True)), rate)

    def _rates(self) -> Tensor:
        """(steps, M) learning rates of the epoch that begins."""
        kept = list(zip(self.members, self.factors, strict=False))
        steps = range(self.steps, self.steps + self.per_epoch)
        return torch.tensor([[m.arm.lr * factor(step) for m, factor in kept] for step in steps]).to(self.inputs.device)

    def _losses(self) -> list[tuple[slice, Callable[[Tensor, Tensor], Tensor]]]:
        """Runs of members of one loss, and that loss: logits (M, B, 2), labels (M, B) → (M,)."""
        found, start = [], 0
        recipes = [_recipe(member.arm) for member in self.members]
        for end in range(1, len(recipes) + 1):
            if end == len(recipes) or recipes[end] != recipes[start]:
                found.append((slice(start, end), self._loss(*recipes[start])))
                start = end
        return found

    def _loss(self, loss: str, smoothing: float, weighted: bool) -> Callable[[Tensor, Tensor], Tensor]:
        weights = balanced_weights(self.counts) if weighted else torch.ones(2)
        weights = weights.to(self.inputs.device)
        if loss == "right":
            return ClassLoss(weights, smoothing)

        def as_before(logits: Tensor, labels: Tensor) -> Tensor:
            each = cross_entropy(
                logits.flatten(0, 1), labels.flatten(), weights, reduction="none", label_smoothing=smoothing
            )
            return each.view(labels.shape).sum(1) / weights[labels].sum(1)

        return as_before

    @torch.no_grad()
    def _step(self, gradients: dict[str, Tensor], rates: Tensor) -> None:
        """Clip, AdamW at each member's rate (M,), average."""
        names = list(gradients)
        squares = torch.stack([gradients[name].flatten(1).square().sum(1) for name in names]).sum(0)
        clip = (MAX_NORM / (squares.sqrt() + 1e-6)).clamp(max=1)
        self.steps += 1
        corrections = [1 - beta**self.steps for beta in BETAS]
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        for name in names:
            shape = (-1, *[1] * (gradients[name].ndim - 1))
            gradient, rate, weight = gradients[name] * clip.view(shape), rates.view(shape), self.weights[name].detach()
            first, second = (moment[name] for moment in self.moments)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            if self.decays[name]:
                weight.mul_(1 - rate * WEIGHT_DECAY)
            spread = (second / corrections[1]).sqrt_().add_(EPSILON)
            weight.sub_(rate / corrections[0] * first / spread)
            self.weights[name] = weight
            self.average[name].lerp_(weight, 1 - decay)

    @torch.no_grad()
    def log_odds(
        self, weights: dict[str, Tensor], held_out: dict[int, np.ndarray], scored: list[int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (member, z) with z (N,) of its split's held-out cases, for the members scored."""
        network = copy.deepcopy(self.network).to(self.inputs.device).eval()
        forward = vmap(lambda weights, x: functional_call(network, weights, (x,)), in_dims=(0, None))
        for split, indices in held_out.items():
            chosen = [i for i in scored if self.members[i].split == split]
            if not chosen:
                continue
            own = {name: tensor[chosen] for name, tensor in weights.items()}
            parts = torch.from_numpy(indices).to(self.inputs.device).split(CHUNK if self.inputs.ndim == 2 else 1024)
            with tf32(self.inputs.device):
                logits = torch.cat([forward(own, self.inputs[part]) for part in parts], dim=1)
            yield from zip(chosen, (logits[..., 1] - logits[..., 0]).cpu().numpy(), strict=True)


class tf32:
    """Score on a GPU in TensorFloat-32: z differs by a thousandth, and scoring every epoch is most of the work."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def __enter__(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.cuda

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False

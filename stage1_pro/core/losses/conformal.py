"""ConformalRiskLoss: gates trained at the threshold that a conformal constraint gives, through that threshold.

    F(λ) = [ Σ_{y=1} σ((g − λ)/T)·(f − α_t) + (1 − α_t) ] / (m + 1)     over half the batch and a bank, m positives
    λ*   = argmin F on a grid;  F(λ*) > 0: no threshold is feasible, and SelectiveLoss takes the batch
    λ0   = the crossing F = 0 that is reached first when walking down from λ*
    λ̂    = λ0 − F(λ0; θ) / stopgrad(∂F/∂λ at λ0)
    loss = selective risk and coverage reward of the other half at σ((g − λ̂)/T), anchor, and the answers' own loss

(1 − α_t) is the most that one more case can add. F is not monotone and F(∞) > 0: feasible thresholds form
intervals, which is why the crossing is sought downward from λ*, as certification walks. The Newton step has
the value of λ0 and, by the implicit function theorem, the gradient −F_θ / F_λ. After conformal risk training,
arXiv 2510.08748. λ̂ serves the gradient alone and is never deployed.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stage1_pro.core.losses.selective import Parts, SelectiveLoss, SelectiveSettings
from stage1_pro.core.models.heads import Members

GRID, FINER = 64, 16
GRID_MARGIN = 4.0
"""How far the grid goes beyond the positives' gates, in temperatures: there an exit is decided to 2 %."""
LEAST_SLOPE = 1e-4
LEAST_SPREAD = 1e-3


class Threshold(NamedTuple):
    """The threshold of each of M heads; all (M,)."""

    value: Tensor
    """λ̂, with its gradient where `crossing`; the grid's lower end, without one, where F <= 0 down to it."""
    feasible: Tensor
    crossing: Tensor
    pull: Tensor
    """(M, N) |∂λ̂/∂g| of each case."""


def conformal_threshold(gate: Tensor, excess: Tensor, temperature: Tensor, room: float) -> Threshold:
    """The threshold λ̂ of each head, differentiable in the gates.

    gate: (M, N) g of N cases; excess: (M, N) f − α_t of positives, 0 of cases that do not count; temperature:
    (M, 1), no gradient; room: 1 − α_t. Inside, gates are in temperatures, and F is without its normaliser m + 1,
    which changes neither its sign nor its roots.
    """
    with torch.no_grad():
        scaled = gate / temperature
        grid = _grid(scaled, excess != 0)
        values = _constraint(scaled, excess, grid, room)
        least, best = values.min(1)
        steps = torch.arange(GRID, device=gate.device)
        last = ((values > 0) & (steps < best[:, None])).mul(steps + 1).amax(1)  # the last point below λ* with F > 0
        crossing = (last > 0) & (least <= 0)
        root = _root(scaled, excess, grid, last, room)
        exits = (scaled - root).sigmoid_()
        pulls = exits * (1 - exits) * excess  # ∂F/∂g; the derivative in λ is minus their sum
        steepness = pulls.sum(1, keepdim=True).clamp(min=LEAST_SLOPE)
        newton = root + ((exits * excess).sum(1, keepdim=True) + room) / steepness
        value = (torch.where(crossing[:, None], newton, grid[:, :1]) * temperature).squeeze(1)
        shares = pulls / steepness * crossing[:, None]
    moved = (shares * (gate - gate.detach())).sum(1)  # 0, with the gradient −F_θ / F_λ
    return Threshold(value + moved, least <= 0, crossing, shares.abs())


def _constraint(gate: Tensor, excess: Tensor, thresholds: Tensor, room: float) -> Tensor:
    """(M, L) (m + 1)·F at thresholds (M, L)."""
    exits = (gate[:, None] - thresholds[:, :, None]).sigmoid_()
    return torch.bmm(exits, excess[:, :, None]).squeeze(2) + room


def _grid(gate: Tensor, counted: Tensor) -> Tensor:
    """(M, GRID) evenly from below the least gate of a positive to above the largest; around 0 without any."""
    some = counted.any(1, keepdim=True)
    low = torch.where(counted, gate, torch.inf).amin(1, keepdim=True).where(some, 0.0) - GRID_MARGIN
    high = torch.where(counted, gate, -torch.inf).amax(1, keepdim=True).where(some, 0.0) + GRID_MARGIN
    return torch.lerp(low, high, torch.linspace(0, 1, GRID, device=gate.device))


def _root(gate: Tensor, excess: Tensor, grid: Tensor, last: Tensor, room: float) -> Tensor:
    """(M, 1) near the root between grid points last − 1, where F > 0, and last, where F <= 0.

    The bracket is cut on a finer grid, then by the chord: a few steps of the device, where bisection takes many;
    the Newton step does the rest. Of several roots in it the highest is taken.
    """
    low, high = (grid.gather(1, (last - step).clamp(min=0)[:, None]) for step in (1, 0))
    finer = torch.lerp(low, high, torch.linspace(0, 1, FINER, device=gate.device))
    values = _constraint(gate, excess, finer, room)
    below = ((values > 0) * torch.arange(FINER, device=gate.device)).amax(1, keepdim=True).clamp(max=FINER - 2)
    (left, above), (right, under) = ((finer.gather(1, at), values.gather(1, at)) for at in (below, below + 1))
    return left + (right - left) * (above / (above - under).clamp(min=1e-12)).clamp(0, 1)


class ConformalRiskLoss(nn.Module):
    """The losses of M heads, (M,); SelectiveLoss until an epoch begins with a temperature.

    bank: how many recent positives (their gates and misses, detached) join the calibration half: a target of
    .02 cannot be resolved by the positives of one batch. Bank and dual state are in buffers, and so in the
    checkpoint. Under several ranks the threshold is that of all ranks' cases, the bank is the same on each.
    """

    bank_gate: Tensor
    bank_missed: Tensor
    bank_held: Tensor
    counts: Tensor

    def __init__(self, members: int, class_weights: Tensor, settings: SelectiveSettings, bank: int):
        super().__init__()
        self.selective = SelectiveLoss(members, class_weights, settings)
        self.temperature: float | None = None
        self.generator = torch.Generator()
        self.register_buffer("bank_gate", torch.zeros(members, bank))
        self.register_buffer("bank_missed", torch.zeros(members, bank))
        self.register_buffer("bank_held", torch.zeros(bank, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(len(COUNTS)), persistent=False)

    def begin_epoch(self, temperature: float | None, seed: int) -> None:
        """temperature: in standard deviations of g, None for SelectiveLoss; seed: of the epoch's halves, equal on
        all ranks."""
        self.temperature = temperature
        self.generator.manual_seed(seed)
        self.counts.zero_()

    def forward(self, members: Members, labels: Tensor, correct: Tensor | None = None, warm: bool = False) -> Tensor:
        """(M,) as SelectiveLoss, whose arguments these are. f is out of fold where `correct` is given."""
        if warm:
            return self.selective(members, labels, correct, warm)
        with torch.autocast(labels.device.type, enabled=False):
            parts = self.selective.parts(members, labels, correct)
            missed = parts.missed if correct is None else (1 - correct.float()).expand_as(parts.gate)
            gate, missed, positive = _of_all_ranks(parts.gate, missed, parts.positive)
            if self.temperature is None:
                loss = self.selective.of(parts)
            else:
                loss = self._conformal(parts, gate, missed, positive, self.temperature)
            if self.training:
                self._remember(gate.detach(), missed, positive)
            return loss

    def _conformal(self, parts: Parts, gate: Tensor, missed: Tensor, positive: Tensor, temperature: float) -> Tensor:
        """(M,) loss at λ̂. gate, missed (M, N), positive (N,) of all ranks.

        A head without a feasible threshold has SelectiveLoss: its exits are σ(g), of every case, under its penalty.
        """
        calibrates = self._halves(len(positive)).to(positive.device, non_blocking=True)
        heat = temperature * gate.detach().std(1, correction=0, keepdim=True).clamp(min=LEAST_SPREAD)
        found = self._threshold(gate, missed, (positive > 0) & calibrates, heat)
        if self.training:
            self._count(found, len(positive))
        feasible = found.feasible[:, None]
        predicts = (~calibrates).float().view(-1, len(parts.positive))[_rank()]
        exits = ((parts.gate - found.value[:, None].where(feasible, 0.0)) / heat.where(feasible, 1.0)).sigmoid()
        selective = self.selective.selective(exits, parts, predicts.where(feasible, 1.0))
        penalty = self.selective.penalty(exits, parts, used=~found.feasible)
        return parts.answers + selective + penalty + parts.anchor

    def _halves(self, cases: int) -> Tensor:
        """(N,) bool: a random half of the cases."""
        calibrates = torch.zeros(cases, dtype=torch.bool)
        calibrates[torch.randperm(cases, generator=self.generator)[: cases // 2]] = True
        return calibrates

    def _threshold(self, gate: Tensor, missed: Tensor, counted: Tensor, heat: Tensor) -> Threshold:
        target = self.selective.settings.target
        gates, misses = torch.cat([gate, self.bank_gate], 1), torch.cat([missed, self.bank_missed], 1)
        excess = (misses - target) * torch.cat([counted, self.bank_held])
        return conformal_threshold(gates, excess, heat, 1 - target)

    @torch.no_grad()
    def _remember(self, gate: Tensor, missed: Tensor, positive: Tensor) -> None:
        """First in, first out: what is held is moved to the end in order of arrival, and the end is kept."""
        held = torch.cat([self.bank_held, positive > 0])
        kept = held.byte().argsort(stable=True)[-len(self.bank_held) :]
        self.bank_gate.copy_(torch.cat([self.bank_gate, gate], 1)[:, kept])
        self.bank_missed.copy_(torch.cat([self.bank_missed, missed], 1)[:, kept])
        self.bank_held.copy_(held[kept])

    @torch.no_grad()
    def _count(self, found: Threshold, live: int) -> None:
        crossing, edge = found.crossing, found.feasible & ~found.crossing
        share = found.pull[:, :live].sum(1) / found.pull.sum(1).clamp(min=1e-12)
        parts = (share, crossing, edge, ~found.feasible, found.value.detach() * found.feasible)
        self.counts += torch.stack([part.float().sum() for part in parts])

    def dual_step(self) -> None:
        self.selective.dual_step()

    def figures(self) -> dict[str, float]:
        """For metrics.csv: those of SelectiveLoss and, of the epoch's thresholds (one a head and batch), the share
        without a feasible one, the share at the grid's end, the mean of the others' gradient that is live (not
        the bank's), and the mean. Shares and means of nothing are NaN."""
        if self.temperature is None:
            return self.selective.figures()
        counts = dict(zip(COUNTS, self.counts.tolist(), strict=True))
        feasible = counts["crossing"] + counts["edge"]
        batches = feasible + counts["infeasible"]
        return {
            **self.selective.figures(),
            "conformal_infeasible_share": _ratio(counts["infeasible"], batches),
            "conformal_edge_share": _ratio(counts["edge"], batches),
            "conformal_live_share": _ratio(counts["live"], counts["crossing"]),
            "conformal_threshold": _ratio(counts["threshold"], feasible),
            "conformal_temperature": self.temperature,
        }


COUNTS = ("live", "crossing", "edge", "infeasible", "threshold")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gathered(torch.autograd.Function):
    """(R, N) of each rank → (R, world · N) in the order of the ranks; each rank gets the gradients of its part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]


def _of_all_ranks(gate: Tensor, missed: Tensor, positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cases of all ranks, in the order of the ranks; gradients go back to where the gates came from.

    The training sampler gives every rank equally many cases, so their batches are of one size.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return gate, missed, positive
    own = torch.cat([gate, missed, positive[None]])
    joined: Tensor = _Gathered.apply(own)  # pyright: ignore[reportAssignmentType]
    return joined[: len(gate)], joined[len(gate) : -1].detach(), joined[-1].detach()

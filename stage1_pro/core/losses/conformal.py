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

from stage1_pro.core.devices import rank, sum_of_ranks, world_size
from stage1_pro.core.losses.selective import Parts, SelectiveLoss, SelectiveSettings
from stage1_pro.core.models.heads import Members

GRID, FINER = 64, 16
GRID_MARGIN = 4.0
"""How far the grid goes beyond the positives' gates, in temperatures: there an exit is decided to 2 %."""
# where F is nearly flat a Newton step would throw the threshold anywhere
LEAST_SLOPE = 1e-4
# gates that are all alike have no unit of temperature
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
        places = torch.arange(1, GRID + 1, device=gate.device)
        last = (places * ((values > 0) & (places <= best[:, None]))).amax(1)  # one past the last F > 0 below λ*
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
    low = torch.where(counted, gate, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0) - GRID_MARGIN
    high = torch.where(counted, gate, -torch.inf).amax(1, keepdim=True).nan_to_num(neginf=0.0) + GRID_MARGIN
    return torch.lerp(low, high, torch.linspace(0, 1, GRID, device=gate.device))


def _root(gate: Tensor, excess: Tensor, grid: Tensor, last: Tensor, room: float) -> Tensor:
    """(M, 1) near the root between grid points last − 1, where F > 0, and last, where F <= 0.

    The bracket is cut on a finer grid, then by the chord: a few steps of the device, where bisection takes many;
    the Newton step does the rest. Of several roots in it the highest is taken.
    """
    ends = torch.stack([last - 1, last], 1).clamp_(min=0)
    low, high = grid.gather(1, ends).split(1, 1)
    finer = torch.lerp(low, high, torch.linspace(0, 1, FINER, device=gate.device))
    values = _constraint(gate, excess, finer, room)
    below = ((values > 0) * torch.arange(FINER, device=gate.device)).amax(1, keepdim=True).clamp_(max=FINER - 2)
    ends = torch.cat([below, below + 1], 1)
    low, high = finer.gather(1, ends).split(1, 1)
    above, under = values.gather(1, ends).split(1, 1)
    return torch.lerp(low, high, (above / (above - under).clamp_(min=1e-12)).clamp_(0, 1))


class ConformalRiskLoss(nn.Module):
    """The losses of M heads, (M,); SelectiveLoss until an epoch begins with a temperature.

    bank: how many recent positives (their gates and misses, detached) join the calibration half: a target of
    .02 cannot be resolved by the positives of one batch. Bank and dual state are in buffers, and so in the
    checkpoint. Under several ranks the threshold is that of all ranks' cases, the bank is the same on each.

    Cases stand in columns of 2M + 1 rows: M gates, M misses, and 1 where the case is a positive. So does the bank,
    in which a column whose last row is 0 does not count.
    """

    bank: Tensor
    counts: Tensor

    def __init__(self, members: int, class_weights: Tensor, settings: SelectiveSettings, bank: int):
        super().__init__()
        self.selective = SelectiveLoss(members, class_weights, settings)
        self.temperature: float | None = None
        self.generator = torch.Generator()
        self.register_buffer("bank", torch.zeros(2 * members + 1, bank))
        self.register_buffer("counts", torch.zeros(len(COUNTS)), persistent=False)

    def weigh(self, class_weights: Tensor) -> None:
        """Go on with other class weights (2,)."""
        self.selective.weigh(class_weights)

    def start_epoch(self, temperature: float | None, seed: int) -> None:
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
            cases = _of_all_ranks(torch.cat([parts.gate, missed, parts.classes[1:]]))
            # a target of .02 cannot be told from .05 by the few positives of one batch
            known = torch.cat([self.bank, cases], 1)
            if self.temperature is None:
                loss = self.selective.of(parts)
            else:
                loss = self._conformal(parts, known, self.temperature)
            if self.training:
                self._remember(known.detach())
            return loss

    def _conformal(self, parts: Parts, known: Tensor, temperature: float) -> Tensor:
        """(M,) loss at λ̂. known: (2M + 1, bank + N) the bank and the batch's cases, of all ranks.

        A head without a feasible threshold has SelectiveLoss: its exits are σ(g), of every case, under its penalty.
        """
        members, held = len(parts.gate), self.bank.shape[1]
        calibrates = self._halves(known.shape[1] - held).to(known.device, non_blocking=True)
        gate = known.detach()[:members, held:]
        heat = temperature * gate.std(1, correction=0, keepdim=True).clamp(min=LEAST_SPREAD)
        found = self._threshold(known, torch.cat([torch.ones_like(self.bank[0]), calibrates]), heat)
        if self.training:
            self._count(found, held)
        feasible = found.feasible[:, None]
        predicts = (~calibrates).float().view(-1, parts.gate.shape[1])[rank()]
        exits = ((parts.gate - found.value[:, None].where(feasible, 0.0)) / heat.where(feasible, 1.0)).sigmoid()
        loss = parts.answers + self.selective.selective(exits, parts, predicts.where(feasible, 1.0)) + parts.anchor
        if found.feasible.all():  # the usual case: a look at the device costs less than a penalty of nothing
            return loss
        return loss + self.selective.penalty(exits, parts, used=~found.feasible)

    def _halves(self, cases: int) -> Tensor:
        """(N,) bool: a random half of the cases."""
        # drawn on the CPU: every rank, and every device, has the same halves
        return torch.randperm(cases, generator=self.generator) < cases // 2

    def _threshold(self, known: Tensor, calibrates: Tensor, heat: Tensor) -> Threshold:
        """Over the positives among the known, as far as they calibrate (bank + N,)."""
        target, members = self.selective.settings.target, len(heat)
        gate, missed, positive = known.split([members, members, 1])
        return conformal_threshold(gate, (missed - target) * (positive * calibrates), heat, 1 - target)

    @torch.no_grad()
    def _remember(self, known: Tensor) -> None:
        """First in, first out: positives are moved to the end in order of arrival, and the end is kept."""
        kept = known[-1].byte().argsort(stable=True)[-self.bank.shape[1] :]
        self.bank.copy_(known.index_select(1, kept))

    @torch.no_grad()
    def _count(self, found: Threshold, held: int) -> None:
        share = found.pull[:, held:].sum(1) / found.pull.sum(1).clamp(min=1e-12)
        parts = (share, found.crossing, found.feasible, found.value * found.feasible, torch.ones_like(share))
        self.counts += torch.stack([part.to(share) for part in parts]).sum(1)

    def dual_step(self) -> None:
        self.selective.dual_step()

    def figures(self) -> dict[str, float]:
        """For metrics.csv: those of SelectiveLoss and, of the epoch's thresholds (one a head and batch), the share
        without a feasible one, the share at the grid's end, the mean of the others' gradient that is live (not
        the bank's), and the mean. Shares and means of nothing are NaN."""
        if self.temperature is None:
            return self.selective.figures()
        counts = dict(zip(COUNTS, self.counts.tolist(), strict=True))
        crossing, feasible, batches = counts["crossing"], counts["feasible"], counts["batches"]
        return {
            **self.selective.figures(),
            "conformal_infeasible_share": _ratio(batches - feasible, batches),
            "conformal_edge_share": _ratio(feasible - crossing, batches),
            "conformal_live_share": _ratio(counts["live"], crossing),
            "conformal_threshold": _ratio(counts["threshold"], feasible),
            "conformal_temperature": self.temperature,
        }


COUNTS = ("live", "crossing", "feasible", "threshold", "batches")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


class _Gathered(torch.autograd.Function):
    """(R, N) of each rank → (R, world · N) in the order of the ranks; each rank gets the gradients of its part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = sum_of_ranks(gradients[0].clone(memory_format=torch.contiguous_format))
        return total.chunk(world_size(), dim=1)[rank()]


def _of_all_ranks(cases: Tensor) -> Tensor:
    """The cases (2M + 1, N) of all ranks, in the order of the ranks; gradients go back to where the gates came from.

    The training sampler gives every rank equally many cases, so their batches are of one size.
    """
    if world_size() == 1:
        return cases
    joined: Tensor = _Gathered.apply(cases)  # pyright: ignore[reportAssignmentType]
    return joined

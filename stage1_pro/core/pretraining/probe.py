"""What the features are worth while they change: a nearest-neighbour probe, and measures of collapse."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stage1_pro.core.data.batches import EpochSampler, ImageDataset, make_loader
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.seeds import rng_of

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Probe:
    """knn: balanced accuracy of the neighbours' vote, 0 to 1. feature_std: 1 where the features fill all directions
    alike, 0 where all images look the same. effective_rank: directions in use, 1 up to the width."""

    knn: float
    feature_std: float
    effective_rank: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class ProbeCases:
    """Labelled train cases; group: (N,) codes, since a case must not be known by its own group."""

    paths: list[str]
    labels: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


def probe_cases(cases: CaseTable, splits: Splits, most: int, seed: int) -> ProbeCases:
    """The train cases, or as many of them as asked for, drawn by seed in proportion to the classes."""
    frame = cases.frame.iloc[splits.indices("train")]
    order = rng_of(seed, "probe").permutation(len(frame))
    labels = frame["label"].to_numpy()[order]
    rank = np.empty(len(order))
    for label in np.unique(labels):  # the n-th of a class of N stands at n/N: a prefix holds every class in proportion
        own = labels == label
        rank[own] = (np.arange(own.sum()) + 0.5) / own.sum()
    frame = frame.iloc[np.sort(order[np.argsort(rank, kind="stable")[:most]])]
    return ProbeCases(list(frame["path"]), frame["label"].to_numpy(), np.unique(frame["group"], return_inverse=True)[1])


@torch.no_grad()
def features_of(
    forward: Callable[[Tensor], Tensor],
    cases: ProbeCases,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Tensor:
    """(N, D) float32 features of the cases, preprocessed as an inference host does."""
    dataset = ImageDataset(cases.paths, cases.labels, preprocessing.transform(), seed=0)
    loader = make_loader(dataset, EpochSampler(len(cases), 0, shuffle=False), batch_size, workers, again=False)
    return torch.cat([forward(batch.inputs.to(device)).float() for batch in loader])


def measure(features: Tensor, cases: ProbeCases) -> Probe:
    """Every figure of the probe. Features that are not finite are worth nothing: all figures are 0."""
    if not torch.isfinite(features).all():
        return Probe(0.0, 0.0, 0.0)
    unit = functional.normalize(features, dim=1)
    labels, group = (
        torch.from_numpy(column.astype(np.int64)).to(features.device) for column in (cases.labels, cases.group)
    )
    return Probe(knn_accuracy(unit, labels, group), feature_std(unit), effective_rank(unit))


def knn_accuracy(unit: Tensor, labels: Tensor, group: Tensor) -> float:
    """Balanced accuracy of the 20 nearest neighbours by cosine, a case's own group left out.

    unit: (N, D) of length 1; labels, group: (N,). Neighbours vote with exp(cosine / .07) (arXiv 1805.01978) over the
    number of cases of their class, so that rare classes are heard; accuracy is the mean over the classes.
    """
    classes = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    votes = functional.one_hot(labels, classes).float() / counts
    answers = []
    for start in range(0, len(unit), CHUNK):
        rows = slice(start, start + CHUNK)
        cosine = (unit[rows] @ unit.T).masked_fill(group[rows, None] == group[None], -torch.inf)
        near, index = cosine.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
        weight = torch.exp(near / TEMPERATURE)  # 0 where fewer neighbours of other groups exist
        answers.append((weight[..., None] * votes[index]).sum(dim=1).argmax(dim=1))
    right = (torch.cat(answers) == labels).double()
    per_class = torch.zeros(classes, dtype=torch.double, device=right.device).index_add_(0, labels, right) / counts
    return float(per_class[torch.bincount(labels, minlength=classes) > 0].mean())


def feature_std(unit: Tensor) -> float:
    """Mean standard deviation of a coordinate of features of length 1, times √D (arXiv 2011.10566)."""
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def effective_rank(unit: Tensor) -> float:
    """exp of the entropy of the centred features' normalised singular values (Roy & Vetterli 2007); 0 where all
    features are equal."""
    exact = unit.double()
    values = torch.linalg.svdvals(exact - exact.mean(dim=0))
    total = values.sum()
    return float(torch.exp(torch.special.entr(values / total).sum())) if total > 1e-6 else 0.0

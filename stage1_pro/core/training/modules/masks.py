"""The Lightning module that trains a network for masks, and judges whole cases."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage1_pro.core.data.masks.batches import Cases, MaskBatch
from stage1_pro.core.devices import whole_batch
from stage1_pro.core.losses.dice import MaskLoss
from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.masks import MaskSums, missed, uncertainty
from stage1_pro.core.metrics.selective import augrc
from stage1_pro.core.models.mask_rows import case_row, worst_overlap
from stage1_pro.core.training.modules.base import Stage1Module


class MaskModule(Stage1Module):
    """Cross entropy and soft Dice on patches; validation figures from sums over whole cases."""

    def _make_losses(self, class_counts: np.ndarray) -> None:
        params = self.config.segmentation_params
        self.mask_loss = MaskLoss(params.ce_weight, params.dice_weight)

    def train_on(self, active: IntArray, class_counts: np.ndarray) -> None:
        """Nothing to take up: the loss has no weights of classes."""

    def losses(self, batch: MaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.mask_loss(self(batch.inputs), batch.labels, whole_batch)
        return loss, {"train_loss": loss}

    @torch.no_grad()
    def score(self, batch: Cases) -> tuple[Tensor, ...]:
        """(positions, dice, uncertainty, embedding) of whole cases, on the CPU."""
        with torch.autocast(batch.positions.device.type, enabled=False):
            found = [
                (case_row(logits, labels.to(logits.device), self.model.facts.positives), embedding.cpu())
                for (logits, embedding), labels in zip(self.model.maps(batch.inputs), batch.labels, strict=True)
            ]
        sums = MaskSums.of_rows(torch.stack([row for row, _ in found]).numpy())
        doubt = uncertainty(sums, self.config.segmentation_params.uncertainty)
        dice = np.where(sums.finite, sums.case_dice(), np.nan)
        embeddings = torch.stack([embedding for _, embedding in found])
        return batch.positions.cpu(), torch.from_numpy(dice), torch.from_numpy(doubt), embeddings

    def _judged(self, batch: Cases) -> tuple[Tensor, ...]:
        rows, losses, overlaps, positives = [], [], [], self.model.facts.positives
        by_lesion = self.config.segmentation_params.miss_rule.rule == "lesion"
        for (logits, _embedding), labels in zip(self.model.maps(batch.inputs), batch.labels, strict=True):
            labels = labels.to(logits.device)
            rows.append(case_row(logits, labels, positives))
            overlaps.append(worst_overlap(logits, labels, positives) if by_lesion else 1.0)
            losses.append(self.mask_loss(logits[None], labels[None]).double().cpu())
        return batch.positions, torch.stack(losses), torch.stack(rows), torch.tensor(overlaps, dtype=torch.float64)

    def _figures(self, labels: Tensor, *kept: Tensor) -> dict[str, float]:
        """Columns of metrics.csv. labels: (N,) loss of each case, in their place; kept: its sums, and its overlap."""
        rows, overlaps = (part.numpy() for part in kept)
        return {"val_loss": float(labels.mean()), **mask_figures(MaskSums.of_rows(rows), overlaps, self)}


def mask_figures(sums: MaskSums, overlaps: FloatArray, module: Any) -> dict[str, float]:
    """val_dice, val_dice of each class, val_augrc (loss 1 − Dice, confidence SDC) and val_share_missed."""
    params, names = module.config.segmentation_params, module.model.facts.class_names
    dice, each = sums.case_dice(), sums.dice()
    known = ~np.isnan(each)
    means = np.where(known.any(axis=0), np.where(known, each, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)
    rule, least = params.miss_rule, params.min_positive_voxels
    found = missed(sums, overlaps, rule.rule, rule.dice, rule.overlap, least)
    positive = found >= 0
    return {
        "val_dice": float(dice.mean()),
        **{f"val_dice_{name}": float(mean) for name, mean in zip(names[1:], means, strict=True)},
        "val_augrc": augrc(sums.soft_dice(), 1 - dice),
        "val_share_missed": float(found[positive].mean()) if positive.any() else float("nan"),
    }

"""MaskPredictor: images in, masks out; the code that scores a run's masks is the code that draws new ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from stage1_pro.core.config.settings import SegmentationParams
from stage1_pro.core.data.batches import quiet_worker
from stage1_pro.core.data.image_files import BadImage, read_file
from stage1_pro.core.data.masks.files import Grid, labels_of, picture_of, read_contents
from stage1_pro.core.data.masks.inputs import LINEAR, MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.masks import MaskSums, least_overlap, missed, uncertainty
from stage1_pro.core.models.segmenter import MaskModel, case_row, load_mask_model
from stage1_pro.core.records.scores import MaskScores, Scores, hashes

if TYPE_CHECKING:  # an inference host has no runs
    from stage1_pro.core.records.run import Run

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One case on its way through the network: inputs (C, *S) on its grid, and the grid of the file; labels: int64 on
    that grid, None where there is no mask."""

    inputs: Tensor
    grid: Grid
    labels: Tensor | None = None


class MaskPredictor:
    """A trained network for masks, in float32 on one device."""

    def __init__(self, model: MaskModel, params: SegmentationParams, device: str = "auto"):
        self.device = fastest_device() if device == "auto" else torch.device(device)
        self.model, self.params = model.to(self.device).eval(), params
        # TF32 would move probabilities by a thousandth
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @torch.inference_mode()
    def maps(self, cases: Sequence[Prepared]) -> Iterator[Tensor]:
        """Yield the logits (K, *S) of each case on the grid of its file."""
        for (logits, _), case in zip(
            self.model.maps([one.inputs.to(self.device) for one in cases]), cases, strict=True
        ):
            shape = case.grid.shape
            if tuple(logits.shape[1:]) == shape:
                yield logits
            else:
                yield interpolate(logits[None], shape, mode=LINEAR[len(shape)], align_corners=False)[0]

    def score(
        self,
        cases: pd.DataFrame,
        split: str,
        *,
        model_digest: str,
        splits_digest: str,
        batch_size: int,
        workers: int,
        progress: Progress,
    ) -> Scores:
        """Score cases with masks (columns case_id, group, label, path, mask, content). Raises UserError for files that
        cannot be read."""
        rows, overlaps, done = [], [], 0
        for batch in self._batches(cases, batch_size, workers):
            for case, logits in zip(batch, self.maps(batch), strict=True):
                assert case.labels is not None
                labels = case.labels.to(logits.device)
                rows.append(case_row(logits, labels, self.model.facts.positives).numpy())
                overlaps.append(self._overlap(logits, labels))
            done += len(batch)
            progress(done, len(cases))
        sums = MaskSums.of_rows(np.stack(rows))
        rule, least = self.params.miss_rule, self.params.min_positive_voxels
        return Scores(
            split=split,
            case_id=cases["case_id"].to_numpy(),
            group=cases["group"].to_numpy(),
            labels=cases["label"].to_numpy().astype(np.int8),
            logits=sums.case_logits(least),
            gate_logit=None,
            model_digest=model_digest,
            splits_digest=splits_digest,
            content=hashes(cases["content"]),
            masks=MaskScores(
                missed(sums, np.array(overlaps), rule.rule, rule.dice, rule.overlap, least),
                np.where(sums.finite, sums.case_dice(), np.nan),
                uncertainty(sums, self.params.uncertainty),
            ),
        )

    def _overlap(self, logits: Tensor, labels: Tensor) -> float:
        if self.params.miss_rule.rule != "lesion":
            return 1.0
        positives = torch.tensor(self.model.facts.positives, device=logits.device)
        answer = torch.isin(logits.argmax(dim=0), positives)
        return least_overlap(torch.isin(labels, positives).cpu().numpy(), answer.cpu().numpy())

    def _batches(self, cases: pd.DataFrame, batch_size: int, workers: int) -> DataLoader:
        return DataLoader(
            _Cases(list(cases["path"]), list(cases["mask"]), self.model.spec.preprocessing, self.model.facts),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=quiet_worker,
        )


class _Cases(Dataset):
    """Cases as the network takes them, with their masks."""

    def __init__(self, paths: list[str], masks: list[str], preprocessing: MaskPreprocessing, facts: MaskFacts):
        self.paths, self.masks, self.preprocessing, self.facts = paths, masks, preprocessing, facts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Prepared:
        try:
            picture = picture_of(read_contents(self.paths[position]))
            values, _ = labels_of(read_file(self.masks[position]))
        except BadImage as bad:
            raise UserError(
                f"{self.paths[position]} or its mask cannot be read ({bad}). Restore the files and run again."
            ) from None
        inputs: Any = self.preprocessing.inputs(picture)
        return Prepared(torch.from_numpy(inputs), picture.grid, torch.from_numpy(self.facts.coded(values)))


def mask_scorer(run: "Run", device: str) -> MaskPredictor:
    """What scores the masks of a run."""
    return MaskPredictor(load_mask_model(run.model_path), run.config.segmentation_params, device)

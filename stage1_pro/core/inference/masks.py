"""MaskPredictor: images in, masks out; the code that scores a run's masks is the code that draws new ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import BundleContents, demand_same_model, verify_bundle
from stage1_pro.core.data.batches import quiet_worker
from stage1_pro.core.data.image_files import BadImage, read_file, shown
from stage1_pro.core.data.masks.files import (
    Grid,
    case_stem,
    channel_files,
    labels_of,
    picture_of,
    read_contents,
    write_mask,
)
from stage1_pro.core.data.masks.inputs import LINEAR, MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.predictor import RawOutputs, chosen_device
from stage1_pro.core.inference.records import Decision, decision_records
from stage1_pro.core.metrics.masks import MaskSums, missed, uncertainty
from stage1_pro.core.models.mask_rows import answered, case_row, worst_overlap
from stage1_pro.core.models.segmenter import MaskModel, load_mask_model
from stage1_pro.core.policies.base import ExitPolicy
from stage1_pro.core.records.scores import MaskScores, Scores, hashes

if TYPE_CHECKING:  # an inference host has no runs
    from stage1_pro.core.records.run import Run

Progress = Callable[[int, int], None]
Source = str | bytes | list[bytes]
"""A case: its path, or the content of its file or files."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One case on its way through the network: inputs (C, *S) on its grid, and the grid of the file; labels: int64 on
    that grid, None where there is no mask; reason: why the case cannot be read, then the rest is empty."""

    inputs: Tensor
    grid: Grid
    labels: Tensor | None = None
    reason: str | None = None


class MaskPredictor:
    """A trained network for masks and its exit policy, in float32 on one device.

    To scripts it is what Stage1Predictor is: `outputs` gives the logits of cases, `records` their decisions. With
    `draw_into` every mask that `outputs` makes is also written.
    """

    forward_batch: int | None = None

    def __init__(self, model: MaskModel, policy: ExitPolicy | None = None, device: str = "auto"):
        self.device = chosen_device(device)
        self.model, self.params, self.policy = model.to(self.device).eval(), model.params, policy
        self.files: dict[str, Path] = {}
        self.begun: Callable[[], object] | None = None
        # TF32 would move probabilities by a thousandth
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @classmethod
    def load(cls, bundle: str | Path, device: str = "auto") -> "MaskPredictor":
        """Load the network and the policy of a bundle, after every file of it has been verified."""
        return cls.of_verified(verify_bundle(bundle), device)

    @classmethod
    def of_verified(cls, contents: BundleContents, device: str = "auto") -> "MaskPredictor":
        """The same of a bundle whose files `verify_bundle` has read."""
        return cls(cls.checked_model(contents), contents.policy, device)

    @staticmethod
    def checked_model(contents: BundleContents) -> MaskModel:
        """The network of a verified bundle. Raises UserError where it cannot be loaded, or takes other inputs."""
        model = load_mask_model(contents.model_path)
        demand_same_model(contents)
        policy_file = contents.path / contents.manifest["policy_file"]
        rule = artifacts.read_json(policy_file, policy_file.stem)["miss_rule"]
        own = {**asdict(model.params.miss_rule), "min_voxels": model.params.min_positive_voxels}
        recorded = MaskPreprocessing.from_dict(contents.manifest[contents.task.inputs])
        if rule != own or model.spec.preprocessing != recorded:
            raise UserError(f"{contents.path}: the model file names another miss rule or other inputs. Export again.")
        return model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the answers: without and with the positive class."""
        return self.model.class_names

    def draw_into(
        self,
        folder: Path,
        names: Sequence[str],
        paths: Sequence[str] | None = None,
        begun: Callable[[], object] = lambda: None,
    ) -> None:
        """Write the mask of each of these cases into a folder, as the case's own file name says.

        names: of the cases; paths: where they are read, None where the names say it; begun: called before the first.
        """
        suffix = ".png" if self.model.spec.preprocessing.dims == 2 else ".nii.gz"
        self.begun = begun
        self.files = {
            path: folder / f"{name}{suffix}" for path, name in zip(paths or names, mask_names(names), strict=True)
        }

    @torch.inference_mode()
    def outputs(self, images: Any, *, batch_size: int | None = None, workers: int = 0) -> Iterator[RawOutputs]:
        """Yield the logits of cases, batch after batch, in the order given; NaN for one that cannot be read.

        images: paths, the channels of one case parted by ";"; or the content of a case's file, or of each of its files.
        """
        paths, done = [case if isinstance(case, bytes | list) else str(case) for case in images], 0
        for batch in self._batches(paths, None, batch_size or self.params.window_batch, workers):
            readable = [case for case in batch if case.reason is None]
            logits = np.full((len(batch), 2), np.nan, dtype=np.float32)
            rows = []
            for case, found, path in zip(readable, self.maps(readable), self._named(batch, paths, done), strict=True):
                rows.append(case_row(found, torch.zeros_like(found[0], dtype=torch.int64), self.positives).numpy())
                self._draw(path, found, case.grid)
            if rows:
                sums = MaskSums.of_rows(np.stack(rows))
                at = [position for position, case in enumerate(batch) if case.reason is None]
                logits[at] = sums.case_logits(self.params.min_positive_voxels)
            reasons = {position: case.reason for position, case in enumerate(batch) if case.reason is not None}
            yield RawOutputs(logits, None, reasons)
            done += len(batch)

    def records(self, outputs: RawOutputs, groups: None = None) -> list[Decision]:
        """Decide the logits of cases: one Decision each. groups: masks have one certificate for all. Raises ValueError
        without a policy."""
        if self.policy is None:
            raise ValueError("this predictor has no exit policy")
        return decision_records(self.policy.decide(outputs), outputs.unreadable, self.class_names)

    @property
    def positives(self) -> tuple[int, ...]:
        """Values of the positive class."""
        return self.model.facts.positives

    @staticmethod
    def _named(batch: Sequence[Prepared], paths: Sequence[Source], done: int) -> list[Source]:
        return [paths[done + position] for position, case in enumerate(batch) if case.reason is None]

    def _draw(self, path: Source, logits: Tensor, grid: Grid) -> None:
        if isinstance(path, str) and path in self.files:
            if self.begun is not None:
                self.begun()
                self.begun = None
            write_mask(self.files[path], answered(logits).cpu().numpy(), grid)

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
        rows, overlaps, decided, done = [], [], [], 0
        by_lesion = self.params.miss_rule.rule == "lesion"
        for batch in self.prepared(cases, batch_size, workers):
            for case, logits in zip(batch, self.maps(batch), strict=True):
                assert case.labels is not None
                labels = case.labels.to(logits.device)
                rows.append(case_row(logits, labels, self.positives).numpy())
                overlaps.append(worst_overlap(logits, labels, self.positives) if by_lesion else 1.0)
                decided.append(int((labels >= 0).sum()))
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
                np.where(sums.finite, sums.positive_dice(), np.nan),
                sums.marked_dice(decided),
            ),
        )

    def prepared(self, cases: pd.DataFrame, batch_size: int, workers: int) -> Iterator[list[Prepared]]:
        """Yield cases with masks (columns path, mask), batch after batch. Raises UserError for what cannot be read."""
        paths, done = list(cases["path"]), 0
        for batch in self._batches(paths, list(cases["mask"]), batch_size, workers):
            for position, case in enumerate(batch):
                if case.reason is not None:
                    where = f"{paths[done + position]} or its mask cannot be read ({case.reason})"
                    raise UserError(f"{where}. Restore the files and run again.")
            yield batch
            done += len(batch)

    def _batches(
        self, paths: Sequence[Source], masks: Sequence[str] | None, batch_size: int, workers: int
    ) -> Iterable[list[Prepared]]:
        return DataLoader(
            _Cases(paths, masks, self.model.spec.preprocessing, self.model.facts),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=quiet_worker,
        )


class _Cases(Dataset):
    """Cases as the network takes them, with their masks where there are such."""

    def __init__(
        self, paths: Sequence[Source], masks: Sequence[str] | None, preprocessing: MaskPreprocessing, facts: MaskFacts
    ):
        self.paths, self.masks, self.preprocessing, self.facts = paths, masks, preprocessing, facts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Prepared:
        try:
            picture = picture_of(_contents(self.paths[position]))
            labels = None if self.masks is None else labels_of(read_file(self.masks[position]))[0]
            made = self.preprocessing
            kind = len(picture.grid.shape), len(picture.values), picture.joint
            if kind != (made.dims, made.channels, made.joint):
                raise BadImage("other_kind")
            if not np.isfinite(picture.values).all():
                raise BadImage("not_finite")
            inputs: Any = made.inputs(picture)
        except BadImage as bad:
            return Prepared(torch.empty(0), Grid((), ()), reason=str(bad))
        codes = None if labels is None else torch.from_numpy(self.facts.coded(labels))
        return Prepared(torch.from_numpy(inputs), picture.grid, codes)


def _contents(case: Source) -> list[bytes]:
    if isinstance(case, str):
        return read_contents(case)
    return [case] if isinstance(case, bytes) else case


def mask_names(paths: Sequence[str]) -> list[str]:
    """A file name for each case, no two alike: its stem, or its whole path where stems are not unique.

    >>> mask_names(["a/x.png", "b/x.png"]), mask_names(["a/x_0000.nii.gz;a/x_0001.nii.gz"])
    (['a_x', 'b_x'], ['x_0000'])
    """
    firsts = [Path(channel_files(path)[0]) for path in paths]
    names = [shown(case_stem(first)) for first in firsts]
    if len(set(names)) == len(names):
        return names
    whole = [shown(first.with_name(case_stem(first))).strip("/").replace("/", "_") for first in firsts]
    return whole if len(set(whole)) == len(whole) else [f"{number:06}_{name}" for number, name in enumerate(names)]


def mask_scorer(run: "Run", device: str) -> MaskPredictor:
    """What scores the masks of a run."""
    return MaskPredictor(load_mask_model(run.model_path), None, device)

"""Stage1Predictor: images in, decisions out. The same code writes a run's scores and serves a bundle."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stage1_pro.core.bundle.contents import BundleContents, demand_images, demand_same_model, verify_bundle
from stage1_pro.core.data.decoding import ImageContract, demand_source
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.preparing import Preparing, preparing_of
from stage1_pro.core.inference.records import Decision, decision_records
from stage1_pro.core.metrics.views import Views, fuse
from stage1_pro.core.models.onnx_model import ScoringModel, load_scoring_model
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.policies.base import ExitDecisions, ExitPolicy, Outputs
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.scores import Scores, hashes

if TYPE_CHECKING:  # an inference host has no runs
    from stage1_pro.core.records.run import Run

Progress = Callable[[int, int], None]
Groups = Sequence[str] | np.ndarray | str | None
"""Certificate groups, one a case or one for all."""


@dataclass(frozen=True, slots=True, eq=False)
class RawOutputs:
    """Raw outputs of consecutive images, float32, and why some could not be read.

    logits: (N, C), NaN for an unreadable image; gate_logit: (N,) or None; unreadable: position → reason.
    """

    logits: np.ndarray
    gate_logit: np.ndarray | None
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.logits)


class Stage1Predictor:
    """A trained model and its exit policy: images in, decisions out, on one device.

    `load` takes a bundle; `predict` decides images. `outputs` and `decide` are its two halves, for streams: raw outputs
    batch after batch, then decisions. A predictor made without a policy scores and does not decide. forward_batch:
    images of every forward pass, filled up with zeros, so that equal images get equal scores on one machine, whatever
    stands beside them; None: as many as come. precision: float32, or bf16, in which the backbone then computes; heads
    and policy do not. images: what prepares images, where they are read ahead. Raises UserError where the device is not
    there, or does not decode as the model's preprocessing says.

    >>> from stage1_pro import Stage1Predictor
    >>> predictor = Stage1Predictor.load("runs/smoke/p2/bundle", device="cpu")
    >>> predictor.class_names
    ('blue', 'red')
    >>> for outputs in predictor.outputs(["data/smoke/images/0000.png", "data/smoke/images/none.png"]):
    ...     decisions = predictor.decide(outputs)
    >>> outputs.logits.shape, outputs.unreadable
    ((2, 2), {1: 'no such file'})
    >>> decisions.exits.shape, bool(decisions.exits[1])  # what cannot be read is deferred
    ((2,), False)
    """

    def __init__(
        self,
        model: ScoringModel,
        policy: ExitPolicy | None = None,
        device: str = "auto",
        forward_batch: int | None = None,
        precision: str = "float32",
        images: Preparing | None = None,
    ):
        self.device = chosen_device(device) if isinstance(model, Stage1Model) else _cpu(device)
        self.model = model.to(self.device).eval() if isinstance(model, Stage1Model) else model
        self.policy, self.forward_batch, self.precision = policy, forward_batch, precision
        self.views: Views | None = getattr(policy, "views", None)
        self.certificate_groups: str | None = getattr(policy, "column", None)
        self.images = images or preparing_of(model.spec.preprocessing, self.device)
        # TF32 would move logits by a thousandth; scores are promised to a ten-thousandth
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @classmethod
    def from_run(cls, run: "Run", device: str = "auto") -> "Stage1Predictor":
        """Load a run's model, with its policy where one is certified."""
        policy = policy_from_artifact(run.config.exit_policy, read_policy(run)) if run.policy_files() else None
        return cls(load_scoring_model(run.scored_path), policy, device, **run.config.scoring_options)

    @classmethod
    def load(cls, bundle: str | Path, device: str = "auto") -> "Stage1Predictor":
        """Load the model and the policy of a bundle, after every file of it has been verified.

        device: auto (a GPU where there is one), cpu, cuda, cuda:1, … Raises UserError where the bundle is not whole or
        the device is not there.
        """
        return cls.of_verified(verify_bundle(bundle), device)

    @classmethod
    def of_verified(cls, contents: BundleContents, device: str = "auto") -> "Stage1Predictor":
        """The same of a bundle whose files `verify_bundle` has read."""
        demand_images(contents)
        model = cls.checked_model(contents)
        batch, precision = contents.manifest.get("forward_batch"), contents.manifest.get("scoring_precision", "float32")
        return cls(model, contents.policy, device, batch, precision)

    @staticmethod
    def checked_model(contents: BundleContents) -> ScoringModel:
        """The model of a verified bundle. Raises UserError where it cannot be loaded, or preprocesses otherwise."""
        model = load_scoring_model(contents.model_path)
        demand_same_model(contents)
        # hosts without Python preprocess by the manifest: both must see the same pixels
        if model.spec.preprocessing != Preprocessing.from_dict(contents.manifest["preprocessing"]):
            raise UserError(
                f"{contents.path}: bundle.json and the model file name different preprocessing. Export again."
            )
        return model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits' columns."""
        return self.model.class_names

    def predict(self, images: Any, *, groups: Groups = None, workers: int = 0) -> list[Decision]:
        """Decide images: one Decision each, in the order given.

        images: a path, the bytes of an image file, a PIL image, a uint8 array (H, W, 3) in RGB, or a list or tuple of
        such; groups: with a bundle that certifies each camera or site by itself the one of each image, or of all of
        them; workers: processes that decode, 0 for this one. An image that cannot be read is deferred, and its reason
        says why. Raises TypeError for anything else than these, and ValueError without a policy.

        >>> from stage1_pro import Stage1Predictor
        >>> predictor = Stage1Predictor.load("runs/smoke/p2/bundle", device="cpu")
        >>> first, second = predictor.predict(["data/smoke/images/0000.png", b"no image"])
        >>> first.answer in predictor.class_names, first.decision in ("exit", "defer")
        (True, True)
        >>> second.answer, second.decision, second.reason
        ('', 'defer', 'the content is not an image')
        """
        self._demand_policy()
        if self.views is not None:
            raise ValueError(
                f"this bundle decides groups of images, by {self.views.words}, and promises nothing of one image: call "
                "predict_groups"
            )
        found, done = [], 0
        named = groups if groups is None or isinstance(groups, str) else list(groups)
        for part in self.outputs(images, workers=workers):
            found += self.records(part, named if not isinstance(named, list) else named[done : done + len(part)])
            done += len(part)
        return found

    def predict_groups(self, groups: Sequence[Sequence[Any]], *, workers: int = 0) -> list[Decision]:
        """Decide groups of images: one Decision each, in the order given.

        groups: the images of each, in their order, one or more, as `predict` takes them. Those that the bundle's views
        name are looked at, all where there are fewer; a group of which one cannot be read is deferred. Raises
        ValueError for a bundle that decides image by image, and for a group without images.
        """
        if self.views is None or not all(groups):
            what = "this bundle decides image by image: call predict" if self.views is None else "a group has no images"
            raise ValueError(what)
        seen = [[group[at] for at in self.views.positions(len(group))] for group in groups]
        parts = list(self.outputs([image for group in seen for image in group], workers=workers))
        starts = np.cumsum([0, *map(len, parts)])
        reasons: dict[int, str] = {}
        for start, part in zip(starts.tolist(), parts, strict=False):
            reasons |= {start + at: why for at, why in part.unreadable.items()}
        logits = np.concatenate([part.logits for part in parts]) if parts else np.zeros((0, 2), np.float32)
        return self.group_records(logits, list(map(len, seen)), reasons)

    def group_records(self, logits: np.ndarray, sizes: Sequence[int], unreadable: Mapping[int, str]) -> list[Decision]:
        """Decide groups by the logits (N, 2) of the images that are looked at, group by group.

        sizes: images of each group among them, 1 or more; unreadable: position → reason.
        """
        ends = np.cumsum(sizes)
        reasons: dict[int, str] = {}
        for position, reason in unreadable.items():
            reasons.setdefault(int(np.searchsorted(ends, position, side="right")), reason)
        fused = fuse(logits, np.repeat(np.arange(len(ends)), sizes), None, Views())
        return decision_records(self.decide(fused), reasons, self.class_names)

    def records(self, outputs: RawOutputs, groups: Groups = None) -> list[Decision]:
        """Decide raw outputs: one Decision an image. groups: as of `decide`. Raises ValueError without a policy."""
        return decision_records(self.decide(outputs, groups), outputs.unreadable, self.class_names)

    @torch.inference_mode()
    def outputs(self, images: Any, *, batch_size: int | None = None, workers: int = 0) -> Iterator[RawOutputs]:
        """Yield raw outputs of images, batch after batch, in the order given.

        images: as `predict` takes them; batch_size: images that are decoded before they go through the model; None:
        forward_batch, or 64 without one; workers: processes that decode, 0 for this one. Yields RawOutputs:
        `logits` (N, C) float32, `gate_logit` (N,) or None, `unreadable`, the reason for each position that could not be
        read; its logits are NaN.
        """
        batch_size = batch_size or self.forward_batch or 64
        for decoded, readable, reasons in self.images.batches(_sources(images), batch_size, workers):
            yield self._forward(decoded, readable, reasons)

    def prepared(self, image: Any, contract: ImageContract | None = None) -> Tensor:
        """Decode and transform one image: float32 (3, H, W). Safe in several threads.

        contract: a stricter one than the model's own. Raises BadImage.
        """
        return self.images.one(image, contract or self.model.spec.preprocessing.images)

    @torch.inference_mode()
    def outputs_of(self, prepared: Sequence[Tensor]) -> RawOutputs:
        """Raw outputs of images that `prepared` made, in their order; one thread at a time."""
        return self._forward(torch.stack(list(prepared)), np.ones(len(prepared), dtype=bool), {})

    @torch.inference_mode()
    def features(self, paths: Sequence[str], *, batch_size: int, workers: int, progress: Progress) -> Tensor:
        """Return the features of image files, (N, D) float32 on the CPU, of a torch model.

        Raises UserError for an unreadable one.
        """
        assert isinstance(self.model, Stage1Model)
        parts, done = [], 0
        for images, _, reasons in self.images.batches(paths, batch_size, workers):
            _demand_readable(paths, done, reasons)
            parts += [self._backbone(whole)[:count].cpu() for whole, count in self._passes(images)]
            done += len(images)
            progress(done, len(paths))
        return torch.cat(parts)

    def decide(self, outputs: Outputs, groups: Groups = None) -> ExitDecisions:
        """Decide raw outputs, those of groups joined by `metrics.views.fuse`.

        groups: with a policy that certifies each camera or site by itself the one of each case, (N,) str, or of all of
        them; "" where it is not known, and such a case defers.

        Returns `exits` (N,) bool, `predictions` (N,) int, `scores` and `probabilities` (N,) float64;
        prediction_sets: (N, C) bool with an SCRC policy, else None. Cases with NaN logits are deferred. Raises
        ValueError without a policy.
        """
        named = [groups] * len(outputs.logits) if isinstance(groups, str) else groups
        return self._demand_policy().decide(outputs, named)

    def _demand_policy(self) -> ExitPolicy:
        if self.policy is None:
            raise ValueError("this predictor has no exit policy")
        return self.policy

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
        """Score labelled cases (columns case_id, group, label, path, content).

        Raises UserError for an unreadable image.
        """
        parts, done = [], 0
        for part in self.outputs(list(cases["path"]), batch_size=batch_size, workers=workers):
            _demand_readable(list(cases["path"]), done, part.unreadable)
            parts.append(part)
            done += len(part)
            progress(done, len(cases))
        return self._scores(parts, cases, split, model_digest, splits_digest)

    @torch.inference_mode()
    def score_features(
        self, features: Tensor, cases: pd.DataFrame, split: str, *, model_digest: str, splits_digest: str
    ) -> Scores:
        """Score labelled cases by their features (N, D), which `features` returned: what `score` makes of the images,
        without another pass over them; of a torch model."""
        assert isinstance(self.model, Stage1Model)
        parts = []
        for whole, count in self._passes(features):
            outputs = self.model.head(whole)
            gate = None if outputs.gate_logit is None else outputs.gate_logit[:count].float().cpu().numpy()
            parts.append(RawOutputs(outputs.logits[:count].float().cpu().numpy(), gate, {}))
        return self._scores(parts, cases, split, model_digest, splits_digest)

    def _scores(
        self, parts: Sequence[RawOutputs], cases: pd.DataFrame, split: str, model_digest: str, splits_digest: str
    ) -> Scores:
        gates = [part.gate_logit for part in parts if part.gate_logit is not None]
        return Scores(
            split=split,
            case_id=cases["case_id"].to_numpy(),
            group=cases["group"].to_numpy(),
            labels=cases["label"].to_numpy().astype(np.int8),
            logits=np.concatenate([part.logits for part in parts]),
            gate_logit=np.concatenate(gates) if gates else None,
            model_digest=model_digest,
            splits_digest=splits_digest,
            answer_shift=self.model.answer_shift,
            content=hashes(cases["content"]),
            order=cases["order"].to_numpy() if "order" in cases else None,
            certificate_group=cases["certificate_group"].to_numpy() if "certificate_group" in cases else None,
        )

    def _forward(self, images: Tensor, readable: np.ndarray, reasons: dict[int, str]) -> RawOutputs:
        # NaN never exits: every policy defers an image that could not be read
        logits = np.full((len(readable), len(self.class_names)), np.nan, dtype=np.float32)
        gate = np.full(len(readable), np.nan, dtype=np.float32) if self.model.gated else None
        places, done = np.flatnonzero(readable), 0
        for whole, count in self._passes(images):
            outputs, at = self._outputs(whole), places[done : done + count]
            logits[at] = outputs.logits[:count].float().cpu().numpy()
            if gate is not None and outputs.gate_logit is not None:
                gate[at] = outputs.gate_logit[:count].float().cpu().numpy()
            done += count
        return RawOutputs(logits, gate, reasons)

    def _outputs(self, images: Tensor) -> Any:
        """Outputs of one whole pass."""
        if self.precision == "float32" or not isinstance(self.model, Stage1Model):
            return self.model(images)
        return self.model.head(self._backbone(images))

    def _backbone(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of one whole pass, of a torch model."""
        assert isinstance(self.model, Stage1Model)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model.backbone(images).float()

    def _passes(self, images: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Images (B, 3, H, W), or features (B, D), as whole passes on the device, each with its number of rows."""
        size = self.forward_batch or max(1, len(images))
        for part in images.split(size) if len(images) else ():
            missing = size - len(part)
            whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            yield whole.to(self.device, non_blocking=True), len(part)


def _sources(images: Any) -> list[Any]:
    """The images as a list; all are looked at before the first is decoded. Raises TypeError."""
    if not isinstance(images, list | tuple):
        demand_source(images)
        return [images]
    for position, image in enumerate(images):
        try:
            demand_source(image)
        except TypeError as error:
            raise TypeError(f"images[{position}]: {error}") from None
    return list(images)


def _demand_readable(paths: Sequence[str], done: int, reasons: dict[int, str]) -> None:
    for position, reason in reasons.items():
        raise UserError(f"{paths[done + position]} cannot be read ({reason}). Restore the file and run again.")


def _cpu(device: str) -> torch.device:
    """The device of an ONNX model: scores certified on the CPU are computed there."""
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: model.onnx is computed on the CPU. Leave --device out, or say cpu.")
    return torch.device("cpu")


def chosen_device(device: str) -> torch.device:
    """The device that a name means; auto: the fastest. Raises UserError where it is not there."""
    if device == "auto":
        return fastest_device(mps=True)
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # NotImplementedError of "meta" is one of these
        why = " ".join(str(error).split()).partition(". ")[0][:120]
        raise UserError(f"--device {device}: {why.rstrip('.')}. Leave --device out, or say cpu.") from None
    return torch.device(device)

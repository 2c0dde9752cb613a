"""Stage1Predictor: images in, decisions out. The same code writes a run's scores and serves a bundle."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stage1_pro.core.bundle.contents import verify_bundle
from stage1_pro.core.data.batches import quiet_worker
from stage1_pro.core.data.decoding import ImageContract, decode
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.stage1 import Stage1Model, load_model
from stage1_pro.core.policies.base import ExitDecisions, ExitPolicy
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.scores import Scores

if TYPE_CHECKING:  # an inference host has no runs
    from stage1_pro.core.records.run import Run

Progress = Callable[[int, int], None]


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
    """A trained model and its exit policy: images in, decisions out, in float32 on one device.

    `load` takes a bundle. `outputs` turns image files into raw outputs, batch after batch, and `decide` turns those
    into decisions. A predictor made without a policy scores and does not decide.

    >>> from stage1_pro import Stage1Predictor
    >>> predictor = Stage1Predictor.load("runs/smoke/p2/bundle", device="cpu")
    >>> predictor.class_names
    ('blue', 'red')
    >>> paths = ["data/smoke/images/0000.png", "data/smoke/images/none.png"]
    >>> for outputs in predictor.outputs(paths, batch_size=64):
    ...     decisions = predictor.decide(outputs)
    >>> outputs.logits.shape, outputs.unreadable
    ((2, 2), {1: 'no such file'})
    >>> decisions.exits.shape, bool(decisions.exits[1])  # what cannot be read is deferred
    ((2,), False)
    """

    def __init__(self, model: Stage1Model, policy: ExitPolicy | None = None, device: str = "auto"):
        self.device = _chosen(device)
        self.model = model.to(self.device).eval()
        self.policy = policy
        self.transform = model.spec.preprocessing.transform()
        # TF32 would move logits by a thousandth; scores are promised to a ten-thousandth
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @classmethod
    def from_run(cls, run: "Run", device: str = "auto") -> "Stage1Predictor":
        """Load a run's model, with its policy where one is certified."""
        policy = policy_from_artifact(run.config.exit_policy, read_policy(run)) if run.policy_files() else None
        return cls(load_model(run.model_path), policy, device)

    @classmethod
    def load(cls, bundle: str | Path, device: str = "auto") -> "Stage1Predictor":
        """Load the model and the policy of a bundle, after every file of it has been verified.

        device: auto (a GPU where there is one), cpu, cuda, cuda:1, … Raises UserError where the bundle is not whole or
        the device is not there.
        """
        contents = verify_bundle(bundle)
        model = load_model(contents.model_path)
        # hosts without Python preprocess by the manifest: both must see the same pixels
        if model.spec.preprocessing != Preprocessing.from_dict(contents.manifest["preprocessing"]):
            raise UserError(f"{bundle}: bundle.json and the model file name different preprocessing. Export again.")
        return cls(model, contents.policy, device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits' columns."""
        return self.model.class_names

    @torch.inference_mode()
    def outputs(self, paths: Sequence[str], *, batch_size: int = 64, workers: int = 0) -> Iterator[RawOutputs]:
        """Yield raw outputs of image files, batch after batch, in the order given.

        paths: image files; batch_size: images per forward pass; workers: processes that decode, 0 for this one.
        Yields RawOutputs of up to batch_size images: `logits` (N, C) float32, `gate_logit` (N,) or None, `unreadable`,
        the reason for each position that could not be read; its logits are NaN.
        """
        for images, readable, reasons in self._batches(paths, batch_size, workers):
            yield self._forward(images, readable, reasons)

    @torch.inference_mode()
    def features(self, paths: Sequence[str], *, batch_size: int, workers: int, progress: Progress) -> Tensor:
        """Return the features of image files, (N, D) float32 on the CPU. Raises UserError for an unreadable one."""
        parts, done = [], 0
        for images, _, reasons in self._batches(paths, batch_size, workers):
            _demand_readable(paths, done, reasons)
            parts.append(self.model.backbone(images.to(self.device, non_blocking=True)).float().cpu())
            done += len(images)
            progress(done, len(paths))
        return torch.cat(parts)

    def _batches(self, paths: Sequence[str], batch_size: int, workers: int) -> DataLoader:
        return DataLoader(
            _Files(paths, self.model.spec.preprocessing.images, self.transform),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=quiet_worker,
        )

    def decide(self, outputs: RawOutputs) -> ExitDecisions:
        """Decide raw outputs: `exits` (N,) bool, `predictions` (N,) int, `scores` and `probabilities` (N,) float64.

        prediction_sets: (N, C) bool with an SCRC policy, else None. Cases with NaN logits are deferred. Raises
        ValueError without a policy.
        """
        if self.policy is None:
            raise ValueError("this predictor has no exit policy")
        return self.policy.decide(outputs)

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
        """Score labelled cases (columns case_id, group, label, path). Raises UserError for an unreadable image."""
        logits, gates, done = [], [], 0
        for part in self.outputs(list(cases["path"]), batch_size=batch_size, workers=workers):
            _demand_readable(list(cases["path"]), done, part.unreadable)
            logits.append(part.logits)
            gates.append(part.gate_logit)
            done += len(part)
            progress(done, len(cases))
        return Scores(
            split=split,
            case_id=cases["case_id"].to_numpy(),
            group=cases["group"].to_numpy(),
            labels=cases["label"].to_numpy().astype(np.int8),
            logits=np.concatenate(logits),
            gate_logit=np.concatenate(gates) if gates[0] is not None else None,
            model_digest=model_digest,
            splits_digest=splits_digest,
            answer_shift=self.model.answer_shift,
        )

    def _forward(self, images: Tensor, readable: np.ndarray, reasons: dict[int, str]) -> RawOutputs:
        # NaN never exits: every policy defers an image that could not be read
        logits = np.full((len(readable), len(self.class_names)), np.nan, dtype=np.float32)
        gate = None if self.model.heads is None else np.full(len(readable), np.nan, dtype=np.float32)
        if len(images):
            outputs = self.model(images.to(self.device, non_blocking=True))
            logits[readable] = outputs.logits.float().cpu().numpy()  # as score files hold them, so decisions agree
            if gate is not None and outputs.gate_logit is not None:
                gate[readable] = outputs.gate_logit.float().cpu().numpy()
        return RawOutputs(logits, gate, reasons)


def _demand_readable(paths: Sequence[str], done: int, reasons: dict[int, str]) -> None:
    for position, reason in reasons.items():
        raise UserError(f"{paths[done + position]} cannot be read ({reason}). Restore the file and run again.")


class _Files(Dataset):
    """Transformed images, or the reason why a file gives none."""

    def __init__(self, paths: Sequence[str], contract: ImageContract, transform: Callable):
        self.paths, self.contract, self.transform = list(paths), contract, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Tensor | str:
        try:
            image = decode(self.paths[position], self.contract)
        except BadImage as bad:
            return str(bad)
        return self.transform(image)  # outside of the try: an error in there is a bug, never a bad image


def _collate(items: list[Tensor | str]) -> tuple[Tensor, np.ndarray, dict[int, str]]:
    images = [item for item in items if isinstance(item, Tensor)]
    reasons = {position: item for position, item in enumerate(items) if isinstance(item, str)}
    readable = np.array([isinstance(item, Tensor) for item in items])
    return torch.stack(images) if images else torch.empty(0), readable, reasons


def _chosen(device: str) -> torch.device:
    if device == "auto":
        return fastest_device(mps=True)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {' '.join(str(error).split())[:120]}") from None
    return torch.device(device)

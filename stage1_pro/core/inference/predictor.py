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
from stage1_pro.core.data.transforms import load_image
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.stage1 import Stage1Model, load_model
from stage1_pro.core.policies.base import ExitDecisions, ExitPolicy
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.scores import Scores, hashes

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
    """A trained model with an optional exit policy, in float32 on one device.

    Without a policy it scores; with one it also decides.
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
        """The run's model, with its policy where one is certified."""
        policy = policy_from_artifact(run.config.exit_policy, read_policy(run)) if run.policy_files() else None
        return cls(load_model(run.model_path), policy, device)

    @classmethod
    def load(cls, bundle: str | Path, device: str = "auto") -> "Stage1Predictor":
        """A verified bundle. Raises UserError where it is not whole."""
        contents = verify_bundle(Path(bundle))
        model = load_model(contents.model_path)
        if model.spec.preprocessing.to_dict() != contents.manifest["preprocessing"]:
            raise UserError(f"{bundle}: bundle.json and the model file name different preprocessing. Export again.")
        return cls(model, contents.policy, device)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.model.class_names

    @torch.inference_mode()
    def outputs(self, paths: Sequence[str], *, batch_size: int = 64, workers: int = 0) -> Iterator[RawOutputs]:
        """Raw outputs of image files, batch after batch, in the order given."""
        for images, readable, reasons in self._batches(paths, batch_size, workers):
            yield self._forward(images, readable, reasons)

    @torch.inference_mode()
    def features(self, paths: Sequence[str], *, batch_size: int, workers: int, progress: Progress) -> Tensor:
        """(N, D) what the backbone makes of image files, float32 on the CPU. Raises UserError for an unreadable one."""
        parts, done = [], 0
        for images, _, reasons in self._batches(paths, batch_size, workers):
            _demand_readable(paths, done, reasons)
            parts.append(self.model.backbone(images.to(self.device, non_blocking=True)).float().cpu())
            done += len(images)
            progress(done, len(paths))
        return torch.cat(parts)

    def _batches(self, paths: Sequence[str], batch_size: int, workers: int) -> DataLoader:
        return DataLoader(
            _Files(paths, self.transform),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=quiet_worker,
        )

    def decide(self, outputs: RawOutputs) -> ExitDecisions:
        """What the policy says of raw outputs. Raises ValueError without a policy."""
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
        """Score labelled cases (columns case_id, group, label, path, content).

        Raises UserError for an unreadable image.
        """
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
            content=hashes(cases["content"]),
        )

    def _forward(self, images: Tensor, readable: np.ndarray, reasons: dict[int, str]) -> RawOutputs:
        logits = np.full((len(readable), len(self.class_names)), np.nan, dtype=np.float32)
        gate = None if self.model.heads is None else np.full(len(readable), np.nan, dtype=np.float32)
        if len(images):
            outputs = self.model(images.to(self.device, non_blocking=True))
            logits[readable] = outputs.logits.float().cpu().numpy()
            if gate is not None and outputs.gate_logit is not None:
                gate[readable] = outputs.gate_logit.float().cpu().numpy()
        return RawOutputs(logits, gate, reasons)


def _demand_readable(paths: Sequence[str], done: int, reasons: dict[int, str]) -> None:
    for position, reason in reasons.items():
        raise UserError(f"{paths[done + position]} cannot be read ({reason}). Restore the file and run again.")


class _Files(Dataset):
    """Transformed images, or the reason why a file gives none."""

    def __init__(self, paths: Sequence[str], transform: Callable):
        self.paths, self.transform = list(paths), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Tensor | str:
        try:
            return self.transform(load_image(self.paths[position]))
        except FileNotFoundError:
            return "no such file"
        except Exception as error:  # Pillow's plugins raise whatever their format suggests
            return f"not a readable image ({type(error).__name__})"


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

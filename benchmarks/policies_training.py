"""One run of the study of policies, kept in memory.

What trains, refits and scores is the project's own (modules, callbacks, out-of-fold targets, gate refit); only the
run directory is left out, since the study makes hundreds of runs.
"""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import EpochSampler, FeatureDataset, make_loader
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.models.backbone import BackboneSpec
from stage1_pro.core.models.stage1 import Outputs, Stage1Model
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.splits import SPLITS
from stage1_pro.core.training.callbacks.checkpoints import Patience
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage
from stage1_pro.core.training.crossfit import group_folds, refit_gate
from stage1_pro.core.training.fit import make_module

CHUNK = 4096
CNN_FEATURES = 1152
PREPROCESSING = Preprocessing(28, 1.0, "bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
QUIET: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}
Splits = dict[str, np.ndarray]


def train_and_score(
    settings: dict[str, Any], inputs: np.ndarray, labels: np.ndarray, splits: Splits
) -> dict[str, Scores]:
    """Scores of the held-out splits. inputs: (N, D) features or (N, 28, 28) images; labels: (N,)."""
    config = merge_configs([("study", settings)])
    own = {name: (np.ascontiguousarray(inputs[index]), labels[index]) for name, index in splits.items()}
    model = train(config, own["train"], own["val_select"])
    held_out = _refitted(model, config, *own["val_select"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = model.to(device).eval()
    found = {name: _score(name, model, *own[name]) for name in SPLITS[1:]}
    if held_out is not None:
        select = found["val_select"]
        found["val_select"] = Scores(**{**_fields(select), "gate_logit": held_out})
    return found


class SmallCnn(nn.Sequential):
    """(B, 28, 28) → (B, 1152): three convolutions with max pooling."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 28))]
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten())


class Best(pl.Callback):
    """Keeps the weights of the best validation. Stands before the average, which leaves the model afterwards."""

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.sign = monitor, 1 if mode == "min" else -1
        self.value, self.state = float("inf"), {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        value = self.sign * float(trainer.callback_metrics.get(self.monitor, torch.nan))
        if value < self.value:
            state = pl_module.model.state_dict()
            self.value, self.state = value, {name: tensor.detach().clone() for name, tensor in state.items()}


def train(config: Stage1ProConfig, fitted: tuple[np.ndarray, np.ndarray], select: tuple[Any, Any]) -> Stage1Model:
    """The best epoch's model. fitted, select: (inputs, labels) of the splits train and val_select."""
    pl.seed_everything(config.seed, verbose=False)
    inputs, labels = fitted
    phase, frozen = PHASES[config.phase], config.freeze_backbone
    spec = BackboneSpec("study", {}, PREPROCESSING, "own")
    members = config.head_ensemble if phase.gated else None
    backbone, features = (nn.Identity(), inputs.shape[1]) if frozen else (SmallCnn(), CNN_FEATURES)
    model = Stage1Model(backbone, spec, ("rest", "positive"), features, config.dropout, members)  # pyright: ignore[reportArgumentType]
    if frozen:
        model.freeze_backbone()
    counts, cached = np.bincount(labels, minlength=2), inputs if frozen else None
    module = make_module(config, model, counts, cached, labels, _names(labels))
    module.train_on(np.arange(len(labels)), counts)
    best = Best(config.monitor, config.monitor_mode)
    stopping = Patience(
        config.monitor, mode=config.monitor_mode, patience=config.early_stop_patience, check_on_train_epoch_end=False
    )
    callbacks = [best, ExponentialMovingAverage(config.ema_decay), stopping]
    trainer = pl.Trainer(max_epochs=config.epochs, gradient_clip_val=config.max_grad_norm, callbacks=callbacks, **QUIET)
    trainer.fit(module, _loader(*fitted, config, shuffle=True), _loader(*select, config, shuffle=False))
    model.load_state_dict(best.state)
    return model


def _loader(inputs: np.ndarray, labels: np.ndarray, config: Stage1ProConfig, *, shuffle: bool) -> Any:
    sampler = EpochSampler(len(labels), config.seed, shuffle=shuffle)
    return make_loader(FeatureDataset(inputs, labels), sampler, config.batch_size if shuffle else CHUNK, workers=0)


@torch.no_grad()
def _refitted(model: Stage1Model, config: Stage1ProConfig, inputs: np.ndarray, labels: np.ndarray) -> Any:
    """(N,) out-of-fold gate logits of val_select, where the model has a gate to fit again."""
    if model.heads is None or not config.gate_refit:
        return None
    model = model.cpu().eval()
    features = torch.cat([model.backbone(part) for part in torch.from_numpy(inputs).split(CHUNK)])
    fold = group_folds(labels, _names(labels), config.seed)
    return None if fold is None else refit_gate(model, features, labels, fold)


@torch.no_grad()
def _score(name: str, model: Stage1Model, inputs: np.ndarray, labels: np.ndarray) -> Scores:
    device = next(model.parameters()).device
    parts: list[Outputs] = [model(part.to(device)) for part in torch.from_numpy(inputs).split(CHUNK)]
    gate = None if model.heads is None else _joined([part.gate_logit for part in parts])
    names, logits = _names(labels), _joined([part.logits for part in parts])
    return Scores(name, names, names, labels.astype(np.int8), logits, gate, "", "")


def _joined(parts: list[Any]) -> np.ndarray:
    return torch.cat(parts).float().cpu().numpy()


def _names(labels: np.ndarray) -> np.ndarray:
    return np.char.mod("%05d", np.arange(len(labels))).astype(object)


def _fields(scores: Scores) -> dict[str, Any]:
    return {name: getattr(scores, name) for name in Scores.__slots__}

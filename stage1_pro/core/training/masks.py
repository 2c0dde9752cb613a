"""What training does for masks alone: the network for a data set, its loaders, its module, and its end."""

from collections.abc import Iterator
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.image_files import BadImage, read_file
from stage1_pro.core.data.masks.datamodule import MaskDataModule
from stage1_pro.core.data.masks.files import Grid, labels_of, picture_of, read_contents
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.errors import UserError, counted, raise_problems
from stage1_pro.core.inference.scoring import write_scores
from stage1_pro.core.models.licenses import RANDOM, demanded_license
from stage1_pro.core.models.mask_networks import MaskSpec, encoder_of, named_network
from stage1_pro.core.models.segmenter import MaskModel, load_mask_model, save_mask_model
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.seeds import rng_of
from stage1_pro.core.training.fit import load_best
from stage1_pro.core.training.modules.masks import MaskModule

CT_CASES = 50
"""Cases of `train` whose foreground sets the scale of CT."""
CT_VOXELS = 10_000
"""Foreground voxels drawn from each of them."""
TOO_FINE = "Set a coarser target_spacing, or mend the headers of these volumes."
LEAST_DICE = 0.1
"""Mean Dice of the positive class below which it is as good as never drawn."""
CLIPPED = (0.5, 99.5)
"""Percentiles of the foreground that CT is clipped to, as nnU-Net does."""


def model_for_masks(config: Stage1ProConfig, cases: CaseTable, splits: Splits, source: Run | None) -> MaskModel:
    """The untrained network for these cases, weights by seed, or another run's weights."""
    facts = cases.masks
    assert facts is not None
    weights, license = {}, RANDOM
    if config.model_path.startswith("monai:"):
        arch, options = named_network(config.model_path)
    else:
        arch, options, weights, license = encoder_of(config.model_path)
    pl.seed_everything(config.seed, verbose=False)
    spec = MaskSpec(arch, options, config.dropout, _preprocessing(config, cases, facts, splits), license)
    model = MaskModel(spec, facts, cases.class_names, config.segmentation_params)
    if weights:
        model.take_encoder(weights)
    if config.batch_size == 1 and any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise UserError("$.batch_size is 1, and this network's batch norms need more: set batch_size: 2 or more.")
    if source is not None:
        _take_weights(model, source)
    model.spec = replace(model.spec, license=demanded_license(model.spec.license, config))
    return model


def _preprocessing(config: Stage1ProConfig, cases: CaseTable, facts: MaskFacts, splits: Splits) -> MaskPreprocessing:
    """What the network expects: spacing and scale are of the training split alone."""
    data, train = config.dataset_params, cases.frame.iloc[splits.indices("train")]
    intensity = data.intensity if data.intensity != "auto" else "ct" if facts.ct else "zscore"
    spacing = data.target_spacing
    if facts.dims == 3 and spacing is None:
        spacing = tuple(np.median(np.array(train["spacing"].tolist()), axis=0).tolist())
    made = MaskPreprocessing(facts.dims, facts.channels, facts.joint, spacing, intensity, patch=data.patch_size)
    raise_problems("dataset_params.target_spacing:", list(_too_large(made, cases)), TOO_FINE)
    return replace(made, **_ct_scale(train, facts, config.seed)) if intensity == "ct" else made


def _too_large(made: MaskPreprocessing, cases: CaseTable) -> Iterator[str]:
    """Cases that the spacing makes larger than any network takes."""
    for case, shape, spacing in cases.frame[["case_id", "shape", "spacing"]].itertuples(index=False):
        try:
            made.shape_of(Grid(shape, spacing))
        except BadImage as bad:
            yield f"{case}: {bad}"


def _ct_scale(train, facts: MaskFacts, seed: int) -> dict[str, float]:
    """Percentiles, mean and deviation of the foreground of `train`, of at most CT_CASES cases."""
    rng = rng_of(seed, "intensity")
    rows = train.iloc[np.sort(rng.permutation(len(train))[:CT_CASES])]
    parts = []
    for path, mask in zip(rows["path"], rows["mask"], strict=True):
        values, labels = picture_of(read_contents(path)).values, facts.coded(labels_of(read_file(mask))[0])
        inside = values[:, labels > 0].ravel()
        parts.append(rng.choice(inside, min(CT_VOXELS, len(inside)), replace=False) if len(inside) else inside)
    inside = np.concatenate(parts).astype(np.float64)
    if not len(inside):
        raise UserError("intensity ct: no foreground in the training split to scale by. Set intensity: zscore.")
    low, high = np.percentile(inside, CLIPPED)
    clipped = np.clip(inside, low, high)
    return {
        "low": float(low),
        "high": float(high),
        "mean": float(clipped.mean()),
        "deviation": float(max(clipped.std(), 1e-6)),
    }


def _take_weights(model: MaskModel, other: Run) -> None:
    """Start from the weights of another run of masks, which must have the same network."""
    source = load_mask_model(other.model_path)
    theirs, ours = _network_words(source), _network_words(model)
    if theirs != ours:
        raise UserError(f"--init_from {other.path}: its network is {theirs}, this run's is {ours}.")
    model.load_state_dict(source.state_dict())
    model.spec = replace(model.spec, license=source.spec.license)


def _network_words(model: MaskModel) -> str:
    """What two networks must have in common for one to take the other's weights."""
    spec, classes = model.spec, ", ".join(model.facts.class_names)
    return f"{spec.arch} {spec.options} for {counted(spec.preprocessing.channels, 'channel')} and {classes}"


def masks_of(config: Stage1ProConfig, model: MaskModel, cases: CaseTable, splits: Splits) -> MaskDataModule:
    """The loaders of a segmentation."""
    return MaskDataModule(cases, splits, config, model.spec.preprocessing, model.spec.divisor)


def module_for_masks(config: Stage1ProConfig, model: MaskModel, data: MaskDataModule) -> MaskModule:
    """The Lightning module of a segmentation."""
    return MaskModule(model, config, data.class_counts, from_features=False)


def conclude(run: Run, config: Stage1ProConfig, model: MaskModel, cases: CaseTable, _: object) -> None:
    """Write model_best.pth and the scores of both validation splits.

    Nothing is fitted on val_select: masks have no gate. Nor is there a suspects.csv, whose probe judges one label a
    case: stages list masks that stay unlearned themselves.
    """
    load_best(run, model)
    save_mask_model(model, run.model_path)
    write_scores(run, cases, ("val_select", "val_calib"))
    warning = nothing_drawn(run.scores("val_select"), config, run.splits.positive_class)
    if warning:
        say(f"warning: {warning}")


def nothing_drawn(select: Scores, config: Stage1ProConfig, positive: str) -> str:
    """What is to say where the weights that were kept hardly ever draw the positive class; "" where they do.

    A case without any class has a Dice of 1 where nothing is drawn, so that the best val_dice of mostly such cases may
    be that of a network that never draws.
    """
    assert select.masks is not None
    held = select.labels == 1
    dice = float(np.nan_to_num(select.masks.positive_dice[held]).mean()) if held.any() else 1.0
    if dice >= LEAST_DICE:
        return ""
    empty = int((~held).sum())
    mend = "Train longer"
    if empty and config.monitor != "val_loss":
        mend = (
            f"Where nothing is drawn the other {counted(empty, 'case')} count as right, which {config.monitor} "
            "rewards: set checkpoint_by: val_loss, or train longer"
        )
    of = counted(int(held.sum()), "case")
    return f"'{positive}' is hardly drawn: mean Dice {dice:.2f} over the {of} of val_select with it. {mend}"

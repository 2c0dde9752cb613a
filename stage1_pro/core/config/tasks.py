"""What differs by task, as data: which settings suit it, which phases it has, and where its parts live.

The flow from images to a bundle is one; at each place where tasks differ it asks this table for the part. A part is
imported when it is asked for, so that classification never loads what only masks need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

CORE = "stage1_pro.core"


@dataclass(frozen=True, slots=True)
class Task:
    """One row.

    phases: those that it can be trained in; monitors: phase → column of metrics.csv that chooses the checkpoint, where
    it is not the phase's own; columns: values of checkpoint_by that it has; defaults: settings whose default is another
    one; parts: name → where it lives, below CORE; has_masks: whether an answer comes with a mask.
    """

    name: str
    phases: tuple[int, ...]
    monitors: Mapping[int, str]
    columns: tuple[str, ...]
    shown: tuple[str, ...]
    """Columns of an epoch's line."""
    parts: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_masks: bool = False
    inputs: str = "preprocessing"
    """Field of environment.json and bundle.json that says how a file becomes an input."""
    suffixes: tuple[str, ...] = ()
    """Of files that a folder may hold as inputs, beside images."""
    known_as: str = "image-classification"
    """What hubs of models call it."""

    def part(self, name: str) -> Any:
        """Import and return a part of the task; None where it has no such part.

        >>> TASKS["classification"].part("read_cases").__name__
        'labelled_cases'
        """
        if name not in self.parts:
            return None
        module, _, attribute = self.parts[name].partition(":")
        return getattr(import_module(f"{CORE}.{module}"), attribute)


TASKS = {
    row.name: row
    for row in (
        Task(
            "classification",
            phases=(1, 2, 3, 4, 5, 6),
            monitors={},
            columns=("val_accuracy", "val_augrc", "val_loss", "val_gate_augrc"),
            shown=("train_loss", "val_loss", "val_accuracy", "val_augrc"),
            parts={
                "read_cases": "data.cases:labelled_cases",
                "build_model": "training.fit:model_for_images",
                "data_module": "training.fit:images_of",
                "module": "training.fit:module_for_images",
                "conclude": "training.conclude:conclude",
                "scorer": "inference.scoring:image_scorer",
                "predictor": "inference.predictor:Stage1Predictor",
                "golden": "inference.golden:golden_of_run",
            },
        ),
        Task(
            "segmentation",
            phases=(1, 2),
            monitors={1: "val_dice", 2: "val_augrc"},
            columns=("val_dice", "val_augrc", "val_loss"),
            shown=("train_loss", "val_loss", "val_dice", "val_augrc"),
            parts={
                "read_cases": "data.masks.table:masked_cases",
                "build_model": "training.masks:model_for_masks",
                "data_module": "training.masks:masks_of",
                "module": "training.masks:module_for_masks",
                "conclude": "training.masks:conclude",
                "scorer": "inference.masks:mask_scorer",
                "predictor": "inference.masks:MaskPredictor",
                "files": "data.masks.files:channel_files",
                "golden": "inference.golden_masks:golden_of_masks",
                "evidence": "report.run.mask_evidence:mask_evidence",
                "uncertified": "report.run.masks_alone:draw_masks",
            },
            defaults={
                "model_path": "monai:unet",
                "freeze_backbone": False,
                "feature_cache": "off",
                "answer_placement": "none",
                "exit_rule": "symmetric",
                "lr_head": 1e-3,
                "dropout": 0.0,
                "batch_size": 8,
                "epochs": 100,
                "early_stop_patience": 20,
                "dataset_params": {"augmentation": "moderate"},
            },
            has_masks=True,
            inputs="mask_preprocessing",
            suffixes=(".nii", ".nii.gz"),
            known_as="image-segmentation",
        ),
    )
}

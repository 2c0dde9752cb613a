"""The sections of the training configuration: the data, and incremental training."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One labelled set of images."""

    name: str = "data"
    """Name of the source; prefixes the case ids where a run has several sources."""
    root: str | None = None
    """Folder that relative image paths start from (null: the folder of `labels`); without `labels`, its
    sub-folders are the classes."""
    labels: str | None = None
    """CSV file path,label[,case_id][,group][,split], with or without a header; null: class folders."""


@dataclass(frozen=True)
class DatasetParams:
    """Where the cases come from and how they are split and fed."""

    sources: tuple[Source, ...] = ()
    """Labelled image sets: a list of {name, root, labels}."""
    class_names: tuple[str, ...] | None = None
    """Class names in label order; null: the sorted labels that occur."""
    positive_class: str | None = None
    """The class that must not be missed; null: the last class name."""
    image_size: int | None = None
    """Side of the square input, pixels, 16 to 2048; null: the backbone's own."""
    augmentation: Literal["none", "moderate", "aggressive"] = "none"
    """Training augmentation: none, moderate (crop, flip, erasing), aggressive (adds colour jitter)."""
    val_select_ratio: float = 0.15
    """Share of cases that choose checkpoints and fit calibrators, above 0, below 1."""
    val_calib_ratio: float = 0.15
    """Share of cases that certify the policy and do nothing else, above 0, below 1."""
    val_test_ratio: float = 0.15
    """Share of cases for the final report, above 0, below 1."""
    num_workers: int = 2
    """Processes that decode images; 0: the main process."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read."""
    class_balanced_sampling: bool = False
    """Draw training cases so that the classes are met equally often."""


@dataclass(frozen=True)
class IncrementalParams:
    """Stage-wise training: start with few cases; at each plateau of val_select admit those that teach most."""

    enabled: bool = False
    """Train stage by stage on a growing part of the training split."""
    initial_cases: int = 32
    """Cases of the first stage, 1 up to the training split."""
    initial_strategy: Literal["stratified", "random"] = "stratified"
    """How they are drawn: stratified (each class in proportion, one at least) or random."""
    add_cases: int = 16
    """Cases admitted after a stage, 1 or more; fewer where fewer are eligible."""
    max_stages: int = 10
    """Stages at most, 1 or more."""
    max_active: int | None = None
    """Cases in training at most, `initial_cases` or more; null: the whole training split."""
    min_epochs_per_stage: int = 1
    """Epochs before a plateau may end a stage, 1 up to `max_epochs_per_stage`."""
    max_epochs_per_stage: int = 150
    """Epochs of a stage at most, 1 or more; warm-up and cosine decay of the learning rate span them."""
    early_stopping_patience: int = 20
    """Epochs without a better monitor on val_select that are a plateau and end the stage, 1 or more."""
    early_stopping_min_delta: float = 0.0
    """Improvement of the monitor, in its own unit, that counts as better, 0 or more."""
    min_lr_to_continue: float = 1e-5
    """Learning rate below which training is not worth going on, 0 to below the largest peak rate; it looks at the
    largest rate of all parameter groups, after warm-up."""
    lr_floor_action: Literal["stop_run", "end_stage"] = "stop_run"
    """What reaching that rate does: stop_run ends training, end_stage goes on with the next admission."""
    stage_lr: Literal["reset", "keep"] = "reset"
    """Optimizer and learning rate at a new stage: reset (fresh moments, warm-up again) or keep (both go on)."""
    stage_init: Literal["best", "last", "scratch"] = "best"
    """Weights that a new stage starts from: the stage's best, its last, or the initial ones."""
    selection_threshold: float = 0.7
    """Cases whose dice (probability of the true class) is at most this are eligible, 0 to 1."""
    max_difficulty: float = 1.0
    """Cases more difficult (1 - dice) than this are not eligible, 0 to 1; below 1 it keeps likely wrong labels out."""
    w_dice: float = 0.5
    """Weight of difficulty, 1 - dice, in the acquisition score, 0 or more."""
    w_uncertainty: float = 0.3
    """Weight of uncertainty, entropy / log C, 0 or more."""
    w_diversity: float = 0.2
    """Weight of diversity, the distance to the nearest active case, 0 or more."""
    strategy: Literal["acquisition", "random"] = "acquisition"
    """How cases are admitted: by acquisition score, or at random from all that remain (the control)."""
    score_batch_size: int = 64
    """Cases per block when the training split is scored, 1 or more; blocks are fixed, whatever batch_size is."""
    nonfinite_policy: Literal["exclude", "error"] = "exclude"
    """What to do with cases whose outputs are not finite: exclude (and record) them, or stop with an error."""
    dry_run: bool = False
    """Print the plan of the stages and stop; with --init_from also what that model would admit first."""


SHARDING = ("fsdp", "deepspeed")
"""What the names of strategies begin with that leave no rank the whole weights."""


def incremental_problems(params: IncrementalParams, largest_lr: float, strategy: str) -> Iterator[str]:
    """Rules between the fields of incremental training. largest_lr: the highest peak rate of what is trained."""
    where = "$.incremental_params"
    if not params.enabled:
        defaults = IncrementalParams()
        names = [field.name for field in dataclasses.fields(params)]
        changed = [name for name in names if getattr(params, name) != getattr(defaults, name)]
        if changed:
            yield f"{where}: {', '.join(changed)} set, but enabled is false: set {where[2:]}.enabled true"
        return
    if strategy.startswith(SHARDING):
        yield f"$.strategy is {strategy!r}, and {where[2:]} needs the whole weights on every device: set strategy ddp"
    if params.max_active is not None and params.max_active < params.initial_cases:
        yield f"{where}.max_active is {params.max_active}; allowed initial_cases ({params.initial_cases}) or more"
    if params.min_epochs_per_stage > params.max_epochs_per_stage:
        allowed = f"1 to max_epochs_per_stage ({params.max_epochs_per_stage})"
        yield f"{where}.min_epochs_per_stage is {params.min_epochs_per_stage}; allowed {allowed}"
    if params.min_lr_to_continue >= largest_lr:
        allowed = f"0 to below the largest peak rate ({largest_lr:g})"
        yield f"{where}.min_lr_to_continue is {params.min_lr_to_continue:g}; allowed {allowed}"
    if not params.w_dice + params.w_uncertainty + params.w_diversity:
        yield f"{where}: w_dice, w_uncertainty and w_diversity are all 0; allowed at least one above 0"
    if 1 - params.max_difficulty > params.selection_threshold:
        yield (
            f"{where}: no case can be eligible: dice at most selection_threshold ({params.selection_threshold:g}) and "
            f"at least 1 - max_difficulty ({1 - params.max_difficulty:g})"
        )

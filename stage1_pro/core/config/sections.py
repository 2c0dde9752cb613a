"""The sections of a training run's settings: where cases come from, how masks and stages are trained."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One labelled set of images."""

    name: str = "data"
    """Name of the source; prefixes the case ids where a run has several sources."""
    root: str | None = None
    """Folder that relative image paths start from (null: the folder of `labels`); without `labels`, its sub-folders are
    the classes. It may be a URL such as s3://bucket/folder, or a data set of the Hugging Face Hub, hf:OWNER/NAME."""
    labels: str | None = None
    """CSV or Parquet file path,label[,case_id][,group][,split]; a CSV with or without a header; null: class folders."""
    columns: dict[str, str | None] | None = None
    """Our columns under the names that the table has for them, as {group: patient_id}; null for a name: none of them,
    as {group: null} where cases do not depend on each other."""


@dataclass(frozen=True)
class DatasetParams:
    """Where the cases come from and how they are split and fed."""

    sources: tuple[Source, ...] = ()
    """Labelled image sets: a list of {name, root, labels, columns}. root: folder of the images, with one folder a
    class, or labels: a table of path and label below it; columns: the table's own names, as {group: patient_id}
    (docs/data.md)."""
    class_names: tuple[str, ...] | None = None
    """Class names in label order; null: the sorted labels that occur."""
    positive_class: str | tuple[str, ...] | None = None
    """The class that must not be missed, required where splits are drawn; a list joins several into one positive class
    against all others. Of masks also any: all classes but the background."""
    rest: bool = False
    """Join all classes but `positive_class` into one, so that every phase can be trained on more than two labels."""
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
    """Processes that decode images; 0: the main process. With decode gpu they read files and decode what is no JPEG."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """What decodes and resizes images, from training to production: cpu (Pillow), or gpu (nvJPEG and torch on an NVIDIA
    GPU, whose pixels differ; the run and its bundle then need such a GPU wherever they read images)."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read."""
    order: str | None = None
    """Column of the label tables with a number that orders the images of a group, needed where `views` is set."""
    group_label: Literal["majority", "any"] | None = None
    """Label of a group whose images differ in theirs: majority; null: such groups are refused."""
    cache_folder: str | None = None
    """Folder for copies of images that lie in no local file (rows of a Parquet file, s3://); null: stage1_pro in the
    user's cache folder, or in that of temporary files where the user has no home."""
    class_balanced_sampling: bool = False
    """Draw training cases so that all classes are equally frequent."""
    task: Literal["classification", "segmentation"] = "classification"
    """What is learned: classification (a class for each image) or segmentation (a mask for each image or volume);
    several defaults differ by it (docs/segmentation.md)."""
    ignore_label: int | None = None
    """Value in the masks of what nobody has decided, 1 or more: neither trained on nor counted; null: there is none."""
    target_spacing: tuple[float, ...] | None = None
    """Voxel size that volumes are resampled to for the network, three numbers in mm; null: the median of `train`."""
    intensity: Literal["auto", "zscore", "ct", "none"] = "auto"
    """Scale of the inputs of masks: zscore (each case by its own mean and deviation), ct (clipped and scaled by the
    foreground of `train`), none (as stored), or auto (ct where the data set says CT, else zscore)."""
    patch_size: tuple[int, ...] | None = None
    """Training patches and scoring windows of masks, pixels or voxels a side, 2 numbers in 2D and 3 in 3D; null: whole
    cases."""
    patches_per_case: int = 2
    """Patches drawn from a case when it is its turn, 1 to 64; with patch_size."""
    foreground_share: float = 0.33
    """Share of the patches that are centred on foreground, 0 to 1; with patch_size."""

    @property
    def positives(self) -> tuple[str, ...]:
        """Labels that are positive; none where `positive_class` is not set."""
        if self.positive_class is None:
            return ()
        return (self.positive_class,) if isinstance(self.positive_class, str) else self.positive_class

    @property
    def merged(self) -> bool:
        """Whether the labels are joined into two classes, positive and rest."""
        return self.rest or len(self.positives) > 1


@dataclass(frozen=True)
class MissRule:
    """When the mask of a positive case counts as a miss. A positive case with an empty mask always does."""

    rule: Literal["dice", "lesion", "empty"] = "dice"
    """dice (Dice of the positive class is below `dice`), lesion (some true component has less than `overlap` of its
    voxels in the mask) or empty (the mask holds no positive)."""
    dice: float = 0.5
    """Dice of the positive class below which a mask is a miss, above 0, up to 1; with rule dice."""
    overlap: float = 0.1
    """Share of a true component below which it is missed, above 0, up to 1; with rule lesion."""


@dataclass(frozen=True)
class SegmentationParams:
    """How masks are trained and judged; with dataset_params.task segmentation."""

    ce_weight: float = 1.0
    """Weight of the cross entropy in the loss, 0 or more."""
    dice_weight: float = 1.0
    """Weight of the soft Dice loss, 0 or more."""
    window_overlap: float = 0.5
    """Share of a window that the next one overlaps when a case is scored, 0 to below 1; with patch_size."""
    window_batch: int = 4
    """Windows per forward pass of scoring, 1 to 256; passes are filled up to it, so that no score depends on it."""
    uncertainty: Literal["soft_dice", "entropy"] = "soft_dice"
    """What ranks cases by doubt: soft_dice (1 - soft Dice of the mask with its own probabilities) or entropy (mean over
    all voxels, which mostly measures how much border a case has)."""
    min_positive_voxels: int = 1
    """Pixels or voxels of the positive class from which on a case, or an answer, is positive, 1 or more."""
    miss_rule: MissRule = field(default_factory=MissRule)
    """When the mask of a positive case counts as a miss."""


@dataclass(frozen=True)
class IncrementalParams:
    """Stage-wise training: start with few cases; at each plateau of val_select admit those that teach most."""

    enabled: bool = False
    """Train stage by stage on a growing part of the training split."""
    initial_cases: int = 32
    """Cases of the first stage, 1 up to the training split."""
    initial_strategy: Literal["stratified", "random"] = "stratified"
    """How the cases of the first stage are drawn: stratified (each class in proportion, at least one) or random."""
    add_cases: int = 16
    """Cases admitted after a stage, 1 or more; fewer where fewer are eligible."""
    min_add_cases: int = 1
    """Eligible cases that are worth another stage, 1 up to `add_cases`; with fewer, training ends with
    no_eligible_cases."""
    max_stages: int = 10
    """Stages at most, 1 or more."""
    max_active: int | None = None
    """Cases in training at most, `initial_cases` or more; null: the whole training split."""
    min_epochs_per_stage: int = 1
    """Epochs before a plateau may end a stage, 1 up to `max_epochs_per_stage`."""
    max_epochs_per_stage: int = 150
    """Epochs of a stage at most, 1 or more; warm-up and cosine decay of the learning rate span them."""
    early_stopping_patience: int = 20
    """Epochs without a better value of what chooses the checkpoint (checkpoint_by) that are a plateau and end the
    stage, 1 or more."""
    early_stopping_min_delta: float = 0.0
    """Improvement of what chooses the checkpoint, in its own unit, that counts as better, 0 or more."""
    min_lr_to_continue: float = 1e-5
    """Learning rate below which a stage has no use in going on, 0 to below the largest peak rate; compared with the
    largest rate of all parameter groups, after warm-up."""
    lr_floor_action: Literal["stop_run", "end_stage"] = "stop_run"
    """What happens below min_lr_to_continue: stop_run ends training, end_stage goes on with the next admission."""
    stage_lr: Literal["reset", "keep"] = "reset"
    """Optimizer and learning rate at a new stage: reset (fresh moments, warm-up again) or keep (both go on)."""
    stage_init: Literal["best", "last", "scratch"] = "best"
    """Weights that a new stage starts from: the stage's best, its last, or the initial ones."""
    selection_threshold: float = 0.7
    """Cases whose dice (probability of the true class) is at most this are eligible, 0 to 1."""
    max_difficulty: float = 1.0
    """Cases whose difficulty (1 - dice) is above this are not eligible, 0 to 1; below 1 wrong labels stay out."""
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

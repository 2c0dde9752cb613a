"""The settings of a training run: frozen dataclasses whose strings are the help of the command line.

What training does not decide (chosen thresholds, split indices, calibration) is not a setting.
"""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from stage1_pro.core.config.phases import ANSWERS_MONITOR, OPTIMIZERS, PHASES, SETTINGS_FROM
from stage1_pro.core.config.sections import DatasetParams, IncrementalParams, SegmentationParams
from stage1_pro.core.config.tasks import TASKS, Task
from stage1_pro.core.metrics.margins import robust_target

if TYPE_CHECKING:
    from stage1_pro.core.metrics.views import Views


@dataclass(frozen=True)
class Stage1ProConfig:
    """Everything that decides a training run."""

    phase: int = 1
    """Training phase: 1 baseline, 2 selective, 3 gate, 4 adapt, 5 sharpness, 6 conformal."""
    exit_policy: Literal["softmax", "gate", "scrc"] = "softmax"
    """Exit policy that the run is calibrated for."""
    target_fnr_exit: float = 0.02
    """Largest share of exited positives that may be answered negative, above 0, up to 0.1."""
    fnr_confidence: float = 0.95
    """Confidence of the certificate, 0.5 to below 1."""
    robust_to: float | None = None
    """Change of the world that the promise is to survive, above 1, up to 10: the policy is certified at a lower level,
    so that FNR on exits stays within target_fnr_exit where densities of positives change by factors of up to the root
    of it, up or down. null: none, and any change may break the promise."""
    exit_rule: Literal["one_sided", "symmetric"] = "one_sided"
    """Cases that may exit: one_sided (every positive answer, and negative ones by the threshold: the most coverage for
    a given number of calibration positives) or symmetric (either answer by the threshold)."""
    answer_placement: Literal["auto", "none"] = "auto"
    """Where answers are placed: auto (with one-sided exits of two classes, val_select decides from which log-odds on a
    case is answered positive, at the stated prices) or none (as training left them)."""
    false_alarm_price: float = 5.0
    """Cost of an exited negative answered positive, in deferrals, 2 or more (at 1 everything would exit)."""
    miss_price: float = 0.0
    """Cost of an exited positive answered negative, in deferrals, 0 or more; target_fnr_exit holds misses already."""
    certificate_groups: str | None = None
    """Column of the label table that names the camera, site or country of each case, each of which gets a certificate
    of its own: FNR on exits then stays within target_fnr_exit in every one of them. Each needs calibration positives of
    its own, and a case of another one, or of none, defers. null: one certificate for the mix of all cases."""
    decide_by: Literal["case", "group"] = "case"
    """What gets a decision: case (every image) or group (all images of one `group` together, such as the frames of a
    track, by the mean of their log-odds)."""
    views: int | None = None
    """With decide_by group: images of a group that are looked at, 1 or more, all where it has fewer; null: all."""
    view_rule: Literal["mean", "first"] = "mean"
    """With `views`: which images are looked at, in the order of dataset_params.order: mean (evenly spaced) or first."""
    legacy_exit_threshold_for_logging: float = 0.88
    """Softmax threshold of the exit columns in metrics.csv, 0 to 1; monitoring only, it decides nothing."""
    seed: int = 42
    """Seed of splits, initial weights, order and augmentation, 0 or more."""
    model_path: str = "timm:tf_efficientnet_lite0"
    """Backbone: timm:NAME (pretrained), random:NAME, file:PATH:NAME (weights file), local-dir:PATH. Of masks the
    network: monai:unet, with options as in monai:unet:channels=16-32-64, or a backbone as the encoder of a U-Net."""
    freeze_backbone: bool = True
    """Keep the backbone's own weights fixed: train the heads, and adapters where `peft_type` names some."""
    epochs: int = 30
    """Passes over the training split, 1 or more; incremental training has epochs per stage instead."""
    schedule_restarts: tuple[int, ...] = ()
    """Epochs after which the schedule begins anew (warm-up, cosine, patience), rising, each 1 to below `epochs`;
    written by 20_train.py --resume RUN --epochs N, which trains on after an end."""
    warmup_epochs: float = 1
    """Epochs of linear warm-up before the cosine decay, 0 up to `epochs`; each time that the schedule begins."""
    batch_size: int = 64
    """Images per step and device, 1 or more."""
    grad_accum_steps: int = 1
    """Steps whose gradients are summed before the optimizer moves, 1 or more."""
    lr_head: float = 3e-4
    """Peak learning rate of the heads, above 0."""
    lr_backbone: float = 1e-5
    """Peak learning rate of an unfrozen backbone, above 0."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices (never of biases and norms), 0 or more."""
    label_smoothing: float = 0.0
    """Share of the target spread over the other classes, 0 to 0.5; it flattens the ranking of sure negatives, which is
    what exits depend on."""
    dropout: float = 0.3
    """Dropout in the head, 0 to 0.9."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0: no clipping."""
    use_ema: bool = False
    """Validate and ship an exponential moving average of the trainable tensors."""
    ema_decay: float = 0.9999
    """Final decay of the moving average of the weights (use_ema), 0 to below 1; ramps up so that short runs work."""
    checkpoint_by: Literal["auto", "val_accuracy", "val_augrc", "val_loss", "val_gate_augrc", "val_dice"] = "auto"
    """Column of metrics.csv that chooses the checkpoint and ends training; auto: the phase's own."""
    early_stop_patience: int = 3
    """Epochs without a better value of what chooses the checkpoint (checkpoint_by) before training stops, 1 or more."""
    optimizer: Literal["adamw", "sam", "fsam"] = "adamw"
    """Optimizer: adamw, or from phase 5 sam or fsam, which look for flat minima: AdamW on the gradient at perturbed
    weights, with two passes a step."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic of training; that of scores is scoring_precision."""
    deterministic: bool = False
    """Train on a GPU by kernels that give the same bits every time, some of them slower; torch warns of an operation
    that has none. A CPU repeats itself anyway."""
    devices: int | str = "auto"
    """Devices per node: a number or auto."""
    num_nodes: int = 1
    """Nodes, 1 or more."""
    strategy: str = "auto"
    """Lightning strategy: auto, ddp, fsdp, …"""
    compile: bool = False
    """Compile the model with torch.compile."""
    scoring_backend: Literal["torch", "onnx"] = "torch"
    """What scores are computed with, from val_select to production: torch, or onnx (ONNX Runtime on the CPU, of the
    file model.onnx that the bundle then ships; extra `onnx`)."""
    quantize: Literal["none", "static"] = "none"
    """Arithmetic of an onnx backbone: none (float32) or static (8 bits, ranges taken from training images; other
    scores, which the certificate is made from)."""
    scoring_precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the backbone in scoring, from val_select to production: float32, or bf16, which is faster on GPUs,
    gives other scores and is certified with them; heads and policy keep float32 and float64."""
    logger: Literal["tensorboard", "mlflow", "wandb"] = "tensorboard"
    """Where the figures of each epoch go besides metrics.csv: tensorboard (a folder of the run), mlflow (the server or
    database at tracking_uri; extra `mlflow`) or wandb (Weights & Biases; extra `wandb`)."""
    tracking_uri: str | None = None
    """MLflow's store, such as sqlite:///mlflow.db or http://HOST:5000; with logger mlflow."""
    forward_batch: int | str = "auto"
    """Images per forward pass of scoring and prediction, padded to it so that a score does not depend on its batch, 1
    to 4096; auto: 8 on the CPU, 64 on a GPU, and the number is recorded."""
    feature_cache: Literal["auto", "off"] = "auto"
    """Read features of a frozen, unaugmented backbone from a memory map instead of recomputing them."""
    gate_loss_weight: float = 1.0
    """Weight of the gate's own cross entropy, right answers against wrong ones, 0 or more; from phase 3. This setting,
    coverage_reward, conformal_after and positive_bank shape the gate trained jointly, which gate_refit replaces."""
    aux_weight: float = 0.5
    """Weight of the auxiliary class head, which trains the layer below with the class head, 0 or more; from phase 3."""
    coverage_reward: float = 0.3
    """Weight of the reward for coverage, the mean log share of each class that exits, 0 or more; from phase 3. It is no
    coverage target: coverage is maximised under target_fnr_exit."""
    gate_refit: bool = True
    """Fit the linear gate again on val_select, cross-fitted, after training, and ship that one; false: ship the gate
    that was trained jointly; from phase 3."""
    head_ensemble: int = 8
    """Heads trained side by side, whose logits are averaged, 1 to 64; from phase 3."""
    fsam_rho: float = 0.05
    """Perturbation radius: L2 norm over all parameters that fsam_target names, 0 to 10; from phase 5."""
    fsam_sigma: float = 1.0
    """Share of the gradient average that fsam subtracts from the gradient before it perturbs the weights, 0 (as sam)
    to 1; from phase 5."""
    fsam_lambda: float = 0.9
    """Decay of the gradient average of fsam, per step, 0 to below 1; from phase 5."""
    fsam_target: Literal["all", "heads", "adapter"] = "all"
    """Trained parameters that sam and fsam perturb: all, heads, or adapter (LoRA's); from phase 5."""
    conformal_after: int | None = None
    """Epochs, warm-up included, before ConformalRiskLoss takes over from SelectiveLoss, 0 to below `epochs`, and never
    before the warm-up ends; null: half of the epochs; from phase 6."""
    positive_bank: int = 2048
    """Recent positives that ConformalRiskLoss calibrates its threshold on besides the batch, 1000 to 4096; from
    phase 6."""
    peft_type: Literal["none", "lora", "dora", "doran"] = "none"
    """Adapters on a frozen backbone: none, lora, dora (magnitude and direction apart) or doran (experimental: dora with
    a learnable term in the denominator and generated matrices; linear layers only); from phase 4, as all peft_*."""
    peft_r: int = 8
    """Rank of the adapters, 1 to 512."""
    peft_alpha: float = 16.0
    """Scale of the adapters: their update is multiplied by peft_alpha / peft_r; above 0."""
    peft_blocks: int | None = None
    """Blocks that get adapters, counted from the last, 1 to the backbone's depth; null: all."""
    peft_targets: str = "all_linear"
    """Layers that get adapters: attention, mlp or all_linear (of the blocks, ungrouped convolutions among them), or
    names of the backbone's layers such as qkv; several joined by commas."""
    peft_norms: bool = False
    """Train the norms of the adapted blocks as well; running statistics stay as they are."""
    peft_lr: float = 2e-4
    """Peak learning rate of adapters and of norms trained with them, above 0."""
    layer_decay: float = 1.0
    """Factor from the learning rate of each backbone layer to that of the layer below it, above 0, up to 1; the last
    layer has the whole rate, and frozen weights have none; from phase 4."""
    intended_use: Literal["unstated", "research", "commercial"] = "unstated"
    """What the model is for; a backbone whose licence is known to forbid it is refused."""
    backbone_license: str | None = None
    """Licence of the backbone's weights; null: read from the weights, and written here by training."""
    bootstrap_samples: int = 1000
    """Bootstrap resamples behind the intervals of the report, 100 or more."""
    bootstrap_confidence: float = 0.95
    """Confidence of the bootstrap intervals, 0.5 to below 1."""
    dataset_params: DatasetParams = field(default_factory=DatasetParams)
    """Where the cases come from, how they are split, and how they are fed."""
    segmentation_params: SegmentationParams = field(default_factory=SegmentationParams)
    """How masks are trained and judged, with dataset_params.task segmentation."""
    incremental_params: IncrementalParams = field(default_factory=IncrementalParams)
    """Training that starts with few cases and admits more of the training split, stage by stage."""

    @property
    def schedules(self) -> tuple[tuple[int, int], ...]:
        """(first epoch, epochs) of each schedule of learning rates of a training without stages.

        >>> Stage1ProConfig(epochs=30, schedule_restarts=(20,)).schedules
        ((0, 20), (20, 10))
        """
        bounds = (0, *self.schedule_restarts, self.epochs)
        return tuple((first, end - first) for first, end in pairwise(bounds))

    @property
    def schedule_epochs(self) -> int:
        """Epochs that the first schedule of learning rates spans: the training, or a stage of it."""
        incremental = self.incremental_params
        return incremental.max_epochs_per_stage if incremental.enabled else self.schedules[0][1]

    @property
    def largest_lr(self) -> float:
        """The highest peak learning rate of what is trained."""
        return max([self.lr_head, *([self.backbone_lr] if self.adapted or not self.freeze_backbone else [])])

    @property
    def adapted(self) -> bool:
        """Return whether the backbone gets adapters."""
        return self.peft_type != "none"

    @property
    def peft_words(self) -> str:
        """The adapters in a line for people."""
        if not self.adapted:
            return "none"
        kind = "DoRAN (experimental)" if self.peft_type == "doran" else {"lora": "LoRA", "dora": "DoRA"}[self.peft_type]
        blocks = "all blocks" if self.peft_blocks is None else f"the last {self.peft_blocks} blocks"
        return f"{kind}, rank {self.peft_r}, alpha {self.peft_alpha:g}, on {self.peft_targets} of {blocks}"

    @property
    def backbone_lr(self) -> float:
        """Peak learning rate of what is trained of the backbone."""
        return self.peft_lr if self.adapted else self.lr_backbone

    @property
    def sharpness_aware(self) -> bool:
        """Return whether a step takes two passes, at the weights and at the perturbed ones."""
        return OPTIMIZERS[self.optimizer].sharp

    @property
    def reads_cached_features(self) -> bool:
        """Return whether training reads features of the images, computed once, in place of the images."""
        still = self.freeze_backbone and not self.adapted and self.dataset_params.augmentation == "none"
        return still and self.feature_cache != "off"

    def certified_level(self, target: float | None = None) -> float:
        """Return the FNR on exits to certify, so that this target, or the config's, survives `robust_to`."""
        target = self.target_fnr_exit if target is None else target
        return target if self.robust_to is None else robust_target(target, self.robust_to)

    def target_words(self) -> str:
        """Return the target, and what it is to survive, for lines that state it."""
        return f"{self.target_fnr_exit:g}" + (f" with robust_to {self.robust_to:g}" if self.robust_to else "")

    @property
    def places_answers(self) -> bool:
        """Return whether training ends with placing the answers: never where more than two classes are named."""
        binary = self.dataset_params.merged or len(self.dataset_params.class_names or ()) in (0, 2)
        return self.answer_placement == "auto" and self.exit_rule == "one_sided" and binary

    @property
    def group_views(self) -> "Views | None":
        """The views that decide a group, None where every image is decided by itself."""
        from stage1_pro.core.metrics.views import GROUP, Views  # which needs numpy, and --help does not

        return Views(self.views, self.view_rule) if self.decide_by == GROUP else None

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Return sentences on what this config trains and then does not ship; none where all of it counts.

        The terms of the gate carry no gradient into the answers, their gradients are clipped apart, and the answers
        choose the checkpoint. A perturbation of the weights takes its norm over all of them, so there the gate counts.
        """
        if not PHASES[self.phase].gated or not self.gate_refit or self.sharpness_aware:
            return ()
        settings = [
            name
            for name in ("gate_loss_weight", "coverage_reward", "conformal_after", "positive_bank")
            if self.phase >= SETTINGS_FROM[name]
        ]
        sentences = (
            f"the gate is fitted again on val_select (gate_refit): {', '.join(settings[:-1])} and {settings[-1]} shape "
            "the gate trained jointly, and change neither the answers nor the gate that ships",
        )
        if self.phase == 3 or self.adapted or (not self.freeze_backbone and self.layer_decay != 1):
            return sentences
        return (
            *sentences,
            f"with these settings phase {self.phase} ships the model that phase 3 would ship; what it adds is in the "
            "policies that it allows and in the settings that this config leaves off",
        )

    @property
    def forward_shape(self) -> int | None:
        """Images per forward pass of scoring; None for a run from before they were recorded."""
        return None if isinstance(self.forward_batch, str) else self.forward_batch

    @property
    def scoring_options(self) -> dict[str, Any]:
        """How a predictor has to compute the scores of this run."""
        return {"forward_batch": self.forward_shape, "precision": self.scoring_precision}

    @property
    def monitor(self) -> str:
        """Column of metrics.csv that chooses the checkpoint: of the answers where the gate is fitted again."""
        if self.checkpoint_by != "auto":
            return self.checkpoint_by
        phase = PHASES[self.phase]
        own = self.task.monitors.get(self.phase, phase.monitor)
        return ANSWERS_MONITOR if phase.gated and self.gate_refit else own

    @property
    def miss_rule(self) -> dict[str, Any] | None:
        """When a mask counts as a miss, as a policy file records it; None of a task without masks."""
        params = self.segmentation_params
        return {**asdict(params.miss_rule), "min_voxels": params.min_positive_voxels} if self.task.has_masks else None

    @property
    def task(self) -> Task:
        """The row of the task table."""
        return TASKS[self.dataset_params.task]

    @property
    def monitor_mode(self) -> str:
        """Which way the monitor is better: min or max."""
        return "max" if self.monitor in ("val_accuracy", "val_dice") else "min"

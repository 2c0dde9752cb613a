"""The training configuration: one frozen dataclass, checked as a whole.

Defaults < `--config` files in turn < flags. The dataclass gives defaults and help, the schema gives
types and ranges, the phase table says which combinations exist; every problem is reported at once.
What training does not decide (chosen thresholds, split indices, calibration) is not a field.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.phases import (
    ANSWERS_MONITOR,
    OPTIMIZERS,
    PHASES,
    SETTINGS_FROM,
    optimizer_problems,
    phase_problems,
)
from stage1_pro.core.sections import SHARDING, DatasetParams, IncrementalParams, Source, incremental_problems
from stage1_pro.core.settings import coerce, known_only, merge, read_config_file

BINARY = "phase {phase} trains a gate, which needs two: name the positive class against the rest"


@dataclass(frozen=True)
class Stage1ProConfig:
    """Everything that decides a training run."""

    phase: int = 1
    """Phase of the programme: 1 baseline, 2 selective, 3 gate, 4 adapt, 5 sharpness, 6 conformal."""
    exit_policy: Literal["softmax", "gate", "scrc"] = "softmax"
    """Exit policy that the run is calibrated for."""
    target_fnr_exit: float = 0.02
    """Largest share of exited positives that may be answered negative, above 0, up to 0.1."""
    fnr_confidence: float = 0.95
    """Confidence of the certificate, 0.5 to below 1."""
    legacy_exit_threshold_for_logging: float = 0.88
    """Softmax threshold of the exit columns in metrics.csv, 0 to 1; monitoring only, it decides nothing."""
    seed: int = 42
    """Seed of splits, initial weights, order and augmentation, 0 or more."""
    model_path: str = "timm:tf_efficientnet_lite0"
    """Backbone: timm:NAME (pretrained), random:NAME, file:PATH:NAME (weights file), local-dir:PATH."""
    freeze_backbone: bool = True
    """Leave the backbone's own weights as they are: train the heads, and adapters where `peft_type` names some."""
    epochs: int = 10
    """Passes over the training split, 1 or more; incremental training has epochs per stage instead."""
    warmup_epochs: float = 1
    """Epochs of linear warm-up before the cosine decay, 0 up to `epochs`."""
    batch_size: int = 64
    """Images per step and device, 1 or more."""
    grad_accum_steps: int = 1
    """Steps whose gradients are summed before the optimizer moves, 1 or more."""
    lr_head: float = 1e-4
    """Peak learning rate of the heads, above 0."""
    lr_backbone: float = 1e-5
    """Peak learning rate of an unfrozen backbone, above 0."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices (never of biases and norms), 0 or more."""
    label_smoothing: float = 0.1
    """Share of the target spread over the other classes, 0 to 0.5."""
    dropout: float = 0.3
    """Dropout in the head, 0 to 0.9."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0: no clipping."""
    use_ema: bool = True
    """Validate and ship an exponential moving average of the trainable tensors."""
    ema_decay: float = 0.9999
    """Final decay of that average, 0 to below 1; ramps up so that short runs work."""
    early_stop_patience: int = 3
    """Epochs without a better monitor before training stops, 1 or more."""
    optimizer: Literal["adamw", "sam", "fsam"] = "adamw"
    """Optimizer; sam and fsam, from phase 5, look for flat weights: AdamW by the gradient at the worst weights nearby,
    for the price of two passes a step."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic of training; scores are always computed in float32."""
    devices: int | str = "auto"
    """Devices per node: a number or auto."""
    num_nodes: int = 1
    """Nodes, 1 or more."""
    strategy: str = "auto"
    """Lightning strategy: auto, ddp, fsdp, …"""
    compile: bool = False
    """Compile the model with torch.compile."""
    feature_cache: Literal["auto", "off"] = "auto"
    """Read features of a frozen, unaugmented backbone from a memory map instead of recomputing them."""
    gate_loss_weight: float = 1.0
    """Weight of the gate's own cross entropy, right answers against wrong ones, 0 or more; from phase 3. This setting,
    coverage_reward, conformal_after and positive_bank shape the gate trained jointly, which gate_refit replaces."""
    aux_weight: float = 0.5
    """Weight of the auxiliary class head, which trains the layer below with the class head, 0 or more; from phase 3."""
    coverage_reward: float = 0.3
    """Reward of the log share of each class that exits, 0 or more: no target, only a push; from phase 3."""
    gate_refit: bool = True
    """Fit the linear gate again on val_select, cross-fitted, after training, and ship that one; false: ship the gate
    that was trained jointly; from phase 3."""
    head_ensemble: int = 8
    """Heads trained side by side, whose logits are averaged, 1 to 64; from phase 3."""
    fsam_rho: float = 0.05
    """How far away those worst weights are, the norm over all that fsam_target names, 0 to 10; from phase 5."""
    fsam_sigma: float = 1.0
    """Share of the running average that fsam subtracts from the gradient to find them, 0 (sam) to 1; from phase 5."""
    fsam_lambda: float = 0.9
    """What a step keeps of that average, 0 to below 1; from phase 5."""
    fsam_target: Literal["all", "heads", "adapter"] = "all"
    """Which of the trained parameters are moved to find them: all, heads, or adapter (LoRA's); from phase 5."""
    conformal_after: int | None = None
    """Epochs, those of the warm-up included, before ConformalRiskLoss takes over from SelectiveLoss, 0 to below
    `epochs`, and never before the warm-up ends; null: half of them; from phase 6."""
    positive_bank: int = 2048
    """Recent positives that ConformalRiskLoss calibrates its threshold on besides the batch, 1000 to 4096; from
    phase 6."""
    peft_type: Literal["none", "lora", "dora", "doran"] = "none"
    """Adapters on a frozen backbone: none, lora, dora (magnitude and direction apart) or doran (experimental: dora with
    a learnable term in the denominator and generated matrices; linear layers only); from phase 4, as all peft_*."""
    peft_r: int = 8
    """Rank of the adapters, 1 to 512."""
    peft_alpha: float = 16.0
    """Scale of what adapters add: it is multiplied by peft_alpha / peft_r; above 0."""
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
    """Factor of the learning rate from each layer of the backbone to the one below it, for whatever of it is trained,
    above 0, up to 1; the last layer has the whole rate; from phase 4."""
    intended_use: Literal["unstated", "research", "commercial"] = "unstated"
    """What the model is for; a backbone whose licence is known to forbid it is refused."""
    backbone_license: str | None = None
    """Licence of the backbone's weights; null: what the weights say of themselves, which training writes here."""
    bootstrap_samples: int = 1000
    """Bootstrap resamples behind the intervals of the report, 100 or more."""
    bootstrap_confidence: float = 0.95
    """Confidence of those intervals, 0.5 to below 1."""
    dataset_params: DatasetParams = field(default_factory=DatasetParams)
    """The data."""
    incremental_params: IncrementalParams = field(default_factory=IncrementalParams)
    """Training that starts with few cases and admits more of the training split, stage by stage."""

    @property
    def schedule_epochs(self) -> int:
        """Epochs that one schedule of learning rates spans: the training, or a stage of it."""
        incremental = self.incremental_params
        return incremental.max_epochs_per_stage if incremental.enabled else self.epochs

    @property
    def largest_lr(self) -> float:
        """The highest peak learning rate of what is trained."""
        return max([self.lr_head, *([self.backbone_lr] if self.adapted or not self.freeze_backbone else [])])

    @property
    def adapted(self) -> bool:
        """Whether the backbone gets adapters."""
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
        """Whether a step takes two passes, at the weights and at the worst ones nearby."""
        return OPTIMIZERS[self.optimizer].sharp

    @property
    def reads_cached_features(self) -> bool:
        """Whether training sees features of the images, computed once, in place of the images."""
        still = self.freeze_backbone and not self.adapted and self.dataset_params.augmentation == "none"
        return still and self.feature_cache != "off"

    @property
    def monitor(self) -> str:
        """Column of metrics.csv that chooses the checkpoint: of the answers where the gate is fitted again."""
        phase = PHASES[self.phase]
        return ANSWERS_MONITOR if phase.gated and self.gate_refit else phase.monitor


def config_from_dict(raw: Mapping[str, Any], where: str) -> Stage1ProConfig:
    """Check a complete or partial mapping and build the config; `where` is named in messages."""
    return merge_configs([(where, raw)])


def load_config(path: Path) -> Stage1ProConfig:
    """Read one config.json or YAML file over the defaults."""
    return merge_configs([(str(path), path)])


def merge_configs(layers: Sequence[tuple[str, Mapping[str, Any] | Path]]) -> Stage1ProConfig:
    """Merge (where, settings) layers over the defaults, later ones winning, and check the result.

    Settings are a mapping, or the file that holds one. Raises one UserError with all problems:
    files that cannot be read, unknown keys, types and ranges, and the rules between fields.
    """
    schema = artifacts.schema("config")
    problems: list[str] = []
    merged = to_dict(Stage1ProConfig())
    for where, layer in layers:
        settings = _settings_of(layer, problems)
        artifacts.refuse_newer(settings, where)
        if isinstance(settings, Mapping):
            merged = merge(merged, known_only(settings, schema, f"{where}: ", problems))
        else:
            problems.append(f"{where}: holds {type(settings).__name__}, not a mapping of settings")
    merged = coerce(merged, schema)
    broken = list(artifacts.schema_problems(merged, "config"))
    config = Stage1ProConfig() if broken else _build(merged)
    problems += broken or _rule_problems(config)
    if len(problems) == 1:
        raise UserError(f"config: {problems[0]}")
    raise_problems(f"config: {len(problems)} problems", problems)
    return config


def _settings_of(layer: Any, problems: list[str]) -> Any:
    if not isinstance(layer, Path):
        return layer
    try:
        return read_config_file(layer)
    except UserError as error:
        problems.append(str(error))
        return {}


def save_config(config: Stage1ProConfig, path: Path) -> None:
    artifacts.write_json(path, to_dict(config), "config")


def to_dict(config: Stage1ProConfig) -> dict[str, Any]:
    """The config as plain JSON values; accepted as input again, unchanged."""
    plain = dataclasses.asdict(config, dict_factory=_plain)
    return {**plain, "schema_version": artifacts.SCHEMA_VERSION}


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def _build(raw: dict[str, Any]) -> Stage1ProConfig:
    data = dict(raw["dataset_params"])
    data["sources"] = tuple(Source(**source) for source in data["sources"])
    data["class_names"] = None if data["class_names"] is None else tuple(data["class_names"])
    sections = {
        "dataset_params": DatasetParams(**data),
        "incremental_params": IncrementalParams(**raw["incremental_params"]),
    }
    return Stage1ProConfig(**{key: value for key, value in {**raw, **sections}.items() if key != "schema_version"})


def _rule_problems(config: Stage1ProConfig) -> Iterator[str]:
    """Rules between fields, which a schema cannot say."""
    data = config.dataset_params
    yield from phase_problems(config.phase, config.exit_policy)
    ratios = data.val_select_ratio + data.val_calib_ratio + data.val_test_ratio
    if ratios >= 1:
        yield f"$.dataset_params: the three validation ratios sum to {ratios:g}; leave a share below 1 for training"
    limit = "incremental_params.max_epochs_per_stage" if config.incremental_params.enabled else "epochs"
    if config.warmup_epochs > config.schedule_epochs:
        yield f"$.warmup_epochs is {config.warmup_epochs:g}; allowed 0 to {limit} ({config.schedule_epochs})"
    if config.conformal_after is not None and config.conformal_after >= config.schedule_epochs:
        allowed = f"0 to below {limit} ({config.schedule_epochs}), or null"
        yield f"$.conformal_after is {config.conformal_after}; allowed {allowed}"
    if config.adapted and not config.freeze_backbone:
        yield (
            f"$.peft_type is {config.peft_type!r}, and adapters are trained on a frozen backbone: set freeze_backbone: "
            "true, or peft_type: none"
        )
    yield from _too_early(config)
    yield from optimizer_problems(
        config.phase, config.optimizer, config.precision, config.strategy, _changed(config, SETTINGS_FROM)
    )
    if config.strategy.startswith(SHARDING) and config.max_grad_norm:
        yield (
            f"$.max_grad_norm is {config.max_grad_norm:g}, and strategy {config.strategy!r} spreads each gradient over "
            "the devices, where its norm is not at hand: set max_grad_norm: 0, or strategy: ddp"
        )
    yield from incremental_problems(config.incremental_params, config.largest_lr, config.strategy)
    names, positive = data.class_names, data.positive_class
    if names and len(names) != 2 and config.phase in PHASES and PHASES[config.phase].gated:
        yield f"$.dataset_params.class_names holds {len(names)} classes; {BINARY.format(phase=config.phase)}"
    if names and len(set(names)) < len(names):
        yield "$.dataset_params.class_names holds a name twice"
    if names and positive and positive not in names:
        yield f"$.dataset_params.positive_class is {positive!r}; allowed one of {', '.join(names)}"
    sources = [source.name for source in data.sources]
    if len(set(sources)) < len(sources):
        yield "$.dataset_params.sources: two sources have the same name"


def _too_early(config: Stage1ProConfig) -> Iterator[str]:
    for name in _changed(config, SETTINGS_FROM):
        phase = SETTINGS_FROM[name]
        if config.phase < phase:
            yield f"$.{name} is a setting from phase {phase} on, and this is phase {config.phase}: leave it out"


def _changed(config: Stage1ProConfig, names: Iterable[str]) -> list[str]:
    """Those settings that do not have their default value."""
    defaults = Stage1ProConfig()
    return [name for name in names if getattr(config, name) != getattr(defaults, name)]

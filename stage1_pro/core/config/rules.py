"""Rules between settings, which a schema cannot say."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator

from stage1_pro.core.config.phases import OPTIMIZERS, PHASES, POLICY_TABLE, SETTINGS_FROM
from stage1_pro.core.config.settings import IncrementalParams, Stage1ProConfig

BINARY = "phase {phase} trains a gate, which needs two: name the positive class against the rest"


SHARDING = ("fsdp", "deepspeed")
"""What the names of strategies begin with that leave no rank the whole weights."""


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


def phase_problems(phase: int, exit_policy: str) -> list[str]:
    """Why this phase cannot be run with this policy; empty where it can."""
    if phase not in PHASES:
        return [f"phase {phase} is not available; available: {', '.join(map(str, PHASES))}"]
    if exit_policy in PHASES[phase].policies:
        return []
    row = POLICY_TABLE[exit_policy]
    if len(PHASES[phase].policies) == 1:
        only = PHASES[phase].policies[0]
        return [
            f"Phase {phase} only supports exit_policy='{only}'. {row.label} policy requires {row.allowed}: "
            f"set exit_policy: {only}, or choose a later phase"
        ]
    return [f"{row.label} policy requires {row.allowed}: set exit_policy to one of {', '.join(PHASES[phase].policies)}"]


def optimizer_problems(
    phase: int, optimizer: str, precision: str, strategy: str, changed: Collection[str]
) -> Iterator[str]:
    """Why this optimizer cannot be had so. changed: names of the settings that differ from their defaults."""
    row = OPTIMIZERS[optimizer]
    if phase < row.first_phase:
        yield (
            f"$.optimizer is {optimizer}, which is of phase {row.first_phase} on, and this is phase {phase}: "
            "set optimizer: adamw, or choose a later phase"
        )
        return
    if row.sharp and precision == "16-mixed":
        yield f"$.precision is 16-mixed; allowed with optimizer {optimizer}: 32, bf16-mixed (its steps need no scaling)"
    if row.sharp and not strategy.startswith(("auto", "ddp")):
        yield f"$.strategy is {strategy}; allowed with optimizer {optimizer}: auto, ddp (its norm is of all gradients)"
    for name in changed:
        users = [other.name for other in OPTIMIZERS.values() if name in other.settings]
        if users and optimizer not in users and phase >= SETTINGS_FROM[name]:
            yield f"$.{name} is set, but optimizer is {optimizer}: leave it out, or set optimizer: {' or '.join(users)}"


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

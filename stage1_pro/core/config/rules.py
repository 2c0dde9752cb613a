"""Rules between settings, which a schema cannot say: one table of what is refused, each row with its message."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from stage1_pro.core.config.facts import Facts, Rule
from stage1_pro.core.config.phases import OPTIMIZERS, PHASES, SETTINGS_FROM
from stage1_pro.core.config.settings import Stage1ProConfig

BINARY = (
    "phase {phase} trains a gate, which needs exactly two classes: name the positive ones in positive_class and set "
    "dataset_params.rest: true"
)

SHARDING = ("fsdp", "deepspeed")
"""Prefixes of strategies that shard the weights."""

SLACK = 1e-9
"""By which ratios that share everything may miss 1: .1, .2 and .7 do."""

ADMISSIONS = ("acquisition", "random")
"""Values of incremental_params.strategy, which strategy is easily taken for."""

NO_STORE = "MLflow keeps runs and models in a database or on a server; name one, such as sqlite:///mlflow.db"


def no_store(uri: str | None) -> bool:
    """Whether an address of MLflow is a folder, which holds neither a registry nor two writers.

    >>> no_store("file:///tmp/mlruns"), no_store("mlruns"), no_store("sqlite:///mlflow.db")
    (True, True, False)
    """
    return uri is not None and uri != "databricks" and (uri.startswith("file:") or "://" not in uri)


def rule_problems(config: Stage1ProConfig, trains: bool = True) -> list[str]:
    """Return the message of every broken rule, in the order of RULES.

    config: of checked types and ranges; trains: False for one whose model is there already.

    >>> rule_problems(Stage1ProConfig(epochs=10, warmup_epochs=11))
    ['$.warmup_epochs is 11; allowed 0 to epochs (10)']
    """
    facts = Facts.of(config, trains)
    words = {name: ", ".join(map(str, it)) if isinstance(it, list | tuple) else it for name, it in vars(facts).items()}
    return [rule.message.format(**words) for rule in RULES if rule.broken(facts)]


def _disordered(numbers: Sequence[int]) -> bool:
    return any(later <= earlier for earlier, later in pairwise(numbers))


def _twice(names: Iterable[str]) -> bool:
    names = list(names)
    return len(set(names)) < len(names)


def _too_early(name: str, first: int) -> Rule:
    return Rule(
        lambda f: name in f.changed and f.c.phase < first,
        f"$.{name} is a setting from phase {first} on, and this is phase {{c.phase}}: leave it out",
    )


def _without_user(name: str, users: list[str]) -> Rule:
    """Refuses a setting that means nothing to the optimizer; in an earlier phase `_too_early` has said so."""
    return Rule(
        lambda f: name in f.changed and f.c.optimizer not in users and f.c.phase >= SETTINGS_FROM[name],
        f"$.{name} is set, but optimizer is {{c.optimizer}}: leave it out, or set optimizer: {' or '.join(users)}",
    )


USERS = {
    name: [row.name for row in OPTIMIZERS.values() if name in row.settings]
    for name in SETTINGS_FROM
    if any(name in row.settings for row in OPTIMIZERS.values())
}
"""Settings that not every optimizer has, and the optimizers that have them."""


def _not_of_masks(broken: Callable[[Facts], Any], setting: str, why: str) -> Rule:
    """Refuses a setting that masks cannot have; the defaults of the task are others, so somebody has set it."""
    return Rule(lambda f: f.masks and broken(f), f"$.{setting}, and task is segmentation: {why}")


MASK_RULES = (
    Rule(
        lambda f: f.policies and f.c.phase not in f.phases,
        "phase {c.phase} is not available for task {task.name}; available: {phases}",
    ),
    Rule(
        lambda f: f.c.checkpoint_by not in f.columns,
        "$.checkpoint_by is {c.checkpoint_by}; allowed for task {task.name}: {columns}",
    ),
    Rule(
        lambda f: f.unused,
        "$: {unused} set, but the task is classification: set dataset_params.task segmentation, or leave it out",
    ),
    Rule(
        lambda f: not f.masks and f.c.model_path.startswith("monai:"),
        "$.model_path is {c.model_path}, a network for masks: set dataset_params.task segmentation, or name a backbone",
    ),
    _not_of_masks(
        lambda f: f.c.model_path.startswith("local-dir:"),
        "model_path is {c.model_path}",
        "name a network such as monai:unet, or a backbone as timm:NAME, random:NAME or file:PATH:NAME",
    ),
    _not_of_masks(
        lambda f: f.c.freeze_backbone, "freeze_backbone is true", "the whole network is trained: leave it out"
    ),
    _not_of_masks(
        lambda f: f.c.label_smoothing, "label_smoothing is {c.label_smoothing:g}", "its loss has none: leave it out"
    ),
    _not_of_masks(
        lambda f: f.c.answer_placement != "none",
        "answer_placement is {c.answer_placement}",
        "the answer is whether the mask holds the positive class, and has no log-odds to shift: leave it out",
    ),
    _not_of_masks(
        lambda f: f.c.scoring_backend != "torch",
        "scoring_backend is {c.scoring_backend}",
        "networks for masks are scored with torch: leave it out",
    ),
    _not_of_masks(
        lambda f: f.c.scoring_precision != "float32",
        "scoring_precision is {c.scoring_precision}",
        "networks for masks are scored in float32: leave it out",
    ),
    _not_of_masks(
        lambda f: f.data.decode != "cpu",
        "dataset_params.decode is {data.decode}",
        "images with masks are decoded on the CPU: leave it out",
    ),
    _not_of_masks(
        lambda f: f.c.exit_rule != "symmetric",
        "exit_rule is {c.exit_rule}",
        "a poor mask on an answer 1 is a miss too, so that only symmetric exits can be certified: leave it out",
    ),
    _not_of_masks(
        lambda f: f.c.compile, "compile is true", "a compiled network does not show its bottleneck: leave it out"
    ),
    _not_of_masks(
        lambda f: f.data.class_balanced_sampling,
        "dataset_params.class_balanced_sampling is true",
        "a case holds several classes: set foreground_share, with patch_size",
    ),
    _not_of_masks(
        lambda f: f.data.image_size is not None,
        "dataset_params.image_size is {data.image_size}",
        "cases are neither resized nor cropped, so that a mask fits its image: leave it out, or set patch_size",
    ),
    _not_of_masks(
        lambda f: f.data.rest, "dataset_params.rest is true", "set positive_class: any, or a list of classes"
    ),
    _not_of_masks(
        lambda f: f.names and f.names[0] in f.positives,
        "dataset_params.positive_class names the background, the first of class_names",
        "name another class, or any",
    ),
    _not_of_masks(
        lambda f: f.data.ignore_label is not None and 0 < f.data.ignore_label < f.classes,
        "dataset_params.ignore_label is {data.ignore_label}",
        "that is the value of a class: name another, such as 255",
    ),
    _not_of_masks(
        lambda f: not f.c.segmentation_params.ce_weight + f.c.segmentation_params.dice_weight,
        "segmentation_params: ce_weight and dice_weight are 0",
        "at least one must be above 0",
    ),
)
"""Of tasks, and of what masks cannot have."""


RULES = (
    Rule(lambda f: not f.policies, f"phase {{c.phase}} is not available; available: {', '.join(map(str, PHASES))}"),
    *MASK_RULES,
    Rule(
        lambda f: len(f.policies) == 1 and f.policy.name not in f.policies,
        "Phase {c.phase} only supports exit_policy='{policies}'. {policy.label} policy requires {policy.allowed}: "
        "set exit_policy: {policies}, or choose a later phase",
    ),
    Rule(
        lambda f: len(f.policies) > 1 and f.policy.name not in f.policies,
        "{policy.label} policy requires {policy.allowed}: set exit_policy to one of {policies}",
    ),
    Rule(
        lambda f: f.c.decide_by == "group" and f.policy.name != "softmax",
        "$.decide_by is group, and exit_policy is {c.exit_policy}: set exit_policy: softmax, which has a rule for the "
        "mean of several images",
    ),
    Rule(
        lambda f: f.c.decide_by == "group" and f.data.task != "classification",
        "$.decide_by is group, and dataset_params.task is {data.task}: set decide_by: case",
    ),
    Rule(
        lambda f: f.c.certificate_groups is not None and f.data.task != "classification",
        "$.certificate_groups is {c.certificate_groups}, and dataset_params.task is {data.task}: leave it out, one "
        "certificate holds for the mix of all cases",
    ),
    Rule(
        lambda f: f.c.certificate_groups is not None and f.c.decide_by == "group",
        "$.certificate_groups is {c.certificate_groups}, and decide_by is group: one decision for several images has "
        "one certificate for the mix of all groups. Leave certificate_groups out, or set decide_by: case",
    ),
    Rule(
        lambda f: (f.c.certificate_groups or "").lower() in ("path", "label", "case_id", "group", "split"),
        "$.certificate_groups is {c.certificate_groups}, which says something else of a case (group: which cases "
        "depend on each other): name a column of cameras, sites or countries, each with many cases",
    ),
    Rule(
        lambda f: f.c.decide_by != "group" and {"views", "view_rule"} & set(f.changed),
        "$.views and view_rule are settings of decide_by: group: set that, or leave them out",
    ),
    Rule(
        lambda f: f.c.decide_by != "group" and f.data.group_label is not None,
        "$.dataset_params.group_label is a setting of decide_by: group: set that, or leave it out",
    ),
    Rule(
        lambda f: f.data.group_label == "any",
        "$.dataset_params.group_label is any, and the mean of a group is no rule for one positive image among many: "
        "with a fifth of the images positive, four groups of five would be missed. Set majority, or divide the groups",
    ),
    Rule(
        lambda f: f.c.views is None and "view_rule" in f.changed,
        "$.view_rule is {c.view_rule}, and views is not set: name a number of images, or leave view_rule out",
    ),
    Rule(
        lambda f: f.c.views is not None and f.data.order is None,
        "$.views is {c.views}, and dataset_params.order is not set: name the column that orders the images of a group "
        "(file names do not: frame_10 sorts before frame_2)",
    ),
    Rule(
        lambda f: f.trains and f.held_out >= 1,
        "$.dataset_params: the three validation ratios sum to {held_out:g}; leave a share below 1 for training",
    ),
    Rule(
        lambda f: not f.trains and f.held_out > 1 + SLACK,
        "$.dataset_params: val_select_ratio, val_calib_ratio and val_test_ratio sum to {held_out:g}; allowed up to 1. "
        "They share all cases in proportion",
    ),
    Rule(
        lambda f: _disordered((0, *f.c.schedule_restarts, f.c.epochs)),
        "$.schedule_restarts is [{restarts}]; allowed rising epochs from 1 to below epochs ({c.epochs})",
    ),
    Rule(
        lambda f: f.stages.enabled and f.c.schedule_restarts,
        "$.schedule_restarts is set, and with incremental_params each stage begins its own schedule: leave it out",
    ),
    Rule(
        lambda f: f.c.warmup_epochs > f.c.schedule_epochs,
        "$.warmup_epochs is {c.warmup_epochs:g}; allowed 0 to {limit} ({c.schedule_epochs})",
    ),
    Rule(
        lambda f: f.c.schedule_restarts and f.c.warmup_epochs > min(epochs for _, epochs in f.c.schedules),
        "$.warmup_epochs is {c.warmup_epochs:g}; allowed 0 to the shortest stretch between 0, schedule_restarts and "
        "epochs (0, {restarts}, {c.epochs})",
    ),
    Rule(
        lambda f: f.c.conformal_after is not None and f.c.conformal_after >= f.c.schedule_epochs,
        "$.conformal_after is {c.conformal_after}; allowed 0 to below {limit} ({c.schedule_epochs}), or null",
    ),
    Rule(
        lambda f: f.c.adapted and not f.c.freeze_backbone,
        "$.peft_type is {c.peft_type!r}, and adapters are trained on a frozen backbone: set freeze_backbone: true, or "
        "peft_type: none",
    ),
    *(_too_early(name, phase) for name, phase in SETTINGS_FROM.items()),
    Rule(
        lambda f: f.c.phase < f.optimizer.first_phase,
        "$.optimizer is {c.optimizer}, which is of phase {optimizer.first_phase} on, and this is phase {c.phase}: set "
        "optimizer: adamw, or choose a later phase",
    ),
    Rule(
        lambda f: f.c.logger == "mlflow" and f.c.tracking_uri is None,
        "$.logger is mlflow, and tracking_uri is not set: set it, such as sqlite:///mlflow.db or http://HOST:5000",
    ),
    Rule(
        lambda f: f.c.logger != "mlflow" and f.c.tracking_uri is not None,
        "$.tracking_uri is {c.tracking_uri}, and logger is {c.logger}: set logger: mlflow, or leave tracking_uri out",
    ),
    Rule(lambda f: no_store(f.c.tracking_uri), f"$.tracking_uri is {{c.tracking_uri}}: {NO_STORE}"),
    Rule(
        lambda f: f.c.quantize != "none" and f.c.scoring_backend != "onnx",
        "$.quantize is {c.quantize}, and scoring_backend is {c.scoring_backend}: set scoring_backend: onnx, or "
        "quantize: none",
    ),
    Rule(
        lambda f: f.c.scoring_backend == "onnx" and f.c.scoring_precision != "float32",
        "$.scoring_precision is {c.scoring_precision}, and scoring_backend is onnx: set scoring_precision: float32, or "
        "scoring_backend: torch",
    ),
    Rule(
        lambda f: f.c.scoring_backend == "onnx" and f.data.decode != "cpu",
        "$.dataset_params.decode is {data.decode}, and scoring_backend is onnx, which has no GPU: set decode: cpu, or "
        "scoring_backend: torch",
    ),
    Rule(
        lambda f: f.sharp and f.c.precision == "16-mixed",
        "$.precision is 16-mixed; allowed with optimizer {c.optimizer}: 32, bf16-mixed (its steps need no scaling)",
    ),
    Rule(
        lambda f: f.sharp and not f.c.strategy.startswith(("auto", "ddp")),
        "$.strategy is {c.strategy}; allowed with optimizer {c.optimizer}: auto, ddp (its norm is of all gradients)",
    ),
    *(_without_user(name, users) for name, users in USERS.items()),
    Rule(
        lambda f: f.c.strategy in ADMISSIONS,
        "$.strategy is {c.strategy!r}, which says how cases are admitted, not how devices work together: set "
        "incremental_params.strategy {c.strategy}, and strategy auto",
    ),
    Rule(
        lambda f: f.c.strategy.startswith(SHARDING) and f.c.max_grad_norm,
        "$.max_grad_norm is {c.max_grad_norm:g}, and strategy {c.strategy!r} spreads each gradient over the devices, "
        "where its norm is not at hand: set max_grad_norm: 0, or strategy: ddp",
    ),
    Rule(
        lambda f: f.idle,
        "$.incremental_params: {idle} set, but enabled is false: set incremental_params.enabled true",
    ),
    Rule(
        lambda f: f.stages.enabled and f.c.strategy.startswith(SHARDING),
        "$.strategy is {c.strategy!r}, and incremental_params needs the whole weights on every device: set strategy "
        "ddp",
    ),
    Rule(
        lambda f: f.stages.enabled and f.stages.max_active is not None and f.stages.max_active < f.stages.initial_cases,
        "$.incremental_params.max_active is {stages.max_active}; allowed initial_cases ({stages.initial_cases}) or "
        "more",
    ),
    Rule(
        lambda f: f.stages.enabled and f.stages.min_add_cases > f.stages.add_cases,
        "$.incremental_params.min_add_cases is {stages.min_add_cases}; allowed 1 to add_cases ({stages.add_cases})",
    ),
    Rule(
        lambda f: f.stages.enabled and f.stages.min_epochs_per_stage > f.stages.max_epochs_per_stage,
        "$.incremental_params.min_epochs_per_stage is {stages.min_epochs_per_stage}; allowed 1 to "
        "max_epochs_per_stage ({stages.max_epochs_per_stage})",
    ),
    Rule(
        lambda f: f.stages.enabled and f.stages.min_lr_to_continue >= f.c.largest_lr,
        "$.incremental_params.min_lr_to_continue is {stages.min_lr_to_continue:g}; allowed 0 to below the largest "
        "peak rate ({c.largest_lr:g})",
    ),
    Rule(
        lambda f: f.stages.enabled and not f.stages.w_dice + f.stages.w_uncertainty + f.stages.w_diversity,
        "$.incremental_params: w_dice, w_uncertainty and w_diversity are all 0; allowed at least one above 0",
    ),
    Rule(
        lambda f: f.stages.enabled and f.least_dice > f.stages.selection_threshold,
        "$.incremental_params: no case can be eligible: dice at most selection_threshold "
        "({stages.selection_threshold:g}) and at least 1 - max_difficulty ({least_dice:g})",
    ),
    Rule(
        lambda f: f.names and len(f.names) != 2 and f.gated and not f.data.merged,
        "$.dataset_params.class_names holds {classes} names; " + BINARY.format(phase="{c.phase}"),
    ),
    Rule(lambda f: _twice(f.names), "$.dataset_params.class_names holds a name twice"),
    Rule(
        lambda f: f.names and not set(f.positives) <= {*f.names, *(["any"] if f.masks else [])},
        "$.dataset_params.positive_class is {positives}; allowed one of {names}",
    ),
    Rule(
        lambda f: f.data.rest and not f.positives,
        "$.dataset_params.rest is true, and positive_class is not set: name the class that must not be missed",
    ),
    Rule(
        lambda f: _twice(source.name for source in f.data.sources),
        "$.dataset_params.sources: two sources have the same name",
    ),
)

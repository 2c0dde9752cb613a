"""The config: its defaults, the order of its layers, and every refusal in words."""

import dataclasses
import re
from pathlib import Path

import pytest

from stage1_pro.core import schemas
from stage1_pro.core.config.load import merge_configs, read_config_file, save_config, to_dict
from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.config.sections import DatasetParams, IncrementalParams, MissRule, SegmentationParams, Source
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError

REPOSITORY = Path(__file__).parents[2]
DEFAULTS = {
    "phase": 1,
    "exit_policy": "softmax",
    "target_fnr_exit": 0.02,
    "fnr_confidence": 0.95,
    "legacy_exit_threshold_for_logging": 0.88,
    "seed": 42,
    "freeze_backbone": True,
    "epochs": 30,
    "warmup_epochs": 1,
    "batch_size": 64,
    "grad_accum_steps": 1,
    "lr_head": 3e-4,
    "lr_backbone": 1e-5,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
    "dropout": 0.3,
    "max_grad_norm": 1.0,
    "use_ema": False,
    "ema_decay": 0.9999,
    "early_stop_patience": 3,
    "optimizer": "adamw",
    "fsam_rho": 0.05,
    "fsam_sigma": 1.0,
    "fsam_lambda": 0.9,
    "fsam_target": "all",
    "compile": False,
    "feature_cache": "auto",
    "bootstrap_samples": 1000,
    "bootstrap_confidence": 0.95,
}
INCREMENTAL_DEFAULTS = {
    "enabled": False,
    "initial_cases": 32,
    "initial_strategy": "stratified",
    "add_cases": 16,
    "min_add_cases": 1,
    "max_stages": 10,
    "max_active": None,
    "min_epochs_per_stage": 1,
    "max_epochs_per_stage": 150,
    "early_stopping_patience": 20,
    "early_stopping_min_delta": 0,
    "min_lr_to_continue": 1e-5,
    "lr_floor_action": "stop_run",
    "stage_lr": "reset",
    "stage_init": "best",
    "selection_threshold": 0.7,
    "max_difficulty": 1.0,
    "w_dice": 0.5,
    "w_uncertainty": 0.3,
    "w_diversity": 0.2,
    "strategy": "acquisition",
    "score_batch_size": 64,
    "nonfinite_policy": "exclude",
    "dry_run": False,
}
LATER = {
    3: {"gate_loss_weight": 2, "aux_weight": 0, "coverage_reward": 1, "gate_refit": False, "head_ensemble": 3},
    4: {
        "peft_type": "dora",
        "peft_r": 4,
        "peft_alpha": 8,
        "peft_blocks": 2,
        "peft_targets": "mlp",
        "peft_norms": True,
        "peft_lr": 1e-3,
        "layer_decay": 0.75,
    },
    5: {"fsam_rho": 0.1, "fsam_sigma": 0.5, "fsam_lambda": 0.5, "fsam_target": "heads"},
    6: {"conformal_after": 0, "positive_bank": 1000},
}
AVAILABLE = ", ".join(map(str, PHASES))
FORBIDDEN = ["exit_threshold", "gate_threshold", "lambda1", "lambda2", "val_calib_indices", "calibrator_params"]


def refusal(**settings: object) -> str:
    with pytest.raises(UserError) as refused:
        merge_configs([("a.yaml", settings)])
    return str(refused.value)


def of_file(path: Path) -> Stage1ProConfig:
    return merge_configs([(str(path), path)])


def of_data(**settings: object) -> DatasetParams:
    return merge_configs([("a.yaml", {"dataset_params": settings})]).dataset_params


def test_defaults_are_those_of_the_design() -> None:
    config = Stage1ProConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert dataclasses.asdict(config.incremental_params) == INCREMENTAL_DEFAULTS
    assert merge_configs([]) == config


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        (Stage1ProConfig, ()),
        (DatasetParams, ("dataset_params",)),
        (IncrementalParams, ("incremental_params",)),
        (SegmentationParams, ("segmentation_params",)),
        (MissRule, ("segmentation_params", "miss_rule")),
        (Source, ("dataset_params", "sources")),
    ],
)
def test_schema_and_dataclass_name_the_same_fields(kind: type, node: tuple[str, ...]) -> None:
    schema = schemas.schema("config")
    for name in node:
        schema = schema["properties"][name]
    properties = set(schema.get("items", schema)["properties"]) - {"schema_version"}
    assert properties == {field.name for field in dataclasses.fields(kind)}


def test_what_training_does_not_decide_is_no_field() -> None:
    assert not set(FORBIDDEN) & set(schemas.schema("config")["properties"])


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(file: Path) -> None:
    of_file(file)


def test_later_layers_win_and_leave_the_rest(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("epochs: 3\nseed: 7\ndataset_params: {image_size: 32, num_workers: 5}\n")
    second.write_text("epochs: 4\ndataset_params: {image_size: 64}\n")
    layers = [(str(path), read_config_file(path)) for path in (first, second)]
    config = merge_configs([*layers, ("command line", {"epochs": 5})])
    assert (config.epochs, config.seed, config.batch_size) == (5, 7, 64)
    assert (config.dataset_params.image_size, config.dataset_params.num_workers) == (64, 5)
    assert merge_configs(layers).epochs == 4


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "dataset_params: {sources: [{name: a, root: ~/photos}, {name: b, root: a~/b, labels: ~/b.csv}]}"
    (tmp_path / "my.yaml").write_text(text)
    sources = merge_configs([("my", Path("~/my.yaml"))]).dataset_params.sources
    assert [(source.root, source.labels) for source in sources] == [
        (f"{tmp_path}/photos", None),
        ("a~/b", f"{tmp_path}/b.csv"),
    ]


def test_a_saved_config_is_accepted_again_unchanged(tmp_path: Path) -> None:
    sources = [{"name": "a", "root": "x", "labels": None}, {"labels": "b.csv", "name": "b"}]
    settings = {"lr_head": 0.1 + 0.2, "devices": 2, "dataset_params": {"sources": sources, "class_names": ["0", "1"]}}
    config = merge_configs([("test", settings)])
    save_config(config, tmp_path / "config.json")
    again = of_file(tmp_path / "config.json")
    save_config(again, tmp_path / "again.json")
    assert again == config
    assert (tmp_path / "config.json").read_bytes() == (tmp_path / "again.json").read_bytes()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr_head: 1e-4", "lr_head", 1e-4),
        ("lr_head: 1E-3", "lr_head", 1e-3),
        ("lr_head: 1", "lr_head", 1.0),
        ("precision: 32", "precision", "32"),
        ("devices: 2", "devices", 2),
        ("devices: auto", "devices", "auto"),
        ("warmup_epochs: 0.5", "warmup_epochs", 0.5),
        ("{'seed': 4294967295}", "seed", 4294967295),
        ("# nothing", "seed", 42),
    ],
)
def test_yaml_means_what_a_person_means(tmp_path: Path, text: str, name: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(text)
    found = getattr(of_file(tmp_path / "a.yaml"), name)
    assert (found, type(found)) == (value, type(value))


def test_numbers_may_name_classes() -> None:
    data = of_data(class_names=[0, 1], positive_class=0)
    assert (data.class_names, data.positive_class) == (("0", "1"), "0")


def test_retired_settings_name_what_to_use() -> None:
    assert "set legacy_exit_threshold_for_logging" in refusal(exit_threshold=0.9)
    assert "coverage is maximised under target_fnr_exit" in refusal(target_coverage=0.7)
    assert "coverage is maximised" in refusal(dataset_params={"target_coverage": 0.7})


def test_all_problems_come_at_once() -> None:
    message = refusal(epoch=3, exit_threshold=0.9, lr_head=-1, dataset_params={"imagesize": 3, "num_workers": -1})
    for words in (
        "config: 5 problems",
        "a.yaml: epoch is not a known setting (did you mean 'epochs'?)",
        "a.yaml: exit_threshold is not a setting of training",
        "a.yaml: dataset_params.imagesize is not a known setting (did you mean 'image_size'?)",
        "$.lr_head is -1.0; allowed number, above 0, up to 10",
        "$.dataset_params.num_workers is -1; allowed integer, 0 or more",
    ):
        assert words in message


def test_problems_of_several_files_come_together() -> None:
    layers = [("1.yaml", {"epoch": 1}), ("2.yaml", {"sede": 1}), ("3.yaml", ["epochs"]), ("line", {"epochs": 0})]
    with pytest.raises(UserError) as refused:
        merge_configs(layers)
    for words in ("1.yaml: epoch", "2.yaml: sede", "3.yaml: holds list, not a mapping", "$.epochs is 0; allowed"):
        assert words in str(refused.value)


@pytest.mark.parametrize("value", [0, -1, 0.2, 0.1000001, "abc", None, True, "nan", float("nan"), float("inf")])
def test_target_fnr_exit_is_above_zero_up_to_a_tenth(value: object) -> None:
    message = refusal(target_fnr_exit=value)
    assert message.startswith("config: $.target_fnr_exit is ")
    assert message.endswith("; allowed number, above 0, up to 0.1")
    assert merge_configs([("", {"target_fnr_exit": 0.1})]).target_fnr_exit == 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_grad_norm": "inf"}, '$.max_grad_norm is "inf"'),
        ({"strategy": "fsdp"}, "$.max_grad_norm is 1, and strategy 'fsdp' spreads each gradient"),
        ({"lr_head": 10**400}, "$.lr_head is 1000"),
        ({"epochs": 10.5}, "$.epochs is 10.5; allowed integer, 1 or more"),
        ({"seed": True}, "$.seed is true"),
        ({"false_alarm_price": 1.9}, "$.false_alarm_price is 1.9; allowed number, 2 or more"),
        ({"false_alarm_price": -1}, "$.false_alarm_price is -1"),
        ({"miss_price": -0.5}, "$.miss_price is -0.5; allowed number, 0 or more"),
        ({"exit_rule": "onesided"}, "$.exit_rule is"),
        ({"devices": 0}, "$.devices is 0"),
        ({"model_path": "resnet18"}, "$.model_path"),
        ({"model_path": "file:weights.pth"}, "$.model_path"),
        ({"epochs": 10, "warmup_epochs": 11}, "$.warmup_epochs is 11; allowed 0 to epochs (10)"),
        ({"dataset_params": None}, "$.dataset_params is null"),
        ({"dataset_params": {"sources": {"name": "a"}}}, "$.dataset_params.sources"),
        (
            {"positve_class": "a"},
            "positve_class is not a known setting (did you mean 'dataset_params.positive_class'?)",
        ),
        ({"dataset_params": {"sources": [{"nam": "a"}]}}, "sources.nam is not a known setting (did you mean 'name'?)"),
        ({"dataset_params": {"sources": [{"name": "a"}, {"name": "a"}]}}, "two sources have the same name"),
        ({"dataset_params": {"sources": [{"labels": "a"}, {"labels": "b"}]}}, "two sources have the same name"),
        ({"dataset_params": {"val_select_ratio": 0.5, "val_calib_ratio": 0.4, "val_test_ratio": 0.1}}, "sum to 1;"),
        ({"dataset_params": {"val_calib_ratio": 0}}, "$.dataset_params.val_calib_ratio is 0.0"),
        ({"dataset_params": {"class_names": ["a", "a"]}}, "class_names holds a name twice"),
        ({"dataset_params": {"class_names": ["a", "b"], "positive_class": "c"}}, "allowed one of a, b"),
        ({"dataset_params": {"class_names": ["a"]}}, "$.dataset_params.class_names"),
        ({"dataset_params": {"image_size": 15}}, "$.dataset_params.image_size is 15"),
    ],
)
def test_refusals_name_field_value_and_what_is_allowed(settings: dict, words: str) -> None:
    assert words in refusal(**settings)


@pytest.mark.parametrize(
    ("phase", "policy", "start"),
    [
        (1, "gate", "Phase 1 only supports exit_policy='softmax'. Gate policy requires Phase 3+: set exit_policy"),
        (1, "scrc", "Phase 1 only supports exit_policy='softmax'. SCRC policy requires Phase 6: set exit_policy"),
        (7, "softmax", f"phase 7 is not available; available: {AVAILABLE}"),
        (3, "scrc", "SCRC policy requires Phase 6: set exit_policy to one of softmax, gate"),
        (0, "softmax", "$.phase is 0; allowed integer, 1 or more"),
        (1, "sofmax", '$.exit_policy is "sofmax"; allowed one of "softmax", "gate", "scrc"'),
    ],
)
def test_phases_and_policies_that_do_not_exist(phase: int, policy: str, start: str) -> None:
    assert refusal(phase=phase, exit_policy=policy).startswith(f"config: {start}")


@pytest.mark.parametrize(("first", "name"), [(first, name) for first in LATER for name in LATER[first]])
def test_a_later_phase_is_no_setting_of_an_earlier_one(first: int, name: str) -> None:
    value = LATER[first][name]
    for phase in (phase for phase in PHASES if phase < first):
        words = f"$.{name} is a setting from phase {first} on, and this is phase {phase}"
        assert words in refusal(phase=phase, **{name: value})
    optimizer = {"optimizer": "fsam"} if first == 5 else {}
    assert getattr(merge_configs([("a.yaml", {"phase": first, name: value, **optimizer})]), name) == value


@pytest.mark.parametrize("optimizer", ["sam", "fsam"])
def test_sharpness_begins_with_phase_5(optimizer: str) -> None:
    for phase in range(1, 5):
        words = f"$.optimizer is {optimizer}, which is of phase 5 on, and this is phase {phase}: set optimizer: adamw"
        assert words in refusal(phase=phase, optimizer=optimizer)
    for phase in (phase for phase in PHASES if phase >= 5):
        assert merge_configs([("a.yaml", {"phase": phase, "optimizer": optimizer})]).sharpness_aware
    assert not Stage1ProConfig().sharpness_aware


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "16-mixed"}, "$.precision is 16-mixed; allowed with optimizer fsam: 32, bf16-mixed"),
        ({"strategy": "fsdp"}, "$.strategy is fsdp; allowed with optimizer fsam: auto, ddp"),
        ({"fsam_rho": -0.1}, "$.fsam_rho is -0.1; allowed 0 to 10"),
        ({"fsam_sigma": 1.5}, "$.fsam_sigma is 1.5; allowed 0 to 1"),
        ({"fsam_lambda": 1}, "$.fsam_lambda is 1.0; allowed "),
        ({"fsam_target": "gate"}, '$.fsam_target is "gate"; allowed one of "all", "heads", "adapter"'),
        ({"optimizer": "lion"}, '$.optimizer is "lion"; allowed one of "adamw", "sam", "fsam"'),
        ({"optimizer": "sam", "fsam_sigma": 0.5}, "$.fsam_sigma is set, but optimizer is sam: leave it out, or set op"),
        ({"optimizer": "adamw", "fsam_rho": 0.1}, "$.fsam_rho is set, but optimizer is adamw: leave it out, or set op"),
    ],
)
def test_sharpness_refusals(settings: dict, words: str) -> None:
    assert words in refusal(**{"phase": 5, "optimizer": "fsam", **settings})


def test_half_precision_and_sharded_weights_stay_with_adamw() -> None:
    for settings in ({"precision": "16-mixed"}, {"strategy": "fsdp", "max_grad_norm": 0}):
        merge_configs([("a.yaml", {"phase": 5, **settings})])
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true"):
        merge_configs([("a.yaml", {"phase": 5, "optimizer": "sam", "strategy": strategy})])


def test_conformal_training_needs_an_epoch() -> None:
    assert "$.conformal_after is 4; allowed 0 to below epochs (4)" in refusal(phase=6, epochs=4, conformal_after=4)
    assert "$.positive_bank is 999; allowed integer, 1000 to 4096" in refusal(phase=6, positive_bank=999)
    assert merge_configs([("a.yaml", {"phase": 6, "epochs": 4, "conformal_after": 3})]).conformal_after == 3


def test_adapters_need_a_frozen_backbone_and_set_its_rate() -> None:
    words = "adapters are trained on a frozen backbone: set freeze_backbone: true, or peft_type: none"
    assert words in refusal(phase=4, peft_type="lora", freeze_backbone=False)
    assert '$.peft_type is "rola"; allowed one of "none", "lora", "dora", "doran"' in refusal(phase=4, peft_type="rola")
    assert "$.peft_r is 0; allowed integer, 1 to 512" in refusal(phase=4, peft_r=0)
    assert "$.peft_blocks is 0" in refusal(phase=4, peft_blocks=0)
    assert "$.layer_decay is 0.0; allowed number, above 0, up to 1" in refusal(phase=4, layer_decay=0)
    adapted = merge_configs([("a.yaml", {"phase": 4, "peft_type": "lora", "lr_head": 1e-5, "peft_lr": 3e-4})])
    assert (adapted.backbone_lr, adapted.largest_lr) == (3e-4, 3e-4)
    frozen = merge_configs([("a.yaml", {"phase": 4, "lr_head": 1e-5, "peft_lr": 3e-4})])
    assert (frozen.backbone_lr, frozen.largest_lr) == (1e-5, 1e-5)


def incremental(**settings: object) -> dict:
    return {"incremental_params": {"enabled": True, **settings}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (incremental(initial_cases=0), "initial_cases is 0; allowed integer, 1 or more"),
        (incremental(max_active=31), "max_active is 31; allowed initial_cases (32) or more"),
        (incremental(min_add_cases=17), "min_add_cases is 17; allowed 1 to add_cases (16)"),
        (incremental(min_epochs_per_stage=151), "min_epochs_per_stage is 151; allowed 1 to max_epochs_per_stage (150)"),
        (
            incremental(min_lr_to_continue=3e-4),
            "min_lr_to_continue is 0.0003; allowed 0 to below the largest peak rate",
        ),
        (incremental(selection_threshold=1.5), "selection_threshold is 1.5; allowed 0 to 1"),
        (incremental(w_dice=-0.1), "w_dice is -0.1; allowed number, 0 or more"),
        (incremental(w_dice=0, w_uncertainty=0, w_diversity=0), "are all 0; allowed at least one above 0"),
        (incremental(max_difficulty=0.2), "no case can be eligible: dice at most selection_threshold (0.7)"),
        (
            incremental(max_epochs_per_stage=3) | {"warmup_epochs": 4},
            "0 to incremental_params.max_epochs_per_stage (3)",
        ),
        ({"incremental_params": {"add_cases": 8, "dry_run": True}}, "add_cases, dry_run set, but enabled is false"),
        (incremental() | {"strategy": "fsdp"}, "$.strategy is 'fsdp', and incremental_params needs the whole weights"),
        (incremental(adds_cases=8), "incremental_params.adds_cases is not a known setting (did you mean 'add_cases'?)"),
    ],
)
def test_incremental_refusals(settings: dict, words: str) -> None:
    assert words in refusal(**settings)


def test_all_incremental_problems_come_at_once() -> None:
    message = refusal(**incremental(max_active=3, w_dice=0, w_uncertainty=0, w_diversity=0, min_lr_to_continue=1))
    assert "config: 3 problems" in message


def test_the_floor_is_below_the_largest_rate_that_trains() -> None:
    floor = incremental(min_lr_to_continue=1e-3)
    assert "min_lr_to_continue" in refusal(**floor, lr_backbone=1e-2)  # frozen: its rate moves nothing
    assert merge_configs([("a.yaml", {**floor, "lr_backbone": 1e-2, "freeze_backbone": False})]).largest_lr == 1e-2


def test_a_gate_needs_two_classes() -> None:
    message = refusal(phase=3, exit_policy="gate", dataset_params={"class_names": ["a", "b", "c"]})
    assert "class_names holds 3 names; phase 3 trains a gate, which needs exactly two classes" in message


def test_placement_that_is_asked_for_needs_two_classes() -> None:
    three = {"dataset_params": {"class_names": ["a", "b", "c"]}}
    assert "answer_placement is auto, and dataset_params.class_names holds 3 classes" in refusal(
        **three, answer_placement="auto"
    )
    config = merge_configs([("a.yaml", three)])
    assert not config.places_answers
    assert merge_configs([("saved", to_dict(config))]) == config  # which holds the default, and is accepted again
    assert not merge_configs([("a.yaml", {**three, "answer_placement": "none"})]).places_answers


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, 0),
        ({"phase": 3}, 1),
        ({"phase": 3, "gate_refit": False}, 0),
        ({"phase": 4, "peft_type": "lora"}, 1),
        ({"phase": 5, "optimizer": "fsam"}, 0),
        ({"phase": 5}, 2),
        ({"phase": 6}, 2),
    ],
)
def test_what_has_no_effect_is_known(settings: dict, counts: int) -> None:
    sentences = merge_configs([("a.yaml", settings)]).without_effect
    assert len(sentences) == counts
    assert ("positive_bank" in " ".join(sentences)) == (settings.get("phase") == 6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- epochs", "holds list, not a mapping of settings"),
        (b"[]", "holds list, not a mapping of settings"),
        (b"epochs", "holds str, not a mapping of settings"),
        (b"false", "holds bool, not a mapping of settings"),
        (b"epochs: [1", "not valid YAML"),
        (b"epochs: \xff", "not valid YAML"),
        (b"epochs: 1\nseed: 2\nepochs: 3\n", "key 'epochs' occurs twice"),
        (b"dataset_params:\n  image_size: 32\n  image_size: 64\n", "key 'image_size' occurs twice"),
        (b'{"seed": 1, "seed": 2}', "key 'seed' occurs twice"),
        (b"1: 2", "1 is not a known setting"),
        (b"? [a, b]\n: 1", "not valid YAML"),
        (b"schema_version: 2", "written by a newer version"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.yaml") as refused:
        of_file(path)
    assert words in str(refused.value)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.yaml does not exist\. Name an existing YAML file with --config"):
        of_file(tmp_path / "nope.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        of_file(tmp_path)


def test_off_is_a_word_and_not_a_falsehood(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("feature_cache: off")
    assert of_file(path).feature_cache == "off"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 9, "schedule_restarts": [4, 4]}, "$.schedule_restarts is [4, 4]; allowed rising epochs from 1 to"),
        ({"epochs": 9, "schedule_restarts": [9]}, "$.schedule_restarts is [9]; allowed rising epochs from 1 to below"),
        ({"epochs": 9, "schedule_restarts": [8], "warmup_epochs": 2}, "allowed 0 to the shortest stretch"),
        (incremental() | {"schedule_restarts": [4]}, "each stage begins its own schedule: leave it out"),
    ],
)
def test_restarts_of_the_schedule_are_rising_and_leave_room_for_warm_up(settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        merge_configs([("a.yaml", settings)])


def test_restarts_are_saved_and_read_again():
    config = merge_configs([("a.yaml", {"epochs": 9, "schedule_restarts": [2, 5]})])
    assert config.schedules == ((0, 2), (2, 3), (5, 4))
    assert merge_configs([("saved", to_dict(config))]) == config


UNQUOTED = [
    ("class_names: [no, yes]", ("class_names[0] is written no, which YAML reads as false", "class_names[1]")),
    ("class_names: [010, b]", ('class_names[0] is written 010, which YAML reads as 8: quote it ("010")',)),
    ("class_names: [2026-11-29, b]", ("which YAML reads as 2026-11-29: quote it",)),
    ("class_names: [1.50, b]", ('quote it ("1.50")',)),
    ("class_names: [1_000, b]", ("which YAML reads as 1000",)),
    ("class_names: [12:30, b]", ("which YAML reads as 750",)),
    ("class_names: [null, b]", ("which YAML reads as null",)),
    ("positive_class: on", ("positive_class is written on, which YAML reads as true",)),
    ("sources: [{name: 0x1F}]", ("sources[0].name is written 0x1F, which YAML reads as 31",)),
]


@pytest.mark.parametrize(("line", "words"), UNQUOTED)
def test_what_yaml_would_change_is_to_be_quoted(tmp_path: Path, line: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"dataset_params:\n  {line}\n")
    with pytest.raises(UserError) as refused:
        of_file(path)
    message = str(refused.value)
    for word in words:
        assert word in message
    assert "allowed" not in message  # one problem, told once
    for place, quoted in re.findall(r'\$\.dataset_params\.(\S+) is .*quote it \("(.*)"\)', message):
        line = line.replace(quoted, f'"{quoted}"')
        assert place
    path.write_text(f"dataset_params:\n  {line}\n")
    of_file(path)


def test_numbers_that_stay_what_they_are_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("feature_cache: off\nprecision: 32\ndataset_params: {class_names: [0, 10], positive_class: 10}\n")
    config = of_file(path)
    assert (config.feature_cache, config.precision) == ("off", "32")
    assert (config.dataset_params.class_names, config.dataset_params.positive_class) == (("0", "10"), "10")


MASKS = {"task": "segmentation", "sources": [{"root": "cells"}], "class_names": ["ground", "cell"]}


def of_masks(where: str = "a.yaml", **settings: object) -> Stage1ProConfig:
    data = {**MASKS, **settings.pop("dataset_params", {})}  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    return merge_configs([(where, {**settings, "dataset_params": data})])


def test_defaults_of_masks_suit_masks_and_survive_being_saved() -> None:
    config = of_masks()
    assert (config.exit_rule, config.answer_placement, config.freeze_backbone) == ("symmetric", "none", False)
    assert (config.monitor, config.monitor_mode, config.dataset_params.augmentation) == ("val_dice", "max", "moderate")
    assert of_masks(phase=2).monitor == "val_augrc"
    assert merge_configs([("saved", to_dict(config))]) == config
    # a later layer may name the task: what an earlier one has set stays
    late = merge_configs([("a.yaml", {"epochs": 7}), ("b.yaml", {"dataset_params": MASKS})])
    assert (late.epochs, late.lr_head) == (7, 1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"phase": 3}, "phase 3 is not available for task segmentation; available: 1, 2"),
        ({"label_smoothing": 0.1}, "$.label_smoothing is 0.1, and task is segmentation"),
        ({"freeze_backbone": True}, "$.freeze_backbone is true, and task is segmentation"),
        ({"exit_rule": "one_sided"}, "$.exit_rule is one_sided, and task is segmentation"),
        ({"answer_placement": "auto"}, "$.answer_placement is auto, and task is segmentation"),
        ({"checkpoint_by": "val_accuracy"}, "allowed for task segmentation: auto, val_dice, val_augrc, val_loss"),
        ({"model_path": "local-dir:models/own"}, "name a network such as monai:unet"),
        ({"dataset_params": {"image_size": 64}}, "cases are neither resized nor cropped"),
        ({"dataset_params": {"class_balanced_sampling": True}}, "set foreground_share"),
        ({"dataset_params": {"rest": True, "positive_class": "cell"}}, "set positive_class: any"),
        ({"dataset_params": {"positive_class": "ground"}}, "names the background"),
        ({"dataset_params": {"ignore_label": 1}}, "that is the value of a class"),
        ({"segmentation_params": {"ce_weight": 0, "dice_weight": 0}}, "at least one must be above 0"),
    ],
)
def test_what_masks_cannot_have_is_refused_with_the_reason(settings: dict, words: str) -> None:
    with pytest.raises(UserError) as refused:
        of_masks(**settings)
    assert words in str(refused.value)


def test_settings_of_masks_are_none_of_a_classification() -> None:
    with pytest.raises(UserError) as refused:
        merge_configs([("a.yaml", {"segmentation_params": {"window_batch": 2}, "model_path": "monai:unet"})])
    assert "segmentation_params.window_batch set, but the task is classification" in str(refused.value)
    assert "$.model_path is monai:unet, a network for masks" in str(refused.value)

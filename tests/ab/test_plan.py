"""Arms over a base config: what is taken, and every mistake in one message."""

from dataclasses import replace

import pytest

from stage1_pro.core.ab.plan import changed_settings, make_plan, write_arms
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError

BASE = [("base", {"seed": 7, "epochs": 3, "target_fnr_exit": 0.05})]


@pytest.fixture
def overlay(tmp_path):
    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as raised:
        make_plan(*arguments)
    return str(raised.value)


def test_arms_are_overlays_and_seeds_count_up_from_the_base(overlay, tmp_path):
    files = [overlay("plain", ""), overlay("fast", "lr_head: 1e-2\ndataset_params: {augmentation: moderate}")]
    plan = make_plan(BASE, files, 2, tmp_path / "out")
    assert [arm.name for arm in plan.arms] == ["plain", "fast"]
    assert plan.seeds == (7, 8)
    assert [trial.name for trial in plan.trials()] == ["plain-seed7", "fast-seed7", "plain-seed8", "fast-seed8"]
    fast = plan.arms[1].with_seed(8)
    assert (fast.lr_head, fast.epochs, fast.seed, fast.dataset_params.augmentation) == (0.01, 3, 8, "moderate")
    write_arms(plan)
    assert merge_configs([("arm", plan.config_path(plan.arms[1]))]) == plan.arms[1].config


def test_what_must_be_the_same_for_all(overlay, tmp_path):
    changed = "seed: 8\nepochs: 4\ntarget_fnr_exit: 0.1\ndataset_params: {val_calib_ratio: 0.2}"
    text = refusal(BASE, [overlay("plain", ""), overlay("other", changed)], 2, tmp_path)
    assert "4 problems" in text
    for words in (
        "$.seed is 8, and 7 in plain",
        "$.epochs is 4, and 3 in plain: the budget is the same for all arms",
        "$.target_fnr_exit is 0.1, and 0.05 in plain: right exits compare under one promise only",
        "$.dataset_params.val_calib_ratio is 0.2, and 0.15 in plain: the splits are the same for all arms",
    ):
        assert words in text


def test_mistakes_in_arm_files_come_together_and_name_the_file(overlay, tmp_path):
    files = [overlay("plain", "lr_haed: 1"), overlay("other", "phase: 2\nexit_policy: gate"), str(tmp_path / "no.yaml")]
    text = refusal(BASE, files, 2, tmp_path)
    assert "3 problems" in text
    assert "plain.yaml: lr_haed is not a known setting (did you mean 'lr_head'?)" in text
    assert "Gate policy requires Phase 3+" in text
    assert "no.yaml does not exist" in text
    assert "holds list, not a mapping" in refusal(BASE, [overlay("a", "[1]"), overlay("b", "")], 2, tmp_path)


def test_what_is_no_test(overlay, tmp_path):
    one, two = overlay("one", ""), overlay("two", "")
    assert "two or more YAML files, the reference first" in refusal(BASE, [one], 2, tmp_path)
    assert "two files are named one" in refusal(BASE, [one, one], 2, tmp_path)
    assert "--seeds is 0" in refusal(BASE, [one, two], 0, tmp_path)
    assert "allowed letters, digits" in refusal(BASE, [one, overlay("a b", "")], 2, tmp_path)


def test_what_training_fills_in_is_no_change():
    base = Stage1ProConfig()
    filled = replace(base, backbone_license="apache-2.0")
    assert changed_settings(filled, base) == []
    assert changed_settings(filled, replace(base, backbone_license="Apache-2.0")) == []
    assert changed_settings(filled, replace(base, backbone_license="mit")) == ["backbone_license"]
    assert changed_settings(replace(filled, epochs=3), base) == ["epochs"]


def test_an_arm_that_would_not_train_is_refused(overlay, tmp_path):
    files = [overlay("one", ""), overlay("two", "incremental_params: {enabled: true, dry_run: true}")]
    assert "dry_run is true, and arms are trained" in refusal(BASE, files, 2, tmp_path / "out")

"""Rates by layer: written into every group, on plain and on wrapped backbones, and kept in proportion."""

import numpy as np
import pytest
import torch

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.parameters import is_adapter
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.optim.schedule import layer_of, parameter_groups, warmup_cosine
from stage1_pro.core.training.fit import build_model
from stage1_pro.core.training.modules.base import Stage1Module

DECAY, PEAK = 0.5, 2e-4


def model(name: str = "test_vit", **settings: object) -> Stage1Model:
    fields = {"phase": 4, "model_path": f"random:{name}", "dataset_params": {"image_size": 32}, **settings}
    return build_model(merge_configs([("a.yaml", fields)]), ("no", "yes"))


def groups_of(made: Stage1Model, decay: float = DECAY) -> dict[str, dict]:
    groups = parameter_groups(made, 1e-3, PEAK, 0.1, made.backbone.layer_ids, decay)
    assert len({id(tensor) for group in groups for tensor in group["params"]}) == sum(
        tensor.requires_grad for tensor in made.parameters()
    )
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("kind", ["lora", "dora", "doran"])
def test_every_block_of_a_wrapped_backbone_has_a_rate_of_its_own(kind: str) -> None:
    made = model(peft_type=kind)
    groups = groups_of(made)
    rates = {name: group["lr"] for name, group in groups.items() if name.startswith("backbone")}
    layers = {name.split("_")[2] for name in rates}
    assert layers == {f"{layer:02d}" for layer in range(1, 7)}  # 0 is the patch embedding, which has no adapter
    assert rates == {name: pytest.approx(PEAK * DECAY ** (6 - int(name.split("_")[2]))) for name in rates}
    first = {id(tensor) for name, tensor in made.named_parameters() if ".blocks.0." in name and is_adapter(name)}
    held = {id(t) for name, group in groups.items() if "layer_01" in name for t in group["params"]}
    assert held == first
    assert {groups["head"]["lr"], groups["head_no_decay"]["lr"]} == {1e-3}


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_an_unfrozen_backbone_has_the_whole_rate_at_the_top(name: str) -> None:
    rates = {group["lr"] for name, group in groups_of(model(name, freeze_backbone=False)).items() if "head" not in name}
    assert max(rates) == PEAK
    assert len(rates) > 4


def test_without_decay_there_is_one_rate_as_before() -> None:
    names = list(groups_of(model(freeze_backbone=False), 1.0))
    assert names == ["backbone", "backbone_no_decay", "head", "head_no_decay"]


def test_magnitudes_do_not_decay_and_matrices_do() -> None:
    """Those of convolutions have four dimensions: by shape alone they would be pulled towards zero."""
    made = model("test_efficientnet", peft_type="dora")
    decaying = {id(t) for group in groups_of(made, 1.0).values() if group["weight_decay"] for t in group["params"]}
    for name, tensor in made.named_parameters():
        if is_adapter(name):
            assert (id(tensor) in decaying) == ("magnitude" not in name), name


def test_a_backbone_without_known_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"timm knows no layers of this backbone. Set layer_decay: 1"):
        parameter_groups(torch.nn.Linear(2, 2), 1e-3, PEAK, 0.1, {"net.weight": 0}, DECAY)


def test_wrapped_names_lead_to_the_bare_ones() -> None:
    layers = {"blocks.1.fc.weight": 2, "blocks.1.fc.bias": 2, "blocks.10.fc.weight": 11}
    for name in ("fc.lora_A.default.weight", "fc.base_layer.weight", "fc.weight", "lora_shared.lora_first_b"):
        assert layer_of(f"blocks.1.{name}", layers) == 2


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_the_schedule_keeps_the_proportions() -> None:
    settings = {
        "phase": 4,
        "model_path": "random:test_vit",
        "peft_type": "lora",
        "layer_decay": DECAY,
        "lr_head": 1e-3,
        "peft_lr": PEAK,
        "dataset_params": {"image_size": 32},
        "incremental_params": {"enabled": True},
    }
    config = merge_configs([("a.yaml", settings)])
    module = Stage1Module(build_model(config, ("no", "yes")), config, np.array([5, 5]), from_features=False)
    optimizer = module.configure_optimizers()["optimizer"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(2, 8))
    peaks = np.array([1e-3, *(PEAK * DECAY**below for below in range(6))])
    for _ in range(7):
        found = np.array(sorted({group["lr"] for group in optimizer.param_groups}, reverse=True))
        np.testing.assert_allclose(found / found[0], peaks / peaks[0], rtol=1e-9)
        optimizer.step()
        schedule.step()

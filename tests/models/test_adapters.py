"""Adapters: an identity at first, trained in every tensor, and plain weights in the end."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.models import adapters
from stage1_pro.core.models.adapters import add_adapters, merge_adapters
from stage1_pro.core.models.backbone import Backbone, load_backbone
from stage1_pro.core.models.parameters import is_adapter
from stage1_pro.core.models.stage1 import Stage1Model, load_model, save_model

SIZE = 32
VIT, NET, CONVNEXT = "test_vit", "test_efficientnet", "test_convnext"
KINDS = [(VIT, "lora"), (VIT, "dora"), (VIT, "doran"), (NET, "lora"), (NET, "dora"), (CONVNEXT, "lora")]


def settings(**fields: object) -> Stage1ProConfig:
    return merge_configs([("a.yaml", {"phase": 4, "peft_type": "lora", "peft_r": 4, **fields})])


def backbone(name: str = VIT) -> Backbone:
    torch.manual_seed(0)
    made = load_backbone(f"random:{name}", SIZE)[0].eval()
    with torch.no_grad():
        for key, tensor in made.named_parameters():
            if key.endswith("gamma"):  # a layer scale of 1e-6 would hide every fault behind it
                tensor.fill_(1.0)
    return made


def adapted(name: str = VIT, **fields: object) -> Backbone:
    made = backbone(name)
    add_adapters(made, settings(**fields), SIZE)
    return made


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def disturb(made: Backbone, by: float = 0.1) -> None:
    """What training would do to adapters, only wilder."""
    noise = torch.Generator().manual_seed(2)
    for tensor in made.parameters():
        if tensor.requires_grad:
            tensor.add_(by * torch.randn(tensor.shape, generator=noise))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_step_0_is_the_identity_and_merged_equals_unmerged(name: str, kind: str) -> None:
    plain = backbone(name)
    made = adapted(name, peft_type=kind, peft_norms=True)
    with torch.inference_mode():
        torch.testing.assert_close(made(images()), plain(images()), rtol=0, atol=1e-6)
    disturb(made)
    with torch.inference_mode():
        trained = made(images())
    assert (trained - plain(images())).abs().max() > 1e-2
    merge_adapters(made)
    with torch.inference_mode():
        torch.testing.assert_close(made(images()), trained, rtol=1e-4, atol=1e-5)
    assert made.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in made.modules()] == [type(module) for module in plain.modules()]


def test_merging_right_away_gives_the_weights_back() -> None:
    for kind in ("lora", "dora", "doran"):
        made = adapted(peft_type=kind)
        merge_adapters(made)
        for name, tensor in backbone().state_dict().items():
            torch.testing.assert_close(made.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_merged_model_file_loads_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Stage1Model.new(*load_backbone(f"random:{VIT}", SIZE), ("no", "yes"), 0.3).eval()
    add_adapters(model.backbone, settings(peft_type="dora"), SIZE)
    disturb(model.backbone)
    with torch.inference_mode():
        expected = model(images()).logits
    merge_adapters(model.backbone)
    save_model(model, tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "peft", None)  # an import of it would fail
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path / "model.pth")(images()).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_only_adapters_are_trained_and_all_of_them(name: str, kind: str) -> None:
    made = adapted(name, peft_type=kind)
    trained = {key for key, tensor in made.named_parameters() if tensor.requires_grad}
    assert trained == {key for key, _ in made.named_parameters() if is_adapter(key)}
    made(images()).square().mean().backward()
    begun = {key for key, tensor in made.named_parameters() if tensor.grad is not None and tensor.grad.any()}
    assert begun  # at step 0 only what begins at zero moves; a step later everything does
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.grad is not None:
                tensor -= 0.1 * tensor.grad / (tensor.grad.norm() + 1e-12)
    made.zero_grad()
    made(images()).square().mean().backward()
    assert {key for key, tensor in made.named_parameters() if tensor.grad is not None and tensor.grad.any()} == trained


def test_norms_are_trained_where_asked_and_only_in_adapted_blocks() -> None:
    made = adapted(peft_norms=True, peft_blocks=2)
    trained = {key for key, tensor in made.named_parameters() if tensor.requires_grad and not is_adapter(key)}
    assert trained == {f"net.blocks.{b}.norm{n}.{part}" for b in (4, 5) for n in (1, 2) for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"peft_targets": "attention"}, {f"blocks.{b}.attn.{n}" for b in range(6) for n in ("qkv", "proj")}),
        ({"peft_targets": "mlp", "peft_blocks": 1}, {"blocks.5.mlp.fc1", "blocks.5.mlp.fc2"}),
        ({"peft_targets": "qkv, fc1", "peft_blocks": 1}, {"blocks.5.attn.qkv", "blocks.5.mlp.fc1"}),
    ],
)
def test_targets_and_blocks(fields: dict, expected: set[str]) -> None:
    named = {key.partition(".lora_")[0] for key, _ in adapted(**fields).named_parameters() if is_adapter(key)}
    assert named == {f"net.{path}" for path in expected}


def test_convolutions_in_groups_are_left_out() -> None:
    named = {
        key.partition(".lora_")[0].rpartition(".")[2] for key, _ in adapted(NET).named_parameters() if is_adapter(key)
    }
    assert named == {"conv", "conv_exp", "conv_pw", "conv_pwl", "conv_reduce", "conv_expand"}


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (VIT, {"peft_targets": "attn"}, "no attn; it has attention, mlp, all_linear, qkv, proj, fc1, fc2."),
        (NET, {"peft_targets": "attention,conv_pw"}, "has no attention; it has all_linear, conv, conv_exp"),
        (VIT, {"peft_blocks": 7}, "$.peft_blocks is 7; this backbone has 6 blocks: allowed 1 to 6"),
        (NET, {"peft_type": "doran"}, "'doran', which is for linear layers, and blocks.0.0.conv is a convolution"),
        (NET, {"peft_targets": "conv", "peft_blocks": 1}, "no conv in the last 1 blocks"),
    ],
)
def test_what_a_backbone_has_not_is_refused(name: str, fields: dict, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        adapted(name, **fields)
    assert words in str(refusal.value)


@pytest.mark.parametrize("kind", ["lora", "dora", "doran"])
def test_an_adapter_on_a_layer_that_is_never_called_is_found(kind: str) -> None:
    """timm's *_qkvb variants read attn.qkv.weight and pass the layer by; the features stay what they were."""
    arguments = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    spec = load_backbone(f"random:{VIT}", SIZE)[1]
    bypassing = type(spec)("vit_small_patch16_dinov3_qkvb", {**arguments, "img_size": SIZE}, spec.preprocessing, "")
    with pytest.raises(UserError) as refusal:
        add_adapters(bypassing.build(), settings(peft_type=kind), SIZE)
    assert "net." not in str(refusal.value)
    for words in ("blocks.0.attn.qkv, blocks.1.attn.qkv", "_qkvb", "without it", "q_proj and v_proj apart"):
        assert words in str(refusal.value)
    others = bypassing.build()
    add_adapters(others, settings(peft_type=kind, peft_targets="proj,mlp"), SIZE)
    plain = type(spec)("vit_small_patch16_dinov3", {**arguments, "img_size": SIZE}, spec.preprocessing, "").build()
    add_adapters(plain, settings(peft_type=kind), SIZE)


def test_the_check_finds_a_single_silent_tensor_and_leaves_no_trace() -> None:
    made = adapted()
    before = copy.deepcopy(made.state_dict())
    state = torch.get_rng_state()
    adapters.demand_trained(made, SIZE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    made.net.get_submodule("blocks.3.mlp.fc2").scaling["default"] = 0.0
    with pytest.raises(UserError, match=r"2 of 48 adapter tensors .*\(blocks.3.mlp.fc2\)"):
        adapters.demand_trained(made, SIZE)
    made.net.get_submodule("blocks.3.mlp.fc2").scaling["default"] = math.nan
    with pytest.raises(UserError, match="no finite gradient"):
        adapters.demand_trained(made, SIZE)


def test_adapters_that_diverged_are_not_merged() -> None:
    made = adapted()
    next(tensor for name, tensor in made.named_parameters() if is_adapter(name)).data.fill_(math.inf)
    with pytest.raises(UserError, match="not finite: training diverged"):
        merge_adapters(made)

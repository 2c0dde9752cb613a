"""ExPLoRA moves what it should and nothing else, and ends as plain weights."""

import pytest
import timm
import torch
from safetensors.torch import load

from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.pretraining.adapt import adapt, adaptable, merge
from stage1_pro.core.pretraining.export import plain_weights, safetensors_bytes


def adapted(name: str, full_blocks: int = 1, size: int = 32, rank: int = 8):
    torch.manual_seed(0)
    backbone, spec = load_backbone(f"random:{name}", size)
    backbone = adaptable(backbone, spec)
    return backbone, spec, adapt(backbone, rank, full_blocks)


def stepped(backbone, size: int = 32) -> None:
    """A few optimizer steps on everything that asks for gradients."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(torch.rand(4, 3, size, size)).square().sum(dim=1).log().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("full_blocks", [1, 2])
def test_whitelist_of_a_plain_transformer(full_blocks: int) -> None:
    backbone, _, trained = adapted("test_vit", full_blocks)
    depth, expected = 6, {"net.cls_token", "net.norm.weight", "net.norm.bias"}
    for index in range(depth - full_blocks):
        block = f"net.blocks.{index}"
        expected |= {f"{block}.norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
        expected |= {
            f"{block}.attn.qkv.parametrizations.weight.0.{side}.{n}" for side in ("up", "down") for n in (0, 1)
        }
    whole = tuple(f"net.blocks.{index}." for index in range(depth - full_blocks, depth))
    expected |= {name for name, _ in backbone.named_parameters() if name.startswith(whole)}
    assert set(trained) == expected
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == expected


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_only_what_is_named_moves_and_keys_never_do(name: str) -> None:
    """The second net reads qkv.weight past the layer's forward, where a wrapped layer would be bypassed."""
    backbone, spec, trained = adapted(name)
    before = {key: tensor.clone() for key, tensor in spec.build().net.state_dict().items()}
    before |= {key: tensor.clone() for key, tensor in merge(adapted(name)[0]).net.state_dict().items()}
    stepped(backbone)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters() if p.requires_grad)
    after = merge(backbone).net.state_dict()
    assert set(after) == set(before)
    last = f"blocks.{len(backbone.net.blocks) - 1}."
    plain = {key.removeprefix("net.") for key in trained if ".parametrizations." not in key}
    for key, tensor in after.items():
        moved = (tensor != before[key]).flatten(1).any(1) if tensor.ndim > 1 else tensor != before[key]
        if key.endswith("attn.qkv.weight") and not key.startswith(last):
            query, keys, value = moved.chunk(3)
            assert query.any()
            assert value.any()
            assert not keys.any()
        elif key not in plain:
            assert not moved.any(), key
    assert not torch.equal(after["cls_token"], before["cls_token"])


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_merged_equals_unmerged_and_loads_into_the_plain_net(name: str) -> None:
    backbone, spec, trained = adapted(name)
    stepped(backbone)
    images = torch.rand(3, 3, 32, 32)
    tensors = {key: value.detach().clone() for key, value in backbone.named_parameters() if key in trained}
    with torch.inference_mode():
        unmerged = backbone.eval()(images)
    weights = load(safetensors_bytes(plain_weights(adapted(name)[0], tensors), {"license": "MIT"}))
    plain = spec.build().eval()
    plain.net.load_state_dict(weights)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), unmerged, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(adapted(name)[0].eval()(images), unmerged, atol=1e-2)


def test_the_first_step_is_the_identity() -> None:
    torch.manual_seed(0)
    backbone, spec = load_backbone("random:test_vit", 32)
    wrapped = adaptable(backbone, spec)
    adapt(wrapped, 8, 1)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(wrapped.eval()(images), backbone.eval()(images))


def test_weights_that_are_not_finite_become_no_backbone() -> None:
    backbone, _, _ = adapted("test_vit")
    with pytest.raises(UserError, match=r"not finite, net\.cls_token among them"):
        plain_weights(backbone, {"net.cls_token": torch.full((1, 1, 64), torch.nan)})


def test_equal_weights_give_equal_bytes() -> None:
    said = {"license": "MIT", "origin": "x", "architecture": "y"}
    assert len({safetensors_bytes({"b": torch.ones(3), "a": torch.zeros(2)}, said) for _ in range(8)}) == 1


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "test_resnet"])
def test_other_architectures_are_refused_with_those_that_work(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' has no blocks of attention .* vit_small_patch14_dinov2"):
        adapted(name, size=64)


@pytest.mark.parametrize(
    ("full_blocks", "rank", "words"),
    [(6, 8, "--full_blocks is 6; allowed 1 to 5"), (1, 65, "--lora_rank is 65; allowed 1 to 64")],
)
def test_more_than_the_backbone_has(full_blocks: int, rank: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        adapted("test_vit", full_blocks, rank=rank)


def test_every_transformer_that_the_message_names_exists() -> None:
    for name in ("vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_224"):
        assert timm.is_model(name)

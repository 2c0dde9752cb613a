"""Heads side by side, the gate's inputs, and the model file that holds them."""

from pathlib import Path

import pytest
import torch
from made_models import gated_model
from torch import nn

from stage1_pro.core.models.heads import HIDDEN, ClassHead, SelectiveHeads, SideBySide, gate_inputs, signed_gate
from stage1_pro.core.models.stage1 import Stage1Model, load_model, read_tensors, save_model


def test_layers_side_by_side_are_layers_one_by_one() -> None:
    torch.manual_seed(0)
    layer, inputs = SideBySide(4, 5, 3), torch.randn(4, 7, 5)
    for member in range(4):
        single = nn.Linear(5, 3)
        single.weight.data, single.bias.data = layer.weight[member].T, layer.bias[3 * member : 3 * member + 3]
        torch.testing.assert_close(layer(inputs)[member], single(inputs[member]))


def test_outputs_are_the_members_means() -> None:
    model, images = gated_model(), torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        outputs = model(images)
        alone = [member_alone(model, member)(model.backbone(images)) for member in range(3)]
    torch.testing.assert_close(outputs.logits, torch.stack([one.logits[0] for one in alone]).mean(0))
    evidence = torch.stack([one.evidence[0] for one in alone]).mean(0)
    torch.testing.assert_close(outputs.gate_logit, signed_gate(outputs.logits, evidence))


def member_alone(model: Stage1Model, member: int) -> SelectiveHeads:
    """One member's weights in heads of their own."""
    heads, own = model.heads, SelectiveHeads(model.features, 2, 1, 0.3).eval()
    rows = slice(member * HIDDEN, (member + 1) * HIDDEN)
    own.trunk.weight.data, own.trunk.bias.data = heads.trunk.weight[rows], heads.trunk.bias[rows]
    for name in ("cls", "gate", "aux"):
        source, target = getattr(heads, name), getattr(own, name)
        width = target.bias.numel()
        target.weight.data = source.weight[member : member + 1]
        target.bias.data = source.bias[member * width : (member + 1) * width]
    return own


def test_a_new_gate_is_half_the_margin_and_never_moves_the_answer() -> None:
    torch.manual_seed(1)
    heads = SelectiveHeads(8, 2, 2, 0.0)
    members = heads(torch.randn(9, 8))
    z = members.logits[..., 1] - members.logits[..., 0]
    torch.testing.assert_close(signed_gate(members.logits, members.evidence), 0.5 * z.abs())
    signed_gate(members.logits, members.evidence).sum().backward()
    assert heads.cls.weight.grad is None
    assert heads.gate.weight.grad.any()


def test_gate_logit_is_signed_by_the_answer() -> None:
    logits = torch.tensor([[0.0, 2.0], [2.0, 0.0], [1.0, 1.0], [0.0, float("nan")]])
    found = signed_gate(logits, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert found[:3].tolist() == [1.5, 0.5, 0.5]
    assert found[3].isnan()
    assert gate_inputs(torch.ones(2, 3), logits[:2]).tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, -2, 2]]


@pytest.mark.parametrize("members", [1, 5])
def test_a_gated_model_comes_back_whole(tmp_path: Path, members: int) -> None:
    model, images = gated_model(members), torch.rand(4, 3, 32, 32)
    save_model(model, tmp_path / "a.pth")
    again = load_model(tmp_path / "a.pth")
    save_model(again, tmp_path / "b.pth")
    with torch.inference_mode():
        assert torch.equal(again(images).gate_logit, model(images).gate_logit)
        assert torch.equal(again(images).logits, model(images).logits)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    content = read_tensors(tmp_path / "a.pth")
    assert (content["heads"], content["members"]) == (["cls", "gate", "aux"], members)


def test_a_single_head_has_the_file_it_always_had(tmp_path: Path) -> None:
    save_model(gated_model(None), tmp_path / "a.pth")
    content = read_tensors(tmp_path / "a.pth")
    assert not {"heads", "members"} & set(content)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"backbone", "cls"}


def test_weights_of_a_single_head_begin_the_first_member() -> None:
    single, model = gated_model(None, seed=1), gated_model(3, seed=2)
    before = model.heads.cls.weight.clone()
    model.take_weights(single)
    features = torch.rand(5, model.features)
    with torch.inference_mode():
        torch.testing.assert_close(model.heads(features).logits[0], single.cls(features))
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(model.backbone(images), single.backbone(images))
    assert torch.equal(model.heads.cls.weight[1:], before[1:])


@pytest.mark.parametrize(("own", "other"), [(3, 3), (2, 4), (4, 2)])
def test_weights_of_another_ensemble_begin_as_many_members_without_its_gate(own: int, other: int) -> None:
    """Its gate may have been fitted on val_select, which chooses the checkpoint."""
    model, source = gated_model(own), gated_model(other)
    torch.nn.init.normal_(source.heads.gate.weight)
    features = torch.randn(7, model.features, generator=torch.Generator().manual_seed(0))
    before, gate = model.heads(features), model.heads.gate.weight.clone()
    model.take_weights(source)
    mine, its, shared = model.heads(features), source.heads(features), min(own, other)
    for name in ("hidden", "logits", "aux"):
        torch.testing.assert_close(getattr(mine, name)[:shared], getattr(its, name)[:shared])
        torch.testing.assert_close(getattr(mine, name)[shared:], getattr(before, name)[shared:])
    assert torch.equal(model.heads.gate.weight, gate)


def test_class_head_keeps_its_layout() -> None:
    assert set(ClassHead(4, 2, 0.1).state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}

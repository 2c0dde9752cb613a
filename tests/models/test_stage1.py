"""The model file: equal weights give equal bytes, and only plain tensors are ever read."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.stage1 import Stage1Model, load_model, save_model

BUILD = """
import hashlib, sys, torch
from pathlib import Path
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.stage1 import Stage1Model, save_model
torch.manual_seed(0)
model = Stage1Model.new(*load_backbone("random:test_efficientnet", 32), ("no", "yes"), 0.3)
save_model(model, Path(sys.argv[1]))
"""


def new_model(seed: int = 0, name: str = "test_efficientnet") -> Stage1Model:
    torch.manual_seed(seed)
    return Stage1Model.new(*load_backbone(f"random:{name}", 32), ("no", "yes"), 0.3)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_weights_give_equal_bytes_here_and_in_another_process(tmp_path: Path) -> None:
    for name, seed in (("a.pth", 0), ("b", 0), ("c", 1)):
        save_model(new_model(seed), tmp_path / name)
    (tmp_path / "deep").mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path / "deep" / "d.pth")], check=True)
    save_model(load_model(tmp_path / "a.pth"), tmp_path / "again")
    assert len({digest(tmp_path / name) for name in ("a.pth", "b", "deep/d.pth", "again")}) == 1
    assert digest(tmp_path / "a.pth") != digest(tmp_path / "c")


def test_how_a_tensor_lies_in_memory_is_not_in_the_file(tmp_path: Path) -> None:
    plain, odd = new_model(), new_model()
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    odd.cls[0].bias.data = torch.cat([state["cls.0.bias"], torch.ones(7)])[:-7]  # part of a larger storage
    odd.cls[3].weight.data = state["cls.3.weight"].t().contiguous().t()
    odd.backbone.to(memory_format=torch.channels_last)
    save_model(plain, tmp_path / "plain")
    save_model(odd, tmp_path / "odd")
    assert digest(tmp_path / "plain") == digest(tmp_path / "odd")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_model_comes_back_whole(tmp_path: Path, name: str) -> None:
    model = new_model(name=name)
    model(torch.rand(8, 3, 32, 32))  # running statistics move
    save_model(model, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth")
    images = torch.rand(4, 3, 32, 32)
    assert not again.training
    with torch.inference_mode():
        assert torch.equal(again(images).logits, model.eval()(images).logits)
    assert again(images).logits.shape == (4, 2)
    assert again(images).gate_logit is None
    assert (again.class_names, again.spec, again.dropout) == (("no", "yes"), model.spec, 0.3)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    model = new_model()
    model.freeze_backbone()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model.train()
    model(torch.rand(8, 3, 32, 32)).logits.sum().backward()
    assert model.cls.training
    assert not model.backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())
    assert {name.split(".")[0] for name, tensor in model.named_parameters() if tensor.grad is not None} == {"cls"}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        load_model(path)
    return str(refusal.value)


def test_an_unsafe_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "touched",)

    save_model(new_model(), tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    torch.save({**content, "license": Evil()}, tmp_path / "evil.pth")
    assert "evil.pth: not a safe, whole tensor file" in refused(tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_model(new_model(), path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "model.pth: not a safe, whole tensor file" in refused(path)
    assert "does not exist" in refused(tmp_path / "nope.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "written by another version (format 2, not 1)"),
        ({"arch": "test_vit"}, "not a whole model file"),
        ({"arch": "no_such_net"}, "not a whole model file"),
        ({"features": 7}, "not a whole model file"),
        ({"class_names": ["a", "b", "c"]}, "not a whole model file"),
        ({"preprocessing": {}}, "not a whole model file"),
        ({"state_dict": {}}, "not a whole model file"),
        ({"dropout": None}, "not a whole model file"),
        ({"dropout": 7.0}, "not a whole model file"),
        ({"arch": 3}, "not a whole model file"),
        ({"arch": "local-dir:/tmp"}, "timm has no architecture 'local-dir:/tmp'"),  # never another file than this one
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "model.pth"
    save_model(new_model(), path)
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    assert words in refused(path)
    torch.save([1, 2], path)
    assert "not a whole model file" in refused(path)

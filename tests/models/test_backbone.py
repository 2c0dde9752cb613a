"""Backbones: features as timm's own tokens give them, and weights that are all there or refused."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import feature_dim, load_backbone


def refused(model_path: str, size: int | None = 32) -> str:
    with pytest.raises(UserError) as refusal:
        load_backbone(model_path, size)
    return str(refusal.value)


def weights_of(name: str, file: Path, **kwargs: object) -> torch.nn.Module:
    net = timm.create_model(name, **kwargs)
    save_file(net.state_dict(), file, metadata={"license": "MIT", "format": "pt"})
    return net.eval()


@pytest.mark.parametrize(
    ("name", "size", "width", "prefix"),
    [
        ("vit_small_patch16_dinov3", 96, 384, 5),  # class token and four registers
        ("vit_small_patch14_dinov2", 112, 384, 1),
        ("test_vit", 32, 64, 1),
    ],
)
def test_transformers_give_class_token_and_mean_of_patches(name: str, size: int, width: int, prefix: int) -> None:
    backbone, spec = load_backbone(f"random:{name}", size)
    backbone.eval()
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        features, tokens = backbone(images), backbone.net.forward_features(images)
    assert tokens.shape[1] == prefix + (size // (14 if "patch14" in name else 16)) ** 2
    assert torch.equal(features[:, :width], tokens[:, 0])
    patches = [tokens[:, at] for at in range(prefix, tokens.shape[1])]
    torch.testing.assert_close(features[:, width:], sum(patches) / len(patches))
    assert feature_dim(backbone, size) == features.shape[1] == 2 * width
    assert spec.preprocessing.size == size


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("convnext_atto", 64, 320),
        ("tf_efficientnet_lite0", 64, 1280),
        ("test_vit2", 160, 64),  # a register but no class token: its own pool
        ("test_vit3", 160, None),
        ("test_vit4", 160, 96),
        ("test_resnet", 32, None),
    ],
)
def test_everything_else_gives_its_own_pool(name: str, size: int, width: int | None) -> None:
    backbone, _ = load_backbone(f"random:{name}", size)
    backbone.eval()
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        features = backbone(images)
        assert torch.equal(features, backbone.net(images.contiguous(memory_format=torch.channels_last)))
    assert features.shape == (2, width or backbone.net.num_features)


def test_looking_for_the_width_changes_nothing() -> None:
    backbone, _ = load_backbone("random:test_efficientnet", 32)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    feature_dim(backbone.train(), 32)
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_a_weights_file_comes_back_with_its_licence(tmp_path: Path, classes: int) -> None:
    net = weights_of("test_vit", tmp_path / "w:1.safetensors", num_classes=classes, img_size=32)
    backbone, spec = load_backbone(f"file:{tmp_path}/w:1.safetensors:test_vit", 32)
    backbone.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = net.forward_features(images)
        assert torch.equal(backbone(images), torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
    assert (spec.arch, spec.license) == ("test_vit", "MIT")
    assert not [name for name in backbone.state_dict() if "head" in name]


def test_a_pickle_of_tensors_is_read_and_its_licence_is_unknown(tmp_path: Path) -> None:
    net = timm.create_model("test_efficientnet").eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    backbone, spec = load_backbone(f"file:{tmp_path}/w.pth:test_efficientnet", 32)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        features = net.forward_features(images.contiguous(memory_format=torch.channels_last))
        assert torch.equal(backbone.eval()(images), net.forward_head(features, pre_logits=True))
    assert spec.license == "unknown"


def test_position_embeddings_fit_the_size_in_use(tmp_path: Path) -> None:
    net = weights_of("test_vit", tmp_path / "w.safetensors")
    backbone, spec = load_backbone(f"file:{tmp_path}/w.safetensors:test_vit", 64)
    assert (net.pos_embed.shape[1], backbone.net.pos_embed.shape[1]) == (1 + 10 * 10, 1 + 4 * 4)
    assert feature_dim(spec.build(), 64) == feature_dim(backbone, 64) == 128


@pytest.mark.parametrize("missing", ["every tensor", "one tensor", "architecture"])
def test_weights_that_do_not_fill_the_net_are_refused(tmp_path: Path, missing: str) -> None:
    file = tmp_path / "w.safetensors"
    if missing == "architecture":
        weights_of("test_efficientnet", file)
    else:
        tensors = timm.create_model("test_vit").state_dict()
        tensors.pop("blocks.1.attn.qkv.weight")
        save_file(tensors if missing == "one tensor" else {"foo": torch.zeros(2)}, file)
    message = refused(f"file:{file}:test_vit")
    assert message.startswith(f"model_path file:{file}:test_vit: weights could not be loaded (RuntimeError: ")
    assert "Missing key(s)" in message
    assert message.endswith("Is it of this architecture?")


def test_a_file_that_is_no_weights_file_is_refused_and_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "junk.safetensors", "list.pth"):
        assert "weights could not be loaded" in refused(f"file:{tmp_path}/{name}:test_vit")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "config.json").write_text('{"architecture": "test_vit", "num_classes": 0}')
    (tmp_path / "evil.pth").rename(tmp_path / "local" / "pytorch_model.bin")
    assert "weights could not be loaded" in refused(f"local-dir:{tmp_path}/local")
    assert not (tmp_path / "touched").exists()
    assert f"weights file {tmp_path}/nope.pth does not exist" in refused(f"file:{tmp_path}/nope.pth:test_vit")


def test_a_folder_of_save_for_hf_comes_back(tmp_path: Path) -> None:
    net = timm.create_model("test_vit").eval()
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True)
    backbone, spec = load_backbone(f"local-dir:{tmp_path}", None)
    images = torch.rand(1, 3, spec.preprocessing.size, spec.preprocessing.size)
    with torch.inference_mode():
        tokens = net.forward_features(images)
        assert torch.equal(backbone.eval()(images)[:, :64], tokens[:, 0])
    again = spec.build().eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(images), backbone(images))
    (tmp_path / "model.safetensors").unlink()
    assert "weights could not be loaded" in refused(f"local-dir:{tmp_path}")
    assert "no model there" in refused(f"local-dir:{tmp_path}/nope")


@pytest.mark.parametrize(
    ("model_path", "words"),
    [
        ("random:tf_eficientnet_lite0", "timm has no architecture 'tf_eficientnet_lite0' (did you mean 'tf_eff"),
        ("timm:tf_efficientnet_lite0.in2k", "timm has no weights 'tf_efficientnet_lite0.in2k' (did you mean"),
        ("timm:test_vit", "Without a network use file:PATH:NAME or random:NAME."),
    ],
)
def test_names_that_lead_nowhere(model_path: str, words: str) -> None:
    assert words in refused(model_path)


def test_weights_that_may_not_be_downloaded_say_who_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: run once with HF_HUB_OFFLINE=0 to download them" in refused("timm:test_vit")


@pytest.mark.parametrize(("name", "size"), [("test_vit", 40), ("convnext_atto", 16)])
def test_a_size_that_the_backbone_cannot_take_is_the_users_mistake(name: str, size: int) -> None:
    backbone, _ = load_backbone(f"random:{name}", size)
    with pytest.raises(
        UserError, match=rf"image_size is {size}(, which the backbone cannot take|; allowed a multiple)"
    ):
        feature_dim(backbone, size)

"""Networks for masks: maps of whole cases, stitched windows, and the model file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stage1_pro.core.config.sections import MissRule, SegmentationParams
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.losses.dice import MaskLoss
from stage1_pro.core.metrics.masks import MaskSums
from stage1_pro.core.models.mask_networks import MaskSpec, encoder_of, named_network
from stage1_pro.core.models.mask_rows import case_row, worst_overlap
from stage1_pro.core.models.segmenter import MaskModel
from stage1_pro.core.models.segmenter import load_mask_model as load
from stage1_pro.core.models.segmenter import save_mask_model as save
from stage1_pro.core.training.modules.masks import mask_figures

pytest.importorskip("monai", reason="the extra seg is not installed")


def model_of(
    path: str = "monai:unet:channels=4-8-16", dims: int = 2, patch: tuple[int, ...] | None = None
) -> MaskModel:
    torch.manual_seed(0)
    facts = MaskFacts(("background", "a", "b"), (1,), None, False, dims, 1, False, False)
    spec = MaskSpec(*named_network(path), 0.0, MaskPreprocessing(dims, 1, False, patch=patch))
    return MaskModel(spec, facts, ("without a", "a")).eval()


def test_sums_of_a_map_worked_out_by_hand() -> None:
    p = torch.tensor([0.9, 0.6, 0.2, 0.01], dtype=torch.float64)
    logits = torch.stack([torch.log(1 - p), torch.log(p)])
    sums = MaskSums.of_rows(case_row(logits, torch.tensor([1, 1, 0, 0]), (1,))[None].numpy())
    assert float(sums.soft_dice()[0]) == pytest.approx(0.808625, abs=1e-6)
    assert float(sums.mean_entropy()[0]) == pytest.approx(0.560667, abs=1e-6)
    p = torch.tensor([0.3, 0.2, 0.05, 0.0])
    logits = torch.stack([torch.log(1 - p), torch.log(p.clamp(min=1e-30))])
    empty = MaskSums.of_rows(case_row(logits, torch.tensor([1, 0, 0, 0]), (1,))[None].numpy())
    assert float(empty.soft_dice()[0]) == pytest.approx(0.7, abs=1e-6)


def test_figures_are_of_the_whole_case_and_not_means_of_its_parts() -> None:
    truth, answer = torch.zeros(4, 64, dtype=torch.long), torch.zeros(4, 64)
    truth[0, 20:30] = 1
    answer[0, 20:28] = answer[3, 50] = 1
    truth[1, :9], answer[1, 3:5] = -1, 1  # ignored
    logits = torch.stack([1 - answer, answer]) * 8

    def dice(part: slice) -> float:
        row = case_row(logits[:, part], truth[part], (1,))[None].numpy()
        return float(MaskSums.of_rows(row).case_dice()[0])

    assert dice(slice(None)) == pytest.approx(0.8421053, abs=1e-7)
    assert np.mean([dice(slice(i, i + 1)) for i in range(4)]) == pytest.approx(0.7222222, abs=1e-7)
    rows = [case_row(logits[:, i : i + 1], truth[i : i + 1], (1,)) for i in range(4)]
    whole = case_row(logits, truth, (1,))
    counts = [*range(4), *range(6, 10)]
    assert torch.equal(torch.stack(rows).sum(dim=0)[counts], whole[counts])  # disjoint tiles add up


def test_many_voxels_are_counted_exactly_and_ignored_ones_not_against_the_truth() -> None:
    labels = torch.ones(70_000, dtype=torch.long)
    labels[:100] = -1
    logits = torch.stack([torch.zeros(70_000), torch.full((70_000,), 30.0)]).half()
    row = case_row(logits, labels, (1,))
    assert row[:6].tolist() == [69_900.0] * 3 + [70_000.0] * 3


def test_what_is_ignored_changes_neither_answer_nor_confidence() -> None:
    torch.manual_seed(2)
    logits, labels = 3 * torch.randn(3, 12, 12), torch.randint(0, 3, (12, 12))
    marked = labels.clone()
    marked[:, 5:] = -1
    whole, part, none = (
        MaskSums.of_rows(case_row(logits, truth, (1,))[None].numpy())
        for truth in (labels, marked, torch.full_like(labels, -1))
    )
    cut = MaskSums.of_rows(case_row(logits[..., :5], labels[:, :5], (1,))[None].numpy())
    for sums in (part, none):
        assert sums.case_logits(3).tolist() == whole.case_logits(3).tolist()
        assert sums.soft_dice() == whole.soft_dice()
        assert sums.mean_entropy() == whole.mean_entropy()
    assert part.case_dice() == cut.case_dice() != whole.case_dice()
    assert part.positive_dice() == cut.positive_dice()
    assert (none.case_dice(), none.positive_true) == (1, 0)


@pytest.mark.parametrize(("rule", "share"), [("empty", 0.0), ("dice", 0.0), ("lesion", 1.0)])
def test_the_share_that_is_missed_while_training_is_that_of_the_miss_rule(rule: Any, share: float) -> None:
    truth = torch.zeros(20, 20, dtype=torch.long)
    truth[2:8, 2:8] = truth[12:14, 12:14] = 1
    drawn = truth * (torch.arange(20) < 10)  # one lesion of two
    logits = torch.stack([1 - drawn, drawn, -drawn.abs()]) * 9.0
    config = SimpleNamespace(segmentation_params=SegmentationParams(miss_rule=MissRule(rule=rule)))
    sums = MaskSums.of_rows(case_row(logits, truth, (1,))[None].numpy())
    module = SimpleNamespace(config=config, model=model_of())
    figures = mask_figures(sums, np.array([worst_overlap(logits, truth, (1,))]), module)
    assert figures["val_share_missed"] == share


@pytest.mark.parametrize("dims", [2, 3])
def test_stitched_windows_of_the_identity_are_the_identity(dims: int) -> None:
    model = model_of(dims=dims, patch=(16,) * dims)
    image = torch.randn(1, *(37, 21, 18)[:dims])

    def same(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return windows.repeat(1, 3, *[1] * dims), windows.flatten(1).mean(dim=1, keepdim=True)

    model._pass = same  # pyright: ignore[reportAttributeAccessIssue]
    logits, _ = next(model.maps([image]))
    torch.testing.assert_close(logits[:1], image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "path", ["monai:unet:channels=4-8-16", "monai:dynunet:channels=4-8-8", "monai:segresnet:filters=8"]
)
@pytest.mark.parametrize("dims", [2, 3])
def test_no_case_depends_on_those_beside_it_and_any_size_goes_through(path: str, dims: int) -> None:
    model = model_of(path, dims)
    sizes = [(35, 50, 36), (17, 9, 8), (35, 50, 36)] if dims == 2 else [(17, 9, 8), (9, 9, 17), (17, 9, 8)]
    images = [torch.randn(1, *size[:dims]) for size in sizes]
    with torch.no_grad():
        alone = [next(model.maps([image])) for image in images]
        together = list(model.maps(images))
    for (logits, embedding), (own, own_embedding), image in zip(together, alone, images, strict=True):
        assert logits.shape == (3, *image.shape[1:])
        assert torch.equal(logits, own)
        assert torch.equal(embedding, own_embedding)
        assert embedding.ndim == 1


def test_a_model_file_gives_the_same_maps_and_the_same_bytes(tmp_path: Path) -> None:
    model = model_of(patch=(16, 16))
    save(model, tmp_path / "a.pth")
    again = load(tmp_path / "a.pth")
    save(again, tmp_path / "b.pth")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    image = torch.randn(1, 20, 20)
    with torch.no_grad():
        assert torch.equal(next(model.maps([image]))[0], next(again.maps([image]))[0])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("monai:unett", r"no network 'unett' \(did you mean 'unet'\?\)"),
        ("monai:unet:chanels=4-8", r"has no option 'chanels' \(did you mean 'channels'\?\)"),
        ("monai:unet:channels=4", "channels must be two or more numbers such as 16-32-64, and is '4'"),
        ("monai:unet:res_units=two", "res_units must be a number, and is 'two'"),
    ],
)
def test_networks_that_do_not_exist(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        named_network(path)


def test_a_dynunet_of_two_levels_is_told_what_it_takes() -> None:
    with pytest.raises(UserError, match=r"dynunet with .*: it takes three or more channels, such as channels=16-32-64"):
        model_of("monai:dynunet:channels=8-16")


def test_the_loss_leaves_out_what_is_ignored_and_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    loss, logits = MaskLoss(1.0, 1.0), torch.randn(2, 3, 8, 8)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[:, :, 4:] = -1
    cut = loss(logits[..., :4], labels[..., :4])
    torch.testing.assert_close(loss(logits, labels), cut)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, labels), cut)
    perfect = torch.nn.functional.one_hot(labels.clamp(min=0), 3).permute(0, 3, 1, 2) * 50.0
    assert float(loss(perfect, labels)) < 1e-4
    assert float(loss(logits, torch.full_like(labels, -1))) == pytest.approx(0.0, abs=1e-6)


def test_a_backbone_becomes_an_encoder_with_its_own_weights(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="the extra seg is not installed")
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    save_file(source, tmp_path / "weights.safetensors")
    arch, options, weights, _ = encoder_of(f"file:{tmp_path}/weights.safetensors:test_efficientnet")
    facts = MaskFacts(("background", "a"), (1,), None, False, 2, 3, True, False)
    model = MaskModel(MaskSpec(arch, options, 0.0, MaskPreprocessing(2, 3, True)), facts, ("without a", "a")).eval()
    model.take_encoder(weights)
    encoder = model.net.encoder.model.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(tensor, source[name]) for name, tensor in encoder.items())
    image = torch.randn(3, 40, 70)
    with torch.no_grad():
        logits, embedding = next(model.maps([image]))
        save(model, tmp_path / "a.pth")
        assert torch.equal(next(load(tmp_path / "a.pth").maps([image]))[0], logits)
    assert (tuple(logits.shape), embedding.ndim) == ((2, 40, 70), 1)
    with pytest.raises(UserError, match="do not fit an encoder"):
        model.take_encoder({})

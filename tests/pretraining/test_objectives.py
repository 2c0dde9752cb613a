"""The objectives against independent computations."""

import numpy as np
import pytest
import torch

from stage1_pro.core.data.batches import Batch
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.pretraining import views
from stage1_pro.core.pretraining.adapt import adapt, adaptable
from stage1_pro.core.pretraining.dino import Average, DinoHead, DinoLoss, teacher_temperature
from stage1_pro.core.pretraining.mae import MaskedReconstruction, patches, shown_patches
from stage1_pro.core.pretraining.module import ExploraModule
from stage1_pro.core.pretraining.settings import Pretraining


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_dino_loss_as_the_paper_writes_it() -> None:
    """A loop over images and pairs of different views, in double precision, teacher centred and sharpened."""
    draw = torch.Generator().manual_seed(1)
    student = [torch.randn(5, 7, generator=draw) for _ in range(4)]
    teacher = [torch.randn(5, 7, generator=draw) for _ in range(2)]
    loss = DinoLoss(7)
    loss.follow(torch.arange(7.0))
    centre = 0.1 * np.arange(7.0)
    terms = [
        -(
            softmax((answer[image].double().numpy() - centre) / 0.05)
            * np.log(softmax(guess[image].double().numpy() / 0.1))
        ).sum()
        for seen, answer in enumerate(teacher)
        for view, guess in enumerate(student)
        if view != seen
        for image in range(5)
    ]
    found, entropy = loss(student, teacher, 0.05)
    assert len(terms) == 2 * 3 * 5
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-5)
    mean = np.mean([softmax((answer.double().numpy() - centre) / 0.05) for answer in teacher], axis=(0, 1))
    assert float(entropy) == pytest.approx(-(mean * np.log(mean)).sum() / np.log(7), rel=1e-5)


def test_one_answer_for_all_images_has_no_entropy_and_centring_spreads_it() -> None:
    loss, same = DinoLoss(4), [torch.tensor([[9.0, 0, 0, 0]]).expand(6, 4)] * 2
    assert float(loss(same, same, 0.04)[1]) < 1e-3
    for _ in range(100):
        loss.follow(same[0].mean(dim=0))
    assert float(loss(same, same, 0.04)[1]) > 0.99


def test_temperature_rises_and_the_head_has_unit_prototypes() -> None:
    assert [teacher_temperature(done) for done in (0, 0.15, 0.3, 1)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    head = DinoHead(16, 32, 8, 11)
    with torch.no_grad():
        head.last_layer.weight.mul_(100)
    assert head(torch.randn(4, 16)).abs().max() <= 1 + 1e-5


def test_average_follows_and_holds_no_gradient() -> None:
    trained = {"a.b": torch.nn.Parameter(torch.zeros(2))}
    average = Average(trained)
    with torch.no_grad():
        trained["a.b"].fill_(1.0)
    average.follow(trained, 0.9)
    average.follow(trained, 0.9)
    assert average.tensors["a.b"].tolist() == pytest.approx([0.19, 0.19])
    assert not average.tensors["a.b"].requires_grad


def module(objective: str, size: int = 64, name: str = "test_vit") -> ExploraModule:
    torch.manual_seed(0)
    backbone, spec = load_backbone(f"random:{name}", size)
    backbone = adaptable(backbone, spec)
    adapt(backbone, 8, 1)
    settings = Pretraining(objective=objective, steps=10, probe_every=5, local_crops=2, prototypes=32)
    explora = ExploraModule(backbone, spec.preprocessing, settings, seed=3, weight_decay=0.01)
    explora.log = lambda *_, **__: None
    return explora


def batch(size: int = 64, count: int = 4) -> Batch:
    pixels = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    return Batch(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count))


@pytest.mark.parametrize("objective", ["dino", "mae"])
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_every_trainable_tensor_gets_a_finite_gradient(objective: str, name: str) -> None:
    explora = module(objective, name=name)
    explora.training_step(batch(), 0).backward()
    for key, parameter in explora.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        else:
            assert parameter.grad is None, key


def test_the_last_layer_of_the_head_is_held_at_first_and_the_teacher_lags() -> None:
    explora = module("dino")
    explora.training_step(batch(), 0).backward()
    explora.on_before_optimizer_step(None)
    trained = {name: p for name, p in explora.student.named_parameters() if p.requires_grad}
    assert trained["head.last_layer.weight"].grad is None
    assert trained["head.mlp.0.weight"].grad is not None
    before = {name: tensor.clone() for name, tensor in explora.average.tensors.items()}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    explora.on_train_batch_end()
    for name, held in explora.average.tensors.items():
        torch.testing.assert_close(held, before[name] + (1 - 0.992), rtol=0, atol=1e-5)
    assert explora.loss.centre.abs().sum() > 0


def test_the_same_step_sees_the_same_views() -> None:
    first, second = module("dino"), module("dino")
    torch.manual_seed(77)
    assert torch.equal(first.training_step(batch(), 0), second.training_step(batch(), 0))


@pytest.mark.parametrize("objective", ["dino", "mae"])
def test_half_precision_sees_the_same_views_and_nearly_the_same_loss(objective: str, monkeypatch) -> None:
    explora, seen = module(objective), []
    monkeypatch.setattr(explora, "_normalised", lambda view: seen.append(view) or (view - explora.mean) / explora.std)
    exact = explora.training_step(batch(), 0).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = explora.training_step(batch(), 0)
    half = len(seen) // 2
    assert all(torch.equal(one, other) for one, other in zip(seen[:half], seen[half:], strict=True))
    assert loss.item() == pytest.approx(exact, rel=0.05)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in explora.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_three_quarters_are_hidden_and_hidden_pixels_do_not_reach_the_encoder(name: str) -> None:
    assert [shown_patches(count) for count in (4, 16, 196)] == [1, 4, 49]
    explora = module("mae", name=name)
    seen, net = [], explora.backbone.net
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images = torch.rand(2, 3, 64, 64)
    explora.reconstruction(explora.backbone, images, torch.Generator().manual_seed(5))
    order = torch.rand(2, 16, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    assert seen[0].shape[1] == net.num_prefix_tokens + 4
    damaged = images.clone()
    for image in range(2):
        for place in order[image, 4:].tolist():
            row, column = 16 * (place // 4), 16 * (place % 4)
            damaged[image, :, row : row + 16, column : column + 16] = 0
    explora.reconstruction(explora.backbone, damaged, torch.Generator().manual_seed(5))
    assert torch.equal(seen[0], seen[1])
    assert net.patch_drop.keep is None


def test_mae_is_the_error_on_hidden_patches_alone() -> None:
    explora = module("mae")
    reconstruction: MaskedReconstruction = explora.reconstruction
    images, hidden = torch.rand(3, 3, 64, 64), torch.ones(3, 16, dtype=torch.bool)
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    hidden.scatter_(1, order[:, :4], False)
    painted = torch.randn(3, 16, 3 * 16 * 16)
    reconstruction.decoder.forward = lambda *_: painted
    loss = reconstruction(explora.backbone, images, torch.Generator().manual_seed(5))
    wanted = np.empty((3, 16, 768))
    for image in range(3):
        for place in range(16):
            row, column = 16 * (place // 4), 16 * (place % 4)
            cut = images[image, :, row : row + 16, column : column + 16].double().numpy().ravel()
            wanted[image, place] = (cut - cut.mean()) / np.sqrt(cut.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(patches(images, 16).numpy(), wanted, atol=1e-4)
    error = ((painted.double().numpy() - wanted) ** 2).mean(axis=2)[hidden.numpy()].mean()
    assert float(loss) == pytest.approx(error, rel=1e-5)


def test_crops_show_a_part_of_their_own_image() -> None:
    ramp = torch.linspace(0, 1, 48).expand(2, 3, 48, 48).clone()
    ramp[1] = 5
    seen = views.crops(ramp, 32, views.LOCAL_SCALE, torch.Generator().manual_seed(0))
    assert seen.shape == (2, 3, 32, 32)
    share = float(seen[0].max() - seen[0].min()) ** 2
    assert 0.02 < share < 0.6
    torch.testing.assert_close(seen[1], torch.full((3, 32, 32), 5.0))


def test_colour_0_leaves_colours_and_1_changes_them() -> None:
    images, draw = torch.rand(8, 3, 16, 16), torch.Generator().manual_seed(0)
    assert torch.equal(views.recoloured(images, 0, draw), images)
    changed = views.recoloured(images, 1, draw)
    assert (changed - images).abs().mean() > 0.02
    assert 0 <= changed.min() <= changed.max() <= 1
    flat = torch.full((4, 3, 16, 16), 0.3)
    torch.testing.assert_close(views.blurred(flat, 1.0, draw), flat)
    assert views.blurred(images, 1.0, draw).std() < images.std()
    assert torch.allclose(views.blurred(images, 0.0, draw), images, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "patch", "side"), [(224, 14, 98), (224, 16, 96), (64, 16, 32), (32, 16, 32), (98, 14, 42)]
)
def test_side_of_local_crops(size: int, patch: int, side: int) -> None:
    assert views.local_side(size, patch) == side

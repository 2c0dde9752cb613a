"""decode: gpu. The path is the same on the CPU but for the decoder of JPEG files, so most of it is tested there."""

import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from timm.data.transforms import RandomResizedCropAndInterpolation

from stage1_pro.core.data.augmentation import drawn
from stage1_pro.core.data.batches import Draw, EpochSampler, make_loader
from stage1_pro.core.data.datasets import finish_of, image_dataset
from stage1_pro.core.data.decoding import PlainJpeg, decode, undecoded
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.data.on_device import DeviceDecoder, EncodedImages, encoded, packed
from stage1_pro.core.data.transforms import AUGMENTATIONS, Preprocessing
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.golden import golden_images

CPU = torch.device("cpu")
PLAIN = Preprocessing(96, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
ON_GPU = PLAIN.decoded_by("gpu")


def picture(number: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((208, 144), Image.Resampling.BICUBIC).convert(mode)


def jpeg(number: int = 0, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    picture(number, mode).save(stream, "JPEG", quality=92, **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return jpeg(orientation, exif=tags)


def files() -> Iterator[bytes]:
    yield from golden_images()
    yield from map(turned, range(1, 9))
    yield jpeg(1, "CMYK")
    yield jpeg(2, "L")
    yield jpeg(3, progressive=True)


def inputs(contents: list[bytes], device: torch.device = CPU) -> torch.Tensor:
    made, bad = DeviceDecoder(ON_GPU, device)(packed([encoded(content, ON_GPU.images) for content in contents]))
    assert not bad
    return made.cpu()


def test_inputs_are_those_of_pillow_but_for_rounding():
    transform, contents = PLAIN.transform(), list(files())
    expected = torch.stack([transform(decode(content)) for content in contents])
    assert (inputs(contents) - expected).abs().max() * 0.5 * 255 < 1.5  # levels of 255


def test_an_input_does_not_depend_on_its_batch(monkeypatch):
    contents = list(files())
    together = inputs(contents)
    assert torch.equal(torch.cat([inputs([content]) for content in contents]), together)
    monkeypatch.setattr("stage1_pro.core.data.on_device.RESIZED_AT_ONCE", 200_000)  # two of the pictures
    assert torch.equal(inputs(contents), together)
    monkeypatch.setattr("stage1_pro.core.data.on_device.DECODED_AT_ONCE", 10_000)
    assert torch.equal(inputs(contents), together)


def test_only_plain_jpegs_are_left_to_the_device():
    whole = jpeg()
    assert isinstance(undecoded(whole), PlainJpeg)
    assert isinstance(undecoded(jpeg(1, "CMYK")), Image.Image)
    assert isinstance(undecoded(jpeg(1, "RGB", keep_rgb=True)), Image.Image)  # RGB stored as such
    with pytest.raises(BadImage, match="truncated or damaged"):
        undecoded(whole[: len(whole) // 2])  # a GPU would fill the rest with grey
    with pytest.raises(BadImage, match="truncated or damaged"):
        undecoded(whole[:-2])


def test_what_the_device_refuses_is_decoded_by_pillow_and_the_others_are_not():
    contents = [jpeg(0), jpeg(1), b"\xff\xd8\xff\xd9 no jpeg", jpeg(2)]
    items = [encoded(content, ON_GPU.images) for content in (contents[0], contents[1], contents[3])]
    items.insert(2, items[0]._replace(content=np.frombuffer(contents[2], np.uint8)))  # passed the header, say
    made, bad = DeviceDecoder(ON_GPU, CPU)(packed(items))
    assert list(bad) == [2]
    assert torch.equal(made, inputs([contents[0], contents[1], contents[3]]))


def test_an_image_far_larger_than_its_input_is_shrunk():
    stream = io.BytesIO()
    Image.new("RGB", (5000, 4500), (200, 100, 50)).save(stream, "JPEG")
    image = inputs([stream.getvalue()])
    assert (image.amax((2, 3)) - image.amin((2, 3))).max() < 0.01


def test_the_contract_is_recorded_and_read_back():
    recorded = ON_GPU.to_dict()
    assert (recorded["decode"], recorded["decoder"], recorded["resampler"]) == ("gpu", "nvjpeg", "torch")
    assert Preprocessing.from_dict(recorded) == ON_GPU != PLAIN
    older = {name: value for name, value in PLAIN.to_dict().items() if name != "decode"}
    assert Preprocessing.from_dict(older) == PLAIN
    with pytest.raises(ValueError, match="decoder 'pillow'"):
        Preprocessing.from_dict({**recorded, "decoder": "pillow"})


@pytest.mark.parametrize("level", ["moderate", "aggressive"])
def test_augmentation_is_drawn_as_timm_draws_it(level):
    recipe, size = AUGMENTATIONS[level], (300, 500)
    rng = np.random.default_rng(0)
    chances = [drawn(size, 96, recipe, rng) for _ in range(4000)]
    boxes = np.array([chance.box for chance in chances])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 300).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 500).all()
    random.seed(0)
    crop, image = RandomResizedCropAndInterpolation(96, recipe["scale"]), Image.new("RGB", (500, 300))
    theirs = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(4000)])
    for quantile in (0.1, 0.5, 0.9):
        ours_now, theirs_now = (np.quantile(part, quantile, axis=0) for part in (boxes, theirs))
        assert np.abs(ours_now - theirs_now).max() < 15  # pixels
    assert abs(np.mean([chance.flip for chance in chances]) - 0.5) < 0.03
    assert abs(np.mean([chance.erased is not None for chance in chances]) - recipe["re_prob"]) < 0.03
    jitters = {name for chance in chances for name, _ in chance.jitter}
    assert jitters == ({"brightness", "contrast", "saturation"} if level == "aggressive" else set())


def test_augmentation_is_a_function_of_seed_epoch_and_case(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(7)]
    for number, path in enumerate(paths):
        path.write_bytes(turned(1 + number))
    dataset = EncodedImages(list(map(str, paths)), np.arange(7), ON_GPU, "aggressive", seed=3)
    decoder = DeviceDecoder(ON_GPU, CPU)

    def views(*draws: Draw) -> torch.Tensor:
        return decoder(EncodedImages.collate([dataset[draw] for draw in draws])[0])[0]

    first = views(*(Draw(1, at) for at in range(7)))
    assert torch.equal(views(*(Draw(1, at) for at in reversed(range(7)))).flip(0), first)
    assert not torch.equal(views(*(Draw(2, at) for at in range(7))), first)
    assert first.shape == (7, 3, 96, 96)
    sampler = EpochSampler(7, 0, shuffle=False)
    sampler.set_epoch(1)
    loader = make_loader(dataset, sampler, 3, 2, finish=lambda batch: (decoder(batch[0])[0], batch[1]))
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    assert torch.equal(images, first)
    assert labels.tolist() == list(range(7))


def test_a_machine_without_such_a_gpu_is_refused_and_told_why():
    dataset = image_dataset(["a.jpg"], np.zeros(1), ON_GPU, "none", 0)
    with pytest.raises(UserError, match=r"decoded by an NVIDIA GPU.*decode: cpu"):
        finish_of(dataset, CPU)


def luma(images: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114]))


def whole_colour(content: bytes) -> bool:
    image = Image.open(io.BytesIO(content))
    return image.mode != "RGB" or JpegImagePlugin.get_sampling(image) in (0, -1)


@pytest.mark.gpu
def test_a_gpu_decodes_as_the_cpu_does_and_each_image_for_itself():
    cuda, contents = torch.device("cuda"), list(files())
    together = inputs(contents, cuda)
    levels = (together - inputs(contents)).abs() * 0.5 * 255
    assert (luma(together) - luma(inputs(contents))).abs().max() * 0.5 * 255 < 2.5
    # colour of half the resolution is spread over pixels otherwise; all else is equal
    assert levels.mean((1, 2, 3)).max() < 4
    assert (levels.amax((1, 2, 3)) <= 1.5).tolist() == [whole_colour(content) for content in contents]
    assert torch.equal(torch.cat([inputs([content], cuda) for content in contents]), together)

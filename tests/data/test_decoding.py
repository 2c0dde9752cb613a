"""The decoder: unusual image files, each with the pixels that people see or the reason why it is refused."""

import io
import os
import struct
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import (
    ALPHA,
    DEEP,
    DEEP_PICTURE,
    EPS,
    GREY,
    HEIC,
    HEIGHT,
    PICTURE,
    TURNED,
    WIDTH,
    blended,
    deep_png,
    frames,
    png,
    rgb,
    saved,
    tiff,
    twelve_bits,
    with_alpha,
)
from PIL import Image, ImageFile

from stage1_pro.core.data.decoding import ImageContract, decode
from stage1_pro.core.data.image_files import REASONS, BadImage
from stage1_pro.core.data.tiff_headers import longest_tag

BLACK_WHITE = GREY > 90
TRIPLE = Image.fromarray(PICTURE)
PALETTE = TRIPLE.quantize(16, dither=Image.Dither.NONE)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))
INDEX = np.asarray(PALETTE)
STEPS = (np.arange(16, dtype=np.uint8) * 16)[INDEX]
TWO_BITS = (np.arange(WIDTH) % 4).astype(np.uint8)
PACKED = (TWO_BITS.reshape(-1, 4) * [64, 16, 4, 1]).sum(axis=1).astype(np.uint8)


def plain(content: bytes) -> np.ndarray:
    """What Pillow makes of a lossy file that needs no care."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def lossy(format: str, image: object = PICTURE, **options: object) -> tuple[bytes, np.ndarray]:
    content = saved(image, format, **options)
    return content, plain(content)


def png_key(*samples: int) -> tuple[bytes, bytes]:
    return b"tRNS", b"".join(sample.to_bytes(2, "big") for sample in samples)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 3 // 4]


JPEG, WEBP, AVIF = (saved(PICTURE, format) for format in ("JPEG", "WEBP", "AVIF"))
PNG, BMP, TIFF, GIF = (saved(PICTURE, format) for format in ("PNG", "BMP", "TIFF", "GIF"))
SPOT = np.tile(np.where(np.arange(WIDTH) < 8, 0, 255), (HEIGHT, 1)).astype(np.uint8)

FILES: dict[str, tuple[bytes, np.ndarray | str]] = {
    # ---- JPEG
    "a.jpg": (JPEG, plain(JPEG)),
    "progressive.jpe": lossy("JPEG", progressive=True),
    "grey.jfif": lossy("JPEG", GREY),
    "cmyk.jpg": lossy("JPEG", TRIPLE.convert("CMYK"), quality=95),
    "first of several.jpg": (frames("MPO"), plain(JPEG)),
    "exif is garbage.jpg": (saved(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), plain(JPEG)),
    "bytes after the end.jpg": (JPEG + b"\0" * 100, plain(JPEG)),
    # ---- PNG
    "a.png": (PNG, PICTURE),
    "one bit.png": (saved(BLACK_WHITE, "PNG"), rgb(BLACK_WHITE * 255)),
    "palette.png": (saved(PALETTE, "PNG"), PALETTE_RGB),
    "palette, alpha.png": (saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))), blended(PALETTE_RGB, STEPS)),
    "palette, one clear.png": (
        saved(PALETTE, "PNG", transparency=3),
        blended(PALETTE_RGB, np.where(INDEX == 3, 0, 255)),
    ),
    "grey.png": (saved(GREY, "PNG"), rgb(GREY)),
    "grey, one clear.png": (saved(GREY, "PNG", transparency=90), blended(GREY, np.where(GREY == 90, 0, 255))),
    "two bits, one clear.png": (
        png(WIDTH, 1, 2, 0, PACKED.tobytes(), png_key(1)),
        blended(85 * TWO_BITS[None], np.where(TWO_BITS[None] == 1, 0, 255)),
    ),
    "grey, alpha.png": (saved(Image.fromarray(with_alpha(GREY, ALPHA), "LA"), "PNG"), blended(GREY, ALPHA)),
    "alpha.png": (saved(with_alpha(PICTURE, ALPHA), "PNG"), blended(PICTURE, ALPHA)),
    "hidden colours.png": (saved(with_alpha(PICTURE, SPOT), "PNG"), np.where(SPOT[..., None] == 0, 255, PICTURE)),
    "one clear.png": (
        saved(PICTURE, "PNG", transparency=tuple(PICTURE[5, 7].tolist())),
        blended(PICTURE, np.where((PICTURE[5, 7] == PICTURE).all(axis=2), 0, 255)),
    ),
    "grey, 16 bits.png": (deep_png(DEEP, 0), rgb(GREY)),
    "48 bits.png": (deep_png(DEEP_PICTURE, 2), PICTURE),
    "grey, alpha, 32 bits.png": (
        deep_png(np.stack([DEEP, ALPHA.astype(np.uint16) << 8], axis=2), 4),
        blended(GREY, ALPHA),
    ),
    "64 bits.png": (
        deep_png(np.concatenate([DEEP_PICTURE, (ALPHA.astype(np.uint16) << 8)[..., None]], axis=2), 6),
        blended(PICTURE, ALPHA),
    ),
    "grey, 16 bits, one clear.png": (deep_png(DEEP, 0, png_key(7)), "key_depth"),
    "48 bits, one clear.png": (deep_png(DEEP_PICTURE, 2, png_key(7, 8, 9)), "key_depth"),
    "clear.png": (saved(with_alpha(PICTURE, np.zeros_like(ALPHA)), "PNG"), "transparent"),
    "animated.png": (frames("PNG"), "frames"),
    "bomb.png": (png(30000, 30000, 1, 0, bytes(3750 * 100)), "too_large"),
    "thread.png": (saved(np.zeros((1, 5000), np.uint8), "PNG"), "too_thin"),
    "header changed.png": (PNG[:20] + b"\1" + PNG[21:], "damaged"),
    # ---- WebP, BMP, GIF, AVIF
    "a.webp": (WEBP, plain(WEBP)),
    "lossless, alpha.webp": (
        saved(with_alpha(PICTURE, ALPHA), "WEBP", lossless=True, exact=True),
        blended(PICTURE, ALPHA),
    ),
    "animated.webp": (frames("WEBP"), "frames"),
    "a.bmp": (BMP, PICTURE),
    "one bit.bmp": (saved(BLACK_WHITE, "BMP"), rgb(BLACK_WHITE * 255)),
    "palette.bmp": (saved(PALETTE, "BMP"), PALETTE_RGB),
    "a.gif": (saved(PALETTE, "GIF"), PALETTE_RGB),
    "one clear.gif": (saved(PALETTE, "GIF", transparency=3), blended(PALETTE_RGB, np.where(INDEX == 3, 0, 255))),
    "animated.gif": (frames("GIF"), "frames"),
    "a.avif": (AVIF, plain(AVIF)),
    "animated.avif": (frames("AVIF"), "frames"),
    # ---- TIFF
    "a.tif": (TIFF, PICTURE),
    "lzw.tif": (saved(PICTURE, "TIFF", compression="tiff_lzw"), PICTURE),
    "jpeg inside.tiff": lossy("TIFF", compression="jpeg"),
    "fax.tif": (saved(BLACK_WHITE, "TIFF", compression="group4"), rgb(BLACK_WHITE * 255)),
    "palette.tif": (saved(PALETTE, "TIFF"), PALETTE_RGB),
    "cmyk.tif": lossy("TIFF", TRIPLE.convert("CMYK")),
    "alpha.tif": (saved(with_alpha(PICTURE, ALPHA), "TIFF"), blended(PICTURE, ALPHA)),
    "grey, alpha.tif": (saved(Image.fromarray(with_alpha(GREY, ALPHA), "LA"), "TIFF"), blended(GREY, ALPHA)),
    "grey, 16 bits.tif": (tiff(DEEP), rgb(GREY)),
    "grey, 16 bits, big end first.tif": (tiff(DEEP, ">"), rgb(GREY)),
    "grey, 16 bits, white is zero.tif": (tiff(DEEP, polarity=0), rgb(255 - GREY)),
    "grey, 12 bits.tif": (twelve_bits(DEEP >> 4), rgb(GREY)),
    "48 bits.tif": (tiff(DEEP_PICTURE), PICTURE),
    "48 bits, big end first, deflated.tif": (tiff(DEEP_PICTURE, ">", deflate=True), PICTURE),
    "floats.tif": (tiff(GREY.astype(np.float32) / 255), "depth"),
    "32 bits.tif": (tiff(DEEP.astype(np.uint32) << 8), "depth"),
    "signed, 16 bits.tif": (tiff(DEEP.view(np.int16)), "depth"),
    "signed, 8 bits.tif": (tiff(GREY.view(np.int8)), "depth"),
    "lab.tif": (saved(Image.fromarray(PICTURE, "LAB"), "TIFF"), "colors"),
    "pages.tif": (frames("TIFF"), "frames"),
    "raw photo.dng": (tiff(PICTURE, subfile=1), "preview"),
    # ---- cut off
    "cut.jpg": (cut(JPEG), "damaged"),
    "cut.png": (cut(PNG), "damaged"),
    "cut.webp": (cut(WEBP), "damaged"),
    "cut.bmp": (cut(BMP), "damaged"),
    "cut.tif": (cut(TIFF), "damaged"),
    "cut, lzw.tif": (cut(saved(PICTURE, "TIFF", compression="tiff_lzw")), "damaged"),
    "cut.gif": (cut(GIF), "damaged"),
    "cut.avif": (cut(AVIF), "damaged"),
    "three bytes.jpg": (JPEG[:3], "damaged"),
    # ---- no image, or none of ours
    "postscript.jpg": (EPS, "format"),
    "a.heic": (HEIC, "format"),
    "a.jp2": (saved(PICTURE, "JPEG2000"), "format"),
    "a.ppm": (saved(PICTURE, "PPM"), "format"),
    "a.ico": (saved(PICTURE, "ICO"), "format"),
    "a.svg": (b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="9"/>', "format"),
    "report.png": (b"%PDF-1.7\n" + bytes(60), "no_image"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "no_image"),
    "text.jpg": (b"BMW drivers write text files, too, some of them longer", "no_image"),
    "zeros.jpg": (bytes(5000), "no_image"),
    "empty.jpg": (b"", "empty"),
}


def outcome(source: object, contract: ImageContract | None = None) -> np.ndarray | str:
    try:
        image = decode(source, contract or ImageContract())
    except BadImage as bad:
        return bad.code if str(bad).startswith(REASONS[bad.code]) else str(bad)
    assert image.mode == "RGB"
    return np.asarray(image)


def assert_same(found: np.ndarray | str, expected: np.ndarray | str) -> None:
    if isinstance(found, str):
        assert found == (expected if isinstance(expected, str) else "read")
    else:
        assert not isinstance(expected, str), f"read, not {expected}"
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_what_people_see_or_a_reason(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    for file in (tmp_path / name, tmp_path / "no suffix", tmp_path / "wrong.tiff"):
        file.write_bytes(content)
        assert_same(outcome(str(file)), expected)
    assert_same(outcome(content), expected)


@pytest.mark.parametrize("name", FILES)
def test_an_opened_pil_image_is_treated_like_its_file(name: str) -> None:
    content, expected = FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about bombs and broken metadata
        try:
            image = Image.open(io.BytesIO(content))
        except (OSError, Image.DecompressionBombError):
            assert isinstance(expected, str)  # nothing that we read is beyond Pillow
            return
    assert_same(outcome(image), expected)


SAVED_AS = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "AVIF": {},
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", SAVED_AS)
def test_all_eight_orientations_are_turned_upright(kind: str, orientation: int) -> None:
    format, options = kind.split(",")[0], SAVED_AS[kind]
    exif = Image.Exif()
    exif[274] = orientation
    upright = TURNED[orientation](plain(saved(PICTURE, format, **options)))
    assert_same(outcome(saved(PICTURE, format, exif=exif, **options)), upright)


def test_orientation_comes_from_xmp_where_exif_has_none_and_other_values_turn_nothing() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert_same(outcome(saved(PICTURE, "JPEG", xmp=xmp)), TURNED[6](plain(JPEG)))
    for value in (0, 9):
        exif = Image.Exif()
        exif[274] = value
        assert_same(outcome(saved(PICTURE, "JPEG", exif=exif)), plain(JPEG))


def test_sixteen_bits_and_alpha_are_turned_upright_as_well() -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = Image.fromarray(with_alpha(PICTURE, ALPHA))
    assert_same(outcome(saved(turned, "PNG", exif=exif)), TURNED[6](blended(PICTURE, ALPHA)))
    assert_same(outcome(deep_png(DEEP, 0, (b"eXIf", exif.tobytes()[6:]))), TURNED[6](rgb(GREY)))


# ---- what is no regular file


def test_paths_without_a_file_behind_them_have_reasons_and_nothing_hangs(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(PNG)
    expected = {
        "folder.jpg": "not_a_file", "dangling.jpg": "missing", "loop.jpg": "missing", "pipe.jpg": "not_a_file",
        "absent.jpg": "missing", "a.png/b.jpg": "missing", "n\0ll.jpg": "missing", "x" * 300: "missing",
    }  # fmt: skip
    started = time.monotonic()
    assert {name: outcome(tmp_path / name) for name in expected} == expected
    assert time.monotonic() - started < 5
    assert outcome("/dev/zero") == "not_a_file"
    assert_same(outcome(tmp_path / "link.jpg"), PICTURE)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.png").chmod(0)
    assert outcome(tmp_path / "a.png") == "no_access"
    (tmp_path / "folder").mkdir(mode=0)
    with pytest.raises(BadImage, match="permission denied: a folder, with all that is in it"):
        decode(tmp_path / "folder")


def test_a_failing_disk_is_told_from_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    content = saved(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: os.close(descriptor) or Failing(content))
    assert outcome(tmp_path / "a.png") == "io_error"


# ---- what is no file at all


def test_arrays_and_pil_images_in_memory_are_images() -> None:
    assert_same(outcome(PICTURE), PICTURE)
    assert_same(outcome(PICTURE[::-1, ::2]), PICTURE[::-1, ::2])
    assert_same(outcome(Image.fromarray(DEEP)), rgb(GREY))
    assert outcome(Image.fromarray(GREY.astype(np.float32))) == "depth"
    assert outcome(np.zeros((1, 5000, 3), np.uint8)) == "too_thin"


@pytest.mark.parametrize(
    "source",
    [
        None, 7, ["a.jpg"], ("a.jpg",), bytearray(PNG), io.BytesIO(PNG), torch.zeros(3, 8, 8),
        GREY, PICTURE.astype(np.float32), DEEP_PICTURE, PICTURE.transpose(2, 0, 1), with_alpha(PICTURE, ALPHA),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda source: type(source).__name__ + str(getattr(source, "shape", "")),
)  # fmt: skip
def test_anything_else_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match=r"must be uint8 of shape|an image is a path"):
        decode(source)


def test_a_pil_image_whose_file_was_closed_is_the_callers_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ValueError, match=r"load\(\)"):
        decode(image)


# ---- the process around it


def test_neither_pillows_settings_nor_warning_filters_change_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    before = list(warnings.filters)  # "error" among them: the suite's own setting
    for name in ("a.jpg", "a.png", "a.tif", "a.bmp", "exif is garbage.jpg", "cut, lzw.tif"):
        assert_same(outcome(FILES[name][0]), FILES[name][1])
    assert list(warnings.filters) == before
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(cut(PNG))


def test_threads_leave_no_warning_filter_behind() -> None:
    before = list(warnings.filters)
    content = FILES["exif is garbage.jpg"][0]
    found: list[np.ndarray | str] = []
    threads = [threading.Thread(target=lambda: found.extend(outcome(content) for _ in range(40))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    assert len(found) == 160
    for each in found:
        assert_same(each, plain(JPEG))


# ---- the contract


def test_the_contract_decides() -> None:
    assert outcome(PNG, ImageContract(formats=("JPEG",))) == "format"
    assert outcome(PNG, ImageContract(max_pixels=HEIGHT * WIDTH - 1)) == "too_large"
    assert_same(outcome(PNG, ImageContract(max_pixels=HEIGHT * WIDTH)), PICTURE)
    content = FILES["alpha.png"][0]
    assert_same(outcome(content, ImageContract(alpha_color=(9, 90, 200))), blended(PICTURE, ALPHA, (9, 90, 200)))


def test_a_contract_survives_json_and_one_that_cannot_be_kept_is_refused() -> None:
    contract = ImageContract(formats=("PNG", "JPEG"), max_pixels=10**6, alpha_color=(0, 0, 0))
    assert ImageContract.from_dict(contract.to_dict()) == contract
    for change in ({"orientation": "ignored"}, {"formats": ["EPS"]}, {"max_pixels": 0}, {"alpha_color": [0, 0, 256]}):
        with pytest.raises(ValueError, match=f"cannot read images with {next(iter(change))}"):
            ImageContract.from_dict({**contract.to_dict(), **change})
    with pytest.raises(TypeError, match="sharpness"):
        ImageContract.from_dict({**contract.to_dict(), "sharpness": 1})


def test_a_tag_of_millions_of_numbers_is_refused_before_they_are_read(tmp_path: Path) -> None:
    """Pillow would make an object of each, and then show the picture."""
    one, many = (struct.pack("<HHI", 273, 4, count) for count in (1, 2_000_000))
    content = tiff(GREY).replace(one, many) + bytes(8_000_000)
    (tmp_path / "bomb.tif").write_bytes(content)
    for source in (content, tmp_path / "bomb.tif"):
        tracemalloc.start()
        with pytest.raises(BadImage) as refusal:
            decode(source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert refusal.value.code == "damaged"
        assert peak < 1_000_000
    big = struct.pack("<2sHHHQQHHQQ", b"II", 43, 8, 0, 16, 1, 273, 16, 2_000_000, 16)
    assert longest_tag(io.BytesIO(big)) == 2_000_000
    assert [longest_tag(io.BytesIO(file[:cut])) for file in (tiff(GREY), big) for cut in (4, 12, 20)] == [0] * 6

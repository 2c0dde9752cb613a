"""Cases with masks: every layout gives the same table, and every mistake is told, all at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_masks import settings, write_cases
from PIL import ExifTags, Image

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.data.masks.augment import augmented
from stage1_pro.core.data.masks.batches import MaskDataset
from stage1_pro.core.data.masks.files import Grid, labels_of, picture_of, read_contents
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.errors import UserError
from stage1_pro.core.seeds import rng_of

COUNT = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cases(tmp_path / "plain", COUNT)


def cases_in(root: Path, source: dict | None = None, **data: object) -> CaseTable:
    made = settings(root, **data)
    if source:
        made["dataset_params"]["sources"] = [source]
    config = merge_configs([("test", made)])
    return config.task.part("read_cases")(config, decode=True)


def refusal(root: Path, **data: object) -> str:
    with pytest.raises(UserError) as refused:
        cases_in(root, **data)
    return str(refused.value)


def as_csv(plain: Path, to: Path) -> dict:
    to.mkdir()
    rows = [f"{plain}/images/{i:03}.png,{plain}/masks/{i:03}.png" for i in range(COUNT)]
    (to / "cases.csv").write_text("image,mask\n" + "\n".join(rows))
    return {"name": "s", "labels": str(to / "cases.csv")}


def as_nnunet(plain: Path, to: Path) -> dict:
    (to / "imagesTr").mkdir(parents=True)
    shutil.copytree(plain / "masks", to / "labelsTr")
    for file in (plain / "images").iterdir():
        shutil.copy(file, to / "imagesTr" / f"{file.stem}_0000.png")
    record = {"channel_names": {"0": "R"}, "labels": {"background": 0, "disc": 1}, "file_ending": ".png"}
    (to / "dataset.json").write_text(json.dumps(record))
    return {"name": "s", "root": str(to)}


def as_msd(plain: Path, to: Path) -> dict:
    shutil.copytree(plain, to)
    training = [{"image": f"./images/{i:03}.png", "label": f"./masks/{i:03}.png"} for i in range(COUNT)]
    record = {"labels": {"0": "background", "1": "disc"}, "training": training}
    (to / "dataset.json").write_text(json.dumps(record))
    return {"name": "s", "root": str(to)}


def test_four_layouts_of_one_data_set_give_one_table(folder: Path, tmp_path: Path) -> None:
    plain = cases_in(folder)
    layouts: list[Callable[[Path, Path], dict]] = [as_csv, as_nnunet, as_msd]
    digests = {cases_in(folder, layout(folder, tmp_path / layout.__name__)).digest for layout in layouts}
    assert digests == {plain.digest}
    assert plain.class_names == ("without disc", "disc")
    assert plain.frame["case_id"].tolist() == [f"{i:03}" for i in range(COUNT)]


def test_hashing_alone_knows_the_table_again(folder: Path) -> None:
    config = merge_configs([("test", settings(folder))])
    read = config.task.part("read_cases")
    assert read(config, decode=False).digest == read(config, decode=True).digest


def test_all_problems_come_at_once(folder: Path) -> None:
    image = Image.open(folder / "images" / "000.png")
    image.crop((0, 0, 30, 32)).save(folder / "images" / "000.png")
    mask = np.asarray(Image.open(folder / "masks" / "001.png"))
    Image.fromarray(mask * 7).save(folder / "masks" / "001.png")
    (folder / "masks" / "002.png").unlink()
    Image.fromarray(mask).save(folder / "masks" / "003.jpg")
    (folder / "masks" / "003.png").unlink()
    Image.fromarray(mask.astype(np.float32) / 2).save(folder / "masks" / "004.tif")
    (folder / "masks" / "004.png").unlink()
    shutil.copy(folder / "masks" / "003.jpg", folder / "masks" / "007.jpg")
    (folder / "masks" / "007.png").unlink()
    shutil.copy(folder / "images" / "005.png", folder / "images" / "006.png")
    text = refusal(folder)
    for words in (
        "1 image without a mask in",
        "1 mask does not fit its image: 000 (image 32 × 30, mask 32 × 32)",
        "3 cases cannot be read: 003, 007 (mask: a mask must be PNG, TIFF, BMP or NIfTI, since other formats change",
        "004 (mask: the mask holds values that are not whole numbers: such as 0.5)",
        "1 mask holds values outside 0 to 1: 001 (7); write class numbers, name all classes in",
        "2 identical images have different masks: 005, 006",
    ):
        assert words in text, text


def renamed(folder: Path, name: Callable[[Path], Path]) -> None:
    for file in sorted(folder.iterdir()):
        to = name(file)
        to.parent.mkdir(exist_ok=True)
        file.rename(to)


UNPAIRED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "suffix": (
        lambda root: renamed(root / "masks", lambda file: file.with_name(f"{file.stem}_mask.png")),
        "the stems are 000, 001, 002, … here and 000_mask, 001_mask, 002_mask, … in",
    ),
    "folders": (
        lambda root: renamed(root / "images", lambda file: file.parent / "p1" / file.name),
        "images holds folders (p1), which are not read: put the files there, or name both files in a CSV of path,mask",
    ),
    "empty": (lambda root: [file.unlink() for file in (root / "masks").iterdir()], "masks holds no files: put the"),
}


@pytest.mark.parametrize("what", UNPAIRED)
def test_why_no_image_has_a_mask(what: str, folder: Path) -> None:
    harm, words = UNPAIRED[what]
    harm(folder)
    text = refusal(folder)
    assert words in text, text
    assert "the positive class" not in text


def test_without_sources_the_advice_is_for_masks(folder: Path) -> None:
    assert "where FOLDER holds images/ and masks/ of equal stems" in refusal(folder, sources=[])


def test_a_table_without_masks_and_one_that_calls_them_otherwise(folder: Path) -> None:
    table, plain = folder / "cases.csv", cases_in(folder)
    rows = [f"images/{i:03}.png,masks/{i:03}.png" for i in range(COUNT)]
    table.write_text("path,drawn\n" + "\n".join(rows))
    source = {"name": "s", "labels": str(table)}
    with pytest.raises(UserError, match="the header path,drawn has no column 'mask'"):
        cases_in(folder, source)
    assert cases_in(folder, {**source, "columns": {"label": "drawn"}}).digest == plain.digest


def test_nothing_is_left_where_no_mask_can_be_read(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        file.write_bytes(b"no image")
    text = refusal(folder, on_bad_image="skip")
    assert "8 cases cannot be read: 000, 001, 002, 003, 004, 005, 006, 007 (mask: a mask must be PNG" in text
    assert "the positive class" not in text


def test_numbers_of_objects_are_told_from_classes(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(file))
        Image.fromarray(mask * np.arange(1, 33, dtype=np.uint8)).save(file)
    words = "name all classes in class_names, or set ignore_label; where values number the objects, write one value"
    assert words in refusal(folder)
    first = np.asarray(Image.open(folder / "masks" / "000.png")) > 0
    numbers = first.astype(np.uint8)
    numbers[0, :12] = np.arange(12)
    for file in (folder / "masks").iterdir():
        Image.fromarray(numbers).save(file)
    asked = cases_in(folder, class_names=None, positive_class=None).questions[0]
    assert "class 9, class 10, …. Write" in asked
    assert asked.endswith("; where values number the objects, write one value for all of a class.")
    for file in (folder / "masks").iterdir():
        Image.fromarray(first * np.uint8(128 if file.stem == "003" else 1)).save(file)  # and not 128 classes
    assert "1 mask holds values outside 0 to 1: 003 (128); write class" in refusal(folder, class_names=None)


def test_a_positive_class_must_exist_and_be_named_where_there_are_several(folder: Path) -> None:
    wrong = refusal(folder, positive_class="disk", class_names=None)
    assert "positive_class is 'disk'; classes: foreground, or any" in wrong
    assert "no mask holds the positive class (ring)" in refusal(
        folder, class_names=["background", "disc", "ring"], positive_class="ring"
    )
    asked = cases_in(folder, class_names=["background", "disc", "ring"], positive_class=None).questions
    assert "Write, for example, positive_class: disc below dataset_params, or positive_class: any" in asked[0]
    every = cases_in(folder, class_names=["background", "disc", "ring"], positive_class="any")
    assert every.masks is not None
    assert [warning.partition(", so")[0] for warning in every.warnings] == [
        "classes that too few of 8 masks hold for every split"
    ]
    assert every.warnings[0].endswith("drawn: ring (0)")
    assert (every.positive_class, every.masks.positives, every.questions) == ("any class", (1, 2), ())


def test_255_means_1_where_there_are_two_classes_and_palettes_are_indices(folder: Path) -> None:
    before = cases_in(folder).frame["label"].tolist()
    for file in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(file))
        shown = Image.fromarray(mask * 255)
        if file.stem < "004":
            shown = Image.fromarray(mask).convert("P")
            shown.putpalette([0, 0, 0, 200, 10, 10] + [0] * 762)
        shown.save(file)
    mixed = refusal(folder)  # indices of a palette are classes, and 255 beside them is another one
    assert "outside 0 to 1" in mixed
    for file in (folder / "masks").iterdir():
        values = np.asarray(Image.open(file))
        Image.fromarray((values > 0).astype(np.uint8) * 255).save(file)
    cases = cases_in(folder)
    assert cases.frame["label"].tolist() == before
    assert cases.warnings == ("the masks hold 0 and 255, which is read as 0 and 1",)
    assert cases.masks is not None
    assert cases.masks.coded(np.array([0, 255])).tolist() == [0, 1]


def test_sixteen_bits_keep_what_they_hold(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) + 300
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = picture_of(read_contents(str(tmp_path / "a.png")))
    assert picture.values.shape == (3, 8, 8)
    np.testing.assert_allclose(picture.values[0] * 65535, values, rtol=1e-5)
    labels, _ = labels_of((tmp_path / "a.png").read_bytes())
    assert labels.tolist() == values.tolist()


def test_a_coloured_mask_says_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BadImage, match="no channel says which class"):
        labels_of((tmp_path / "a.png").read_bytes())


def test_pages_are_no_mask(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((8, 8), np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(BadImage, match="more than one frame or page: TIFF"):
        labels_of((tmp_path / "a.tif").read_bytes())


def test_what_is_ignored_is_in_no_patch_as_a_class(folder: Path) -> None:
    mask = np.array(Image.open(folder / "masks" / "000.png"))
    mask[:4] = 255
    Image.fromarray(mask).save(folder / "masks" / "000.png")
    cases = cases_in(folder, ignore_label=255)
    assert cases.masks is not None
    made = MaskPreprocessing(2, 3, True, patch=(48, 16))
    data = MaskDataset(cases.frame, cases.masks, made, 1, "none", patches=3, centred=1.0)
    patches = data[data_draw(0)]
    assert [tuple(labels.shape) for _, labels, _ in patches] == [(48, 16)] * 3
    assert all((labels[32:] == 0).all() for _, labels, _ in patches)  # what a patch over the case is filled with
    assert all((labels[:4] == -1).all() and (labels == 1).any() for _, labels, _ in patches)


def data_draw(position: int, epoch: int = 0):
    from stage1_pro.core.data.batches import Draw

    return Draw(epoch, position)


def test_augmentation_moves_image_and_mask_alike_and_is_a_function_of_its_key() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((24, 24)) > 0.5).astype(np.int64)
    labels = np.kron(labels[:6, :6], np.ones((4, 4), dtype=np.int64))
    image = np.repeat(labels[None].astype(np.float32), 3, axis=0)
    agreement = []
    for epoch in range(30):
        level = ("moderate", "aggressive")[epoch % 2]
        moved, truth = augmented(image, labels, level, rng_of(1, epoch, 7))
        again, same = augmented(image, labels, level, rng_of(1, epoch, 7))
        assert np.array_equal(moved, again)
        assert np.array_equal(truth, same)
        bright = moved[0] > (moved[0].min() + moved[0].max()) / 2
        agreement.append(np.mean(bright == truth))
    assert min(agreement) > 0.8
    assert np.mean(agreement) > 0.93


def test_no_side_of_a_volume_changes_places() -> None:
    labels = np.zeros((16, 20, 12), dtype=np.int64)
    labels[2:6, 3:8, 2:5] = 1  # nearer to the first side of every axis
    for level in ("moderate", "aggressive"):
        for epoch in range(20):
            _, truth = augmented(labels[None].astype(np.float32), labels, level, rng_of(1, epoch, 7))
            centre = np.argwhere(truth == 1).mean(axis=0)
            assert (centre < (np.array(labels.shape) - 1) / 2).all()


def test_intensities_and_spacing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(40, 9, (1, 6, 8, 10)).astype(np.float32)
    grid = Grid((6, 8, 10), (2.0, 1.0, 1.0), np.eye(4), np.eye(4))
    made = MaskPreprocessing(3, 1, False, spacing=(1.0, 1.0, 1.0))
    resampled = made.resampled(values, grid)
    assert resampled.shape == (1, 12, 8, 10)
    assert made.resampled_labels((values[0] > 40).astype(np.int64), grid).shape == (12, 8, 10)
    assert abs(float(made.scaled(values).mean())) < 1e-5
    ct = MaskPreprocessing(3, 1, False, intensity="ct", low=30, high=50, mean=40, deviation=5)
    assert float(ct.scaled(values).min()) == pytest.approx(-2)
    assert MaskPreprocessing.from_dict(json.loads(json.dumps(ct.to_dict()))) == ct


def test_a_case_is_positive_from_so_many_voxels_on_and_its_stratum_is_its_rarest_class(folder: Path) -> None:
    for index in range(COUNT):
        mask = np.zeros((32, 32), np.uint8)
        mask[:4, :4] = 1  # all have the frequent class
        if index < 3:
            mask[8, : index + 1] = 2
        Image.fromarray(mask).save(folder / "masks" / f"{index:03}.png")
    made = settings(folder, class_names=["background", "organ", "lesion"], positive_class="lesion")
    made["segmentation_params"] = {"min_positive_voxels": 2}
    config = merge_configs([("test", made)])
    cases = config.task.part("read_cases")(config, decode=True)
    assert cases.frame["label"].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert cases.frame["stratum"].tolist() == [2, 2, 2, 1, 1, 1, 1, 1]


def test_channels_in_files_of_their_own_and_what_nnunet_ignores(folder: Path, tmp_path: Path) -> None:
    source = as_nnunet(folder, tmp_path / "nnunet")
    for index in range(COUNT):
        name = tmp_path / "nnunet" / "imagesTr" / f"{index:03}_0000.png"
        Image.open(name).convert("L").save(name)
        Image.fromarray(np.full((32, 32), index, np.uint8)).save(name.with_name(f"{index:03}_0001.png"))
    record = json.loads((tmp_path / "nnunet" / "dataset.json").read_text())
    record["labels"]["ignore"] = 2
    (tmp_path / "nnunet" / "dataset.json").write_text(json.dumps(record))
    mask = np.array(Image.open(tmp_path / "nnunet" / "labelsTr" / "000.png"))
    mask[:2] = 2
    Image.fromarray(mask).save(tmp_path / "nnunet" / "labelsTr" / "000.png")
    cases = cases_in(folder, source, class_names=None, positive_class="disc")
    assert cases.masks is not None
    assert (cases.masks.class_names, cases.masks.ignore_label) == (("background", "disc"), 2)
    assert (cases.masks.channels, cases.masks.joint) == (2, False)
    first = cases.frame["path"].iloc[3]
    assert [Path(part).name for part in first.split(";")] == ["003_0000.png", "003_0001.png"]
    values = picture_of(read_contents(first)).values
    assert values.shape == (2, 32, 32)
    np.testing.assert_allclose(values[1], 3 / 255)
    lines = [f"{row.path},{row.mask}" for row in cases.frame.itertuples()]
    (tmp_path / "cases.csv").write_text("path,mask\n" + "\n".join(lines))
    named = {"name": "s", "labels": str(tmp_path / "cases.csv")}
    again = cases_in(folder, named, class_names=["background", "disc"], positive_class="disc", ignore_label=2)
    assert again.frame["content"].tolist() == cases.frame["content"].tolist()


def test_other_files_are_left_out_and_told(folder: Path) -> None:
    for name in ("images/notes.txt", "images/Thumbs.db", "masks/classes.TXT"):
        (folder / name).write_text("none")
    cases = cases_in(folder)
    assert len(cases.frame) == COUNT
    assert cases.warnings == (
        f"{folder}/images: left out 2 without an image (1 .db, 1 .txt)",
        f"{folder}/masks: left out 1 without an image (1 .txt)",
    )
    for file in (folder / "masks").glob("*.png"):
        file.with_suffix(".npy").write_bytes(b"\x93NUMPY")
        file.unlink()
    words = f"since {folder}/masks holds {COUNT + 1} without an image ({COUNT} .npy, 1 .txt): write PNG"
    assert words in refusal(folder)


def test_masks_beside_images_that_exif_turns_are_told_of(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = cases_in(folder)
    channels = as_nnunet(folder, tmp_path / "channels")
    for index in (2, 5):
        path = folder / "images" / f"{index:03}.png"
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    cases = cases_in(folder)
    assert cases.warnings == (
        "turned by EXIF, unlike the mask: 2 images (002, 005). Where such a mask was drawn on the image as it is "
        "stored, remove EXIF from the image",
    )
    for path in (folder / "images").iterdir():  # the second channel alone
        shutil.copy(path, tmp_path / "channels" / "imagesTr" / f"{path.stem}_0001.png")
    assert cases_in(folder, channels).warnings == cases.warnings
    at = cases.frame["case_id"].tolist().index("005")
    turned, plain = (picture_of(read_contents(found.frame["path"][at])).values for found in (cases, upright))
    np.testing.assert_array_equal(turned, plain)
    grey, read = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, []
    for stored in (grey, grey.astype(np.uint16) * 257):
        Image.fromarray(stored).save(folder / "images" / "005.png", exif=exif)
        read.append(picture_of(read_contents(str(folder / "images" / "005.png"))).values)
    np.testing.assert_allclose(read[0], read[1], rtol=0, atol=1e-6)


def test_a_name_that_holds_what_parts_channels_is_one_file(folder: Path, tmp_path: Path) -> None:
    plain = sorted(cases_in(folder).frame["content"])
    for kind in ("images", "masks"):
        (folder / kind / "003.png").rename(folder / kind / "0;03.png")
    names = sorted(file.name for file in (folder / "images").iterdir())
    (folder / "cases.csv").write_text("path,mask\n" + "\n".join(f"images/{name},masks/{name}" for name in names))
    for source in (None, {"name": "s", "labels": str(folder / "cases.csv")}):
        frame = cases_in(folder, source).frame
        assert sorted(frame["content"]) == plain
        assert "0;03" in frame["case_id"].tolist()
    (tmp_path / "channels").mkdir()
    as_nnunet(folder, tmp_path / "channels" / "nnunet")
    for file in sorted((tmp_path / "channels" / "nnunet" / "imagesTr").iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("_0000", "_0001")))
    words = "1 path holds ';', which parts the files of a case's channels: rename it: 0;03"
    with pytest.raises(UserError, match=words):
        cases_in(folder, {"name": "s", "root": str(tmp_path / "channels" / "nnunet")})


def test_backslashes_of_windows_are_read_as_slashes(folder: Path) -> None:
    lines = [f"images\\{i:03}.png,masks\\{i:03}.png" for i in range(COUNT)]
    (folder / "cases.csv").write_text("path,mask\n" + "\n".join(lines))
    cases = cases_in(folder, {"name": "s", "labels": str(folder / "cases.csv")})
    assert cases.digest == cases_in(folder).digest
    assert f"backslashes in {2 * COUNT} paths are read as slashes" in cases.notes[0]


def test_a_grey_file_is_no_case_of_three_files(folder: Path, tmp_path: Path) -> None:
    names = [f"{folder}/images/{i:03}.png" for i in range(COUNT)]
    lines = [f"{';'.join([name] * 3) if i else name},{folder}/masks/{i:03}.png" for i, name in enumerate(names)]
    (tmp_path / "cases.csv").write_text("path,mask\n" + "\n".join(lines))
    with pytest.raises(UserError, match=r"1 case is of other channels than most, which have 3: 000 \(3 in one file\)"):
        cases_in(folder, {"name": "s", "labels": str(tmp_path / "cases.csv")})


def test_masks_in_which_nothing_is_decided_are_no_masks(folder: Path) -> None:
    for index in (2, 5):
        Image.fromarray(np.full((32, 32), 9, np.uint8)).save(folder / "masks" / f"{index:03}.png")
    refused = refusal(folder, ignore_label=9)
    assert "2 masks hold nothing but 9, which is ignored: 002, 005; leave these cases out" in refused

"""Image files as people bring them, through the scripts: the picture that they see is the one that is decided."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import done, refused
from odd_images import HEIC, TURNED
from PIL import Image

from stage1_pro.core.data.decoding import ImageContract
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.models.stage1 import read_tensors

BACK = {6: 8, 8: 6}
"""Orientation that undoes another one; every other one undoes itself."""


def decided(bundle: Path, inputs: Path, *flags: object) -> pd.DataFrame:
    """The decisions of 60 on a folder, by file name."""
    out = inputs.with_suffix(".parquet")
    done("60_predict", bundle, inputs, "--format", "parquet", "--out", out, *flags)
    table = pd.read_parquet(out)
    return table.drop(columns="id").set_axis([Path(name).name for name in table["id"]])


def stored(picture: np.ndarray, orientation: int, tag: int) -> bytes:
    """A PNG file whose pixels lie as this orientation has them, and whose EXIF tag says `tag`."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = tag
    lying = np.ascontiguousarray(TURNED[BACK.get(orientation, orientation)](picture))
    Image.fromarray(lying).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def test_all_eight_orientations_give_the_decisions_of_the_upright_picture(bundle, images, tmp_path):
    pictures = [np.asarray(Image.open(images / f"{index:03d}.png"))[:, :20] for index in range(4)]
    for name in ("turned", "lying"):
        (tmp_path / name).mkdir()
        for orientation in TURNED:
            for index, picture in enumerate(pictures):
                content = stored(picture, orientation, orientation if name == "turned" else 1)
                (tmp_path / name / f"{index}-{orientation}.png").write_bytes(content)
    turned, lying = (decided(bundle, tmp_path / name) for name in ("turned", "lying"))
    upright = turned.loc[[f"{name[0]}-1.png" for name in turned.index]]
    assert list(turned["decision"]) == list(upright["decision"])
    assert list(turned["answer"]) == list(upright["answer"])
    assert list(turned["score"]) == list(upright["score"])
    assert np.abs(lying["score"].to_numpy() - upright["score"].to_numpy()).max() > 1e-3  # the turn matters


def test_bundle_and_model_file_say_how_a_file_becomes_pixels(bundle):
    said = json.loads((bundle / "bundle.json").read_text())["preprocessing"]
    assert said == read_tensors(bundle / "model_best.pth")["preprocessing"]
    assert said == {**said, **ImageContract().to_dict()}
    assert {"size", "crop_pct", "interpolation", "mean", "std", "color_order"} < set(said)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"orientation": "ignored"}, "$.preprocessing.orientation"),
        ({"formats": ["EPS"]}, "$.preprocessing.formats"),
        ({"max_pixels": 5}, "bundle.json and the model file name different preprocessing"),
    ],
)
def test_a_bundle_that_says_something_else_is_refused(bundle, script, images, tmp_path, change, fragment):
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["preprocessing"].update(change)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    refused(script("60_predict", bundle, images, "--out", tmp_path / "d.csv"), fragment)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_every_image_of_a_folder_is_a_row_whatever_it_is_called(bundle, script, images, tmp_path, format):
    content, folder = (images / "000.png").read_bytes(), tmp_path / "inbox"
    files = {
        b"1.JPG": content,
        b"2.jfif": content,
        b"3": content,
        b"caf\xe9.png": content,
        b"5.heic": HEIC,
        b"6.jpg": b"",
    }
    folder.mkdir()
    for name, data in {**files, b"._1.JPG": content, b"notes.txt": b"hello"}.items():
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(data)
    out = tmp_path / f"d.{format}"
    outcome = script("60_predict", bundle, folder, tmp_path / "gone.png", "--format", format, "--out", out)
    assert (outcome.status, outcome.err.count("Traceback")) == (4, 0), outcome.err
    assert "left out of the folders: 1 hidden, 1 without an image (1 .txt)" in outcome.out
    assert "3 of 7 images could not be read" in outcome.err
    read = {"csv": pd.read_csv, "jsonl": lambda at: pd.read_json(at, lines=True), "parquet": pd.read_parquet}[format]
    table = read(out)
    names = ["1.JPG", "2.jfif", "3", "5.heic", "6.jpg", "caf\\xe9.png"]
    assert list(table["id"]) == [*(f"{folder}/{name}" for name in names), str(tmp_path / "gone.png")]
    bad = table.loc[[3, 4, 6], ["decision", "reason"]].to_numpy().tolist()
    assert bad == [
        ["defer", "the image format is not accepted: HEIC"],
        ["defer", "the file is empty"],
        ["defer", "no such file"],
    ]
    assert table.loc[[0, 1, 2, 5], "score"].nunique() == 1


def test_equal_images_give_equal_bytes_however_they_are_grouped(bundle, images, tmp_path):
    paths = sorted(map(str, images.glob("*.png")))[:40]
    out = tmp_path / "d.csv"

    def rows(*words: object) -> list[str]:
        done("60_predict", bundle, *words, "--out", out, "--overwrite")
        return out.read_text().splitlines()[1:]

    together = rows(*paths)
    assert len(set(together)) == 40
    assert [row for path in paths for row in rows(path)] == together
    assert [row for at in range(0, 40, 7) for row in rows(*paths[at : at + 7])] == together
    assert rows(*paths, "--batch_size", 7) == rows(*paths, "--num_workers", 2) == together


def test_a_bundle_for_a_host_of_another_size_says_so_and_decides_within_the_promise(bundle, images, tmp_path, script):
    run, other = bundle.parent, tmp_path / "other"
    done("50_export_bundle", "--run", run, "--out", other, "--forward_batch", 3)
    assert json.loads((other / "bundle.json").read_text())["forward_batch"] == 3
    assert "images at a time, and this bundle takes 3" in (other / "README.md").read_text()
    assert "images at a time, and this bundle" not in (bundle / "README.md").read_text()
    assert "within 0 of the recorded ones" in done("50_export_bundle", "--verify", other, "--golden").out
    paths = sorted(map(str, images.glob("*.png")))[:10]
    parts = [list(Stage1Predictor.load(at, "cpu").outputs(paths)) for at in (bundle, other)]
    assert [[len(part) for part in found] for found in parts] == [[8, 2], [3, 3, 3, 1]]
    logits = [np.concatenate([part.logits for part in found]) for found in parts]
    np.testing.assert_allclose(*logits, atol=1e-4)
    for words, refusal in (
        (("--run", run, "--out", tmp_path / "none", "--forward_batch", 0), "is 0; allowed 1 to 4096"),
        (("--verify", other, "--forward_batch", 3), "--forward_batch is for a new bundle"),
    ):
        refused(script("50_export_bundle", *words), refusal)
    assert not (tmp_path / "none").exists()


def test_forward_passes_have_the_size_that_training_recorded(bundle, images):
    manifest = json.loads((bundle / "bundle.json").read_text())
    recorded = json.loads((bundle.parent / "config.json").read_text())["forward_batch"]
    assert manifest["forward_batch"] == recorded == 8
    for known, sizes in ((True, [8, 8]), (False, [7, 3])):
        if not known:  # as bundles were before the size was recorded
            del manifest["forward_batch"]
            (bundle / "bundle.json").write_text(json.dumps(manifest))
        predictor, seen = Stage1Predictor.load(bundle, "cpu"), []
        predictor.model.backbone.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        paths = sorted(map(str, images.glob("*.png")))[:10]
        parts = list(predictor.outputs(paths, batch_size=7))
        assert [len(part) for part in parts] == [7, 3]
        assert seen == sizes


@pytest.mark.slow
def test_all_images_of_the_demo_give_equal_bytes_however_they_are_grouped(bundle, tmp_path):
    folder = Path(__file__).parents[2] / "data" / "demo" / "images"
    paths = sorted(map(str, folder.iterdir()))
    assert len(paths) == 1484
    out = tmp_path / "d.csv"

    def rows(*words: object) -> list[str]:
        done("60_predict", bundle, *words, "--out", out, "--overwrite")
        return out.read_text().splitlines()[1:]

    together = rows(folder)
    assert len({row.split(",", 1)[1] for row in together}) > 1400  # scores differ from image to image
    for flags in (
        ("--batch_size", 1),
        ("--batch_size", 7),
        ("--num_workers", 2),
        ("--batch_size", 7, "--num_workers", 2),
    ):
        assert rows(folder, *flags) == together
    assert [row for at in range(0, len(paths), 7) for row in rows(*paths[at : at + 7])] == together

    rows(folder)
    scores = pd.read_csv(out)["score"].tolist()
    predictor = Stage1Predictor.load(bundle)
    whole = predictor.predict(paths)
    assert [decision.score for decision in whole] == scores  # a score is written with every digit
    assert predictor.predict(paths, workers=2) == whole
    assert [predictor.predict(path)[0] for path in paths] == whole
    assert [decision for at in range(0, len(paths), 7) for decision in predictor.predict(paths[at : at + 7])] == whole

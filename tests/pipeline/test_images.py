"""Image files as people bring them, through the scripts: the picture that they see is the one that is decided."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import done, refused
from odd_images import TURNED
from PIL import Image

from stage1_pro.core.data.decoding import ImageContract
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
    np.testing.assert_allclose(turned["score"], upright["score"], atol=1e-6)
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

"""`Stage1Predictor.predict`: whatever holds the same picture gets the same decision, and no mistake passes for one."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chain import done
from PIL import Image

from stage1_pro import Stage1Predictor
from stage1_pro.core.inference.predictor import RawOutputs


@pytest.fixture
def predictor(bundle: Path) -> Stage1Predictor:
    return Stage1Predictor.load(bundle, "cpu")


def test_paths_bytes_pil_images_and_arrays_are_decided_as_60_does(predictor, bundle, images, tmp_path):
    paths = [images / f"{index:03d}.png" for index in range(12)]
    pictures = [Image.open(path) for path in paths]
    kinds = (
        paths,
        tuple(map(str, paths)),
        [path.read_bytes() for path in paths],
        pictures,
        [np.asarray(picture) for picture in pictures],
    )
    first = predictor.predict(paths)
    for kind in kinds:
        assert predictor.predict(kind) == first
        assert predictor.predict(kind[5]) == first[5:6]  # one image is a list of one
    assert predictor.predict([kind[at % 12] for at, kind in enumerate(kinds)]) == first[:5]
    assert predictor.predict(kinds[3], workers=2) == first
    assert predictor.predict([]) == []
    done("60_predict", bundle, *paths, "--format", "parquet", "--out", tmp_path / "d.parquet")
    rows = pd.read_parquet(tmp_path / "d.parquet").drop(columns="id").to_dict("records")
    assert [dataclasses.asdict(one) for one in first] == [{**row, "prediction_set": None} for row in rows]
    assert len(set(first)) == 12


def test_processes_defer_an_opened_image_whose_file_is_half_there(predictor, images, tmp_path):
    """It cannot be sent to them: that would end in no answer at all."""
    half, whole = tmp_path / "half.png", min(images.glob("*.png")).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    expected = repr(predictor.predict(half))
    assert "defer" in expected
    with Image.open(half) as opened:
        assert repr(predictor.predict([opened], workers=1)) == expected


def test_a_bad_image_is_deferred_among_good_ones(predictor, images):
    good = images / "000.png"
    alone, bad, again = predictor.predict([good, b"", str(good)])
    assert (bad.answer, bad.decision, bad.reason) == ("", "defer", "the file is empty")
    assert math.isnan(bad.score)
    assert alone == again
    (gone,) = predictor.predict("no such file.png")  # a str is one path, not many characters
    assert (gone.decision, gone.reason) == ("defer", "no such file")


@pytest.mark.parametrize(
    "wrong", [None, 7, torch.zeros(3, 8, 8), np.zeros((8, 8, 3)), np.zeros((2, 8, 8, 3), np.uint8), iter("a"), {"a": 1}]
)
def test_anything_else_is_a_type_error_before_the_first_image_is_read(predictor, images, wrong):
    with pytest.raises(TypeError, match=r"an image is a path|must be uint8"):
        predictor.predict(wrong)
    with pytest.raises(TypeError, match=r"^images\[1\]: "):
        predictor.predict([images / "000.png", wrong])


def test_a_bug_is_never_taken_for_a_bad_image(predictor, images):
    def broken(image: Image.Image) -> torch.Tensor:
        raise OSError("a bug in a transform")

    predictor.images.transform = broken
    with pytest.raises(OSError, match="a bug in a transform"):
        predictor.predict(images / "000.png")


def test_without_a_policy_nothing_is_decided(predictor, images):
    scoring = Stage1Predictor(predictor.model, device="cpu")
    with pytest.raises(ValueError, match="no exit policy"):
        scoring.predict([])
    (outputs,) = scoring.outputs(images / "000.png")
    assert isinstance(outputs, RawOutputs)
    assert outputs.logits.shape == (1, 2)

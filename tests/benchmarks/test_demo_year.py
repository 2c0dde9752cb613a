"""The scripted year: what production is made of, and what the auditors say of it."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from demo_year import CAST, NEW_CAMERA, draw_month

NAMES = ["other", "red"]


def test_a_month_is_drawn_again_as_it_was_and_july_has_another_camera(tmp_path):
    Image.fromarray(np.full((20, 20, 3), 100, dtype=np.uint8)).save(tmp_path / "a.png")
    cases = pd.DataFrame({"path": [str(tmp_path / "a.png")], "label": [1]})
    june, again, july = (
        draw_month(number, tmp_path / name, cases, NAMES, 3, seed=0)
        for number, name in ((NEW_CAMERA - 1, "june"), (NEW_CAMERA - 1, "again"), (NEW_CAMERA, "july"))
    )
    pixels = {month.folder.name: np.asarray(Image.open(month.folder / "0001.png")) for month in (june, again, july)}
    np.testing.assert_array_equal(pixels["june"], pixels["again"])
    assert (june.folder / "0000.png").read_bytes() != (june.folder / "0001.png").read_bytes()
    ratio = pixels["july"].mean(axis=(0, 1)) / pixels["june"].mean(axis=(0, 1))
    np.testing.assert_allclose(ratio / ratio.mean(), CAST / CAST.mean(), atol=0.02)
    assert (june.next_day, july.name) == ("2026-07-01", "2026-07")


def test_auditors_label_what_is_audited_and_the_truth_is_of_all(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    cases = pd.DataFrame({"path": [str(tmp_path / "a.png")], "label": [1]})
    month = draw_month(12, tmp_path / "2026-12", cases, NAMES, 4, seed=0)
    pd.DataFrame(
        {
            "id": month.table["path"],
            "answer": ["red", "other", "red", "other"],
            "decision": ["exit", "exit", "exit", "defer"],
            "audit": [True, False, False, True],
        }
    ).to_csv(month.decided, index=False)
    month.label()
    labels = pd.read_csv(month.labels)
    assert labels["label"].tolist() == ["red", "red"]
    assert labels["id"].tolist() == [month.table["path"][0], month.table["path"][3]]
    assert month.truth("red") == (0.75, 1 / 3)
    assert month.next_day == "2027-01-01"

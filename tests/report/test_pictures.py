"""Pictures in the report: the costly errors first, only images that were scored, and all of it in the one file."""

import re
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_pro.core.data.image_files import content_digest
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.records.scores import Scores, hashes
from stage1_pro.core.report.run.page import write_report
from stage1_pro.core.report.run.pictures import EACH, SIDE, Picture, Sheet, picture_sheets

CASES = 60
TITLES = ["Missed positives", "False alarms", "The least sure exits", "Deferred"]


def decided() -> tuple[np.ndarray, ExitDecisions]:
    """Labels and decisions of 60 cases: 3 missed, 2 false alarms, 35 right exits, 20 deferred; surer by number."""
    labels, answers, exits = np.zeros(CASES, np.int8), np.zeros(CASES, np.int64), np.ones(CASES, bool)
    labels[:3] = 1
    answers[3:5] = 1
    labels[5:20] = answers[5:20] = 1
    exits[40:] = False
    probabilities = 0.5 + np.arange(CASES) / 200
    probabilities[40:] = np.nan  # as of outputs that are not finite
    return labels, ExitDecisions(exits, answers, probabilities, probabilities)


def sheets_of(paths: dict[str, str], seed: int = 0, then: Callable[[], object] = lambda: None) -> list[Sheet]:
    """then: what happens between scoring and the report."""
    labels, decisions = decided()
    ids = np.array([f"{index:02d}" for index in range(CASES)])
    content = hashes([content_digest(Path(paths[name]).read_bytes()) for name in ids])
    scores = Scores("val_test", ids, ids, labels, np.zeros((CASES, 2), np.float32), None, "", "", content=content)
    then()
    return picture_sheets(scores, decisions, paths, ("other", "red"), np.random.default_rng(seed))


@pytest.fixture
def paths(pictures, tmp_path) -> dict[str, str]:
    found = {}
    for index in range(CASES):
        found[f"{index:02d}"] = str(tmp_path / f"{index:02d}.png")
        (tmp_path / f"{index:02d}.png").write_bytes((pictures / f"{index:02d}.png").read_bytes())
    return found


def test_errors_come_first_and_the_surest_of_them(paths):
    sheets = sheets_of(paths)
    assert [sheet.title for sheet in sheets] == TITLES
    assert [sheet.total for sheet in sheets] == [3, 2, 35, 20]
    assert [len(sheet.pictures) for sheet in sheets] == [3, 2, EACH, EACH]
    shown = [[picture.case_id for picture in sheet.pictures] for sheet in sheets]
    assert shown[:2] == [["02", "01", "00"], ["04", "03"]]
    assert shown[2] == [f"{index:02d}" for index in range(5, 5 + EACH)]  # the least sure
    assert {int(name) for name in shown[3]} <= set(range(40, 60))
    assert sheets[0].pictures[0].words == "red, answered other at 51.0%"
    assert sheets[3].pictures[0].words == "other, would be answered other"
    assert sheets_of(paths) == sheets != sheets_of(paths, seed=1)


def test_of_a_long_id_the_end_is_shown():
    assert Picture("", True, "short.png", "").short_id == "short.png"
    assert Picture("", True, "a/long/path/of/folders/0042.png", "").short_id == "…ders/0042.png"


def test_small_images_are_kept_pixel_by_pixel_and_large_ones_are_thumbnails(paths):
    Image.fromarray(np.zeros((900, 1200, 3), np.uint8)).save(paths["01"])
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.fromarray(np.zeros((40, 20, 3), np.uint8)).save(paths["02"], exif=exif)
    images = [Image.open(BytesIO(b64decode(picture.uri.partition(",")[2]))) for picture in sheets_of(paths)[0].pictures]
    assert [image.size for image in images] == [(40, 20), (SIDE, SIDE * 3 // 4), (24, 24)]
    assert np.array_equal(np.asarray(images[2]), np.asarray(Image.open(paths["00"])))
    assert [picture.small for picture in sheets_of(paths)[0].pictures] == [True, False, True]


def test_what_is_gone_unreadable_or_another_image_is_counted_and_not_shown(paths, pictures):
    def happens() -> None:
        Path(paths["00"]).unlink()
        Path(paths["01"]).write_bytes((pictures / "07.png").read_bytes())

    Path(paths["03"]).write_bytes(b"no image")
    missed, alarms, *_ = sheets_of(paths, then=happens)
    assert ([picture.case_id for picture in missed.pictures], missed.absent, missed.total) == (["02"], 2, 3)
    assert ([picture.case_id for picture in alarms.pictures], alarms.absent) == (["04"], 1)


def test_the_page_holds_the_pictures_itself_and_only_where_they_are_wanted(made, pictures):
    run, policy, evaluation = made(name="pictured")
    write_report(run, policy, evaluation)
    assert "<img" not in run.report_path.read_text()
    names = run.scores("val_test").case_id
    write_report(run, policy, evaluation, {name: str(pictures / f"{at % 60:02d}.png") for at, name in enumerate(names)})
    html = run.report_path.read_text()
    sources = re.findall(r'<img src="([^"]*)"', html)
    assert 3 * EACH <= len(sources) <= 4 * EACH
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert html.index("Missed positives") < html.index("False alarms") < html.index("The least sure exits")

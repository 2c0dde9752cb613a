"""Which unlabelled images are learnt from."""

import shutil
from pathlib import Path

import pytest

from stage1_pro.core.config.sections import DatasetParams, Source
from stage1_pro.core.data.cases import load_cases
from stage1_pro.core.errors import UserError
from stage1_pro.core.pretraining.loader import PassSampler
from stage1_pro.core.pretraining.pool import find_pool, protected_contents


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """The first thirty pictures, under other names and in a sub-folder."""
    target = tmp_path / "unlabelled" / "deep"
    target.mkdir(parents=True)
    for index in range(30):
        shutil.copy(pictures / f"{index:02}.png", target / f"frame-{100 - index}.PNG")
    return tmp_path / "unlabelled"


class Drawn:
    def __init__(self, **indices: list[int]):
        self.split = indices

    def indices(self, split: str) -> list[int]:
        return self.split[split]


def labelled(pictures: Path, labels_csv):
    path = labels_csv("path,label", *(f"{pictures}/{index:02}.png,{'ab'[index % 2]}" for index in range(20, 60)))
    return load_cases(DatasetParams(sources=(Source(labels=path),)), decode=False)


def test_certifying_and_reporting_images_are_left_out_under_any_name(folder, pictures, labels_csv) -> None:
    cases = labelled(pictures, labels_csv)  # case 0 is picture 20, and so on
    splits = Drawn(train=[0, 1], val_select=[2, 3], val_calib=[4, 5, 6, 30], val_test=[7, 31])
    pool = find_pool(str(folder), protected_contents(cases, splits), "error")
    assert pool.excluded == {"val_calib": 3, "val_test": 1}
    assert len(pool) == 26
    held = {f"frame-{100 - index}.PNG" for index in (24, 25, 26, 27)}
    assert not held & {Path(path).name for path in pool.paths}
    assert {f"frame-{100 - index}.PNG" for index in (20, 21, 22, 23)} <= {Path(path).name for path in pool.paths}


def test_names_and_places_do_not_enter_the_digest_and_contents_do(folder, tmp_path) -> None:
    pool = find_pool(str(folder), {}, "error")
    (folder / "deep").rename(folder / "elsewhere")
    shutil.copy(folder / "elsewhere" / "frame-100.PNG", folder / "twin.png")
    again = find_pool(str(folder), {}, "error")
    assert (again.digest, again.contents, again.duplicates) == (pool.digest, pool.contents, 1)
    (folder / "twin.png").unlink()
    (folder / "elsewhere" / "frame-100.PNG").unlink()
    assert find_pool(str(folder), {}, "error").digest != pool.digest


def test_a_csv_names_images_beside_it(folder) -> None:
    (folder / "list.csv").write_text("Path,site\ndeep/frame-100.PNG,a\ndeep/frame-99.PNG,b\n")
    pool = find_pool(str(folder / "list.csv"), {}, "error")
    assert sorted(Path(path).name for path in pool.paths) == ["frame-100.PNG", "frame-99.PNG"]


def test_unreadable_images(folder) -> None:
    (folder / "bad.png").write_bytes(b"\x89PNG junk")
    with pytest.raises(UserError, match=r"1 of 31 images cannot be read: .*bad\.png .*on_bad_image skip") as refusal:
        find_pool(str(folder), {}, "error")
    assert "missing" not in str(refusal.value)
    assert find_pool(str(folder), {}, "skip").unreadable == 1


def test_sources_without_images(folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (folder / "gone.csv").write_text("path\nnope.png\n")
    (folder / "names.csv").write_text("file\ndeep/frame-99.PNG\n")
    (folder / "none.csv").write_text("path\n")
    for name, words in (
        (tmp_path / "empty", "no images in this folder"),
        (tmp_path / "nowhere", "does not exist. Name a folder of images, or a CSV file"),
        (folder / "deep" / "frame-99.PNG", "name a folder of images, or a CSV"),
        (folder / "gone.csv", "nope.png (missing)"),
        (folder / "names.csv", "no column 'path'"),
        (folder / "none.csv", "names no images"),
    ):
        with pytest.raises(UserError) as refusal:
            find_pool(str(name), {}, "skip")
        assert words in str(refusal.value)
    every = dict.fromkeys(find_pool(str(folder / "deep"), {}, "error").contents, "val_test")
    with pytest.raises(UserError, match=r"0 of 30 images left \(30 belong to val_calib or val_test\)"):
        find_pool(str(folder / "deep"), every, "error")


def test_epochs_go_through_one_permutation_after_the_other() -> None:
    def drawn(epoch: int, rank: int = 0, world: int = 1, count: int = 6) -> list[int]:
        sampler = PassSampler(10, 4, count, rank, world)
        sampler.set_epoch(epoch)
        return [draw.position for draw in sampler]

    whole = [position for epoch in range(5) for position in drawn(epoch)]
    assert all(sorted(whole[at : at + 10]) == list(range(10)) for at in (0, 10, 20))
    assert whole[:10] != whole[10:20]
    both = [position for pair in zip(drawn(0, 0, 2, 3), drawn(0, 1, 2, 3), strict=True) for position in pair]
    assert both == drawn(0)

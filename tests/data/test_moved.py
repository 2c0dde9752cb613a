"""Sources that have moved: the same cases under the same names, whatever lies where."""

import shutil
from pathlib import Path

import pytest

from stage1_pro.core.config.sections import DatasetParams, Source
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import load_cases
from stage1_pro.core.data.moved import moved_config, roots_of
from stage1_pro.core.errors import UserError


def moved(params: DatasetParams, folder: Path) -> DatasetParams:
    return moved_config(Stage1ProConfig(dataset_params=params), [f"data={folder}"], "runs/a").dataset_params


def folders(root: Path, pictures: Path) -> Source:
    for label, name in (("a", "00.png"), ("b", "01.png"), ("b", "02.png")):
        (root / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / name, root / label)
    return Source(root=str(root))


def table(root: Path, pictures: Path, absolute: bool, labels: str, named: bool) -> Source:
    root.mkdir(parents=True)
    lines = []
    for index in range(4):
        shutil.copy(pictures / f"{index:02d}.png", root)
        lines.append(f"{root if absolute else '.'}/{index:02d}.png,{'ab'[index % 2]}")
    (root / labels).parent.mkdir(exist_ok=True)
    (root / labels).write_text("\n".join(lines))
    return Source(root=str(root) if named else None, labels=str(root / labels))


MAKE = {
    "folders": folders,
    "table beside the images": lambda root, pictures: table(root, pictures, False, "labels.csv", False),
    "absolute paths": lambda root, pictures: table(root, pictures, True, "labels.csv", False),
    "table below the root": lambda root, pictures: table(root, pictures, False, "tables/labels.csv", True),
}


@pytest.mark.parametrize("kind", MAKE)
def test_the_cases_are_the_same_ones(kind, pictures, tmp_path):
    source = MAKE[kind](tmp_path / "old" / "place", pictures)
    params = DatasetParams(sources=(source,), positive_class="b")
    before = load_cases(params, decode=False)
    shutil.move(tmp_path / "old", tmp_path / "new")
    after = load_cases(moved(params, tmp_path / "new" / "place"), decode=False)
    assert after.digest == before.digest
    assert all(Path(path).is_relative_to(tmp_path / "new") for path in after.frame["path"])


def test_a_table_that_stayed_is_read_where_it_is(pictures, tmp_path):
    source = table(tmp_path / "old", pictures, True, "labels.csv", True)
    shutil.move(source.labels, tmp_path / "mine.csv")
    params = DatasetParams(sources=(Source(root=source.root, labels=str(tmp_path / "mine.csv")),), positive_class="b")
    before = load_cases(params, decode=False)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert load_cases(moved(params, tmp_path / "new"), decode=False).digest == before.digest


def test_words_that_name_no_source_or_no_folder_are_told_at_once(tmp_path):
    sources = Source("north", root="/old/north"), Source("south", root="/old/south")
    with pytest.raises(UserError) as refused:
        roots_of([str(tmp_path), f"nort={tmp_path}", f"south={tmp_path}/none", f"south={tmp_path}"], sources)
    for words in (
        f"{tmp_path}: write NAME=PATH",
        "no source 'nort' (did you mean 'north'?); sources: north in /old/north, south in /old/south",
        f"{tmp_path}/none is not a folder",
        "'south' is named twice",
    ):
        assert words in str(refused.value)
    assert roots_of([f"south={tmp_path}"], sources) == {"south": str(tmp_path)}

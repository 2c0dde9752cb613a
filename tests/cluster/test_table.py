"""INPUT of 61: rows come out as they stand in the files, whatever the row groups, and bad tables are told at once."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1_pro.core.cluster.actor import names
from stage1_pro.core.cluster.images import source, sources
from stage1_pro.core.cluster.table import open_table
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.errors import UserError


def folder_of(path: Path, rows: int, files: int, row_group: int, **columns: object) -> pd.DataFrame:
    """A table in several files of small row groups; returns the whole of it."""
    path.mkdir()
    table = pd.DataFrame({"path": [f"{index}.png" for index in range(rows)], **columns})
    for number, places in enumerate(np.array_split(np.arange(rows), files)):
        table.iloc[places].to_parquet(path / f"{number}.parquet", row_group_size=row_group)
    (path / "notes.txt").write_text("no part of it")
    return table


@pytest.mark.parametrize("size", [1, 7, 10, 50, 64])
def test_parts_are_the_rows_in_order(size: int, tmp_path: Path) -> None:
    whole = folder_of(tmp_path / "in", 50, 3, 4, id=[f"case {index}" for index in range(50)], other=1.0)
    table = open_table(str(tmp_path / "in"))
    assert (len(table), table.columns) == (50, ("path", "id"))
    for start in range(0, 50, size):
        at = range(start, min(start + size, 50))
        pd.testing.assert_frame_equal(
            table.rows(at).to_pandas(), whole.iloc[start : at.stop][["path", "id"]].reset_index(drop=True)
        )


def test_another_table_has_another_digest(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 8, 2, 4)
    first = open_table(str(tmp_path / "in"))
    assert open_table(str(tmp_path / "in")).digest == first.digest
    os.utime(tmp_path / "in" / "1.parquet", (1, 1))
    assert open_table(str(tmp_path / "in")).digest != first.digest


def test_groups_are_counted_without_rows_that_have_none(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 6, 2, 2, group=["a", None, "b", "a", None, "b"])
    assert open_table(str(tmp_path / "in")).distinct_groups() == (2, 4)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"file": ["a"]}, "no column path and no column bytes, but file; one is needed"),
        ({"path": [1]}, "column path is int64; allowed text"),
        ({"bytes": ["text"]}, "allowed binary"),
        (
            {"path": ["a"], "id": [["a", "b"]], "group": [b"a"]},
            "(?s)column id is list.*column group is binary; allowed text",
        ),
        ({"path": []}, "no rows"),
    ],
)
def test_a_table_that_names_no_images_is_refused(columns: dict, words: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(columns)
    (frame.astype({"path": str}) if not len(frame) else frame).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(UserError, match=words):
        open_table(str(tmp_path / "in.parquet"))


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.table([["a.png"], ["b.png"]], names=["path", "path"])
    pq.write_table(twice, tmp_path / "in.parquet")
    with pytest.raises(UserError, match="column path stands 2 times; allowed once"):
        open_table(str(tmp_path / "in.parquet"))


def test_what_a_name_hides_and_folders_are_no_part_of_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 4, 1, 2)
    for name in ("._0.parquet", "_metadata.parquet"):
        (tmp_path / "in" / name).write_text("no table")
    (tmp_path / "in" / "more.parquet").mkdir()
    assert len(open_table(str(tmp_path / "in"))) == 4


def test_links_to_files_are_part_of_it_and_one_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 4, 1, 2)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "in").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert len(open_table(str(tmp_path / "snapshot"))) == 4
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        open_table(str(tmp_path / "snapshot"))


def test_the_advice_on_a_csv_makes_a_table_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it's.csv.gz").write_bytes(gzip.compress(b"path,id\na.png,007\n"))
    with pytest.raises(UserError, match=r"not a whole Parquet file .* Write it as Parquet: .*\.$") as refusal:
        open_table(str(tmp_path / "it's.csv.gz"))
    monkeypatch.chdir(tmp_path)
    exec("import pandas; " + str(refusal.value).rpartition("as Parquet: ")[2].rstrip("."))
    assert open_table("images.parquet").rows(range(1)).to_pylist() == [{"path": "a.png", "id": "007"}]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("path\na.png\n")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("in.parquet", "not a whole Parquet file"),
        ("none.parquet", "no such file or folder"),
        ("empty", r"no files \*\.parquet"),
    ):
        with pytest.raises(UserError, match=words):
            open_table(str(tmp_path / name))
    with pytest.raises(UserError, match="Protocol not known: nowhere"):
        open_table("nowhere://a/b.parquet")


def test_files_with_different_columns_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 4, 2, 2)
    pd.DataFrame({"path": ["z.png"], "id": ["z"]}).to_parquet(tmp_path / "in" / "9.parquet")
    with pytest.raises(UserError, match=r"9\.parquet has other columns than the first file"):
        open_table(str(tmp_path / "in"))


def test_an_image_is_its_bytes_else_its_path_else_missing() -> None:
    assert source("a.png", b"content", "/base") == b"content"
    assert source("a/b.png", None, "/base") == "/base/a/b.png"
    assert source("/a.png", None, "/base") == source("file:///a.png", None, "/base") == "/a.png"
    for nothing in (None, ""):
        assert str(source(nothing, None, "/base")) == "no such file"


def test_images_come_in_their_order_from_memory_and_elsewhere(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/there.png", b"remote")
    paths = [f"{index}.png" if index % 3 else "memory://there.png" for index in range(300)]
    paths[7] = "memory://gone.png"
    found = [image for part in sources(paths, [None] * 300, "/base") for image in part]
    assert isinstance(found[7], BadImage)
    assert str(found[7]) == "no such file"
    assert [image for image in found if not isinstance(image, BadImage)] == [
        f"/base/{path}" if path[0] != "m" else b"remote" for path in paths if path != paths[7]
    ]
    with pytest.raises(UserError, match=r"nowhere://a\.png"):
        list(sources(["nowhere://a.png"], [None], "/base"))


def test_a_case_without_an_id_is_called_by_its_path_or_its_place() -> None:
    assert names(range(4, 8), ["x", None, "", ""], ["a.png", "b.png", "c.png", ""]) == ["x", "b.png", "c.png", "7"]

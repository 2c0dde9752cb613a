"""Tables of labels with the delimiters, headers and encodings of other tools."""

from pathlib import Path

import pytest

from stage1_pro.core.data.label_tables import read_table
from stage1_pro.core.errors import UserError

ROWS = [("a.png", "red"), ("b.png", "other")]


def written(folder: Path, header: str, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    lines = [header, *(delimiter.join(row) for row in ROWS)]
    path.write_bytes(("\n".join(line for line in lines if line) + "\n").encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("names", ["path label", "filename class", "image target", "file_name label", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_usual_tables_give_the_same_rows(tmp_path, delimiter, names, encoding):
    table = read_table(written(tmp_path, delimiter.join(names.split()), delimiter, encoding), "s")
    assert list(zip(table.frame["path"], table.frame["label"], strict=True)) == ROWS
    assert not table.warnings
    assert bool(table.notes) == (names not in ("", "path label"))  # it is said which columns were taken for ours


@pytest.mark.parametrize(("encoding", "guess"), [("latin-1", "Latin-1"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named(tmp_path, encoding, guess):
    path = tmp_path / "labels.csv"
    path.write_bytes("path,label\nä.png,red\n".encode(encoding))
    with pytest.raises(UserError, match=f"looks like {guess}.*Save it as UTF-8"):
        read_table(path, "s")


def table_of(folder: Path, text: str):
    (folder / "labels.csv").write_text(text)
    return read_table(folder / "labels.csv", "s")


def test_an_index_column_and_others_are_left_out_by_name(tmp_path):
    table = table_of(tmp_path, ",path,label,age\n0,a.png,red,50\n1,b.png,other,51\n")
    assert list(table.frame["path"]) == ["a.png", "b.png"]
    assert [warning.split(": ", 1)[1] for warning in table.warnings] == ["columns that are not read: age"]


@pytest.mark.parametrize("name", ["patient", "patient_id", "site", "video", "track_id"])
def test_a_column_that_looks_like_groups_is_asked_about(tmp_path, name):
    table = table_of(tmp_path, f"path,label,{name}\na.png,red,1\nb.png,other,1\n")
    assert f"'{name}' looks like" in table.warnings[1]
    assert "Rename it to 'group'" in table.warnings[1]
    followed = table_of(tmp_path, "path,label,group\na.png,red,1\nb.png,other,1\n")
    assert not followed.warnings
    assert set(followed.frame["group"]) == {"1"}


def test_an_image_column_beside_our_path_stays_another_column(tmp_path):
    table = table_of(tmp_path, "path,label,image\na.png,red,x\nb.png,other,y\n")
    assert list(table.frame["path"]) == ["a.png", "b.png"]
    assert not table.notes

"""Unusual tables as people bring them, each with the cases that it holds, or with what is said of it."""

import gzip
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.data.cases import CaseTable, load_cases
from stage1_pro.core.errors import UserError

ROWS = ("00.png a", "01.png b", "02.png a")
"""What most of the tables below hold: path and label, then group and split where there are any."""


@dataclass(frozen=True)
class Read:
    """The cases that a table holds, and words of what is said of it: nothing where there are none."""

    rows: tuple[str, ...] = ROWS
    says: tuple[str, ...] = ()
    columns: Mapping[str, str | None] | None = None


@dataclass(frozen=True)
class Refused:
    """Words of the refusal, and what follows its advice: another text, or columns for the source.

    given: columns that were named before.
    """

    words: tuple[str, ...]
    mended: str | bytes | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    given: Mapping[str, str | None] = field(default_factory=dict)


def says(*words: str, rows: tuple[str, ...] = ROWS, columns: Mapping[str, str | None] | None = None) -> Read:
    return Read(rows, words, columns)


def refused(*words: str, mended: str | bytes | None = None, **columns: str | None) -> Refused:
    return Refused(words, mended, columns)


PLAIN = "path,label\n00.png,a\n01.png,b\n02.png,a\n"
GROUPED = ("00.png a g", "01.png b h", "02.png a g")


def with_marks(mark: str) -> str:
    return PLAIN.replace(",", mark)


def headed(head: str) -> str:
    return PLAIN.replace("path,label", head)


def grouped(name: str) -> str:
    return f"path,label,{name}\n00.png,a,g\n01.png,b,h\n02.png,a,g\n"


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


TABLES: dict[str, tuple[str | bytes, Read | Refused]] = {
    # ---- delimiters and lines
    "commas": (PLAIN, Read()),
    "semicolons": (with_marks(";"), Read()),
    "tabs": (with_marks("\t"), Read()),
    "bars": (with_marks("|"), Read()),
    "semicolons, commas inside": (with_marks(";") + "03.png;c, or d\n", Read((*ROWS, "03.png c, or d"))),
    "spaces": (with_marks(" "), refused("1 column and no header", "commas, semicolons, tabs, |", mended=PLAIN)),
    "one column": ("00.png\n01.png\n", refused("1 column and no header")),
    "lines of Windows": (PLAIN.replace("\n", "\r\n"), Read()),
    "lines of old Macs": (PLAIN.replace("\n", "\r"), Read()),
    "no newline at the end": (PLAIN.rstrip(), Read()),
    "blank lines": ("\n\n" + PLAIN.replace("\n", "\n\n"), Read()),
    "rows of commas below": (PLAIN + ",\n,\n,,,\n", Read()),
    "spaces around cells": (PLAIN.replace(",", " , "), Read()),
    "quoted cells": ('"path","label"\n"00.png","a"\n"01.png","b"\n02.png,"a"\n', Read()),
    "open quote": (PLAIN + '"03.png,a\n', refused("no cases could be read (line 5: unexpected end of data)")),
    "trailing commas": (PLAIN.replace("\n", ",\n"), Read()),
    "trailing commas below the header": (PLAIN.replace("\n", ",\n").replace("label,", "label"), Read()),
    "trailing commas, no header": ("00.png,a,,\n01.png,b,,\n02.png,a,,\n", Read()),
    "more cells than columns": (PLAIN + "03.png,a,b\n", refused("1 line with more than the 2 columns", "first one: 5")),
    "fewer cells than columns": (PLAIN + "03.png\n", refused("1 case has no label: 03.png", mended=PLAIN)),
    "semicolons and commas": (
        PLAIN + "03.png;a\n04.png|b\n",
        refused("parted by commas, but by semicolons or | in 2 lines: 5, 6", mended=PLAIN),
    ),
    "one comma among semicolons": (
        with_marks(";").replace("01.png;b", "01.png,b"),
        refused("parted by semicolons, but by commas in 1 line: 3", mended=PLAIN),
    ),
    # ---- no tables
    "a workbook": (
        zipped("[Content_Types].xml", "xl/workbook.xml"),
        refused("an Excel workbook: save its sheet as CSV"),
    ),
    "a workbook of old": (b"\xd0\xcf\x11\xe0" + bytes(100), refused("an Excel workbook")),
    "an archive": (zipped("00.png", "labels.csv"), refused("a ZIP archive: unpack it")),
    "a compressed table": (gzip.compress(PLAIN.encode()), refused("a gzip file: unpack it", mended=PLAIN)),
    # ---- encodings
    "byte order mark": (b"\xef\xbb\xbf" + PLAIN.encode(), Read()),
    "Latin-1": (
        "path,label\nä.png,a\n".encode("latin-1"),
        refused("looks like Latin-1", "Save it as UTF-8", mended=PLAIN),
    ),
    "UTF-16": (PLAIN.encode("utf-16"), refused("looks like UTF-16", "Save it as UTF-8", mended=PLAIN.encode())),
    # ---- headers
    "no header": (PLAIN.partition("\n")[2], Read()),
    "capitals": (headed("Path,LABEL"), Read()),
    "other order": ("label,path\na,00.png\nb,01.png\na,02.png\n", Read()),
    "filename,class": (headed("filename,class"), says("path from 'filename', label from 'class'")),
    "image,target": (headed("image,target"), says("path from 'image', label from 'target'")),
    "file_name,label": (headed("file_name,label"), says("path from 'file_name'")),
    "an image beside a path": ("path,label,image\n00.png,a,x\n01.png,b,y\n02.png,a,z\n", says("not read: image")),
    "unknown names": (
        headed("picture,kind"),
        refused("looks like a header", "columns: {path: picture, label: kind}", path="picture", label="kind"),
    ),
    "named by the config": (headed("picture,kind"), Read(columns={"path": "picture", "label": "kind"}, says=("from",))),
    "one name is known": (headed("picture,label"), refused("has no column 'path'", path="picture")),
    "named wrongly": (
        headed("picture,label"),
        Refused(("names 'piture', which", "did you mean 'picture'?"), None, {"path": "picture"}, {"path": "piture"}),
    ),
    "a first case that looks like a header": (
        "photo,a\n00.png,a\n01.png,b\n",
        refused("put the line path,label,… above it", mended="path,label\nphoto,a\n00.png,a\n01.png,b\n"),
    ),
    "a name twice": ("path,label,label\n00.png,a,a\n", refused("names a column twice", mended=PLAIN)),
    "a name that is nearly ours": (grouped("groups"), refused("did you mean 'group'?", group="groups")),
    "which is none of ours": (grouped("groups"), says("not read: groups", columns={"group": None})),
    "further columns": (grouped("age"), says("columns that are not read: age")),
    "only a header": ("path,label\n", refused("holds no cases", mended=PLAIN)),
    "nothing": ("", refused("no cases could be read", mended=PLAIN)),
    "six columns": ("00.png,a,b,c,train,f\n", refused("6 columns and no header")),
    # ---- columns that count rows
    "index under no name": (",path,label\n0,00.png,a\n1,01.png,b\n2,02.png,a\n", Read()),
    "index of pandas": ("Unnamed: 0,path,label\n0,00.png,a\n1,01.png,b\n2,02.png,a\n", says("not read: unnamed: 0")),
    "index, no header": ("0,00.png,a\n1,01.png,b\n2,02.png,a\n", says("the first column counts the rows")),
    "index from one": ("1;00.png;a\n2;01.png;b\n3;02.png;a\n", says("the first column counts the rows")),
    # ---- groups
    **{
        f"a column '{name}'": (grouped(name), refused(f"'{name}' looks like", f"{{group: {name}}}", group=name))
        for name in ("patient", "patient_id", "site", "video", "track_id")
    },
    "patients that do not matter": (grouped("patient"), says("not read: patient", columns={"group": None})),
    "patients beside a group": (
        "path,label,patient,group\n00.png,a,1,g\n01.png,b,1,h\n02.png,a,2,g\n",
        says("not read: patient", rows=GROUPED),
    ),
    "a group by another name": (
        grouped("patient"),
        Read(GROUPED, ("group from 'patient'",), columns={"group": "patient"}),
    ),
    # ---- rows
    "repeated rows": (
        PLAIN + "01.png,b\n01.png, b\n",
        says("2 rows left out that repeat another one exactly: lines 5, 6"),
    ),
    "one image, two labels": (PLAIN + "01.png,a\n", refused("2 identical images occur under different labels")),
    "a row without a path": (PLAIN + ",a\n", refused("1 row without a path: line 5", mended=PLAIN)),
    "missing values as words": (
        PLAIN.replace(",b", ",NaN"),
        says("label 'NaN'", rows=("00.png a", "01.png NaN", "02.png a")),
    ),
    "numbers for labels": (
        PLAIN.replace(",a", ",007").replace(",b", ",8"),
        Read(("00.png 007", "01.png 8", "02.png 007")),
    ),
    # ---- paths
    "backslashes": (
        "path,label\nsub\\00.png,a\nsub\\01.png,b\n",
        says("backslashes in 2 paths", rows=("sub/00.png a", "sub/01.png b")),
    ),
    "another machine's paths": (
        "path,label\nC:\\d\\00.png,a\n01.png,b\n",
        refused("1 file is missing", "write paths as they are below root", mended=PLAIN),
    ),
    "a slash in front": (PLAIN.replace("\n0", "\n./0"), Read(tuple("./" + row for row in ROWS))),
}


@pytest.fixture
def load(pictures: Path, tmp_path: Path) -> Callable[..., CaseTable]:
    """The case table of a text, whose paths begin in the folder of the pictures or in sub/ of a copy of it."""

    def load(content: str | bytes, columns: Mapping[str, str | None] | None = None) -> CaseTable:
        path = tmp_path / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        root = tmp_path / "images"
        if not root.exists():
            root.mkdir()
            (root / "sub").symlink_to(pictures)
            for name in ("00.png", "01.png", "02.png", "03.png"):
                (root / name).symlink_to(pictures / name)
            (root / "photo").symlink_to(pictures / "04.png")
        source: dict[str, Any] = {"name": "s", "root": str(root), "labels": str(path), "columns": columns}
        config = merge_configs([("test", {"dataset_params": {"sources": [source]}})])
        cases = load_cases(config.dataset_params, decode=False)
        # the last label is of no interest here
        asked = [question for question in cases.questions if "positive_class" not in question]
        if asked:
            raise UserError("\n".join(asked))
        return cases

    return load


def rows_of(cases: CaseTable) -> tuple[str, ...]:
    frame = cases.frame
    own = frame["group"].where(frame["group"] != frame["case_id"], "")
    columns = zip(frame["case_id"], frame["label"], own, frame["split"], strict=True)
    return tuple(" ".join(filter(None, (name, cases.class_names[code], *rest))) for name, code, *rest in columns)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_gives_its_cases_or_says_why_not(load: Callable[..., CaseTable], name: str) -> None:
    content, expected = TABLES[name]
    if isinstance(expected, Refused):
        with pytest.raises(UserError) as refusal:
            load(content, expected.given)
        for word in expected.words:
            assert word in str(refusal.value)
        if expected.mended or expected.columns:  # the advice, followed to the letter
            load(expected.mended or content, expected.columns)
        return
    cases = load(content, expected.columns)
    assert rows_of(cases) == expected.rows
    said = [*cases.notes, *cases.warnings]
    assert bool(said) == bool(expected.says)
    for word in expected.says:
        assert word in "\n".join(said)

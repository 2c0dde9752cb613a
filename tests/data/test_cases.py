"""The case table: what a CSV or a tree of folders may look like, and every way in which it may not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from stage1_pro.core.config.sections import DatasetParams, Source
from stage1_pro.core.data.cases import CaseTable, load_cases
from stage1_pro.core.errors import UserError

Csv = Callable[..., str]


def load(root: Path | None, labels: str | None, **params: object) -> CaseTable:
    return load_cases(DatasetParams(sources=(Source("s", root and str(root), labels),), **params), decode=True)


def refused(root: Path | None, labels: str | None, **params: object) -> str:
    with pytest.raises(UserError) as refusal:
        load(root, labels, **params)
    return str(refusal.value)


def rows(cases: CaseTable, *columns: str) -> list[tuple]:
    return list(cases.frame[list(columns)].itertuples(index=False, name=None))


# ---- what is accepted


def test_columns_come_in_any_order_with_a_header_and_in_ours_without(pictures: Path, labels_csv: Csv) -> None:
    headed = load(pictures, labels_csv("Split, LABEL ,group,path,note", "train,b,g,01.png,x", "val_test,a,h,00.png,y"))
    bare = load(pictures, labels_csv("00.png,a,00.png,h,val_test", "01.png,b,01.png,g,train"))
    for cases in (headed, bare):
        expected = [("00.png", 0, "h", "val_test"), ("01.png", 1, "g", "train")]
        assert rows(cases, "case_id", "label", "group", "split") == expected
        assert (cases.group_column, cases.split_column) == (True, True)
    assert headed.digest == bare.digest


def test_two_columns_are_enough(pictures: Path, labels_csv: Csv) -> None:
    cases = load(pictures, labels_csv("01.png,b", "00.png,a"))
    assert rows(cases, "case_id", "label", "group", "split") == [
        ("00.png", 0, "00.png", ""),
        ("01.png", 1, "01.png", ""),
    ]
    assert (cases.class_names, cases.positive_class) == (("a", "b"), "b")
    assert (cases.group_column, cases.split_column, cases.warnings) == (False, False, ())


def test_a_byte_order_mark_is_no_part_of_a_name(pictures: Path, labels_csv: Csv) -> None:
    path = Path(labels_csv("path,label", "00.png,a", "01.png,b"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(pictures, str(path)).class_names == ("a", "b")


def test_paths_start_from_root_from_the_csv_or_from_nowhere(pictures: Path, labels_csv: Csv, tmp_path: Path) -> None:
    for name in ("00.png", "01.png"):
        shutil.copy(pictures / name, tmp_path / name)
    lines = ("00.png,a,one", "01.png,b,two")
    beside = load(None, labels_csv(*lines))
    rooted = load(pictures, labels_csv(*lines))
    absolute = load(None, labels_csv(*(f"{pictures}/{line}" for line in lines)))
    assert beside.frame["path"].tolist() == [f"{tmp_path}/00.png", f"{tmp_path}/01.png"]
    assert absolute.frame["path"].tolist() == rooted.frame["path"].tolist()
    assert beside.digest == rooted.digest == absolute.digest


def test_the_digest_sees_content_labels_and_groups(pictures: Path, labels_csv: Csv) -> None:
    base = "00.png,a,one,g", "01.png,b,two,h"
    others = [
        ("02.png,a,one,g", base[1]),
        ("00.png,a,uno,g", base[1]),
        ("00.png,a,one,x", base[1]),
        ("00.png,b,one,g", "01.png,a,two,h"),
        (*base, "02.png,a,three,g"),
    ]
    digests = [load(pictures, labels_csv(*lines)).digest for lines in [base, tuple(reversed(base)), *others]]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 1 + len(others)


def test_the_positive_class_comes_last(pictures: Path, labels_csv: Csv) -> None:
    csv = labels_csv("00.png,stop", "01.png,go", "02.png,0", "03.png,1")
    cases = load(pictures, csv, class_names=("stop", "go"), positive_class="stop")
    assert cases.class_names == ("go", "stop")
    assert rows(cases, "case_id", "label") == [("00.png", 1), ("01.png", 0), ("02.png", 1), ("03.png", 0)]


def test_labels_that_are_numbers_are_names_in_the_order_of_numbers(pictures: Path, labels_csv: Csv) -> None:
    cases = load(pictures, labels_csv("00.png,10", "01.png,9", "02.png,0"))
    assert (cases.class_names, cases.frame["label"].tolist()) == (("0", "9", "10"), [2, 1, 0])
    named = load(pictures, labels_csv("00.png,1", "01.png,0"), class_names=("1", "0"))
    assert (named.class_names, named.frame["label"].tolist()) == (("1", "0"), [0, 1])
    assert load(pictures, labels_csv("00.png,²", "01.png,b")).class_names == ("b", "²")
    assert load(pictures, labels_csv("00.png,NA", "01.png,nan")).class_names == ("NA", "nan")


def test_folders_are_classes(pictures: Path, tmp_path: Path) -> None:
    for number, target in enumerate(
        ("a/0.png", "a/deep/0.PNG", "b/0.png", ".ipynb_checkpoints/0.png", "a/.trash/0.png")
    ):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / f"{number:02}.png", tmp_path / target)
    shutil.copy(pictures / "09.png", tmp_path / "loose.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    cases = load(tmp_path, None)
    assert cases.class_names == ("a", "b")
    assert rows(cases, "case_id", "label") == [("a/0.png", 0), ("a/deep/0.PNG", 0), ("b/0.png", 1)]


def test_folders_are_searched_by_content_and_what_is_left_out_is_said(pictures: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/a/caf\xe9.jpg"
    targets = [
        b"/a/1.JPG",
        b"/a/2.jfif",
        b"/b/no_suffix",
        b"/b/4.weird",
        b"/b/._5.png",
        b"/loose.png",
        b"/a/caf\xe9.jpg",
    ]
    for number, target in enumerate(targets):
        path = os.fsencode(tmp_path) + target
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.fsencode(pictures / f"{number:02}.png"), path)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    cases = load(tmp_path, None)
    ids = ["a/1.JPG", "a/2.jfif", "a/caf\\xe9.jpg", "b/4.weird", "b/no_suffix"]
    assert cases.frame["case_id"].tolist() == ids
    assert os.fsencode(cases.frame["path"][2]) == odd
    assert cases.digest == load_cases(DatasetParams(sources=(Source("s", str(tmp_path)),)), decode=False).digest
    left_out, beside = cases.warnings
    assert left_out == f"{tmp_path}: left out 1 hidden, 1 without an image (1 .txt)"
    assert beside == f"{tmp_path}: 1 image lies outside the class folders: loose.png; left out"
    (tmp_path / "b" / "6.heic").write_text("text")
    assert "1 image cannot be read: b/6.heic (the content is not an image)" in refused(tmp_path, None)


def test_several_sources_keep_their_ids_and_groups_apart(pictures: Path, labels_csv: Csv, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    for name in ("00.png", "01.png"):
        shutil.copy(pictures / f"1{name[1:]}", tmp_path / "second" / name)
    csv = labels_csv("00.png,a,,g", "01.png,b,,g")
    params = DatasetParams(sources=(Source("x", str(pictures), csv), Source("y", str(tmp_path / "second"), csv)))
    cases = load_cases(params, decode=True)
    expected = [("x/00.png", "x/g"), ("x/01.png", "x/g"), ("y/00.png", "y/g"), ("y/01.png", "y/g")]
    assert rows(cases, "case_id", "group") == expected
    assert len({path for (path,) in rows(cases, "path")}) == 4


def test_groups_that_share_an_image_become_one(pictures: Path, labels_csv: Csv, tmp_path: Path) -> None:
    for copy in ("c1.png", "c2.png"):
        shutil.copy(pictures / "00.png", tmp_path / copy)
    shutil.copy(pictures / "05.png", tmp_path / "c5.png")
    lines = [
        f"{pictures}/00.png,a,0,g",
        f"{tmp_path}/c1.png,a,1,h",
        f"{tmp_path}/c2.png,a,2,",
        f"{pictures}/05.png,b,3,h",
    ]
    lines += [
        f"{tmp_path}/c5.png,b,4,i",
        f"{pictures}/06.png,b,5,i",
        f"{pictures}/07.png,a,6,k",
        f"{pictures}/08.png,b,7,",
    ]
    groups = dict(rows(load(None, labels_csv(*lines)), "case_id", "group"))
    assert len({groups[case] for case in "012345"}) == 1
    assert len(set(groups.values())) == 3


# ---- what is refused


def test_sources_that_are_not_there(pictures: Path, tmp_path: Path) -> None:
    assert "nope.csv does not exist. Name an existing CSV in sources[s].labels." in refused(pictures, "nope.csv")
    assert "cannot be read: Is a directory" in refused(pictures, str(tmp_path))
    assert "no images in class folders" in refused(tmp_path, None)
    assert "nope is not there. Set sources[s].root to a folder" in refused(tmp_path / "nope", None)
    (tmp_path / "a.csv").write_text("00.png,a\n")
    assert "a.csv is a file: a table of path,label goes into labels, not into root." in refused(
        tmp_path / "a.csv", None
    )
    with pytest.raises(UserError, match="sources is empty"):
        load_cases(DatasetParams(), decode=True)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["00.png,a", "gone.png,b"], "1 file is missing: {root}/gone.png"),
        (["00.png,a,x", "01.png,b,x"], "1 case id occurs more than once: x"),
        (["00.png,a", "01.png,a"], "all labels are 'a': a classifier needs at least two classes"),
        (["00.png,a", "01.png,b", "02.png,"], "1 case has no label: 02.png"),
        (["path,label", "00.png,a", "01.png,b", "02.png"], "1 case has no label: 02.png"),
        (["00.png,a,,,train", "01.png,b,,,tain"], "1 unknown split, with cases: tain (1); splits: train, val_select, "),
        (["00.png,a,,,train", "01.png,b,,,"], "1 case has no split: 01.png; give a split to all cases or to none"),
        (["00.png,a,0,g,train", "01.png,b,1,g,val_test"], "1 group crosses splits: g"),
        (["00.png,a,0", "00.png,b,1"], "2 identical images occur under different labels: 0, 1"),
        (
            ["00.png,a,0,,train", "00.png,a,1,,val_test", "01.png,b,,,train"],
            "identical images occur in different splits: 0, 1",
        ),
        ([".,a", "01.png,b"], "1 image cannot be read: . (not a file but a folder, a pipe or a device)"),
        (["0\0.png,a", "01.png,b"], "1 file is missing"),
    ],
)
def test_contradictions_name_their_cases(pictures: Path, labels_csv: Csv, lines: list[str], words: str) -> None:
    assert words.format(root=pictures) in refused(pictures, labels_csv(*lines))


def test_unknown_classes_are_named(pictures: Path, labels_csv: Csv) -> None:
    csv = labels_csv("00.png,a", "01.png,b", "02.png,2")
    assert "1 label outside the classes, with cases: 2 (1); classes: a, b" in refused(
        pictures, csv, class_names=("a", "b")
    )
    assert "positive_class is 'c'; the labels are 2 (1), a (1), b (1)" in refused(pictures, csv, positive_class="c")
    assert "1 class has no cases: c" in refused(pictures, csv, class_names=("a", "b", "2", "c"))


def test_all_problems_come_in_one_message_with_counts_and_the_first_ten(pictures: Path, labels_csv: Csv) -> None:
    lines = [f"gone{index:02}.png,a" for index in range(12)]
    header = "path,label,case_id,group,split"
    message = refused(
        pictures, labels_csv(header, *lines, "00.png,b,x", "01.png,b,x", "02.png,b,,g,tain", "03.png,a,,h,train")
    )
    assert message.startswith("16 cases: 4 problems\n")
    first_ten = ", ".join(f"{pictures}/gone{index:02}.png" for index in range(10))
    assert f"12 files are missing: {first_ten}, …\n" in message
    for words in (
        "1 case id occurs more than once: x",
        "1 unknown split, with cases: tain (1)",
        "14 cases have no split",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "the content is not an image"),
        ("truncated", "the file is truncated or damaged: PNG"),
    ],
)
def test_an_unreadable_image_is_an_error_or_left_out(
    pictures: Path, labels_csv: Csv, tmp_path: Path, damage: str, reason: str
) -> None:
    whole = (pictures / "59.png").read_bytes()
    content = {"empty": b"", "text": b"no image at all", "truncated": whole[: len(whole) // 2]}[damage]
    (tmp_path / "bad1.png").write_bytes(content)
    (tmp_path / "bad2.png").write_bytes(
        content
    )  # equal files under different labels: both are out, so no contradiction
    csv = labels_csv(f"{tmp_path}/bad1.png,a,1", f"{tmp_path}/bad2.png,b,2", "00.png,a,3", "01.png,b,4")
    message = refused(pictures, csv)
    assert f"2 images cannot be read: 1 ({reason}), 2 ({reason})" in message
    assert "on_bad_image: skip leaves them out" in message
    cases = load(pictures, csv, on_bad_image="skip")
    assert cases.frame["case_id"].tolist() == ["3", "4"]
    assert cases.warnings[0].startswith(f"2 unreadable images left out: 1 ({reason})")


def test_every_mode_is_read_and_a_changed_file_changes_the_digest(labels_csv: Csv, tmp_path: Path) -> None:
    for mode, color in {"1": 1, "L": 0, "LA": (0, 128), "P": 0, "RGBA": (0, 0, 0, 128), "CMYK": 0, "I;16": 0}.items():
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (8, 8), color).save(tmp_path / f"{mode.replace(';', '')}.{suffix}")
    names = sorted(path.name for path in tmp_path.glob("*.*") if path.suffix in (".png", ".tif"))
    csv = labels_csv(*(f"{name},{'ab'[index % 2]}" for index, name in enumerate(names)))
    params = DatasetParams(sources=(Source("s", str(tmp_path), csv),))
    digest = load_cases(params, decode=True).digest
    assert load_cases(params, decode=False).digest == digest
    (tmp_path / names[0]).write_bytes(b"damaged")
    assert load_cases(params, decode=False).digest != digest


def test_deep_pixels_are_refused_and_not_clipped(labels_csv: Csv, tmp_path: Path) -> None:
    for name, mode in (("a.tif", "F"), ("b.png", "L")):
        Image.new(mode, (8, 8)).save(tmp_path / name)
    csv = labels_csv("a.tif,0", "b.png,1")
    with pytest.raises(UserError, match=r"a\.tif \(the pixels are signed, 32-bit or float"):
        load_cases(DatasetParams(sources=(Source("s", str(tmp_path), csv),)), decode=True)

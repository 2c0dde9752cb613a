"""Sources that are no files beside a CSV: Parquet tables, folders and tables behind a URL, data sets of the Hub."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web import Site, served

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.data.cases import CaseTable, load_cases
from stage1_pro.core.data.given_splits import WORDS
from stage1_pro.core.data.store import cache_folder
from stage1_pro.core.errors import UserError

LABELS = ["cat", "dog", "cat", "dog"]
BUCKET = "memory://bucket"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., CaseTable]:
    """The case table of one source, whose copies lie in a folder of the test."""

    def load(**source: Any) -> CaseTable:
        params = {
            "sources": [{"name": "s", **source}],
            "cache_folder": str(tmp_path / "cache"),
            "positive_class": "dog",
        }
        return load_cases(merge_configs([("test", {"dataset_params": params})]).dataset_params, decode=True)

    return load


def refused(load: Callable[..., CaseTable], **source: Any) -> str:
    with pytest.raises(UserError) as refusal:
        load(**source)
    return str(refusal.value)


def contents(pictures: Path, count: int = 4, first: int = 0) -> list[bytes]:
    return [(pictures / f"{index:02}.png").read_bytes() for index in range(first, first + count)]


def labels_of(cases: CaseTable) -> list[str]:
    return [cases.class_names[code] for code in cases.frame["label"]]


def files_of(cases: CaseTable) -> list[bytes]:
    return [Path(path).read_bytes() for path in cases.frame["path"]]


# ---- Parquet


def images_column(kind: str, pictures: Path) -> pa.Array:
    images = contents(pictures)
    return {
        "paths": pa.array([f"{index:02}.png" for index in range(4)]),
        "bytes": pa.array(images, pa.binary()),
        "struct": pa.array([{"bytes": image, "path": None} for image in images]),
        "struct of paths": pa.array([{"bytes": None, "path": f"{index:02}.png"} for index in range(4)]),
    }[kind]


@pytest.mark.parametrize("kind", ["paths", "bytes", "struct", "struct of paths"])
@pytest.mark.parametrize("names", [("path", "label"), ("image", "label"), ("img", "class")])
def test_a_parquet_table_holds_paths_or_images(load, pictures: Path, tmp_path: Path, kind: str, names: tuple) -> None:
    table = pa.table({names[0]: images_column(kind, pictures), names[1]: LABELS, "group": ["g", "g", "h", None]})
    pq.write_table(table, tmp_path / "labels.parquet")
    for _ in range(2):  # the second time the copies are there
        cases = load(root=str(pictures), labels=str(tmp_path / "labels.parquet"))
        assert labels_of(cases) == LABELS
        assert files_of(cases) == contents(pictures)
        assert cases.frame["group"].nunique() == 3
    again = load(root=str(pictures), labels=str(tmp_path / "labels.parquet"))
    assert again.digest == cases.digest


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 0, 1], ["0", "1", "0", "1"]),
        ([0.0, 1.0, 0.0, 1.0], ["0", "1", "0", "1"]),
        (pa.array(LABELS).dictionary_encode(), LABELS),
    ],
)
def test_labels_of_parquet_are_names(load, pictures: Path, tmp_path: Path, labels: Any, expected: list[str]) -> None:
    pq.write_table(pa.table({"path": images_column("paths", pictures), "label": labels}), tmp_path / "a.parquet")
    params = {"sources": [{"root": str(pictures), "labels": str(tmp_path / "a.parquet")}]}
    cases = load_cases(merge_configs([("test", {"dataset_params": params})]).dataset_params, decode=False)
    assert labels_of(cases) == expected


def test_parquet_that_cannot_be_used_says_why(load, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"picture": images_column("bytes", pictures), "fine_label": LABELS}), path)
    message = refused(load, labels=str(path))
    assert "the columns picture,fine_label hold no path and label" in message
    assert "sources[s].columns names others" in message
    cases = load(labels=str(path), columns={"path": "picture", "label": "fine_label"})
    assert labels_of(cases) == LABELS
    pq.write_table(pa.table({"path": images_column("bytes", pictures), "label": LABELS, "patient": list("abab")}), path)
    assert "columns: {group: patient}" in load(labels=str(path)).questions[0]
    path.write_bytes(path.read_bytes()[:-20])
    assert "a.parquet: not a whole Parquet file" in refused(load, labels=str(path))


# ---- behind a URL


@pytest.fixture
def bucket(pictures: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """Four pictures in the folders of two classes, a hidden one and a text, on fsspec's memory:// file system."""
    system = fsspec.filesystem("memory")
    for index, image in enumerate(contents(pictures)):
        system.pipe(f"/bucket/{LABELS[index]}/{index}{'.png' if index else ''}", image)
    system.pipe("/bucket/cat/.hidden.png", b"x")
    system.pipe("/bucket/notes.txt", b"hello")
    yield system
    system.rm("/bucket", recursive=True)


def test_folders_of_classes_behind_a_url_are_copied_once(load, bucket, pictures: Path, monkeypatch) -> None:
    fetched = []
    get_file = type(bucket).get_file
    monkeypatch.setattr(type(bucket), "get_file", lambda self, *args: fetched.append(args[0]) or get_file(self, *args))
    cases = load(root=BUCKET)
    assert cases.frame["case_id"].tolist() == ["cat/0", "cat/2.png", "dog/1.png", "dog/3.png"]
    assert sorted(files_of(cases)) == sorted(contents(pictures))
    assert cases.warnings == (f"{BUCKET}: left out 1 hidden, 1 without an image (1 .txt)",)
    assert len(fetched) == 4
    assert load(root=BUCKET).digest == cases.digest
    assert len(fetched) == 4
    bucket.pipe("/bucket/dog/1.png", contents(pictures, 1, 9)[0])  # changed, removed, new
    bucket.rm("/bucket/dog/3.png")
    bucket.pipe("/bucket/cat/7.png", contents(pictures, 1, 7)[0])
    changed = load(root=BUCKET)
    assert changed.frame["case_id"].tolist() == ["cat/0", "cat/2.png", "cat/7.png", "dog/1.png"]
    assert contents(pictures, 1, 9)[0] in files_of(changed)
    assert len(fetched) == 6


@pytest.mark.parametrize(
    "rows", ["dog/1.png,dog\ncat/2.png,cat\n", f"{BUCKET}/dog/1.png,dog\n{BUCKET}/cat/2.png,cat\n"]
)
@pytest.mark.parametrize("where", ["beside", "root", "local"])
def test_a_table_names_files_behind_a_url(load, bucket, pictures: Path, tmp_path: Path, rows: str, where: str) -> None:
    bucket.pipe("/bucket/labels.csv", f"path,label\n{rows}".encode())
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    source = {
        "beside": {"labels": f"{BUCKET}/labels.csv"},
        "root": {"labels": f"{BUCKET}/labels.csv", "root": BUCKET},
        "local": {"labels": str(tmp_path / "labels.csv"), "root": BUCKET},
    }[where]
    cases = load(**source)
    assert labels_of(cases) == (["cat", "dog"])
    assert files_of(cases) == [contents(pictures)[2], contents(pictures)[1]]


def test_what_a_url_does_not_hold_is_said(load, bucket, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "labels.csv").write_text("path,label\ndog/1.png,dog\ngone.png,cat\ncat/2.png,cat\n../x.png,dog\n")
    message = refused(load, labels=str(tmp_path / "labels.csv"), root=BUCKET)
    assert f"2 files are missing: {BUCKET}/../x.png, {BUCKET}/gone.png" in message
    assert "nowhere: holds no files" in refused(load, root="memory://nowhere")
    assert "labels.csv does not exist" in refused(load, labels="memory://nowhere/labels.csv")
    assert "Protocol not known: telepathy" in refused(load, root="telepathy://a/b")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    advice = "ConnectionError (no route to host). Check the address, the credentials and the network."
    monkeypatch.setattr(type(bucket), "get_file", unreachable)
    assert advice in refused(load, root=BUCKET)
    monkeypatch.setattr(type(bucket), "find", unreachable)  # no credentials: an empty folder would be another mistake
    assert advice in refused(load, root=BUCKET)


def test_a_server_that_cannot_list_gives_the_files_that_a_table_names(load, bucket, pictures, monkeypatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(bucket), "find", cannot)
    bucket.pipe("/bucket/labels.csv", b"path,label\ndog/1.png,dog\ncat/2.png,cat\ngone.png,cat\n")
    assert f"1 file is missing: {BUCKET}/gone.png" in refused(load, labels=f"{BUCKET}/labels.csv")
    bucket.pipe("/bucket/labels.csv", b"path,label\ndog/1.png,dog\ncat/2.png,cat\n")
    assert sorted(files_of(load(labels=f"{BUCKET}/labels.csv"))) == sorted(contents(pictures, 2, 1))


@pytest.fixture
def web(pictures: Path, tmp_path: Path) -> Iterator[Site]:
    """The same pictures behind a web server that lists folders; names have to be quoted in an address."""
    for index, image in enumerate(contents(pictures)):
        file = tmp_path / "site" / ("dog" if LABELS[index] == "dog" else "wild cat") / f"é {index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)
    with served(tmp_path / "site") as site:
        yield site


def test_folders_and_tables_of_a_web_server(load, web: Site, pictures: Path, tmp_path: Path) -> None:
    for _ in range(2):
        cases = load(root=web.url)
        assert cases.frame["case_id"].tolist() == ["dog/é 1.png", "dog/é 3.png", "wild cat/é 0.png", "wild cat/é 2.png"]
        assert labels_of(cases) == ["dog", "dog", "wild cat", "wild cat"]
        assert files_of(cases) == [contents(pictures)[index] for index in (1, 3, 0, 2)]
    rows = [f"{web.url}/dog/é 1.png,dog", "wild cat/é 0.png,cat", "dog/é%203.png?key=" + "k" * 300 + ",dog"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    read = load(root=web.url, labels=str(tmp_path / "labels.csv"))
    assert sorted(files_of(read)) == sorted(contents(pictures)[index] for index in (1, 3, 0))
    with open(tmp_path / "labels.csv", "a") as table:
        table.write("\ndog/none.png,dog")
    message = refused(load, root=web.url, labels=str(tmp_path / "labels.csv"))
    assert f"1 file is missing: {web.url}/dog/none.png" in message
    web.broken["none.png"] = 403
    message = refused(load, root=web.url, labels=str(tmp_path / "labels.csv"))
    assert "none.png: ClientResponseError (403" in message


# ---- the Hugging Face Hub, offline


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Callable[[str], Path]:
    """hub("owner/name") is the folder of that data set in a cache as the Hub's own library lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def make(name: str) -> Path:
        repo = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        snapshot = repo / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
        return snapshot

    return make


def put_parquet(path: Path, images: list[bytes], labels: list[Any], features: dict | None = None) -> None:
    table = pa.table({"image": pa.array([{"bytes": image, "path": None} for image in images]), "label": labels})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


CLASS_LABEL = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train-*}
  - {split: test, path: plain/test-*}
- config_name: other
  data_files: other/*.parquet
dataset_info:
- config_name: plain
  features:
  - {name: image, dtype: image}
  - name: label
    dtype: {class_label: {names: {'0': cat, '1': dog}}}
---
# A card
"""


@pytest.mark.parametrize("told_by", ["the files", "the card"])
def test_a_data_set_of_the_hub_has_names_and_splits(load, hub, pictures: Path, told_by: str) -> None:
    folder = hub("owner/pets")
    features = CLASS_LABEL if told_by == "the files" else None
    root, place = "hf:owner/pets", "data"
    if told_by == "the card":
        (folder / "README.md").write_text(CARD)
        root, place = "hf:owner/pets:plain", "plain"
        put_parquet(folder / "other" / "x.parquet", contents(pictures, 2, 50), [0, 1])
    put_parquet(folder / place / "train-00000-of-00002.parquet", contents(pictures), [0, 1, 0, 1], features)
    put_parquet(folder / place / "train-00001-of-00002.parquet", contents(pictures, 2, 4), [0, 1], features)
    put_parquet(folder / place / "test-00000-of-00001.parquet", contents(pictures, 2, 6), [1, 0], features)
    cases = load(root=root)
    assert dict(cases.frame["split"].value_counts()) == {"train": 6, "val_test": 2}
    assert labels_of(cases) == ["dog", "cat", "cat", "dog", "cat", "dog", "cat", "dog"]  # test/… comes first
    assert files_of(cases) == [*contents(pictures, 2, 6), *contents(pictures, 6)]
    assert load(root=root).digest == cases.digest
    pooled = load(root=root, columns={"split": None})
    assert not pooled.split_column


def test_image_folders_of_the_hub_are_folders_of_classes(load, hub, pictures: Path) -> None:
    folder = hub("pets")
    for index, label in enumerate(LABELS):
        split = ("train", "validation")[index // 2]
        (folder / split / label).mkdir(parents=True)
        shutil.copy(pictures / f"{index:02}.png", folder / split / label)
    cases = load(root="hf:pets")
    assert {WORDS[name] for name in ("train", "validation")} == set(cases.frame["split"])
    assert labels_of(cases) == LABELS


def test_what_the_hub_does_not_give_is_said(load, hub, pictures: Path) -> None:
    message = refused(load, root="hf:owner/gone")
    assert "hf:owner/gone: is not in the local cache, and the Hub cannot be reached" in message
    assert "write hf:OWNER/NAME" in refused(load, root="hf:owner/a name")
    folder = hub("owner/pets")
    (folder / "README.md").write_text(CARD)
    message = refused(load, root="hf:owner/pets")
    assert "has several configs. Write hf:owner/pets:CONFIG with one of plain, other" in message
    assert "has no config plane" in refused(load, root="hf:owner/pets:plane")
    put_parquet(folder / "plain" / "train-00000-of-00002.parquet", contents(pictures), [0, 1, 0, 1])
    message = refused(load, root="hf:owner/pets:plain")
    assert "plain/train-00001-of-00002.parquet missing in the local cache" in message
    assert "no labels beside it" in refused(load, root="hf:owner/pets", labels="labels.csv")


def test_copies_lie_in_the_users_cache_folder_by_default(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pd.DataFrame({"image": contents(pictures), "label": LABELS}).to_parquet(tmp_path / "a.parquet")
    params = {"sources": [{"labels": str(tmp_path / "a.parquet")}]}
    cases = load_cases(merge_configs([("test", {"dataset_params": params})]).dataset_params, decode=False)
    assert all(path.startswith(f"{tmp_path}/stage1_pro/") for path in cases.frame["path"])
    monkeypatch.delenv("XDG_CACHE_HOME")  # a user without a home, as in a container
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert cache_folder(None) == tmp_path / "tmp" / "stage1_pro"

"""Listing folders: content decides, hidden names are skipped, and nothing is left out without being counted."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from odd_images import EPS, HEIC, PICTURE, saved

from stage1_pro.core.data.decoding import decode
from stage1_pro.core.data.image_files import BadImage, list_images, read_file

JPEG, PNG = saved(PICTURE, "JPEG"), saved(PICTURE, "PNG")


def put(root: Path, *names: str, content: bytes = JPEG) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def relative(root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in list_images(root).paths]


def test_images_are_found_by_content_or_by_what_their_name_claims(tmp_path: Path) -> None:
    put(tmp_path, "b/1.JPG", "b/2.jfif", "b/3.jpe", "b/no_suffix", "b/odd.name", "a.tif/x.png", "a.b.jpeg")
    put(tmp_path, "c/photo.heic", "c/no_suffix_either", content=HEIC)
    put(tmp_path, "d/text.jpg", content=b"hello")
    put(tmp_path, "d/empty.webp", "d/blank.gif", content=b"")
    put(tmp_path, "d/drawing", content=EPS)
    (tmp_path / "d/gone.png").symlink_to("nowhere")
    assert relative(tmp_path) == [
        "a.b.jpeg", "a.tif/x.png", "b/1.JPG", "b/2.jfif", "b/3.jpe", "b/no_suffix", "b/odd.name", "c/no_suffix_either",
        "c/photo.heic", "d/blank.gif", "d/drawing", "d/empty.webp", "d/gone.png", "d/text.jpg",
    ]  # fmt: skip


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "._1.jpg", ".ipynb_checkpoints/1.jpg", "__MACOSX/1.jpg", "@eaDir/1.jpg/thumb.jpg")
    put(tmp_path, "labels.csv", "x/notes.txt", "x/README", "x/labels.TXT", content=b"hello")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    listing = list_images(tmp_path)
    assert listing.paths == (str(tmp_path / "1.jpg"),)
    assert listing.hidden == 4
    assert listing.others == {".csv": 1, ".txt": 2, "": 3}
    assert listing.left_out() == "4 hidden, 6 without an image (3 without suffix, 1 .csv, 2 .txt)"
    assert list_images(tmp_path / "@eaDir/1.jpg").left_out() == ""  # named itself, a folder is not hidden


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:
        file.write(JPEG)
    (found,) = list_images(tmp_path).paths
    assert os.fsencode(found) == raw
    assert decode(found).size == (40, 24)


def test_linked_folders_are_entered_and_circles_are_left(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/1.png", content=PNG)
    put(tmp_path, "root/a/2.png", content=PNG)
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root", target_is_directory=True)
    assert relative(tmp_path / "root") == ["a/2.png", "b/1.png"]


def test_a_folder_that_cannot_be_entered_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.png", "locked/2.png", content=PNG)
    entered = os.scandir

    def scandir(folder: str) -> object:
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return entered(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert relative(tmp_path) == ["a/1.png", "locked"]
    with pytest.raises(BadImage, match="not a file but a folder"):
        decode(tmp_path / "locked")
    assert list_images(tmp_path / "absent").paths == (str(tmp_path / "absent"),)


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_a_file_is_read_whole_in_however_many_pieces_it_comes(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems deliver less than was asked for, and some say 0 of the size."""
    content = bytes(range(256)) * 4
    path = tmp_path / "a.bin"
    path.write_bytes(content[:size])
    assert read_file(path) == content[:size]
    reading, sizeless = os.read, SimpleNamespace(st_mode=path.stat().st_mode, st_size=0)
    monkeypatch.setattr(os, "read", lambda descriptor, count: reading(descriptor, min(count, 3)))
    assert read_file(path) == content[:size]
    monkeypatch.setattr(os, "fstat", lambda _: sizeless)
    assert read_file(path) == content[:size]

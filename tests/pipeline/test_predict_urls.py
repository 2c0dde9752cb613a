"""60 on images behind URLs: the same decisions as on local files, and no copy passes for what is there now."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import chain
import fsspec
import pandas as pd
import pytest
from chain import call, done, refused
from web import Site, served

from stage1_pro.core.inference import jobs


@pytest.fixture
def pictures(images: Path, tmp_path: Path) -> Path:
    """Nine images at two depths, a hidden one, a text, and names that an address has to quote."""
    names = ["a/0.png", "a/1", "a/ü 2.png", "a/100%.png", "b/4.PNG", "5.png", "6.png", "7.png", "8.png"]
    for index, name in enumerate(names):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / f"{index:03}.png", tmp_path / "files" / name)
    shutil.copy(images / "000.png", tmp_path / "files" / ".hidden.png")
    (tmp_path / "files" / "notes.txt").write_text("hello")
    return tmp_path / "files"


@pytest.fixture
def web(pictures: Path) -> Iterator[Site]:
    with served(pictures) as site:
        yield site


@pytest.fixture
def decide(bundle: Path, tmp_path: Path):
    """Decide these places: (outcome, rows by id)."""

    def decide(*places: object, status: int = 0, out: str = "d.parquet") -> tuple[chain.Outcome, pd.DataFrame]:
        words = "--out", tmp_path / out, "--cache_folder", tmp_path / "cache", "--overwrite", "--device", "cpu"
        outcome = call("60_predict", bundle, *places, *words)
        assert outcome.status == status, outcome
        return outcome, pd.read_parquet(tmp_path / out).set_index("id")

    return decide


def test_a_folder_of_a_web_server_is_decided_as_the_folder_itself(decide, pictures: Path, web: Site) -> None:
    _, here = decide(pictures)
    told, there = decide(web.url)
    assert "left out of the folders: 1 hidden, 1 without an image (1 .txt)" in told.out
    assert "a/%C3%BC%202.png" in " ".join(there.index)  # addresses, as they are asked for
    assert all(name.startswith(f"{web.url}/") for name in there.index)
    decided = [frame.reset_index(drop=True).sort_values("probability", ignore_index=True) for frame in (here, there)]
    pd.testing.assert_frame_equal(*decided)
    assert here["probability"].nunique() == len(here) == 9


@pytest.mark.parametrize("system", ["memory", "file"])
def test_a_bucket_is_copied_once_and_what_changes_again(decide, pictures: Path, images: Path, system: str) -> None:
    at = fsspec.filesystem(system)
    root = f"{pictures}/bucket" if system == "file" else "/bucket60"
    for name in ("0.png", "1.png", "2.png"):
        at.makedirs(root, exist_ok=True)
        at.pipe(f"{root}/{name}", (images / f"00{name}").read_bytes())
    url = f"{system}://{root}"
    _, first = decide(url)
    assert list(first.index) == [f"{url}/{name}" for name in ("0.png", "1.png", "2.png")]
    told, again = decide(url)
    assert "copying" not in told.out
    pd.testing.assert_frame_equal(first, again)
    at.pipe(f"{root}/1.png", (images / "009.png").read_bytes())
    told, changed = decide(url)
    assert f"copying from {url}: 1\n" in told.out
    _, expected = decide(images / "009.png")
    assert changed["probability"].iloc[1] == expected["probability"].iloc[0]
    assert list(changed["probability"].iloc[[0, 2]]) == list(first["probability"].iloc[[0, 2]])
    at.rm(root, recursive=True)


def test_an_image_that_a_camera_replaces_is_decided_anew(decide, pictures: Path, images: Path, web: Site) -> None:
    """Such a server says nothing of a file before it is asked for it."""
    cameras = [f"{web.url}/{name}.png?key={'k' * 300}" for name in (5, 6)]
    _, before = decide(*cameras)
    shutil.copy(images / "011.png", pictures / "5.png")
    _, after = decide(*cameras)
    _, expected = decide(images / "011.png")
    assert after["probability"].iloc[0] == expected["probability"].iloc[0] != before["probability"].iloc[0]
    assert after["probability"].iloc[1] == before["probability"].iloc[1]


def test_a_bucket_is_not_listed_for_a_few_of_its_files(decide, images: Path, monkeypatch) -> None:
    system = fsspec.filesystem("memory")
    for name in ("0.png", "1.png"):
        system.pipe(f"/inbox60/{name}", (images / f"00{name}").read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(type(system), "find", lambda *_, **__: pytest.fail("listed"))
        _, rows = decide("memory://inbox60/0.png", "memory://inbox60/1.png", images / "002.png")
    assert rows["answer"].ne("").all()
    system.rm("/inbox60", recursive=True)


def test_what_is_not_delivered_is_a_row_with_its_reason(decide, pictures: Path, web: Site) -> None:
    decide(web.url)  # copies of before must not stand in for what is not delivered now
    (pictures / "5.png").unlink()
    web.broken["6.png"] = 503
    names = [f"{web.url}/{name}.png" for name in (5, 6, 7)]
    told, rows = decide(*names, pictures / "8.png", "http://127.0.0.1:9/x.png", status=4)
    assert "3 of 5 images could not be read" in told.err
    assert rows["reason"].iloc[0] == "no such file"
    assert (
        rows["reason"].iloc[1].startswith("the disk or the network did not deliver the file: ClientResponseError (503")
    )
    assert rows["reason"].iloc[4].startswith("the disk or the network did not deliver the file: ClientConnectorError (")
    assert list(rows["answer"] == "") == [True, True, False, False, True]
    told, rows = decide(web.url, status=4)
    assert rows["answer"].eq("").sum() == 1


def test_where_nothing_is_reached_nothing_is_written(bundle: Path, tmp_path: Path, web: Site) -> None:
    for place, words in (
        (f"{web.url}/none.png", "no such image or folder"),
        (f"{web.url}/none/", "holds no files. Name a folder that holds images"),
        (f"{web.url}/notes.txt/", "holds no files"),
        ("http://127.0.0.1:9/x.png", "Check the address, the credentials and the network"),
        ("http://127.0.0.1:9/x", "Check the address, the credentials and the network"),
        ("telepathy://a/b.png", "Protocol not known: telepathy"),
    ):
        told = call("60_predict", bundle, place, "--out", tmp_path / "d.csv", "--cache_folder", tmp_path / "cache")
        refused(told, words)
    assert not (tmp_path / "d.csv").exists()
    assert not (tmp_path / "d.csv.parts").exists()


def test_an_interrupted_job_goes_on(bundle: Path, decide, web: Site, tmp_path: Path, monkeypatch) -> None:
    _, expected = decide(web.url, out="whole.parquet")
    words = "60_predict", bundle, web.url, "--out", tmp_path / "d.parquet", "--cache_folder", tmp_path / "cache"
    keep = jobs.Job.keep

    def interrupted(self: jobs.Job, *arguments: object) -> None:
        keep(self, *arguments)  # pyright: ignore[reportArgumentType]
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(jobs.Job, "keep", interrupted)
        assert call(*words).status == 130
    assert "going on: 9 of 9 images are decided" in done(*words).out
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "d.parquet").set_index("id"), expected)


def test_groups_are_the_folders_of_the_addresses(bundle: Path, tmp_path: Path, web: Site) -> None:
    salt = tmp_path / "salt"
    salt.write_text("s" * 64)
    words = "--audit_share", "1", "--audit_salt", salt, "--groups", "folder", "--cache_folder", tmp_path / "cache"
    done("60_predict", bundle, web.url, "--out", tmp_path / "d.csv", *words)
    rows = pd.read_csv(tmp_path / "d.csv")
    assert set(rows["group"]) == {web.url, f"{web.url}/a", f"{web.url}/b"}

"""Where 60 writes its decisions: whole files that a killed job still reaches, pipes, links, never over other files."""

import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from chain import SCRIPTS, call, done, refused

from stage1_pro import verify_bundle
from stage1_pro.core.inference import decisions, jobs
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.tables import output_of


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "ROWS", 16)
    monkeypatch.setattr(decisions, "ROWS", 16)


@pytest.fixture
def paths(images) -> list[str]:
    """Forty images, and one name among them that leads nowhere."""
    found = sorted(map(str, images.glob("*.png")))[:40]
    return [*found[:20], str(images / "gone.png"), *found[20:]]


def predict(bundle: Path, paths: list[str], out: object, *flags: object):
    return call("60_predict", bundle, *paths, "--out", out, "--device", "cpu", *flags)


def test_killed_at_any_moment_the_same_command_reaches_the_same_file(bundle, paths, tmp_path, monkeypatch, small_parts):
    place, moments = tmp_path / "place", []
    place.mkdir()
    real = os.replace

    def replace(source: object, target: object) -> None:
        for moment in ("before", "after"):  # what lies on the disk now is all that a killed process leaves
            shutil.copytree(place, tmp_path / f"{len(moments)}")
            moments.append(f"{moment} {Path(str(target)).name}")
            if moment == "before":
                real(source, target)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        assert predict(bundle, paths, place / "d.csv").status == 4  # one name among them is a row with a reason
    content = (place / "d.csv").read_bytes()
    assert [file.name for file in place.iterdir()] == ["d.csv"]
    assert pd.read_csv(place / "d.csv").loc[20, ["decision", "reason"]].tolist() == ["defer", "no such file"]
    assert [words.split()[1] for words in moments[::2]] == [
        "job.json",
        *(f"part-00000{number}.parquet" for number in range(3)),
        "d.csv",
    ]
    for number, moment in enumerate(moments):
        left = tmp_path / str(number)
        assert (left / "d.csv").exists() == (moment == "after d.csv")
        outcome = predict(bundle, paths, left / "d.csv")
        assert (outcome.status, (left / "d.csv").read_bytes()) == (4, content), (moment, outcome.err)
        assert [file.name for file in left.iterdir()] == ["d.csv"]
        if 3 <= number <= 8:  # some part was there
            decided = min(41, 16 * ((number - 1) // 2))
            assert f"going on: {decided} of 41" in outcome.out


def test_parts_of_another_job_are_never_mixed_in(bundle, paths, tmp_path, monkeypatch, small_parts):
    out, mended = tmp_path / "d.csv", tmp_path / "d.csv.parts"

    def stop(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(jobs.Job, "finish", stop)
        assert predict(bundle, paths, out).status == 2
    assert not out.exists()
    refused(predict(bundle, paths[1:], out), f"{mended} holds parts of another job: other images")
    refused(predict(bundle, paths[1:], out, "--overwrite"), "other images")  # that is for a finished file
    manifest = bundle / "bundle.json"
    manifest.write_text(manifest.read_text() + "\n")
    refused(predict(bundle, paths, out), "another bundle")
    manifest.write_text(manifest.read_text()[:-1])
    part = mended / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    refused(predict(bundle, paths, out), f"{part}: not a whole part", "Remove this file and run again")
    part.unlink()
    assert predict(bundle, paths, out).status == 4
    assert len(pd.read_csv(out)) == 41
    mended.mkdir()
    (mended / "job.json").write_text("{")
    refused(predict(bundle, paths, out, "--overwrite"), "job.json", "Remove the folder that it lies in and run again")
    shutil.rmtree(mended)
    assert predict(bundle, paths[1:], out, "--overwrite").status == 4
    assert len(pd.read_csv(out)) == 40


def test_a_full_device_and_a_device_that_is_not_there_are_named(bundle, images):
    path = str(images / "000.png")
    refused(predict(bundle, [path], "/dev/full"), "/dev/full: No space left on device. Fix this")
    for name in ("tpu9", "meta"):
        refused(call("60_predict", bundle, path, "--out", "-", "--device", name), "Leave --device out, or say cpu.")


def test_nothing_is_written_into_the_bundle(bundle, images, monkeypatch):
    path, inside = str(images / "000.png"), "lies in the bundle"
    monkeypatch.chdir(bundle)
    for words in (["60_predict", ".", path], ["60_predict", ".", path, "--out", "new/d.csv"]):
        refused(call(*words), inside)
    refused(call("65_monitor", ".", "--out", "watch", "--audit_share", 0.1), inside)
    verify_bundle(bundle)


def test_what_is_there_stays_unless_it_is_to_be_overwritten(bundle, images, tmp_path):
    path, out = str(images / "000.png"), tmp_path / "d.csv"
    out.write_text("precious")
    refused(predict(bundle, [path], out), f"{out} exists", "--overwrite")
    assert out.read_text() == "precious"
    link = tmp_path / "latest.csv"
    link.symlink_to("d.csv")
    refused(predict(bundle, [path], link), "exists")
    done("60_predict", bundle, path, "--out", link, "--overwrite")
    assert link.is_symlink()
    assert out.read_text().startswith("id,answer,")
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["d.csv", "latest.csv"]
    ahead = tmp_path / "ahead.csv"
    ahead.symlink_to(tmp_path / "new.csv")  # leads to a file that is yet to be
    done("60_predict", bundle, path, "--out", ahead)
    assert (tmp_path / "new.csv").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_standard_output_holds_the_decisions_and_nothing_else(bundle, paths, tmp_path, capfdbinary, name, format):
    assert predict(bundle, paths, tmp_path / f"d.{format}").status == 4
    capfdbinary.readouterr()
    outcome = predict(bundle, paths, name, "--format", format)
    assert outcome.out == ""
    assert "41 images: " in outcome.err
    assert capfdbinary.readouterr().out == (tmp_path / f"d.{format}").read_bytes()


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_a_pipe_is_written_through(bundle, paths, tmp_path, format):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert predict(bundle, paths, pipe, "--format", format).status == 4
    reader.join(10)
    assert pipe.is_fifo()
    assert predict(bundle, paths, tmp_path / f"d.{format}").status == 4
    assert read == [(tmp_path / f"d.{format}").read_bytes()]


def test_the_suffix_chooses_the_format_or_is_told_to_be_none(bundle, images, tmp_path):
    for name, format in (("a.csv", "csv"), ("a.JSONL", "jsonl"), ("a.parquet", "parquet")):
        assert output_of(str(tmp_path / name), None).format == format
    assert output_of(str(tmp_path / "a.txt"), "csv").format == "csv"
    assert output_of(None, "jsonl").path == Path("decisions.jsonl").resolve()
    for name, words in (("a.txt", "one of .csv, .jsonl, .parquet"), ("a", "chooses the format"), (".", "is a folder")):
        refused(predict(bundle, [str(images)], tmp_path / name), words)
    refused(predict(bundle, [str(images)], tmp_path / "a.csv", "--format", "jsonl"), "Leave --format out")
    for flags in (("--num_workers", "many"), ("--num_workers", -1), ("--batch_size", 0)):
        refused(predict(bundle, [str(images)], tmp_path / "a.csv", *flags), flags[0])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(bundle, images, small_parts, tmp_path):
    predictor, path = Stage1Predictor.load(bundle, "cpu"), str(images / "000.png")

    def peak(count: int) -> int:
        tracemalloc.start()
        out = output_of(str(tmp_path / f"{count}.csv"), None)
        decisions.decide_into(predictor, bundle, [path] * count, out, workers="auto")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    before = peak(2000)  # what is imported and cached on the way, up to 2,000 freed tuples of each length among it
    # a list of names, and garbage that waits to be collected; whole rows would take more than twice that
    assert peak(4000) - before < 2000 * 200


def test_a_worker_that_the_system_ends_is_told_with_a_way_out(bundle, images, tmp_path, monkeypatch):
    def killed(*_: object, **__: object):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        yield

    monkeypatch.setattr(Stage1Predictor, "outputs", killed)
    refused(predict(bundle, [str(images)], tmp_path / "d.csv", "--num_workers", 4), "with a lower num_workers")


@pytest.mark.slow
def test_memory_stays_where_it_is_over_a_hundred_thousand_images(bundle, images, tmp_path):
    files = sorted(images.glob("*.png"))
    for index in range(100_000):
        if index % 1000 == 0:
            (tmp_path / "many" / f"{index // 1000:02d}").mkdir(parents=True)
        os.link(files[index % len(files)], tmp_path / "many" / f"{index // 1000:02d}" / f"{index:05d}.png")
    command = [sys.executable, SCRIPTS / "60_predict.py", bundle, tmp_path / "many", "--out", tmp_path / "d.parquet"]
    resident: dict[int, int] = {}  # parts that are there → KiB of the process
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            parts = len(list((tmp_path / "d.parquet.parts").glob("part-*")))
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "VmRSS" in status:
                resident[parts] = int(status.partition("VmRSS:")[2].split()[0])
            time.sleep(1)
    assert process.returncode == 0
    assert len(pd.read_parquet(tmp_path / "d.parquet")) == 100_000
    early, late = (
        max(resident[parts] for parts in resident if low <= parts < high) for low, high in ((5, 15), (80, 97))
    )
    assert late < 1.02 * early, resident

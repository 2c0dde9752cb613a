"""61 on a real Ray: the rows of 60, from local files and a store, and killed at any moment the same bytes."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pandas as pd
import pytest
from chain import SCRIPTS, call, files_of, refused
from on_ray import EXTRA, STORE, ended, finished, marked, started, until

from stage1_pro import verify_bundle
from stage1_pro.core.cli import SIGNAL_STATUS
from stage1_pro.core.cluster import pool
from stage1_pro.core.config import extras


@pytest.fixture
def table(images: Path, tmp_path: Path) -> Path:
    """40 images, of which one is missing and one is no image."""
    paths = [str(images / f"{index:03d}.png") for index in range(40)]
    (tmp_path / "text.png").write_text("no image")
    paths[3], paths[17] = str(tmp_path / "gone.png"), str(tmp_path / "text.png")
    pd.DataFrame({"path": paths}).to_parquet(tmp_path / "in.parquet", row_group_size=11)
    return tmp_path / "in.parquet"


def by_60(bundle: Path, paths: list[str], *options: object) -> pd.DataFrame:
    out = bundle.parent / "by60.parquet"
    words = [sys.executable, SCRIPTS / "60_predict.py", bundle, *paths, "--out", out, "--device", "cpu", *options]
    done = subprocess.run(list(map(str, words)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode in (0, 4), done
    return pd.read_parquet(out)


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out, ignore_prefixes=["job", "done", "."])


def parts_of(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(out).items() if name != ".lock"}


# ---- before Ray starts


@pytest.mark.parametrize("options", [("--rows_per_part", 0), ("--actors", 0), ("--num_workers", -1)])
def test_options_out_of_range(options, bundle, table, tmp_path):
    outcome = call("61_predict_ray", bundle, table, tmp_path / "out", *options)
    refused(outcome, f"{options[0]} {options[1]}: must be")
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(bundle, table, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "ray", ("ray_that_nobody_has",))
    refused(call("61_predict_ray", bundle, table, tmp_path / "out"), "pip install 'stage1-pro[ray]'")


def test_another_job_a_broken_bundle_and_a_table_without_images_are_refused(bundle, table, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "ray", ())  # none of these comes so far as to need it
    out = tmp_path / "out"
    out.mkdir()
    (out / "other.txt").write_text("mine")
    refused(call("61_predict_ray", bundle, table, out), "holds other.txt and no job.json")
    assert files_of(out) == {"other.txt": b"mine"}
    for inside in (bundle, bundle / "out"):
        refused(call("61_predict_ray", bundle, table, inside), f"OUTDIR {inside} lies in the bundle")
    verify_bundle(bundle)
    refused(call("61_predict_ray", bundle, table, ""), "outdir: an empty word")
    refused(call("61_predict_ray", bundle, table, out / "other.txt"), "is a file. Name a folder")
    pd.DataFrame({"file": ["a.png"]}).to_parquet(tmp_path / "none.parquet")
    refused(call("61_predict_ray", bundle, tmp_path / "none.parquet", out), "no column path and no column bytes")
    refused(call("61_predict_ray", bundle, table, out, "--time", "2026-03-01"), "are for audits")
    (bundle / "config.json").write_text("{}")
    refused(call("61_predict_ray", bundle, table, out), "config.json has been altered")


# ---- on Ray


@pytest.fixture(scope="session")
def whole(exported_once, images, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A bundle, a table and the parts that an uninterrupted job makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    paths = [str(images / f"{index % 160:03d}.png") for index in range(960)]  # enough to kill a job in the middle
    pd.DataFrame({"path": paths}).to_parquet(folder / "in.parquet")
    words = exported_once / "bundle", folder / "in.parquet"
    status, out, err = finished("61_predict_ray", *words, folder / "out", "--rows_per_part", 40, "--actors", 2)
    assert (status, err) == (0, "")
    assert "960 images: " in out
    return *words, folder / "out"


@pytest.mark.usefixtures("bundle")
class TestOnRay:
    pytestmark = EXTRA

    def test_a_cluster_that_is_not_there_is_told_at_once(self, bundle, table, tmp_path):
        words = bundle, table, tmp_path / "out", "--address"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            free = f"127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        status, _, err = finished("61_predict_ray", *words, free)
        assert (status, f"Ray {free}: nothing answers at" in err) == (2, True)
        err = finished("61_predict_ray", *words, "no where")[2]
        assert "Ray no where: Invalid address format" in err
        assert "set RAY_AUTH_MODE=token" in err
        assert time.monotonic() - start < 90  # Ray by itself gives up after two and a half minutes

    def test_rows_are_those_of_60(self, bundle, table, tmp_path):
        paths = pd.read_parquet(table)["path"].tolist()
        words = bundle, table, tmp_path / "out", "--rows_per_part"
        home = "/proc/none"  # where nothing can be written
        status, out, err = finished("61_predict_ray", *words, 9, "--actors", 2, HOME=home)
        assert (status, err) == (
            4,
            "61_predict_ray.py: 2 of 40 images could not be read: deferred, each with its reason.\n",
        )
        assert "40 images: " in out
        pd.testing.assert_frame_equal(rows_of(tmp_path / "out"), by_60(bundle, paths), check_exact=True)
        again = call("61_predict_ray", *words, 9)  # starts no Ray
        assert again.status == 4
        assert again.out.splitlines() == out.splitlines()[-len(again.out.splitlines()) :]
        refused(
            call("61_predict_ray", *words, 10),
            "parts of another job: parts of another size. Finish it with its own command, or name another OUTDIR",
        )

    def test_bytes_with_groups_are_audited_as_60_does(self, bundle, images, tmp_path):
        paths = [images / f"{index:03d}.png" for index in range(30)]
        groups = [f"track {index // 2}" for index in range(30)]
        columns = {"id": list(map(str, paths)), "bytes": [path.read_bytes() for path in paths], "group": groups}
        pd.DataFrame(columns).to_parquet(tmp_path / "in.parquet")
        pd.DataFrame({"id": columns["id"], "group": groups}).to_csv(tmp_path / "groups.csv", index=False)
        (tmp_path / "salt").write_text("sixteen bytes or more")
        options = ("--audit_share", 0.5, "--audit_salt", tmp_path / "salt", "--time", "2026-03-01")
        words = bundle, tmp_path / "in.parquet", tmp_path / "out", "--rows_per_part", 8
        status, out, err = finished("61_predict_ray", *words, *options)
        assert (status, err) == (0, "")
        assert "certificate: none" in out
        expected = by_60(bundle, columns["id"], *options, "--groups", tmp_path / "groups.csv")
        pd.testing.assert_frame_equal(rows_of(tmp_path / "out"), expected, check_exact=True)
        assert 0 < expected["audit"].sum() < 30

    @pytest.mark.parametrize(
        ("number", "after", "send"),
        [
            (signal.SIGKILL, 0, os.kill),
            (signal.SIGKILL, 1, os.kill),
            (signal.SIGKILL, 5, os.kill),
            (signal.SIGINT, 2, os.kill),
            (signal.SIGTERM, 1, os.killpg),  # Ray's processes too, as a scheduler does
        ],
    )
    def test_ended_at_any_moment_it_goes_on_to_the_same_bytes(self, number, after, send, whole, tmp_path):
        bundle, table, expected = whole
        words = bundle, table, tmp_path / "out", "--rows_per_part", 40, "--actors", 2
        with started("61_predict_ray", *words) as process:
            until(lambda: (tmp_path / "out" / "job.json").exists(), 300)
            until(lambda: len(list((tmp_path / "out").glob("done-*"))) >= after, 300)
            send(process.pid, number)
            out, err = process.communicate(timeout=120)
        assert process.returncode == SIGNAL_STATUS.get(number, -number)
        if number in SIGNAL_STATUS:
            assert "the same command goes on where it stopped" in out
            assert err == "61_predict_ray.py: Interrupted; the files on disk are whole.\n"
        found = parts_of(tmp_path / "out")
        assert len(found) < len(parts_of(expected))
        kept = {name for name in found if not name.startswith(".")}
        assert {name: found[name] for name in kept} == {name: parts_of(expected)[name] for name in kept}
        assert finished("61_predict_ray", *words)[0] == 0
        assert parts_of(tmp_path / "out") == parts_of(expected)

    def test_a_ray_that_is_killed_alone_is_told(self, whole, tmp_path):
        bundle, table, _ = whole
        with started("61_predict_ray", bundle, table, tmp_path / "out", "--rows_per_part", 40) as process:
            until(lambda: any("PartDecider.decide" in command for command in marked(process.mark).values()), 300)
            assert ended(process, "raylet/raylet")
            out, err = process.communicate(timeout=120)
        assert (process.returncode, "the same command goes on where it stopped" in out) == (2, True)
        assert "Ray's own process on this machine was killed, or crashed. Run the same command again." in err

    def test_a_part_that_costs_actors_is_given_up_and_the_others_are_written(self, whole, tmp_path):
        bundle, table, _ = whole
        pd.concat([pd.read_parquet(table)] * 3).to_parquet(tmp_path / "in.parquet")
        words = bundle, tmp_path / "in.parquet", tmp_path / "out", "--rows_per_part", 2000, "--actors", 1
        with started("61_predict_ray", *words) as process:
            until(lambda: ended(process, "PartDecider.decide"), 300)
            until(lambda: (tmp_path / "out" / "done-000001.json").exists(), 300)  # another actor, the other part first
            while process.poll() is None:
                ended(process, "PartDecider.decide")
                time.sleep(0.05)
            out, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert "part 0: rows 0 to 1999 of " in err
        assert "part 0: its actor was lost, 2 of 3 times" in out
        assert {name for name in files_of(tmp_path / "out") if name.startswith("done")} == {"done-000001.json"}
        status, out, _ = finished("61_predict_ray", *words)
        assert (status, "going on: 880 of 2880 images are decided" in out) == (0, True)


class Starting:
    """Stands for an actor of Ray: its calls end at once, on a bad node by its loss."""

    def __init__(self, good: bool):
        self.good = good
        self.start = self.decide = self

    def remote(self, _: object) -> "Starting":
        return self

    def future(self) -> Future:
        from ray.exceptions import RayActorError  # pyright: ignore[reportMissingImports]

        done = Future()
        done.set_result("") if self.good else done.set_exception(RayActorError())
        return done


@pytest.mark.slow
def test_a_node_on_which_no_actor_starts_is_not_tried_for_ever(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(pool, "PAUSE_S", 0)
    made = []

    def make() -> Starting:
        made.append(Starting(good=not made))
        return made[-1]

    parts = [outcome.part for outcome in pool.Pool(make, None, range(50)).outcomes(2)]
    assert sorted(parts) == list(range(50))
    assert len(made) == 1 + pool.TRIES


@pytest.mark.slow
def test_the_others_go_on_while_a_loss_waits(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(pool, "PAUSE_S", 60)
    actors = [Starting(good=False), Starting(good=True)]
    start = time.monotonic()
    assert len(list(pool.Pool(lambda: actors.pop(0), None, range(50)).outcomes(2))) == 50
    assert time.monotonic() - start < 30


class TestOnAStore:
    pytestmark = STORE

    def test_images_table_and_parts_in_a_store(self, bundle, images, tmp_path):
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        access = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        try:
            paths = [images / f"{index:03d}.png" for index in range(24)]
            store = Store(access)
            for path in paths:
                store.put(f"in/{path.name}", path.read_bytes())
            table = io.BytesIO()
            places = [f"s3://shelf/in/{path.name}" for path in paths]
            pd.DataFrame({"path": [*places, "s3://shelf/in/gone.png"]}).to_parquet(table)
            store.put("table.parquet", table.getvalue())
            words = bundle, "s3://shelf/table.parquet", "s3://shelf/out", "--rows_per_part", 10, "--actors", 2
            status, out, err = finished("61_predict_ray", *words, **access)
            assert status == 4, err
            assert "25 images: " in out
            rows = pd.concat([pd.read_parquet(io.BytesIO(store.get(f"out/part-{at:06d}.parquet"))) for at in range(3)])
            expected = by_60(bundle, [*map(str, paths), str(tmp_path / "gone.png")])
            assert list(rows["id"]) == [*places, "s3://shelf/in/gone.png"]
            columns = [name for name in rows.columns if name != "id"]
            pd.testing.assert_frame_equal(rows[columns].reset_index(drop=True), expected[columns], check_exact=True)
            before = store.get("out/part-000001.parquet")
            store.client.delete_object(Bucket="shelf", Key="out/done-000001.json")  # as if killed before the marker
            status, out, _ = finished("61_predict_ray", *words, **access)
            assert (status, store.get("out/part-000001.parquet")) == (4, before)
            assert "going on: 15 of 25 images are decided" in out
        finally:
            server.stop()


class Store:
    """One bucket, as another program sees it."""

    def __init__(self, access: dict[str, str]):
        import boto3

        self.client = boto3.client(
            "s3",
            endpoint_url=access["AWS_ENDPOINT_URL"],
            aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="shelf")

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="shelf", Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket="shelf", Key=key)["Body"].read()

"""70 over real HTTP: the decisions of 60, every error defers, and nothing that was taken on is lost."""

import io
import json
import resource
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import copy, done, refused
from PIL import Image
from serving import SCRIPT, Server, Slow, eventually, form
from test_golden import relisted, rewritten

from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.errors import UserError
from stage1_pro.core.schemas import schema_problems
from stage1_pro.core.serving.server import listening

TEXT = b'--edge\r\nContent-Disposition: form-data; name="image"\r\n\r\nP5 1 1 255 x\r\n--edge--\r\n'
PARTS = ["id", "answer", "probability", "decision", "score", "reason"]


@pytest.fixture(scope="module")
def served(exported_once, tmp_path_factory):
    """A server with a log, and the log."""
    folder = tmp_path_factory.mktemp("served")
    bundle = copy(exported_once, folder) / "bundle"
    with Server(bundle, "--log", folder / "decisions.jsonl", "--max_inflight", 40) as server:
        yield server, folder / "decisions.jsonl", bundle


@pytest.fixture(scope="module")
def server(served):
    return served[0]


@pytest.fixture(scope="module")
def files(images) -> list[Path]:
    return sorted(images.glob("*.png"))[:240]


def contents(files: list[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_decisions_are_byte_for_byte_those_of_60(served, files, tmp_path):
    server, _, bundle = served
    done("60_predict", bundle, *files, "--out", tmp_path / "60.csv")
    expected = (tmp_path / "60.csv").read_bytes()
    assert b",exit," in expected
    assert b",defer," in expected
    for at_once in (1, 8, 32):
        answers = server.decide(contents(files), at_once)
        assert {answer.status for answer in answers} == {200}
        rows = pd.DataFrame([answer.body for answer in answers])
        assert rows["id"].is_unique
        assert rows.assign(id=list(map(str, files)))[PARTS].to_csv(index=False).encode() == expected
    filled = float(server.ask("/metrics").content.split(b"stage1_forward_images_count ")[1].split()[0])
    assert filled < 0.8 * 3 * len(files)  # images shared passes


ONE_CORE = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"


def test_decisions_are_those_of_60_where_a_pass_fills_the_cores(bundle, files, tmp_path):
    done("60_predict", bundle, *files, "--out", tmp_path / "60.csv")
    header, *expected = (tmp_path / "60.csv").read_bytes().splitlines()
    asked, bad = contents(files), set(range(5, len(files), 9))
    for place in bad:
        asked[place] = asked[place][:60]
    with Server(bundle, first=ONE_CORE) as server:
        answers = server.decide(asked, 32)
        measures = server.ask("/metrics").content
    assert {place for place, answer in enumerate(answers) if answer.status == 422} == bad
    good = [place for place in range(len(files)) if place not in bad]
    rows = pd.DataFrame([answers[place].body for place in good]).assign(id=[str(files[place]) for place in good])
    assert rows[PARTS].to_csv(index=False).encode().splitlines() == [header, *(expected[place] for place in good)]
    assert b"stage1_forward_images_sum %d.0" % len(good) in measures


def test_prediction_sets_are_those_of_60(exported_scrc_once, files, tmp_path):
    bundle = copy(exported_scrc_once, tmp_path) / "bundle"
    done("60_predict", bundle, *files, "--out", tmp_path / "60.csv")
    expected = pd.read_csv(tmp_path / "60.csv", dtype=str, keep_default_na=False)
    with Server(bundle) as server:
        rows = [answer.body for answer in server.decide(contents(files), 8)]
    assert [problem for row in rows for problem in schema_problems(row, "decision")] == []
    assert ["|".join(row["prediction_set"]) for row in rows] == expected["prediction_set"].tolist()
    assert [row["decision"] for row in rows] == expected["decision"].tolist()
    assert len(set(expected["prediction_set"])) >= 2


def test_bad_images_fail_alone_and_the_log_holds_a_row_of_each(served, files):
    server, log, bundle = served
    before = log.read_bytes().count(b"\n") if log.exists() else 0
    asked = contents(files[:32])
    for place in (3, 10, 11, 31):
        asked[place] = (b"not an image", asked[place][:60], b"%!PS-Adobe", b"GIF89a")[place % 4]
    answers = server.decide(asked, 32)
    assert Counter(answer.status for answer in answers) == {200: 28, 422: 4}
    assert {answer.code for answer in answers if answer.status == 422} == {"unreadable"}
    rows = [json.loads(line) for line in log.read_text().splitlines()][before:]
    assert len(rows) == 32
    assert [problem for row in rows for problem in schema_problems(row, "decision")] == []
    assert {row["bundle"] for row in rows} == {digest_file(bundle / "bundle.json")}
    unread = [row for row in rows if row["answer"] == ""]
    assert [(row["decision"], row["probability"], row["score"]) for row in unread] == [("defer", None, None)] * 4
    assert {row["certificate"] for row in rows} == {"none"}


def test_a_batch_is_answered_image_by_image(server, files):
    first, second = contents(files[:2])
    names = [("id", b"a"), ("id", b"b"), ("id", b"c"), ("group", b"g"), ("group", b"g"), ("group", b"h")]
    body, kind = form(("image", first), ("image", b"bad"), ("image", second), *names)
    answer = server.ask("/v1/decide/batch", body, content_type=kind)
    rows = answer.body["decisions"]
    assert answer.status == 200
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert (rows[0]["group"], rows[2]["group"]) == ("g", "h")
    assert (rows[1]["decision"], rows[1]["error"]["code"]) == ("defer", "unreadable")
    alone = server.ask("/v1/decide?id=a&group=g", first).body
    one, kind = form(("image", first), ("id", b"a"), ("group", b"g"))
    formed = server.ask("/v1/decide", one, content_type=kind).body
    for row in (alone, formed):
        assert {**row, "time": ""} == {**rows[0], "time": ""}


@pytest.mark.parametrize(
    ("path", "content", "headers", "expected"),
    [
        ("/v1/decide", b"", {}, (400, "empty")),
        ("/v1/decide?id=%00", b"x", {}, (400, "bad_request")),
        ("/v1/decide?id=%e9", b"x", {}, (400, "bad_request")),  # not UTF-8: %e8 would be the same id
        ("/v1/decide?id=" + "x" * 257, b"x", {}, (400, "bad_request")),
        ("/v1/decide?id=a&id=b", b"x", {}, (400, "bad_request")),
        ("/v1/decide", TEXT, {"content_type": "multipart/form-data; boundary=edge"}, (400, "bad_request")),
        ("/v1/decide", b"x", {"content_type": "multipart/form-data"}, (400, "bad_request")),
        ("/v1/decide/batch", b"x", {}, (400, "bad_request")),
        ("/v1/decide", b"x" * 10_000_001, {}, (413, "too_large")),
        ("/v1/decide", png(7072, 7072), {}, (413, "too_many_pixels")),
        ("/v1/decide", None, {}, (405, "method_not_allowed")),
        ("/v2/decide", b"x", {}, (404, "not_found")),
    ],
)
def test_every_error_defers(server, path, content, headers, expected):
    answer = server.ask(path, content, **headers)
    assert (answer.status, answer.code) == expected
    assert set(answer.body["error"]) == {"code", "message"}


def test_more_images_than_a_batch_may_hold_and_names_that_do_not_match(server, files):
    small = files[0].read_bytes()
    body, kind = form(*[("image", small)] * 41)
    assert server.ask("/v1/decide/batch", body, content_type=kind).code == "too_many_images"
    body, kind = form(("image", small), ("image", small), ("id", b"a"))
    assert server.ask("/v1/decide/batch", body, content_type=kind).code == "bad_request"
    body, kind = form(("image", small))
    for path in ("/v1/decide?id=a", "/v1/decide/batch?id=a&group=b"):  # never lost without a word
        assert server.ask(path, body, content_type=kind).code == "bad_request"
    body, kind = form(("id", b"a"))
    assert server.ask("/v1/decide/batch", body, content_type=kind).code == "empty"
    assert server.ask("/readyz").status == 200
    assert b"stage1_inflight_images 0.0" in server.ask("/metrics").content  # whatever was refused left its place


def test_what_is_too_much_is_refused_and_the_places_come_back(server, files):
    small = files[0].read_bytes()
    slow = [Slow(server, small) for _ in range(40)]
    eventually(lambda: b"stage1_inflight_images 40.0" in server.ask("/metrics").content)
    over = server.ask("/v1/decide", small)
    assert (over.status, over.code, over.headers["retry-after"]) == (503, "overloaded", "1")
    whole = b"POST /v1/decide?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(small) + small
    with socket.create_connection(("127.0.0.1", server.port)) as line:  # in one piece, so that no app sees it
        for answer in (talk(line, whole), *talk(line, whole + whole, 2).split(b"HTTP/1.1 ")[1:]):
            assert b"503 Service Unavailable\r\n" in answer
            assert b"\r\nretry-after: 1\r\n" in answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == over.body
        assert {request.finish().status for request in slow} == {200}
        eventually(lambda: b"stage1_inflight_images 0.0" in server.ask("/metrics").content)
        assert talk(line, whole).startswith(b"HTTP/1.1 200 OK")
    refused = b'stage1_responses_total{path="/v1/decide",status="503"} '
    assert float(server.ask("/metrics").content.split(refused)[1].split()[0]) >= 4


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_client_that_offers_http_2_is_answered_in_http_1(server, files, pieces):
    small = files[0].read_bytes()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"  # as Java's does
    head = b"POST /v1/decide?id=a HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        if pieces == 2:
            line.sendall(head % (offer, len(small)) + small[:9])
            assert server.ask("/livez").status == 200  # by now the piece has been read
        offered = talk(line, small[9:] if pieces == 2 else head % (offer, len(small)) + small)
        plain = talk(line, head % (b"", len(small)) + small)
    rows = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in (offered, plain)]
    assert (rows[0]["decision"], rows[0]["score"]) == (rows[1]["decision"], rows[1]["score"])


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00 TLS", b"POST /v1/decide HTTP/1.1\r\nContent-Length: -5\r\n\r\n"]
)
def test_what_is_not_http_hears_defer_as_well(server, sent):
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        answer = talk(line, sent)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (body["decision"], body["error"]["code"]) == ("defer", "bad_request")
        assert line.recv(1) == b""


@pytest.fixture(scope="module")
def strict(exported_once, tmp_path_factory):
    """A server that waits for 3 s at most and may write to no disk."""
    with Server(copy(exported_once, tmp_path_factory.mktemp("strict")) / "bundle", "--deadline_s", 3) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        yield server


def test_a_head_that_does_not_end_is_waited_for_no_longer_than_the_deadline(strict):
    with socket.create_connection(("127.0.0.1", strict.port)) as line:
        line.settimeout(20)
        late = talk(line, b"POST /v1/decide HTTP/1.1\r\nHost:")
        assert late.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert json.loads(late.partition(b"\r\n\r\n")[2])["error"]["code"] == "deadline"
        assert line.recv(1) == b""
    with socket.create_connection(("127.0.0.1", strict.port)) as line:
        line.settimeout(20)
        with suppress(ConnectionError):  # the server stops reading
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 4_000_000)
        assert strict.ask("/livez").status == 200
    assert b'stage1_refusals_total{code="bad_request"} 1.0' in strict.ask("/metrics").content
    with socket.create_connection(("127.0.0.1", strict.port)) as slow:  # but whole in time
        for part in (b"POST /v1/decide HTTP/1.1\r\nContent-", b"Length: 1\r\n\r\n"):
            slow.sendall(part)
            assert strict.ask("/livez").status == 200
        assert talk(slow, b"x").startswith(b"HTTP/1.1 422")


def test_images_of_a_form_stay_in_memory(strict):
    noise, buffer = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    body, kind = form(("image", buffer.getvalue()))
    assert len(body) > 2_000_000
    assert strict.ask("/v1/decide", body, content_type=kind).status == 200


def talk(line: socket.socket, request: bytes, answers: int = 1) -> bytes:
    """What comes back on a connection, so many answers of JSON."""
    line.sendall(request)
    found = b""
    while found.count(b"HTTP/1.1 ") < answers or not found.endswith(b"}"):
        found += (part := line.recv(65536))
        assert part, found
    return found


def test_the_server_describes_itself(server):
    model = server.ask("/v1/model").body
    assert (model["class_names"], model["certificate"], model["forward_batch"]) == (["blue", "red"], "none", 8)
    for path in ("/livez", "/readyz"):  # as some balancers ask
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("HEAD", path)
        assert connection.getresponse().status == 200
        connection.close()
    paths = server.ask("/openapi.json").body["paths"]
    assert set(paths) == {"/v1/decide", "/v1/decide/batch", "/v1/model", "/livez", "/readyz", "/metrics"}
    assert {"200", "400", "401", "413", "422", "500", "503", "504"} == set(paths["/v1/decide"]["post"]["responses"])
    page = server.ask("/")
    assert page.headers["content-type"].startswith("text/html")
    assert b"<script" in page.content


def test_token_rotation_deadline_and_an_end_that_loses_nothing(bundle, files, tmp_path):
    small, log = files[0].read_bytes(), tmp_path / "decisions.jsonl"
    log.write_bytes(b'{"id": "whole"}\n{"id": "torn by a ki')
    options = ["--log", log, "--log_max_bytes", 2000, "--deadline_s", 3, "--max_inflight", 64]
    bearer = {"authorization": "Bearer secret-1"}
    with Server(bundle, *options, STAGE1_TOKEN="secret-1") as server:
        for headers in ({}, {"authorization": "Bearer secret-2"}, {"authorization": "Basic secret-1"}):
            answer = server.ask("/v1/decide", small, **headers)
            assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        assert server.ask("/v1/model").status == 401

        with socket.create_connection(("127.0.0.1", server.port)) as line:
            assert talk(line, b"no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")  # of which no line is printed, see below
        no_form = server.ask("/v1/decide", small, content_type="multipart/form-data; boundary=x", **bearer)
        assert (no_form.status, no_form.code) == (400, "bad_request")  # nor of this
        unfinished = Slow(server, small, **bearer)
        flying = [Slow(server, small, **bearer) for _ in range(40)]
        eventually(lambda: b"stage1_inflight_images 41.0" in server.ask("/metrics").content)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.ask("/readyz").status == 503)
        refusal = server.ask("/v1/decide", small, **bearer)
        assert (refusal.status, refusal.code, refusal.headers["retry-after"]) == (503, "draining", "1")
        assert server.ask("/livez").status == 200
        pid = server.process.pid
        assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""  # which could stay behind
        assert [request.finish().status for request in flying] == [200] * 40
        unfinished.rest = b""
        late = unfinished.finish()  # its body never comes
        assert (late.status, late.code) == (504, "deadline")
        status, out, err = server.end()
        assert (status, err) == (0, "")
        assert out.strip().endswith("everything taken on was answered")
    logs = list(tmp_path.glob("decisions*.jsonl"))
    lines = [line for file in logs for line in file.read_text().splitlines()]
    assert len(logs) > 5
    assert len([json.loads(line) for line in lines]) == 41  # the whole line of before, and not the torn one


def test_a_decision_that_comes_too_late_is_a_504_and_not_logged(bundle, files, tmp_path):
    log, small = tmp_path / "decisions.jsonl", files[0].read_bytes()
    with Server(bundle, "--log", log, "--deadline_s", 1, "--wait_ms", 3000) as server:
        other = Slow(server, small)  # the pass waits for it
        eventually(lambda: b"stage1_inflight_images 1.0" in server.ask("/metrics").content)
        late = server.ask("/v1/decide", small)
        assert (late.status, late.code) == (504, "deadline")
        other.connection.close()
        eventually(lambda: b"stage1_inflight_images 0.0" in server.ask("/metrics").content)
        assert log.read_bytes() == b""
        assert server.ask("/v1/decide", small).status == 200
        assert log.read_bytes().count(b"\n") == 1


SLOW = """
import time
from stage1_pro.core.inference.predictor import Stage1Predictor

def prepared(self, image, contract=None, whole=Stage1Predictor.prepared):
    time.sleep(2 if len(image) > 8192 else 0)
    return whole(self, image, contract)

Stage1Predictor.prepared = prepared
"""
"""Makes a server decode a large image in two seconds: what one of 50 MP takes on a busy machine."""


def test_nothing_but_a_large_image_itself_is_late_for_its_decoding(bundle, files, tmp_path):
    log, small, large = tmp_path / "decisions.jsonl", files[0].read_bytes(), files[1].read_bytes() + bytes(8192)
    with Server(bundle, "--log", log, "--deadline_s", 1, first=SLOW) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.ask, "/v1/decide", large)
        eventually(lambda: b"stage1_inflight_images 1.0" in server.ask("/metrics").content)
        assert [server.ask("/v1/decide", small).status for _ in range(3)] == [200] * 3
        assert waiting.result().code == "deadline"
        eventually(lambda: b"stage1_inflight_images 0.0" in server.ask("/metrics").content)
        body, content_type = form(("image", small), ("image", large), ("image", small))
        rows = server.ask("/v1/decide/batch", body, content_type=content_type).body["decisions"]
        assert [row.get("error", {}).get("code") for row in rows] == [None, "deadline", None]
        assert log.read_bytes().count(b"\n") == 5


def test_bad_images_leave_nothing_for_the_garbage_collector(bundle, files):
    """Else some hundred MB stay in memory until it comes, though one image is in flight."""
    bad = [b"no image".ljust(9_000_000), files[0].read_bytes()[:60].ljust(9_000_000)]

    def used() -> int:
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")) // 1024
        )

    with Server(bundle, first="import gc; gc.enable = lambda: None") as server:  # it is off from the start
        status = Path(f"/proc/{server.process.pid}/status")
        form_of_all, content_type = form(*(("image", content) for content in bad * 4))

        def ask() -> None:
            assert [server.ask("/v1/decide", content).code for content in bad] == ["unreadable"] * 2
            batch = server.ask("/v1/decide/batch", form_of_all, content_type=content_type).body["decisions"]
            assert [one["error"]["code"] for one in batch] == ["unreadable"] * 8

        ask()
        before = used()
        for _ in range(8):
            ask()
        assert used() < before + 300  # of 720 MB


def test_a_full_disk_is_an_error_that_defers_and_leaves_whole_lines(bundle, files, tmp_path):
    log, small = tmp_path / "decisions.jsonl", files[0].read_bytes()
    with Server(bundle, "--log", log) as server:
        assert server.ask("/v1/decide", small).status == 200
        whole, pid, of = log.read_bytes(), server.process.pid, resource.RLIMIT_FSIZE
        resource.prlimit(pid, of, (len(whole) + 50, resource.RLIM_INFINITY))  # room for a part of a line
        answer = server.ask("/v1/decide", small)
        assert (answer.status, answer.code) == (500, "internal")
        assert log.read_bytes() == whole
        assert [server.ask("/v1/decide", small).code for _ in range(2)] == ["internal"] * 2
        eventually(lambda: "check after that" in server.ask("/readyz").body.get("reason", ""))
        ready = server.ask("/readyz")
        assert (ready.status, log.read_bytes()) == (503, whole)
        assert "the log could not be written, the last time because of OSError: " in ready.body["reason"]
        resource.prlimit(pid, of, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        eventually(lambda: server.ask("/readyz").status == 200)  # which leaves nothing in the log
        assert server.ask("/v1/decide", small).status == 200
        assert len(log.read_bytes().splitlines()) == 2
        log.rename(tmp_path / "moved.jsonl")  # as logrotate does
        assert server.ask("/v1/decide?id=next", small).status == 200
        assert json.loads(log.read_text())["id"] == "next"
        server.process.send_signal(signal.SIGTERM)
        status, _, err = server.end()
        assert (status, err.count("which cannot be logged: OSError: "), "Traceback" in err) == (0, 3, False)


FAULTS = """
import os, time
from stage1_pro.core.models.stage1 import Stage1Model

def forward(self, images, whole=Stage1Model.forward):
    while os.path.exists(os.environ["FAULT"] + ".hang"):
        time.sleep(0.05)
    if os.path.exists(os.environ["FAULT"]):
        raise RuntimeError("CUDA error: unspecified launch failure\\nand more")
    if os.path.exists(os.environ["FAULT"] + ".alone") and not images[1:].any():
        raise RuntimeError("one image alone")
    return whole(self, images)

Stage1Model.forward = forward
"""
"""Makes a server's model fail, or not return, as long as a file is there: what a lost GPU does; or fail on every image
that is alone in its pass, as no golden input is."""


def test_a_model_that_fails_every_time_takes_the_server_off_the_balancer_until_it_works_again(bundle, files, tmp_path):
    small, fault = files[0].read_bytes(), tmp_path / "fault"
    with Server(bundle, first=FAULTS, FAULT=str(fault)) as server:
        row = server.ask("/v1/decide?id=a", small).body
        fault.touch()
        for _ in range(2):
            assert server.ask("/v1/decide", small).code == "internal"
        assert server.ask("/readyz").status == 200  # one more, and it is no moment's fault
        assert server.ask("/v1/decide", small).code == "internal"
        eventually(lambda: "check after that" in server.ask("/readyz").body.get("reason", ""))
        ready = server.ask("/readyz")
        assert (ready.status, ready.body["status"], ready.headers["retry-after"]) == (503, "failing", "1")
        assert "RuntimeError: CUDA error: unspecified launch failure;" in ready.body["reason"]
        assert server.ask("/livez").status == 200
        refusal = server.ask("/v1/decide", small)
        assert (refusal.status, refusal.code) == (503, "failing")
        assert refusal.body["error"]["message"] == server.ask("/readyz").body["reason"]
        measures = server.ask("/metrics").content
        assert b"stage1_ready 0.0" in measures
        assert b'stage1_failures_total{what="computing"} 3.0' in measures
        fault.unlink()
        eventually(lambda: server.ask("/readyz").status == 200)  # though nobody asks for a decision
        assert b"stage1_ready 1.0" in server.ask("/metrics").content
        again = server.ask("/v1/decide?id=a", small).body
        assert {name: again[name] for name in PARTS} == {name: row[name] for name in PARTS}
        server.process.send_signal(signal.SIGTERM)
        status, _, err = server.end()
        assert status == 0
        assert err.count("not ready: ") == err.count("ready again") == 1


def test_images_that_fail_where_golden_inputs_do_not_leave_the_server_on_the_balancer(bundle, files, tmp_path):
    small, alone = files[0].read_bytes(), tmp_path / "fault.alone"
    with Server(bundle, first=FAULTS, FAULT=str(tmp_path / "fault")) as server:
        alone.touch()
        for _ in range(7):  # whoever sends them has no other client refused
            assert server.ask("/v1/decide", small).code == "internal"
            assert server.ask("/readyz").status == 200
        assert b'stage1_failures_total{what="computing"} 7.0' in server.ask("/metrics").content
        alone.unlink()
        assert server.ask("/v1/decide", small).status == 200
        server.process.send_signal(signal.SIGTERM)
        status, _, err = server.end()
        assert (status, err.count("one image alone"), "not ready" in err) == (0, 7, False)


def test_a_pass_that_does_not_end_takes_the_server_off_the_balancer(bundle, files, tmp_path):
    small, hang = files[0].read_bytes(), tmp_path / "fault.hang"
    with Server(bundle, "--deadline_s", 0.3, first=FAULTS, FAULT=str(tmp_path / "fault")) as server:
        hang.touch()
        assert server.ask("/v1/decide", small).code == "deadline"
        assert server.ask("/readyz").status == 200
        eventually(lambda: server.ask("/readyz").status == 503)
        assert server.ask("/readyz").body["reason"].startswith("a forward pass has not ended for ")
        hang.unlink()
        eventually(lambda: server.ask("/readyz").status == 200)


def test_while_the_model_loads_the_server_says_so(bundle, files):
    command = [sys.executable, str(SCRIPT), str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        loading = Server.__new__(Server)
        loading.port = int(process.stdout.readline().rpartition(":")[2])
        eventually(lambda: answers(loading.port))
        answer = loading.ask("/v1/decide", files[0].read_bytes())
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "starting", "1")
        assert (loading.ask("/livez").status, loading.ask("/readyz").status) == (200, 503)
        process.terminate()
        assert "ready" not in process.stdout.read()  # it must not be, where it is about to end
        assert process.wait() == 0


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_a_second_ctrl_c_waits_for_nothing(bundle, files):
    with Server(bundle, "--deadline_s", 300) as server:
        unfinished = Slow(server, files[0].read_bytes())
        eventually(lambda: b"stage1_inflight_images 1.0" in server.ask("/metrics").content)
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: server.ask("/readyz").status == 503)
        assert server.process.poll() is None  # one alone waits for what is in flight
        server.process.send_signal(signal.SIGINT)
        status, _, err = server.end()
        assert status == 130
        assert len(err.splitlines()) == 1
        assert "Interrupted" in err
        unfinished.connection.close()


def test_a_server_that_must_not_start_does_not(bundle, script, tmp_path, monkeypatch):
    refused(
        script("70_serve", bundle, "--wait_ms", -1, "--max_bytes", 0), "--wait_ms -1: allowed 0 to", "--max_bytes 0"
    )
    refused(script("70_serve", bundle, "--log", tmp_path / "none" / "d.jsonl"), "is not a folder")
    refused(script("70_serve", bundle, "--log", bundle / "d.jsonl"), "lies in the bundle")
    refused(script("70_serve", bundle, "--log", f"{tmp_path}/new/"), "new/ is a folder")
    refused(script("70_serve", bundle, "--log", tmp_path / "d.jsonl", "--log_max_bytes", 0), "must be 1 or more")
    for log in ("-", "/dev/null"):
        refused(script("70_serve", bundle, "--log", log), f"--log {log}: rows are kept in a regular file")
    refused(script("70_serve", bundle, "--log", "/proc/none.jsonl", "--port", 0), "none.jsonl: No such file")
    (tmp_path / "notes.txt").write_text("of somebody else, and without an end")
    refused(script("70_serve", bundle, "--log", tmp_path / "notes.txt", "--port", 0), "holds other things than dec")
    assert (tmp_path / "notes.txt").read_text() == "of somebody else, and without an end"
    refused(script("70_serve", bundle.parent), f"is a run. Name its bundle, {bundle},")
    refused(script("70_serve", bundle, "--require_signature", bundle / "config.json"), "is not signed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(script("70_serve", bundle, "--port", taken.getsockname()[1]), "Name another one")
    with np.load(bundle / "golden.npz") as arrays:
        rewritten(bundle, logits=arrays["logits"] + 1)
    refused(script("70_serve", bundle, "--port", 0), "outputs differ by up to")
    relisted(bundle, None)
    refused(script("70_serve", bundle, "--port", 0), "has no golden.npz")
    monkeypatch.setenv("STAGE1_TOKEN", "")
    refused(script("70_serve", bundle), "STAGE1_TOKEN must be one word")
    monkeypatch.delenv("STAGE1_TOKEN")
    (bundle / "config.json").write_text("{}")
    refused(script("70_serve", bundle), "config.json has been altered")


def test_two_servers_that_start_at_once_do_not_share_a_port():
    with listening("127.0.0.1", 0) as first, pytest.raises(UserError, match="in use"):
        listening("127.0.0.1", first.getsockname()[1])


def test_without_the_extra_the_message_says_what_to_install(bundle):
    hide = "import sys; sys.modules.update(fastapi=None, uvicorn=None); sys.argv[1:] = [sys.argv[1]]; import runpy; "
    run = f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", hide + run, str(bundle)], capture_output=True, text=True)
    assert ended.returncode == 2, ended
    assert "fastapi, uvicorn not installed: pip install 'stage1-pro[serve]'" in ended.stderr


@pytest.mark.slow
def test_memory_does_not_grow_over_a_hundred_thousand_requests(bundle, images):
    benchmark = Path(__file__).parents[2] / "benchmarks" / "serve.py"
    command = [sys.executable, str(benchmark), str(bundle), str(images), "--soak", "100000"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended
    assert "statuses [200]" in ended.stdout

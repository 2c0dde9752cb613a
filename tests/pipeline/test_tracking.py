"""What MLflow and Weights & Biases get of a run, and what a server that is away costs: a warning."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import chain
import pandas as pd
import pytest
from chain import copy, done, refused

from stage1_pro.core.config import extras


def flags(config: Path, *more: object) -> list[str]:
    return ["--config", str(config), "--phase", "2", "--epochs", "2", "--early_stop_patience", "2", *map(str, more)]


@pytest.mark.slow
def test_a_run_is_tracked_and_its_bundle_loads_from_the_registry_and_decides_like_60(
    config, images, tmp_path, script, monkeypatch
):
    mlflow = pytest.importorskip("mlflow")
    uri, run = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "runs" / "tracked"
    monkeypatch.chdir(tmp_path)
    chain.train_run(run, flags(config, "--epochs", 8, "--logger", "mlflow", "--tracking_uri", "sqlite:///mlflow.db"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done("25_threshold_sweep", "--run", run)
    done("40_eval_selective", "--run", run)
    assert "registered models:/red/1" in done("50_export_bundle", "--run", run, "--register", "red").out
    client = mlflow.MlflowClient(tracking_uri=uri)
    id = json.loads((run / "tracking.json").read_text())["run_id"]
    tracked = client.get_run(id)
    assert tracked.data.params["batch_size"] == "32"
    figures = json.loads((run / "eval.json").read_text())["exits"]
    assert tracked.data.metrics["test_coverage"] == figures["coverage"]["value"]
    epochs = pd.read_csv(run / "metrics.csv")
    history = [metric.value for metric in client.get_metric_history(id, "val_loss")]
    assert history == pytest.approx(epochs["val_loss"].tolist(), rel=1e-6)
    assert {"report.html", "eval.json", "thresholds.json", "figures"} <= {
        file.path for file in client.list_artifacts(id)
    }
    assert client.get_model_version("red", "1").run_id == id
    # from the registry, as any MLflow host loads it
    mlflow.set_tracking_uri(uri)
    names = [str(path) for path in sorted(images.glob("*.png"))[:40]] + [str(images / "labels.csv")]
    loaded = mlflow.pyfunc.load_model("models:/red/1")
    found = loaded.predict(pd.DataFrame({"path": names}))
    assert script("60_predict", run / "bundle", *names, "--out", tmp_path / "60.csv").status == 4
    assert found.to_csv(index=False) == (tmp_path / "60.csv").read_text()
    content = loaded.predict(pd.DataFrame({"content": [Path(name).read_bytes() for name in names]}))
    assert content["score"].tolist() == pytest.approx(found["score"].tolist(), nan_ok=True, abs=0)
    mixed = pd.DataFrame({"path": [names[0], None, None], "content": [None, Path(names[1]).read_bytes(), None]})
    found = loaded.predict(mixed)
    assert found["score"].tolist()[:2] == content["score"].tolist()[:2]
    assert (found["id"].tolist(), found["reason"][2]) == ([names[0], "1", "2"], "no such file")
    assert loaded.predict(mixed.iloc[:0]).empty
    assert not list(tmp_path.rglob("*.pkl"))
    # once more, from the exported bundle
    verify = ["50_export_bundle", "--verify", run / "bundle", "--register", "red"]
    assert "registered models:/red/2" in done(*verify).out
    refused(script(*verify, "--tracking_uri", f"file:{tmp_path}/mlruns"), "such as sqlite:///mlflow.db")
    assert not list((tmp_path / "elsewhere").iterdir())
    # in another store: the run goes on where it was tracked
    known = (run / "tracking.json").read_text()
    assert "registered models:/red/1" in done(*verify, "--tracking_uri", f"sqlite:///{tmp_path}/other.db").out
    assert (run / "tracking.json").read_text() == known


@pytest.mark.slow
def test_a_server_that_is_away_is_a_warning(config, tmp_path, script):
    pytest.importorskip("mlflow")
    run, away = tmp_path / "runs" / "alone", "http://127.0.0.1:9"
    done("00_make_splits", *flags(config), "--run", run)
    said = done("20_train", *flags(config, "--logger", "mlflow", "--tracking_uri", away), "--run", run).out
    assert said.count("does not take what is tracked") == 1
    assert len(pd.read_csv(run / "metrics.csv")) == 2
    assert (run / "scores" / "val_calib.parquet").exists()
    assert not (run / "tracking.json").exists()


@pytest.mark.slow
def test_a_server_that_never_answers_costs_a_warning_and_seconds(config, tmp_path):
    pytest.importorskip("mlflow")
    run = tmp_path / "runs" / "alone"
    done("00_make_splits", *flags(config), "--run", run)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        said = done("20_train", *flags(config, "--logger", "mlflow", "--tracking_uri", away), "--run", run).out
        taken = time.monotonic() - begun
    assert said.count("does not take what is tracked") == 1
    assert len(pd.read_csv(run / "metrics.csv")) == 2
    assert taken < 90  # twice ten seconds, and the training; MLflow by itself would try for minutes in every call


@pytest.mark.slow
def test_weights_and_biases_gets_the_epochs(config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "runs" / "tracked"
    chain.train_run(run, flags(config, "--logger", "wandb"))
    wandb.teardown()  # as the end of a command's process does; finish() alone may return before the file is whole
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert logged_offline(file, "val_loss") == pytest.approx(pd.read_csv(run / "metrics.csv")["val_loss"].tolist())


def logged_offline(file: Path, name: str) -> list[float]:
    """Values of a metric in the file that `wandb sync` would send, in their order."""
    pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for content in records(file.read_bytes()):
        items = {
            item.key or ".".join(item.nested_key): item.value_json
            for item in pb2.Record.FromString(content).history.item
        }
        found += [json.loads(items[name])] if name in items else []
    return found


def records(log: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format behind a header of seven bytes: parts, each within 32 KiB."""
    at, content, whole_or_last = 7, b"", (1, 4)
    while at + 7 <= len(log):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        content += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in whole_or_last:
            yield content
            content = b""


def test_where_nothing_can_be_tracked_is_told_first(config, exported_once, tmp_path, script, monkeypatch):
    run = ["--run", tmp_path / "run"]
    refused(script("00_make_splits", *flags(config, "--logger", "mlflow"), *run), "such as sqlite:///mlflow.db")
    for folder in ("file:///tmp/mlruns", "mlruns"):
        options = flags(config, "--logger", "mlflow", "--tracking_uri", folder)
        refused(script("00_make_splits", *options, *run), "in a database or on a server", "sqlite:///mlflow.db")
    refused(script("20_train", *flags(config, "--tracking_uri", "sqlite:///m.db"), *run), "set logger: mlflow")
    bundle = copy(exported_once, tmp_path / "runs") / "bundle"
    refused(script("50_export_bundle", "--verify", bundle, "--tracking_uri", "sqlite:///m.db"), "add it")
    new = ["50_export_bundle", "--run", bundle.parent, "--out", tmp_path / "new", "--register", "red"]
    refused(script(*new), "such as sqlite:///mlflow.db, with --tracking_uri")
    refused(script(*new[:-1], "a/b", "--tracking_uri", f"sqlite:///{tmp_path}/m.db"), "holds neither '/' nor ':'")
    monkeypatch.setitem(extras.EXTRAS, "mlflow", ("mlflow_that_nobody_has",))
    refused(script(*new, "--tracking_uri", f"sqlite:///{tmp_path}/m.db"), "pip install 'stage1-pro[mlflow]'")
    assert not (tmp_path / "new").exists()

"""A run and a bundle in ONNX: what ships is what was scored, certified and checked."""

import json
import sys
from pathlib import Path

import chain
import numpy as np
import pandas as pd
import pytest
from chain import SCRIPTS, copy, done, refused
from test_golden import relisted

from stage1_pro import Stage1Predictor, verify_bundle
from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.models.stage1 import load_model
from stage1_pro.core.records.run import Run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def gated_once(config, make_once) -> Path:
    """A phase-3 run that is scored in ONNX, with its bundle."""
    flags = [
        "--phase",
        "3",
        "--exit_policy",
        "gate",
        "--scoring_backend",
        "onnx",
        "--head_ensemble",
        "2",
        "--epochs",
        "8",
    ]

    def make(run: Path) -> None:
        chain.train_run(run, ["--config", str(config), *map(str, flags)])
        for name in ("33_calibrate_gate", "40_eval_selective", "50_export_bundle"):
            done(name, "--run", run)

    return make_once("onnx", make)


@pytest.fixture
def gated(gated_once, runs) -> Path:
    return copy(gated_once, runs)


def test_the_certificate_is_of_the_scores_of_the_file_that_ships(gated, images, script):
    run, contents = Run(gated), verify_bundle(gated / "bundle")
    shipped = digest_file(contents.model_path)
    assert (contents.model_path.name, contents.manifest["scoring_backend"]) == ("model.onnx", "onnx")
    assert {read(run.policy_path)["model_digest"], run.scores("val_calib").model_digest} == {shipped}
    assert not list((gated / "bundle").glob("*.pth"))
    assert "within 0 of the recorded ones" in done("50_export_bundle", "--verify", gated / "bundle", "--golden").out
    # 60 decides as the recorded scores of the test split do, bit for bit
    scores, table = run.scores("val_test"), gated / "decisions.csv"
    names = [str(images / name.rpartition("/")[2]) for name in scores.case_id]
    done("60_predict", gated / "bundle", *names, "--out", table)
    decided, expected = pd.read_csv(table), contents.policy.decide(scores)
    assert (decided["decision"] == np.where(expected.exits, "exit", "defer")).all()
    assert (decided["score"].to_numpy() == expected.scores).all()
    assert 0 < expected.exits.mean() < 1


def test_torch_gives_the_same_logits_whatever_the_batch(gated, images):
    run, files = Run(gated), [str(path) for path in sorted(images.glob("*.png"))[:37]]
    torch = Stage1Predictor(load_model(run.model_path), device="cpu")
    expected = next(torch.outputs(files, batch_size=37))
    assert np.ptp(expected.logits) > 1
    for forward_batch in (1, 5, 64):
        shipped = Stage1Predictor(Stage1Predictor.from_run(run).model, forward_batch=forward_batch)
        found = next(shipped.outputs(files, batch_size=37))
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.gate_logit, expected.gate_logit, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_equal_weights_give_equal_bytes_without_a_word_of_this_machine(gated, tmp_path):
    from stage1_pro.core.models.onnx_export import export_onnx

    export_onnx(load_model(gated / "model_best.pth"), tmp_path / "again.onnx")
    content = (tmp_path / "again.onnx").read_bytes()
    assert content == (gated / "model.onnx").read_bytes()
    assert b"stage1_pro/core" not in content
    assert str(SCRIPTS.parents[1]).encode() not in content


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_file_that_was_tampered_with_is_refused(gated, script, content):
    bundle = gated / "bundle"
    path = bundle / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"\0" * 20)
    refused(script("50_export_bundle", "--verify", bundle), "model.onnx has been altered")
    changed = whole[: len(whole) // 2] if content is None else content
    path.write_bytes(changed)
    manifest = read(bundle / "bundle.json")
    manifest["files"]["model.onnx"] = {"bytes": len(changed), "sha256": digest_file(path)}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    refused(script("50_export_bundle", "--verify", bundle), "was calibrated for other weights")
    policy = read(bundle / "gateparams.json")
    (bundle / "gateparams.json").write_text(json.dumps({**policy, "model_digest": digest_file(path)}))
    again = bundle / "gateparams.json"
    manifest["files"][again.name] = {"bytes": again.stat().st_size, "sha256": digest_file(again)}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    refused(script("50_export_bundle", "--verify", bundle), "not a whole ONNX file of a stage 1 model")


@pytest.mark.slow
def test_another_site_moves_the_answers_of_the_same_graph(gated, tmp_path, script):
    site = tmp_path / "site"
    site.mkdir()
    chain.draw(site, cases=400, seed=5, light=0.8)
    (site / "site.yaml").write_text(f"dataset_params:\n  sources: [{{name: site, labels: {site}/labels.csv}}]\n")
    new = tmp_path / "runs" / "site"
    done("38_recalibrate", gated / "bundle", "--config", site / "site.yaml", "--out", new)
    old, moved = (Stage1Predictor.load(run / "bundle") for run in (gated, new))
    assert moved.model.answer_shift != old.model.answer_shift
    files = [str(path) for path in sorted(site.glob("*.png"))[:50]]
    before, after = (next(predictor.outputs(files, batch_size=50)) for predictor in (old, moved))
    step = (moved.model.answer_shift - old.model.answer_shift) / 2
    np.testing.assert_allclose(after.logits - before.logits, np.tile([-step, step], (50, 1)), atol=1e-5)
    np.testing.assert_allclose(np.abs(after.gate_logit), np.abs(before.gate_logit), atol=1e-5)
    flipped = after.logits.argmax(1) != before.logits.argmax(1)
    np.testing.assert_array_equal(np.signbit(after.gate_logit) != np.signbit(before.gate_logit), flipped)
    graphs = [onnx.load(run / "bundle" / "model.onnx").graph for run in (gated, new)]
    tensors = [{tensor.name: tensor.raw_data for tensor in graph.initializer} for graph in graphs]
    assert [name for name in tensors[0] if tensors[0][name] != tensors[1][name]] == ["answer_offsets"]


@pytest.mark.slow
def test_a_run_of_torch_ships_in_onnx_where_both_decide_alike(evaluated, images, script, monkeypatch):
    done("50_export_bundle", "--run", evaluated)
    assert "of val_select alike" in done("50_export_bundle", "--run", evaluated, "--format", "onnx").out
    bundles = [evaluated / "bundle", evaluated / "bundle-onnx"]
    manifest = verify_bundle(bundles[1]).manifest
    assert manifest["converted"]["model_digest"] == digest_file(evaluated / "model_best.pth")
    assert "The certificate speaks of the scores that torch computes" in (bundles[1] / "README.md").read_text()
    done("50_export_bundle", "--verify", bundles[1], "--golden")  # the recorded outputs are torch's
    decisions = []
    for bundle in bundles:
        done("60_predict", bundle, images, "--out", evaluated / "d.csv", "--overwrite")
        decisions.append(pd.read_csv(evaluated / "d.csv").drop(columns=["probability", "score"]))
    pd.testing.assert_frame_equal(*decisions)
    refused(script("50_export_bundle", "--run", evaluated, "--format", "onnx"), "bundles are never overwritten")
    monkeypatch.setattr("stage1_pro.core.conversion.TOLERANCE", 0.0)
    refused(
        script("50_export_bundle", "--run", evaluated, "--format", "onnx", "--out", evaluated / "other"),
        "the certificate does not cover it",
        "Add --recertify",
    )
    assert not [path.name for path in evaluated.iterdir() if path.name.startswith(("other", ".onnx"))]


@pytest.mark.slow
def test_eight_bits_ship_with_a_certificate_of_their_own(evaluated, script):
    policy, ledger = (evaluated / "thresholds.json").read_bytes(), evaluated.parent / "calibrations.csv"
    options = ["--run", evaluated, "--format", "onnx", "--recertify", "--quantize", "static"]
    done("50_export_bundle", *options)
    bundle = evaluated / "bundle-onnx"
    contents, found = verify_bundle(bundle), read(bundle / "thresholds.json")
    assert found["model_digest"] == digest_file(bundle / "model.onnx")
    assert (found["calib_use_count"], found["remaining_confidence"]) == (2, pytest.approx(0.9))
    assert "converted" not in contents.manifest
    assert (evaluated / "thresholds.json").read_bytes() == policy
    assert len(pd.read_csv(ledger)) == 2
    assert [path.name for path in evaluated.parent.iterdir() if "onnx" in path.name] == []
    done("50_export_bundle", "--verify", bundle, "--golden")
    operators = {node.op_type for node in onnx.load(bundle / "model.onnx").graph.node}
    assert "QuantizeLinear" in operators
    (evaluated.parent / f"{evaluated.name}-onnx").mkdir()
    refused(script("50_export_bundle", *options, "--out", evaluated / "b"), "is in the way of --recertify")


def test_options_that_do_not_go_together(gated, evaluated, images, script):
    refused(
        script("50_export_bundle", "--run", evaluated, "--recertify", "--quantize", "static", "--golden"),
        "add --format onnx",
        "name it with --verify",
    )
    refused(script("50_export_bundle", "--run", evaluated, "--quantize", "static"), "add --recertify")
    refused(script("50_export_bundle", "--verify", gated / "bundle", "--format", "onnx"), "--verify writes none")
    refused(script("50_export_bundle", "--run", gated, "--format", "torch"), "certified in ONNX")
    refused(
        script("60_predict", gated / "bundle", images / "000.png", "--device", "cuda"),
        "model.onnx is computed on the CPU",
    )
    relisted(gated / "bundle", None)
    manifest = read(gated / "bundle" / "bundle.json")
    (gated / "bundle" / "bundle.json").write_text(json.dumps({**manifest, "scoring_backend": "torch"}))
    refused(script("50_export_bundle", "--verify", gated / "bundle"), "model.onnx has no place in a bundle")


def test_without_the_extra_training_does_not_begin(config, tmp_path, script, monkeypatch):
    flags = ["--config", config, "--phase", "2", "--scoring_backend", "onnx", "--run", tmp_path / "run"]
    done("00_make_splits", *flags)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for more in ([], ["--dry_run"]):
        refused(script("20_train", *flags, *more), "onnxscript not installed: pip install 'stage1-pro[onnx]'")
    assert not (tmp_path / "run" / "config.json").exists()
    refused(script("00_make_splits", "--config", config, "--quantize", "static"), "set scoring_backend: onnx")

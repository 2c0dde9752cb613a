"""What decodes images and in which arithmetic they are scored: properties of a run, certified as they ship."""

import json
from hashlib import sha256
from pathlib import Path

import chain
import numpy as np
import pandas as pd
import pytest
from chain import copy, done, refused
from PIL import Image

from stage1_pro import Stage1Predictor, verify_bundle
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.inference.golden import tolerance
from stage1_pro.core.models.stage1 import load_model, save_model
from stage1_pro.core.records.run import Run


@pytest.fixture(scope="session")
def halved_once(config, make_once) -> Path:
    """A phase-2 run whose scores are made in bfloat16, with its bundle."""

    def make(run: Path) -> None:
        chain.train_run(run, ["--config", str(config), "--phase", "2", "--scoring_precision", "bf16", "--epochs", "8"])
        for name in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
            done(name, "--run", run)

    return make_once("halved", make)


def test_scores_in_bfloat16_are_what_is_certified_and_what_decides(halved_once, runs, images):
    run = Run(copy(halved_once, runs))
    contents, files = verify_bundle(run.bundle_path), sorted(map(str, images.glob("*.png")))[:50]
    assert contents.manifest["scoring_precision"] == run.config.scoring_precision == "bf16"
    assert "bfloat16" in (run.bundle_path / "README.md").read_text()
    predictor = Stage1Predictor.load(run.bundle_path, "cpu")
    halved, whole = (logits_of(one, files) for one in (predictor, Stage1Predictor(load_model(run.model_path))))
    assert 0 < np.abs(halved - whole).max() < tolerance(contents)
    assert len(np.unique(halved)) > 90  # the heads do not round
    assert "within 0 of the recorded ones" in done("50_export_bundle", "--verify", run.bundle_path, "--golden").out
    scores, table = run.scores("val_test"), run.path / "decisions.csv"
    names = [str(images / name.rpartition("/")[2]) for name in scores.case_id]
    done("60_predict", run.bundle_path, *names, "--out", table)
    decided, expected = read_whole(table), contents.policy.decide(scores)
    assert (decided["decision"] == np.where(expected.exits, "exit", "defer")).all()
    assert (decided["score"].to_numpy() == expected.scores).all()


def test_val_select_is_scored_as_its_images_are(halved_once, images):
    """Its features, which the answers were placed with, are not computed twice."""
    run = Run(halved_once)
    scores = run.scores("val_select")
    names = [str(images / name.rpartition("/")[2]) for name in scores.case_id]
    assert np.array_equal(scores.logits, logits_of(Stage1Predictor.from_run(run, "cpu"), names))


def read_whole(table: Path) -> pd.DataFrame:
    """The parser of pandas 3.0 may miss a number's last bit."""
    return pd.read_csv(table, dtype={"score": str}).astype({"score": float})


def logits_of(predictor: Stage1Predictor, files: list[str]) -> np.ndarray:
    return np.concatenate([part.logits for part in predictor.outputs(files)])


def test_without_a_gpu_nothing_is_decoded_in_its_place(config, bundle, images, runs, script, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    reason = "decoded by an NVIDIA GPU (dataset_params.decode: gpu), and the device is cpu"
    for more in ([], ["--dry_run"]):
        refused(script("20_train", "--config", config, "--dataset_params.decode", "gpu", *more), reason, "decode: cpu")
    assert not list(runs.glob("p*"))
    decoded_by_gpu(bundle)
    done("50_export_bundle", "--verify", bundle)  # it is whole
    refused(script("50_export_bundle", "--verify", bundle, "--golden"), reason)
    refused(script("60_predict", bundle, images, "--out", bundle.parent / "decisions.csv"), reason)
    refused(script("70_serve", bundle, "--port", "0"), reason)
    assert not (bundle.parent / "decisions.csv").exists()


def decoded_by_gpu(bundle: Path) -> None:
    """Make a bundle one whose run decoded on a GPU."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    model = load_model(bundle / manifest["model_file"])
    model.spec = type(model.spec)(
        model.spec.arch, model.spec.kwargs, model.spec.preprocessing.decoded_by("gpu"), model.spec.license
    )
    save_model(model, bundle / manifest["model_file"])
    policy = json.loads((bundle / manifest["policy_file"]).read_text())
    policy["model_digest"] = sha256((bundle / manifest["model_file"]).read_bytes()).hexdigest()
    (bundle / manifest["policy_file"]).write_text(json.dumps(policy))
    manifest["preprocessing"] = model.spec.preprocessing.to_dict()
    for name in (manifest["model_file"], manifest["policy_file"]):
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scoring_precision": "bf16", "scoring_backend": "onnx"}, "scoring_precision is bf16"),
        ({"dataset_params": {"decode": "gpu"}, "scoring_backend": "onnx"}, "decode is gpu"),
    ],
)
def test_onnx_runtime_has_neither(settings, named):
    with pytest.raises(Exception, match=named):
        merge_configs([("a.yaml", settings)])


@pytest.mark.gpu
def test_a_run_decoded_on_a_gpu_goes_from_images_to_decisions(config, images, runs, tmp_path):
    folder, run = tmp_path / "jpegs", Run(runs / "gpu")
    folder.mkdir()
    for path in images.glob("*.png"):
        Image.open(path).resize((96, 80)).save(folder / f"{path.stem}.jpg", quality=95)
    (folder / "labels.csv").write_text((images / "labels.csv").read_text().replace(".png", ".jpg"))
    sources = json.dumps([{"name": "noise", "labels": str(folder / "labels.csv")}])
    flags = ["--phase", "2", "--dataset_params.decode", "gpu", "--scoring_precision", "bf16"]
    flags += ["--dataset_params.augmentation", "moderate", "--dataset_params.num_workers", "2"]
    chain.train_run(run.path, ["--config", str(config), *flags, "--dataset_params.sources", sources])
    for name in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
        done(name, "--run", run.path)
    contents = verify_bundle(run.bundle_path)
    assert contents.manifest["preprocessing"]["decode"] == "gpu"
    assert "within 0 of the recorded ones" in done("50_export_bundle", "--verify", run.bundle_path, "--golden").out
    scores, table = run.scores("val_test"), run.path / "decisions.csv"
    names = [str(folder / name.rpartition("/")[2]) for name in scores.case_id]
    done("60_predict", run.bundle_path, *names, "--out", table)
    assert (read_whole(table)["score"].to_numpy() == contents.policy.decide(scores).scores).all()
    predictor = Stage1Predictor.load(run.bundle_path)  # as a server asks: one image at a time
    alone = predictor.outputs_of([predictor.prepared(Path(name).read_bytes()) for name in names])
    assert np.array_equal(alone.logits, scores.logits)

"""Golden inputs: a bundle is checked on the machine that is to decide with it."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from chain import done, refused

from stage1_pro.core.bundle.contents import verify_bundle
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.golden import check_golden, golden_images
from stage1_pro.core.inference.predictor import Stage1Predictor


def rewritten(bundle: Path, **changed: np.ndarray) -> None:
    """Other golden inputs, listed in the manifest as they are."""
    with np.load(bundle / "golden.npz") as arrays:
        content = {**arrays, **changed}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    relisted(bundle, buffer.getvalue())


def relisted(bundle: Path, content: bytes | None) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    if content is None:
        (bundle / "golden.npz").unlink()
        del manifest["files"]["golden.npz"]
    else:
        (bundle / "golden.npz").write_bytes(content)
        manifest["files"]["golden.npz"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_a_bundle_holds_synthetic_images_and_what_they_must_give(bundle, script):
    with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
        assert arrays["logits"].shape == (8, 2)
        assert arrays["logits"].dtype == np.float32
        assert len(np.unique(arrays["logits"][:, 0])) == 8
        files = [arrays[f"image_{number}"].tobytes() for number in range(8)]
    assert files == list(golden_images())
    assert (bundle / "golden.npz").stat().st_size < 1_000_000
    assert "within 0 of the recorded ones" in done("50_export_bundle", "--verify", bundle, "--golden").out


def test_a_link_that_is_set_to_another_bundle_in_between_is_noticed(bundle, exported_gate_once, tmp_path):
    current = tmp_path / "current"
    current.symlink_to(bundle)
    contents = verify_bundle(current)
    current.unlink()
    current.symlink_to(exported_gate_once / "bundle")
    check_golden(verify_bundle(current))  # it is whole
    with pytest.raises(UserError, match="became another bundle while it was loaded"):
        Stage1Predictor.of_verified(contents)


@pytest.mark.parametrize("off", [2e-4, np.nan])
def test_a_machine_that_gets_other_outputs_is_told(bundle, script, off):
    with np.load(bundle / "golden.npz") as arrays:
        logits = arrays["logits"]
    logits[5, 1] += off
    rewritten(bundle, logits=logits)
    done("50_export_bundle", "--verify", bundle)
    refused(script("50_export_bundle", "--verify", bundle, "--golden"), "outputs differ by up to", "allowed 0.0001")


def test_images_that_are_read_otherwise_are_noticed(bundle, script, monkeypatch):
    monkeypatch.setattr("stage1_pro.core.data.decoding._orientation", lambda image: 1)
    refused(script("50_export_bundle", "--verify", bundle, "--golden"), "decodes, resizes or computes otherwise")


def test_damaged_and_missing_golden_inputs(bundle, script):
    relisted(bundle, b"not a zip file")
    refused(script("50_export_bundle", "--verify", bundle, "--golden"), "not a whole file of golden inputs")
    relisted(bundle, None)
    done("50_export_bundle", "--verify", bundle)  # as bundles were before
    refused(script("50_export_bundle", "--verify", bundle, "--golden"), "has no golden.npz", "Export it again")
    refused(script("50_export_bundle", "--run", bundle.parent, "--golden"), "name it with --verify")

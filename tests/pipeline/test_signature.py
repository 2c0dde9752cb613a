"""Signed bundles: by whom one was exported, before anything of it is parsed."""

import json
import shutil
from pathlib import Path

import pytest
from chain import done, refused

pytest.importorskip("model_signing")
pytest.importorskip("OpenSSL")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, Path]:
    """Two key pairs on a curve, the first encrypted by a password too, and an RSA key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    folder, found = tmp_path_factory.mktemp("keys"), {}

    def write(name: str, content: bytes) -> None:
        found[name] = folder / name
        found[name].write_bytes(content)

    pem, private, plain = form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    public = form.PublicFormat.SubjectPublicKeyInfo
    mine, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    write("mine", mine.private_bytes(pem, private, plain))
    write("locked", mine.private_bytes(pem, private, form.BestAvailableEncryption(b"word")))
    write("mine.pub", mine.public_key().public_bytes(pem, public))
    write("other.pub", other.public_key().public_bytes(pem, public))
    write("rsa", rsa.generate_private_key(65537, 2048).private_bytes(pem, private, plain))
    return found


def test_a_signed_bundle_is_known_and_every_change_is_noticed(evaluated, images, keys, script):
    said = done("50_export_bundle", "--run", evaluated, "--sign", keys["mine"]).out
    bundle, signature = evaluated / "bundle", evaluated / "bundle.sig"
    assert str(signature) in said
    verify = ["50_export_bundle", "--verify", bundle, "--key"]
    assert "signed by the owner of" in done(*verify, keys["mine.pub"]).out
    predict = [
        "60_predict",
        bundle,
        images / "000.png",
        "--out",
        evaluated / "d.csv",
        "--overwrite",
        "--require_signature",
    ]
    done(*predict, keys["mine.pub"])
    refused(script(*verify, keys["other.pub"]), "is no signature of", "key anew from who exported it")
    refused(script(*verify, keys["mine"]), "not a public key")
    refused(script(*verify, evaluated / "none.pub"), "no such file")
    # consistent in itself, and not what was signed
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "created_at": "2020-01-01T00:00:00Z"}))
    done("50_export_bundle", "--verify", bundle)
    refused(script(*verify, keys["mine.pub"]), "bundle.json")
    (bundle / "bundle.json").write_text("{")  # refused before it is parsed
    refused(script("70_serve", bundle, "--require_signature", keys["mine.pub"]), "is no signature of")
    signature.unlink()
    for words in (verify, predict, ["70_serve", bundle, "--require_signature"]):
        refused(script(*words, keys["mine.pub"]), "is not signed")


def test_a_renamed_bundle_keeps_its_signature_and_another_folder_has_none(evaluated, keys, script, monkeypatch):
    refused(script("50_export_bundle", "--run", evaluated, "--sign", keys["locked"]), "STAGE1_KEY_PASSWORD in the env")
    assert not (evaluated / "bundle").exists()  # told before anything is written
    monkeypatch.setenv("STAGE1_KEY_PASSWORD", "word")
    done("50_export_bundle", "--run", evaluated, "--sign", keys["locked"])
    shutil.move(evaluated / "bundle", evaluated / "v2")
    refused(script("50_export_bundle", "--verify", evaluated / "v2", "--key", keys["mine.pub"]), "is not signed")
    shutil.move(evaluated / "bundle.sig", evaluated / "v2.sig")
    done("50_export_bundle", "--verify", evaluated / "v2", "--key", keys["mine.pub"])
    (evaluated / "current").symlink_to("v2")
    done("50_export_bundle", "--verify", evaluated / "current", "--key", keys["mine.pub"])
    (evaluated / "v2.sig").write_text("{}")
    refused(script("50_export_bundle", "--verify", evaluated / "v2", "--key", keys["mine.pub"]), "is no signature of")


def test_keys_that_cannot_sign_and_options_that_mean_nothing(evaluated, keys, script):
    for name in ("mine.pub", "rsa"):
        refused(script("50_export_bundle", "--run", evaluated, "--sign", keys[name]), "not a private key that can sign")
    refused(script("50_export_bundle", "--run", evaluated, "--key", keys["mine.pub"]), "name it with --verify")
    refused(script("50_export_bundle", "--verify", evaluated / "bundle", "--sign", keys["mine"]), "Drop one")


def test_the_readme_of_a_bundle_is_a_model_card(bundle):
    from huggingface_hub import ModelCard

    card = ModelCard.load(bundle / "README.md")
    evaluation = json.loads((bundle / "eval.json").read_text())["exits"]
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures["coverage"] == evaluation["coverage"]["value"]
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "other"  # of random weights: none
    assert card.text.lstrip().startswith("# Stage 1 bundle")

"""Signatures of bundles: who exported one, besides whether it is whole. A signature lies beside its bundle.

The format is that of model-signing (in-toto statement, DSSE envelope), with a key pair on an elliptic curve. Needs the
extra `sign`.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.errors import UserError

PASSWORD = "STAGE1_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key."""

_KEYS = "a PEM file on curve P-256, P-384 or P-521: openssl ecparam -name prime256v1 -genkey -noout -out KEY"


def signature_of(bundle: Path) -> Path:
    """Where the signature of a bundle lies: BUNDLE.sig beside it, since the set of files in a bundle is closed.

    >>> signature_of(Path("/srv/models/bundle")).as_posix()
    '/srv/models/bundle.sig'
    """
    folder = bundle.resolve()
    return folder.with_name(f"{folder.name}.sig")


def signer_of(key: str) -> Any:
    """What signs with this private key. Raises UserError for a key that cannot sign, and without the extra."""
    demand_extra("sign")
    from model_signing import signing  # pyright: ignore[reportMissingImports]

    _demand_file(key, "--sign")
    password: Any = os.environ.get(PASSWORD)
    try:
        return signing.Config().use_elliptic_key_signer(
            private_key=Path(key), password=None if password is None else password.encode()
        )
    except Exception as error:  # cryptography raises many kinds
        raise UserError(
            f"--sign {key}: not a private key that can sign ({_reason(error)}). It takes {_KEYS}; {PASSWORD} in the "
            "environment opens an encrypted one."
        ) from None


def sign_bundle(bundle: Path, signer: Any) -> Path:
    """Write the signature of a bundle beside it, whole or not at all, and return its path."""
    target = signature_of(bundle)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "signature"
        signer.sign(bundle, written)
        artifacts.write_bytes(target, written.read_bytes())
    return target


def demand_signed(bundle: str | Path, key: str, option: str) -> None:
    """Raise UserError unless the bundle has a signature by the owner of this public key, over all of its files.

    Nothing of the bundle is parsed. option: of the command line, which names the key.
    """
    demand_extra("sign")
    from model_signing import verifying  # pyright: ignore[reportMissingImports]

    bundle = Path(bundle)
    signature = signature_of(bundle)
    if not bundle.is_dir():
        raise UserError(f"{bundle} is not a bundle folder. Export one with 50_export_bundle.py.")
    if not signature.is_file():
        raise UserError(
            f"{bundle} is not signed: {signature} is not there. Copy it along with the bundle, or export with "
            "50_export_bundle.py --sign KEY."
        )
    _demand_file(key, option)
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=Path(key))
    except Exception as error:
        raise UserError(
            f"{option} {key}: not a public key ({_reason(error)}). It takes what `openssl ec -in KEY -pubout` writes."
        ) from None
    try:
        verifier.verify(bundle.resolve(), signature)  # a link may lead to it
    except Exception as error:
        raise UserError(
            f"{signature} is no signature of {bundle} by the key {key} ({_reason(error)}). Get bundle, signature and "
            "key anew from who exported it."
        ) from None


def _demand_file(key: str, option: str) -> None:
    if not Path(key).is_file():
        raise UserError(f"{option} {key}: no such file. Name {_KEYS}.")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

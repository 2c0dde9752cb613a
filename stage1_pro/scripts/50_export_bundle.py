"""50: export what an inference host loads, or verify a bundle.

    python stage1_pro/scripts/50_export_bundle.py --run runs/demo
    python stage1_pro/scripts/50_export_bundle.py --verify runs/demo/bundle --golden
    python stage1_pro/scripts/50_export_bundle.py --run runs/demo --format onnx --recertify
    python stage1_pro/scripts/50_export_bundle.py --verify runs/demo/bundle --key release.pub
reads   runs/<id>: the model, the policy file, splits, config, metrics, eval.json; with --format onnx the images
writes  runs/<id>/bundle/, or bundle-onnx/ for a run certified with torch

The certificate of --format onnx is the one of torch's scores, and both must answer alike; --recertify makes one from
the scores of model.onnx itself. Exits with status 3 where that certifies nothing.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stage1_pro.core import cli, console

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stage1_pro.core.bundle.contents import BundleContents
    from stage1_pro.core.records.run import Run

LARGEST_FORWARD = 4096


@dataclass(frozen=True)
class Args:
    run: str = "runs/latest"
    """Run directory."""
    out: str | None = None
    """Folder of the new bundle; without it runs/<id>/bundle, or bundle-onnx."""
    expires: str | None = None
    """Date on which the certificate ends, as in 2027-03-01; null: none. Decisions go on then, and each says so."""
    expires_after: int | None = None
    """Audited exited positives after which the certificate ends, which 65_monitor.py counts; null: none."""
    format: Literal["torch", "onnx"] | None = None
    """Model that ships: torch, or onnx (computed by ONNX Runtime; extra `onnx`); null: what the run was scored with."""
    recertify: bool = False
    """With --format onnx: certify the scores of the file that ships, under the run's target and confidence. It is
    another look at val_calib; the policy goes into the bundle, and the run keeps its own."""
    quantize: Literal["none", "static"] = "none"
    """With --recertify: none (float32) or static (a backbone of 8 bits, which gives other scores)."""
    even_if_useless: bool = False
    """With --recertify: export also where the exits are worth no more than deferring every case."""
    verify: str | None = None
    """Only check this bundle, every file of it, load its model, and write nothing."""
    without_seen: bool = False
    """Leave seen.json out, the hashes of the images that the run has trained, chosen or certified with: they tell
    whoever has an image that it was among them. 38_recalibrate.py then cannot leave such images out."""
    root: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "NAME=PATH"})
    """With --format onnx: where the images of a source of the run are now, if they have moved."""
    forward_batch: int | None = None
    """Images per forward pass of the bundle's host, 1 to 4096, in place of the run's: 8 or less suits single requests
    on a CPU, 64 a GPU. Logits may then differ from the run's scores by 1e-4."""
    sign: str | None = None
    """Private key file that signs the new bundle: BUNDLE.sig beside it. An encrypted one takes its password from the
    environment variable STAGE1_KEY_PASSWORD. Extra `sign`."""
    register: str | None = None
    """Name under which the bundle is registered in MLflow, as a pyfunc model that decides like 60_predict.py; extra
    `mlflow`. With --verify an exported one is."""
    tracking_uri: str | None = None
    """MLflow's store for --register; null: the one that the run was tracked with."""
    key: str | None = None
    """With --verify: public key file; the bundle must be signed by its owner."""
    golden: bool = False
    """With --verify: also decide the bundle's synthetic images, and check that this machine gets the recorded
    outputs."""


def main(args: Args) -> None:
    demand_sense(args)
    register = registering(args) if args.register else None
    contents = verified(args) if args.verify else signed(args) if args.sign else exported(args)
    if register is not None:
        register(contents)
    manifest = contents.manifest
    console.say(
        f"bundle {contents.path}: whole, {len(manifest['files'])} files, exit policy {manifest['active_exit_policy']}"
    )
    from stage1_pro.core.inference.closing import say_first_use

    say_first_use(contents)


def demand_sense(args: Args) -> None:
    """Raise UserError with every option that means nothing beside the others."""
    from stage1_pro.core.errors import raise_problems

    export_only = ("format", "recertify", "without_seen", "forward_batch", "sign", "expires", "expires_after")
    problems = [
        f"--{name} is for a new bundle, and --verify writes none. Drop one"
        for name in export_only
        if getattr(args, name) not in (None, False)
    ]
    size = args.forward_batch
    rules = (
        (args.root and not args.format, "--root is where the images for --format onnx are: add it"),
        (args.key and not args.verify, "--key checks the signature of an exported bundle: name it with --verify"),
        (args.tracking_uri and not args.register, "--tracking_uri is where --register NAME goes: add it"),
        (args.golden and not args.verify, "--golden checks an exported bundle: name it with --verify"),
        (args.recertify and args.format != "onnx", "--recertify certifies a model in ONNX: add --format onnx"),
        (args.quantize != "none" and not args.recertify, "--quantize gives other scores: add --recertify"),
        (size is not None and not 1 <= size <= LARGEST_FORWARD, f"--forward_batch is {size}; allowed 1 to 4096"),
        (
            args.even_if_useless and not args.recertify,
            "--even_if_useless is about --recertify: drop one or add the other",
        ),
    )
    problems = [*(problems if args.verify else ()), *(message for broken, message in rules if broken)]
    raise_problems("options that do not go together:", problems)


def verified(args: Args) -> "BundleContents":
    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.bundle.signature import demand_signed

    if args.key:
        demand_signed(str(args.verify), args.key, "--key")
        console.say(f"signed by the owner of {args.key}")
    contents = verify_bundle(str(args.verify))
    # torch only where there is a bundle to load: a wrong path is told at once
    from stage1_pro.core.inference.golden import check_golden, tolerance

    contents.task.part("predictor").checked_model(contents)  # a bundle whose model cannot be loaded is not whole
    if args.golden:
        worst = check_golden(contents)
        console.say(f"golden inputs: outputs within {worst:.1g} of the recorded ones, allowed {tolerance(contents):g}")
    return contents


def signed(args: Args) -> "BundleContents":
    """Export and sign; a key that cannot sign is told before anything is written."""
    from stage1_pro.core.bundle.signature import sign_bundle, signer_of

    signer = signer_of(str(args.sign))
    contents = exported(args)
    console.say(f"signature {sign_bundle(contents.path, signer)}")
    return contents


def registering(args: Args) -> "Callable[[BundleContents], None]":
    """What registers the bundle, under the MLflow run of the run that it comes from, where that is at hand.

    What can be known to fail is told before a bundle is written, which could not be exported again.
    """
    from pathlib import Path

    from stage1_pro.core.records.run import Run
    from stage1_pro.core.tracking.mlflow_runs import demand_single_images, register, store_of

    home = Path(args.verify).absolute().parent if args.verify else Path(args.run)
    run = Run.open(str(home)) if (home / "splits.json").is_file() or not args.verify else None
    name = str(args.register)
    uri = store_of(run, name, args.tracking_uri)
    if run is not None and not args.verify:
        demand_single_images(run.path, run.config.task.has_masks, run.config.group_views is not None)

    def registered(contents: "BundleContents") -> None:
        demand_single_images(contents.path, contents.task.has_masks, contents.manifest.get("decide_by") == "group")
        console.say(f"registered models:/{name}/{register(contents, run, name, uri)}")

    return registered


def exported(args: Args) -> "BundleContents":
    from pathlib import Path

    from stage1_pro.core.errors import UserError
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)
    backend, wishes = run.config.scoring_backend, {"seen": not args.without_seen, "expires": end_of(args)}
    if args.forward_batch and (run.config.task.has_masks or args.recertify or args.format not in (None, backend)):
        raise UserError(
            f"{run.path}: --forward_batch is for images and the model that was scored: leave --format and --recertify "
            "out, and for masks --forward_batch."
        )
    if args.format in (None, backend) and not args.recertify:
        target = Path(args.out) if args.out else run.bundle_path
        return as_scored(run, target, args.forward_batch, **wishes)
    if run.config.task.has_masks:
        raise UserError(f"{run.path}: networks for masks are exported as they are: leave --format and --recertify out.")
    if args.format != "onnx":
        raise UserError(f"{run.path} was scored and certified in ONNX: leave --format out.")

    from stage1_pro.core import conversion

    target = Path(args.out) if args.out else run.path / "bundle-onnx"
    if args.recertify:
        useless = args.even_if_useless
        return conversion.recertified_bundle(run, target, args.quantize, args.root, even_if_useless=useless, **wishes)
    return conversion.converted_bundle(run, target, args.root, **wishes)


def as_scored(run: "Run", target: "Path", size: int | None, **wishes: Any) -> "BundleContents":
    """Export the run with the very file that its scores were computed with."""
    from stage1_pro.core.bundle.export import export_bundle

    golden_of_run = run.config.task.part("golden")
    golden = None if golden_of_run is None else lambda: golden_of_run(run, size)
    return export_bundle(run, target, golden, forward_batch=size, **wishes)


def end_of(args: Args) -> dict[str, Any] | None:
    """When the certificate ends, as bundle.json says it. Raises UserError for an end that is past or none."""
    import time

    from stage1_pro.core.errors import UserError
    from stage1_pro.core.monitor.state import seconds, time_text

    if args.expires is None and args.expires_after is None:
        return None
    date = None if args.expires is None else seconds(args.expires)
    if date is not None and date <= time.time():
        raise UserError(f"--expires {args.expires}: that is past. Name a date to come.")
    if args.expires_after is not None and args.expires_after < 1:
        raise UserError(f"--expires_after {args.expires_after}: must be 1 or more.")
    return {"date": None if date is None else time_text(date), "audited_positives": args.expires_after}


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

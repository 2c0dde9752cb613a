"""50: export what an inference host loads, or verify a bundle.

    python stage1_pro/scripts/50_export_bundle.py --run runs/demo
    python stage1_pro/scripts/50_export_bundle.py --verify runs/demo/bundle --golden
reads   runs/<id>: model_best.pth, the policy file, splits, config, metrics, eval.json
writes  runs/<id>/bundle/
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stage1_pro.core import cli, console

if TYPE_CHECKING:
    from stage1_pro.core.bundle.contents import BundleContents

LARGEST_FORWARD = 4096


@dataclass(frozen=True)
class Args:
    run: str = "runs/latest"
    """Run directory."""
    out: str | None = None
    """Folder of the new bundle; without it runs/<id>/bundle."""
    verify: str | None = None
    """Only check this bundle, every file of it, load its model, and write nothing."""
    without_seen: bool = False
    """Leave seen.json out, the hashes of the images that the run has trained, chosen or certified with: they tell
    whoever has an image that it was among them. 38_recalibrate.py then cannot leave such images out."""
    forward_batch: int | None = None
    """Images per forward pass of the bundle's host, 1 to 4096, in place of the run's: 8 or less suits single requests
    on a CPU, 64 a GPU. Logits may then differ from the run's scores by 1e-4."""
    golden: bool = False
    """With verify: also decide the bundle's synthetic images, and check that this machine gets the recorded outputs."""


def main(args: Args) -> None:
    from stage1_pro.core.errors import UserError

    if args.golden and not args.verify:
        raise UserError("--golden checks an exported bundle: name it with --verify.")
    if args.without_seen and args.verify:
        raise UserError("--without_seen leaves a file out of a new bundle, and --verify writes none. Drop one.")
    if args.forward_batch is not None and args.verify:
        raise UserError("--forward_batch is recorded in a new bundle, and --verify writes none. Drop one.")
    if args.forward_batch is not None and not 1 <= args.forward_batch <= LARGEST_FORWARD:
        raise UserError(f"--forward_batch is {args.forward_batch}; allowed 1 to {LARGEST_FORWARD}.")
    contents = verified(args) if args.verify else exported(args)
    manifest = contents.manifest
    console.say(
        f"bundle {contents.path}: whole, {len(manifest['files'])} files, exit policy {manifest['active_exit_policy']}"
    )
    console.say(f"next   python stage1_pro/scripts/60_predict.py {contents.path} IMAGES…")


def verified(args: Args) -> "BundleContents":
    from stage1_pro.core.bundle.contents import verify_bundle

    contents = verify_bundle(str(args.verify))
    # torch only where there is a bundle to load: a wrong path is told at once
    from stage1_pro.core.inference.golden import TOLERANCE, check_golden
    from stage1_pro.core.inference.predictor import Stage1Predictor

    Stage1Predictor.load(contents.path, "cpu")  # a bundle whose model cannot be loaded is not whole
    if args.golden:
        worst = check_golden(contents)
        console.say(f"golden inputs: outputs within {worst:.1g} of the recorded ones, allowed {TOLERANCE:g}")
    return contents


def exported(args: Args) -> "BundleContents":
    from pathlib import Path

    from stage1_pro.core.bundle.export import export_bundle
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)

    def golden() -> bytes:
        from stage1_pro.core.inference.golden import golden_file
        from stage1_pro.core.inference.predictor import Stage1Predictor

        predictor = Stage1Predictor.from_run(run, "cpu")
        predictor.forward_batch = args.forward_batch or predictor.forward_batch
        return golden_file(predictor)

    return export_bundle(
        run,
        Path(args.out) if args.out else run.bundle_path,
        golden,
        seen=not args.without_seen,
        forward_batch=args.forward_batch,
    )


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

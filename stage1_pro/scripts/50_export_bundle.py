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
    golden: bool = False
    """With verify: also decide the bundle's synthetic images, and check that this machine gets the recorded outputs."""


def main(args: Args) -> None:
    from stage1_pro.core.errors import UserError

    if args.golden and not args.verify:
        raise UserError("--golden checks an exported bundle: name it with --verify.")
    if args.without_seen and args.verify:
        raise UserError("--without_seen leaves a file out of a new bundle, and --verify writes none. Drop one.")
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

    contents.task.part("predictor").load(contents.path, "cpu")  # a bundle whose model cannot be loaded is not whole
    if args.golden:
        worst = check_golden(contents)
        console.say(f"golden inputs: outputs within {worst:.1g} of the recorded ones, allowed {TOLERANCE:g}")
    return contents


def exported(args: Args) -> "BundleContents":
    from pathlib import Path

    from stage1_pro.core.bundle.export import export_bundle
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)
    golden_of_run = run.config.task.part("golden")
    golden = None if golden_of_run is None else lambda: golden_of_run(run)
    return export_bundle(run, Path(args.out) if args.out else run.bundle_path, golden, seen=not args.without_seen)


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

"""50: export what an inference host loads, or verify a bundle.

    python stage1_pro/scripts/50_export_bundle.py --run runs/demo
    python stage1_pro/scripts/50_export_bundle.py --verify runs/demo/bundle
reads   runs/<id>: model_best.pth, the policy file, splits, config, metrics, eval.json
writes  runs/<id>/bundle/
"""

from dataclasses import dataclass

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    run: str = "runs/latest"
    """Run directory."""
    out: str | None = None
    """Folder of the new bundle; without it runs/<id>/bundle."""
    verify: str | None = None
    """Only check this bundle, every file of it, and write nothing."""


def main(args: Args) -> None:
    from pathlib import Path

    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.bundle.export import export_bundle
    from stage1_pro.core.records.run import Run

    if args.verify:
        contents = verify_bundle(args.verify)
    else:
        run = Run.open(args.run)
        contents = export_bundle(run, Path(args.out) if args.out else run.bundle_path)
    manifest = contents.manifest
    console.say(
        f"bundle {contents.path}: whole, {len(manifest['files'])} files, exit policy {manifest['active_exit_policy']}"
    )
    console.say(f"next   python stage1_pro/scripts/60_predict.py {contents.path} IMAGES…")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

"""38: certify a bundle anew for another site, without training.

    python stage1_pro/scripts/38_recalibrate.py runs/demo/bundle --config site.yaml --out runs/site
reads   the bundle, the labelled images that site.yaml names under dataset_params.sources
writes  OUT, a run without training: splits, model with its answers placed anew, scores, policy, eval.json, report.html,
        and OUT/bundle; looks/, one row of the ledger of calibrations and its looks/

Images that the bundle has trained, chosen or certified with are left out. Exits with status 3 where nothing can be
certified; OUT then stays, so that another target can be tried.
"""

from dataclasses import dataclass, field

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    bundle: str = field(metadata={"nargs": None})
    """Bundle folder, as 50_export_bundle.py writes it."""
    config: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """YAML files of the site: dataset_params.sources, and where they differ from the bundle's the ratios of the splits,
    target, prices and seed. Settings that shape the model are refused."""
    out: str | None = None
    """Folder of the new run; without it runs/site-<UTC time>."""
    target_fnr_exit: float | None = None
    """Certify this target instead of the bundle's, above 0, up to 0.1."""
    fnr_confidence: float | None = None
    """Certify at this confidence instead of the bundle's, 0.5 to below 1."""
    even_if_useless: bool = False
    """Write the policy even where its exits are worth no more than deferring every case, or than answering positive
    throughout; the report marks it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, …"""


def main(args: Args) -> None:
    from pathlib import Path

    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.errors import UserError
    from stage1_pro.core.sites.cases import new_place, read_site
    from stage1_pro.core.sites.recalibration import assigned, certify, evaluated_bundle, going_on, scored_run

    if not args.config:
        raise UserError("name the site's labelled images in a YAML file with --config (dataset_params.sources).")
    target = new_place(args.out, "site", args.bundle)
    flags = {"target_fnr_exit": args.target_fnr_exit, "fnr_confidence": args.fnr_confidence}
    given = {name: value for name, value in flags.items() if value is not None}
    layers = [*((file, Path(file)) for file in args.config), *([("command line", given)] if given else [])]
    site = read_site(verify_bundle(args.bundle), layers)
    run = scored_run(target, site, assigned(site), args.device)
    with going_on(run):
        certify(run, site, args.even_if_useless)
        bundle = evaluated_bundle(run, site)
    console.say(f"bundle {bundle.path}: the model of {args.bundle}, certified on this site")
    console.say(f"next   python stage1_pro/scripts/60_predict.py {bundle.path} IMAGES…")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

"""38: certify a bundle anew for another site, without training.

    python stage1_pro/scripts/38_recalibrate.py runs/demo/bundle --config site.yaml --out runs/site
reads   the bundle, the labelled images that site.yaml names under dataset_params.sources
writes  OUT, a run without training: splits, model with its answers placed anew, scores, policy, eval.json, report.html,
        and OUT/bundle; looks/, one row of the ledger of calibrations and its looks/

    python stage1_pro/scripts/38_recalibrate.py runs/demo/bundle --from_audit watch --since 2026-08-01 \\
        --decisions d.csv --labels labels.csv --audit_salt audit.salt --out runs/again
reads   instead of a site's images those of a monitor's audited cases, with the labels that auditors gave
writes  also OUT.csv, the cases as a table, and watch/attempts.csv

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
    root: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "NAME=PATH"})
    """Where images of the site have moved: the source and its new folder."""
    target_fnr_exit: float | None = None
    """Certify this target instead of the bundle's, above 0, up to 0.1."""
    fnr_confidence: float | None = None
    """Certify at this confidence instead of the bundle's, 0.5 to below 1."""
    from_audit: str | None = None
    """Folder of 65_monitor.py: certify on the cases that it audited, the older half of the window choosing, the newer
    half certifying. Attempt j has 1 - 6 delta / (pi j)^2 as its confidence, so that all attempts have 1 - delta."""
    decisions: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """With --from_audit: files of the decisions."""
    labels: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """With --from_audit: files of labels, of every audited case of the window, those that deferred too."""
    since: str | None = None
    """With --from_audit: start of the window, as in 2026-08-01, after the change. Fix it without a look at the labels:
    picked by them, false certificates are seven times as frequent."""
    images: str = "."
    """With --from_audit: folder that the ids are files in, where they are no absolute paths."""
    audit_salt: str | None = None
    """With --from_audit: key file with the audit salt; null: the environment variable STAGE1_AUDIT_SALT."""
    even_if_useless: bool = False
    """Write the policy even where its exits are worth no more than deferring every case, or than answering positive
    throughout; the report marks it."""
    no_pictures: bool = False
    """Leave out the thumbnails of test cases, which report.html holds: for images that must not leave their place."""
    device: str = "auto"
    """Device: auto, cpu, cuda, …"""


def main(args: Args) -> None:
    from pathlib import Path

    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.errors import UserError
    from stage1_pro.core.inference.closing import say_first_use
    from stage1_pro.core.sites.cases import new_place, read_site
    from stage1_pro.core.sites.recalibration import assigned, certify, evaluated_bundle, going_on, scored_run

    if args.from_audit:
        from_audit(args)
        return
    if idle := [name for name in ("decisions", "labels", "since", "audit_salt") if getattr(args, name)]:
        raise UserError(f"--{idle[0]} is for --from_audit, the folder of 65_monitor.py: add it, or drop --{idle[0]}.")
    if not args.config:
        raise UserError("name the site's labelled images in a YAML file with --config (dataset_params.sources).")
    target = new_place(args.out, "site", args.bundle)
    flags = {"target_fnr_exit": args.target_fnr_exit, "fnr_confidence": args.fnr_confidence}
    given = {name: value for name, value in flags.items() if value is not None}
    layers = [*((file, Path(file)) for file in args.config), *([("command line", given)] if given else [])]
    site = read_site(verify_bundle(args.bundle), layers, args.root)
    run = scored_run(target, site, assigned(site), args.device)
    with going_on(run):
        certify(run, site, args.even_if_useless)
        bundle = evaluated_bundle(run, site, not args.no_pictures)
    console.say(f"bundle {bundle.path}: the model of {args.bundle}, certified on this site")
    say_first_use(bundle)


def from_audit(args: Args) -> None:
    """Certify the bundle anew on what its monitor has audited."""
    import os
    import time
    from pathlib import Path

    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.errors import raise_problems
    from stage1_pro.core.monitor.files import read_monitor
    from stage1_pro.core.monitor.opening import salt_of
    from stage1_pro.core.monitor.state import seconds
    from stage1_pro.core.monitor.words import first_reading
    from stage1_pro.core.records.paths import unused
    from stage1_pro.core.sites.cases import new_place, read_site
    from stage1_pro.core.sites.from_audit import Request, audited_site, record_attempt
    from stage1_pro.core.sites.recalibration import assigned, certify, evaluated_bundle, going_on, scored_run

    salt = salt_of(args.audit_salt, os.environ)
    told = {"decisions": args.decisions, "labels": args.labels, "since": args.since, "audit_salt": salt}
    raise_problems("--from_audit needs more:", [f"--{name} is missing" for name, value in told.items() if not value])
    target, contents = new_place(args.out, "audit", args.bundle), verify_bundle(args.bundle)
    table = target.with_name(f"{target.name}.csv").resolve()
    words = (
        args.decisions or [],
        args.labels or [],
        seconds(str(args.since)),
        Path(args.images).resolve(),
        salt or b"",
    )
    request = Request(Path(str(args.from_audit)), *words, now=int(time.time()))
    target.parent.mkdir(parents=True, exist_ok=True)
    with audited_site(contents, request, args.fnr_confidence, table) as (attempt, settings):
        aims = {} if args.target_fnr_exit is None else {"target_fnr_exit": args.target_fnr_exit}
        layers = [(file, Path(file)) for file in args.config or []]
        site = read_site(contents, [*layers, ("--from_audit", {**settings, **aims})])
        run = scored_run(target, site, assigned(site), args.device, attempt.origin)
        record_attempt(request.folder, attempt, run.path)
        with going_on(run):
            certify(run, site, args.even_if_useless)
            bundle = evaluated_bundle(run, site, not args.no_pictures)
    console.say(f"bundle {bundle.path}: the model of {args.bundle}, certified on what was audited")
    share = read_monitor(request.folder).settings.audit_share
    console.say(first_reading(bundle.path, unused(request.folder), share))


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

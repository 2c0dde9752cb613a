"""40: measure a calibrated run on the test split, which nothing was chosen on, or a bundle on another labelled set, or
compare evaluated runs.

    python stage1_pro/scripts/40_eval_selective.py --run runs/demo
reads   runs/<id>/model_best.pth, the policy file, scores/val_calib.parquet, the test images
writes  runs/<id>/scores/val_test.parquet, eval.json, figures/*.png, report.html

    python stage1_pro/scripts/40_eval_selective.py --compare runs/a runs/b runs/c
reads   policy file, eval.json and scores of each run; all must have the same splits
writes  OUT/comparison.html, comparison.json, figures/*.png

    python stage1_pro/scripts/40_eval_selective.py --bundle runs/demo/bundle --on site.yaml --out runs/site-look
reads   the bundle, the labelled images of another site
writes  OUT/report.html, eval.json, decisions.csv, scores.parquet, figures/*.png, and site.yaml for 38 where a table or
        a folder was named; a row in the ledger of calibrations

Differences are from the first run. A run for which nothing was certified takes part without exits.
"""

from dataclasses import dataclass, field

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    run: str | None = None
    """Run directory; without it runs/latest."""
    scores_only: bool = False
    """Only write scores/val_test.parquet, also of a run for which nothing was certified; with masks also
    cases/val_test.csv and figures of single cases."""
    compare: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "RUN"})
    """Put these evaluated runs side by side, the first one as the measure of the others; takes the place of --run."""
    bundle: str | None = None
    """With --on: measure this bundle as it is, and write nothing into it; takes the place of --run."""
    on: str | None = None
    """The labelled set that --bundle is measured on: a YAML file with dataset_params.sources, a table of path,label, or
    a folder that holds one folder per class. Images that the bundle has trained, chosen or certified with are left
    out."""
    out: str | None = None
    """Folder of the comparison or of the measurement, new; without it runs/compare-<UTC time> or
    runs/measured-<UTC time>."""
    root: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "NAME=PATH"})
    """Where images have moved: the source and its new folder. They must be the same, which their content tells."""
    no_pictures: bool = False
    """Leave out the thumbnails of test cases, which report.html holds: for images that must not leave their place."""
    device: str = "auto"
    """Device that --bundle is measured on: auto, cpu, cuda, …"""


def main(args: Args) -> None:
    from stage1_pro.core.errors import UserError

    modes = {"--run": args.run, "--compare": args.compare, "--bundle": args.bundle or args.on}
    named = [name for name, value in modes.items() if value]
    if len(named) > 1:
        raise UserError(
            f"{named[1]} takes the place of {named[0]}: name one of them. --compare takes all its runs after it."
        )
    if args.scores_only and (named not in ([], ["--run"]) or args.out):
        raise UserError("--scores_only goes with --run alone.")
    if args.bundle or args.on:
        return measure(args)
    if args.device != "auto":
        raise UserError("--device is of a measurement; it goes with --bundle and --on.")
    if args.compare is not None:
        if args.root:
            raise UserError("--root is of one run or a measurement; a comparison reads no images.")
        return compare(args.compare, args.out)
    if args.out:
        raise UserError("--out is the folder of a comparison or a measurement; it goes with --compare or --bundle.")
    return score(args.run, args.root) if args.scores_only else evaluate(args.run, args.root, args.no_pictures)


def measure(args: Args) -> None:
    """Measure a bundle on another labelled set."""
    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.errors import UserError
    from stage1_pro.core.sites.cases import new_place, read_site
    from stage1_pro.core.sites.measurement import layers_of, say_outcome
    from stage1_pro.core.sites.measurement import measure as measured_on

    if not args.bundle or not args.on:
        raise UserError("--bundle BUNDLE and --on SET go together: the bundle, and the labelled set to measure it on.")
    target = new_place(args.out, "measured", args.bundle)
    site = read_site(verify_bundle(args.bundle), layers_of(args.on), args.root, certifies=False)
    evaluation = measured_on(site, target, args.on, args.device, not args.no_pictures)
    say_outcome(evaluation, target)


def evaluate(path: str | None, roots: list[str] | None, no_pictures: bool) -> None:
    """Measure one run and write its report."""
    from stage1_pro.core.data.run_cases import picture_paths
    from stage1_pro.core.evaluation import evaluate_run, trusted_policy
    from stage1_pro.core.inference.scoring import score_test
    from stage1_pro.core.records.paths import LATEST
    from stage1_pro.core.records.run import Run
    from stage1_pro.core.report.run.page import write_report
    from stage1_pro.core.tracking.mlflow_runs import track_evaluation

    run = Run.open(path or LATEST)
    policy = trusted_policy(run)
    score_test(run, roots)
    evaluation = evaluate_run(run, policy)
    paths = None if no_pictures else picture_paths(run, roots)
    write_report(run, policy, evaluation, paths, roots, pictures=not no_pictures)
    track_evaluation(run, evaluation)
    console.say(evaluation["promise"]["words"])
    console.say(f"report {run.report_path}")
    console.say_next(run.path, "50_export_bundle.py")


def score(path: str | None, roots: list[str] | None) -> None:
    """Write the scores of the test images, unless they are there."""
    from stage1_pro.core.inference.scoring import score_test
    from stage1_pro.core.records.paths import LATEST
    from stage1_pro.core.records.run import Run

    run = Run.open(path or LATEST)
    score_test(run, roots)
    console.say(f"scores {run.scores_path('val_test')}")
    draw = run.config.task.part("uncertified")
    if draw is not None:
        for path in draw(run, roots):
            console.say(f"drawn  {path}")


def compare(paths: list[str], out: str | None) -> None:
    """Put runs side by side and write the page."""
    from stage1_pro.core.comparison.from_runs import compare_runs
    from stage1_pro.core.report.comparison.page import free_folder, write_comparison
    from stage1_pro.core.report.comparison.tables import console_lines, warnings

    folder = free_folder(out)
    comparison = compare_runs(paths)
    page = write_comparison(comparison, folder)
    for line in (*console_lines(comparison), *(f"warning: {words}" for words in warnings(comparison))):
        console.say(line)
    console.say(f"comparison {page}")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

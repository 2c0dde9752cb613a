"""40: measure a calibrated run on the test split, which nothing was chosen on, or compare evaluated runs.

    python stage1_pro/scripts/40_eval_selective.py --run runs/demo
reads   runs/<id>/model_best.pth, the policy file, scores/val_calib.parquet, the test images
writes  runs/<id>/scores/val_test.parquet, eval.json, figures/*.png, report.html

    python stage1_pro/scripts/40_eval_selective.py --compare runs/a runs/b runs/c
reads   policy file, eval.json and scores of each run; all must have the same splits
writes  OUT/comparison.html, comparison.json, figures/*.png

Differences are from the first run. A run for which nothing was certified takes part without exits.
"""

from dataclasses import dataclass, field

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    run: str | None = None
    """Run directory; without it runs/latest."""
    scores_only: bool = False
    """Only write scores/val_test.parquet, also of a run for which nothing was certified."""
    compare: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "RUN"})
    """Put these evaluated runs side by side, the first one as the measure of the others; takes the place of --run."""
    out: str | None = None
    """Folder of the comparison, new or empty; without it runs/compare-<UTC time>."""


def main(args: Args) -> None:
    from stage1_pro.core.errors import UserError

    if args.scores_only and args.compare is None and not args.out:
        return score(args.run)
    if args.scores_only:
        raise UserError("--scores_only goes with --run alone.")
    if args.compare is None:
        if args.out:
            raise UserError("--out is the folder of a comparison; it goes with --compare.")
        return evaluate(args.run)
    if args.run:
        raise UserError("--compare takes the place of --run. Name all runs after --compare.")
    return compare(args.compare, args.out)


def evaluate(path: str | None) -> None:
    """Measure one run and write its report."""
    from stage1_pro.core.evaluation import evaluate_run, trusted_policy
    from stage1_pro.core.inference.scoring import score_test
    from stage1_pro.core.records.paths import LATEST
    from stage1_pro.core.records.run import Run
    from stage1_pro.core.report.run.page import write_report

    run = Run.open(path or LATEST)
    policy = trusted_policy(run)
    score_test(run)
    evaluation = evaluate_run(run, policy)
    write_report(run, policy, evaluation)
    console.say(evaluation["promise"]["words"])
    console.say(f"report {run.report_path}")
    console.say_next(run.path, "50_export_bundle.py")


def score(path: str | None) -> None:
    """Write the scores of the test images, unless they are there."""
    from stage1_pro.core.inference.scoring import score_test
    from stage1_pro.core.records.paths import LATEST
    from stage1_pro.core.records.run import Run

    run = Run.open(path or LATEST)
    score_test(run)
    console.say(f"scores {run.scores_path('val_test')}")


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

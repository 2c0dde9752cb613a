"""40: measure a calibrated run on the test split, which nothing was chosen on.

    python stage1_pro/scripts/40_eval_selective.py --run runs/demo
reads   runs/<id>/model_best.pth, the policy file, the test images
writes  runs/<id>/scores/val_test.parquet, eval.json, figures/*.png, report.html
"""

from dataclasses import dataclass

from stage1_pro.core import cli


@dataclass(frozen=True)
class Args:
    run: str = "runs/latest"
    """Run directory."""


def main(args: Args) -> None:
    from stage1_pro.core.evaluation import evaluate_run, score_test
    from stage1_pro.core.policies.evidence import demand_consistent
    from stage1_pro.core.report.page import write_report
    from stage1_pro.core.run import Run

    run = Run.open(args.run)
    policy = run.read_policy()
    demand_consistent(policy, run.policy_path)
    score_test(run)
    evaluation = evaluate_run(run, policy)
    write_report(run, policy, evaluation)
    cli.say(evaluation["promise"]["words"])
    cli.say(f"report {run.report_path}")
    cli.say_next(run.path, "50_export_bundle.py")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

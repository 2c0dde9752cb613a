"""45: what a calibrated run costs as the first stage of a cascade, for whoever decides whether to run it.

    python stage1_pro/scripts/45_cascade.py --run runs/demo --prices prices.yaml --sensitivity 0.95 0.99 \\
        --specificity 0.98
    python stage1_pro/scripts/45_cascade.py --run runs/demo --prices prices.yaml --stage2 predictions.csv
reads   prices.yaml with c1, c2, cm, cf; the run's policy file and scores of val_select, val_calib, val_test
writes  OUT/cascade.html, cascade.json, figures/*.png, deferred.csv and exited.csv (the test cases by id)

Prices are of one case each, in one currency: c1 in stage 1, c2 in stage 2, cm of a miss, cf of a false alarm. Nothing
that is certified changes with them.
"""

from dataclasses import dataclass, field

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    run: str = "runs/latest"
    """Run directory, evaluated by 40_eval_selective.py."""
    prices: str | None = None
    """YAML file with c1, c2, cm and cf."""
    stage2: str | None = None
    """CSV with stage 2's answers, columns case_id and answer, for every test case that is deferred or for all."""
    sensitivity: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "RATE"})
    """Without --stage2: share of deferred positives that stage 2 finds, one number or the ends of a range, 0 to 1."""
    specificity: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "RATE"})
    """Without --stage2: share of deferred negatives that stage 2 answers negative, one number or a range."""
    prevalence: float | None = None
    """Share of positives where the cascade will run, above 0 and below 1; without it that of the test split."""
    volume: int | None = None
    """Cases a day, 1 or more: the load of stage 2 is then told a day."""
    capacity: int | None = None
    """Cases a day that stage 2 can take, 0 or more; goes with --volume."""
    out: str | None = None
    """Folder of the page; without it RUN/cascade. What an earlier call wrote there is replaced."""


def main(args: Args) -> None:
    import shlex
    import sys
    from pathlib import Path

    from stage1_pro.core.cascade.bench import Bench
    from stage1_pro.core.cascade.economy import price_run
    from stage1_pro.core.cascade.options import options_of
    from stage1_pro.core.commands import spoken
    from stage1_pro.core.evaluation import trusted_policy
    from stage1_pro.core.records.run import Run
    from stage1_pro.core.report.cascade.page import write_cascade
    from stage1_pro.core.report.cascade.tables import console_lines, warnings

    run = Run.open(args.run)
    bench = Bench.of(run, trusted_policy(run))
    cascade = price_run(bench, *options_of(args, bench))
    command = spoken(f"python stage1_pro/scripts/45_cascade.py {shlex.join(sys.argv[1:])}")
    page = write_cascade(cascade, Path(args.out) if args.out else run.path / "cascade", command)
    for line in (*console_lines(cascade), *(f"warning: {words}" for words in warnings(cascade))):
        console.say(line)
    console.say(f"page  {page}")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

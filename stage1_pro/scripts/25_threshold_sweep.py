"""25: certify the softmax threshold of a run.

    python stage1_pro/scripts/25_threshold_sweep.py --run runs/demo
reads   runs/<id>/scores/val_select.parquet, val_calib.parquet
writes  runs/<id>/thresholds.json, figures/threshold_sweep.png, looks/, one row of runs/calibrations.csv and runs/looks/

With --weights it writes scores/weights.parquet too. Ends with status 3, and writes no policy, where nothing can be
certified.
"""

from dataclasses import dataclass

from stage1_pro.core import cli, console
from stage1_pro.core.config.calibration import CalibrationArgs


@dataclass(frozen=True)
class Args(CalibrationArgs):
    pass


def main(args: Args) -> None:
    from stage1_pro.core.finish_calibration import certify_softmax, wishes_of
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)
    risk = run.risk(args.target_fnr_exit, args.fnr_confidence)
    certify_softmax(run, risk, even_if_useless=args.even_if_useless, wishes=wishes_of(run, args))
    console.say_next(run.path, "40_eval_selective.py")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

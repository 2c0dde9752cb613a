"""33: calibrate the gate of a run and certify its threshold.

    python stage1_pro/scripts/33_calibrate_gate.py --run runs/demo
reads   runs/<id>/scores/val_select.parquet, val_calib.parquet
writes  runs/<id>/gateparams.json, figures/threshold_sweep.png, looks/, one row of runs/calibrations.csv and runs/looks/

With --weights it writes scores/weights.parquet too. Ends with status 3, and writes no policy, where nothing can be
certified.
"""

from dataclasses import dataclass
from typing import Literal

from stage1_pro.core import cli, console
from stage1_pro.core.config.calibration import CalibrationArgs


@dataclass(frozen=True)
class Args(CalibrationArgs):
    calibrator: Literal["quantile", "platt", "isotonic"] = "quantile"
    """Map per answer from gate logit to score: quantile (softmax's quantiles for each answer, and FPR on exits held to
    softmax's as far as val_select can tell), platt (two numbers, the chance of a right answer), isotonic (the same,
    wants 1,000 cases)."""


def main(args: Args) -> None:
    from stage1_pro.core.finish_calibration import certify_gate, wishes_of
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)
    risk = run.risk(args.target_fnr_exit, args.fnr_confidence)
    wishes = wishes_of(run, args)
    certify_gate(run, risk, even_if_useless=args.even_if_useless, wishes=wishes, calibrator=args.calibrator)
    console.say_next(run.path, "40_eval_selective.py")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

"""36: calibrate the gate and the class probabilities of a run, and certify a pair of thresholds.

    python stage1_pro/scripts/36_calibrate_scrc.py --run runs/demo
reads   runs/<id>/scores/val_select.parquet, val_calib.parquet
writes  runs/<id>/scrcparams.json, figures/threshold_sweep.png, looks/, one row of runs/calibrations.csv and runs/looks/

With --weights it writes scores/weights.parquet too. Ends with status 3, and writes no policy, where nothing can be
certified.
"""

from dataclasses import dataclass
from typing import Literal

from stage1_pro.core import cli, console
from stage1_pro.core.config.calibration import CalibrationArgs


@dataclass(frozen=True)
class Args(CalibrationArgs):
    scrc_variant: Literal["SCRC-I", "SCRC-T"] = "SCRC-I"
    """SCRC-I certifies FNR on exits at the stated confidence; SCRC-T bounds the expected loss of prediction sets
    exactly, and FNR on exits approximately."""
    calibrator: Literal["quantile", "platt", "isotonic"] = "quantile"
    """Map per answer from gate logit to score: quantile (softmax's quantiles for each answer, and FPR on exits held to
    softmax's as far as val_select can tell), platt (two numbers, the chance of a right answer), isotonic (the same,
    wants 1,000 cases)."""
    dirichlet: Literal["tied", "free"] = "tied"
    """Dirichlet calibration of the class probabilities: tied (½ stays ½, so the answers stay the model's), free (they
    may move)."""


def main(args: Args) -> None:
    from stage1_pro.core.finish_calibration import certify_scrc, wishes_of
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)
    risk = run.risk(args.target_fnr_exit, args.fnr_confidence)
    maps = {"calibrator": args.calibrator, "variant": args.scrc_variant, "dirichlet": args.dirichlet}
    wishes = wishes_of(run, args, certifies=args.scrc_variant == "SCRC-I")
    certify_scrc(run, risk, even_if_useless=args.even_if_useless, wishes=wishes, **maps)
    console.say_next(run.path, "40_eval_selective.py")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

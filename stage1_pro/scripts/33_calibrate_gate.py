"""33: calibrate the gate of a run and certify its threshold.

    python stage1_pro/scripts/33_calibrate_gate.py --run runs/demo
reads   runs/<id>/scores/val_select.parquet, val_calib.parquet
writes  runs/<id>/gateparams.json, figures/threshold_sweep.png, looks/, one row of runs/calibrations.csv and runs/looks/

Exits with status 3, and writes no policy, where nothing can be certified.
"""

from dataclasses import dataclass
from typing import Literal

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    run: str = "runs/latest"
    """Run directory."""
    calibrator: Literal["quantile", "platt", "isotonic"] = "quantile"
    """Map per answer from gate logit to score: quantile (softmax's quantiles for each answer, and FPR on exits held to
    softmax's as far as val_select can tell), platt (two numbers, the chance of a right answer), isotonic (the same,
    wants 1,000 cases)."""
    target_fnr_exit: float | None = None
    """Certify this target instead of the config's, above 0, up to 0.1."""
    fnr_confidence: float | None = None
    """Certify at this confidence instead of the config's, 0.5 to below 1."""
    even_if_useless: bool = False
    """Write the policy even where its exits are worth no more than deferring every case, or than answering positive
    throughout; the report marks it."""


def main(args: Args) -> None:
    from stage1_pro.core.finish_calibration import certify_gate
    from stage1_pro.core.records.run import Run

    run = Run.open(args.run)
    risk = run.risk(args.target_fnr_exit, args.fnr_confidence)
    certify_gate(run, risk, even_if_useless=args.even_if_useless, calibrator=args.calibrator)
    console.say_next(run.path, "40_eval_selective.py")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

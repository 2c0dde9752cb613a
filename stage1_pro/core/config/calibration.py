"""What every calibration script is asked: the options that 25, 33 and 36 share."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CalibrationArgs:
    """Options of 25, 33 and 36; the strings are their help."""

    run: str = "runs/latest"
    """Run directory."""
    target_fnr_exit: float | None = None
    """Certify this target instead of the config's, above 0, up to 0.1."""
    fnr_confidence: float | None = None
    """Certify at this confidence instead of the config's, 0.5 to below 1."""
    even_if_useless: bool = False
    """Write the policy even where its exits are worth no more than deferring every case, or than answering positive
    throughout; the report marks it."""
    weights: str | None = None
    """Certify for another world: a table with columns case_id (with decide_by: group the group) and weight, the density
    there over the density here, up to a factor, of every case of val_calib and val_test. The weights must be known, as
    where cases were drawn by a rule; with estimated ones nothing is promised."""
    weight_bound: float | None = None
    """With --weights: the largest weight that any case can have, above 0, not the largest one seen. A case is kept with
    probability weight / weight_bound, so above three times the mean weight little evidence is left."""
    prices: str | None = None
    """End the certification at the threshold that is cheapest on val_select: a YAML file with c1, c2, cm and cf, as
    45_cascade.py takes. The promise is the same; coverage that is not worth its price is left out."""
    sensitivity: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "RATE"})
    """With --prices: share of deferred positives that stage 2 finds, one number or the ends of a range, 0 to 1."""
    specificity: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "RATE"})
    """With --prices: share of deferred negatives that stage 2 answers negative, one number or a range."""
    prevalence: float | None = None
    """With --prices: share of positives where the cascade will run, above 0 and below 1; without it that of
    val_select."""

"""How every calibration script looks at val_calib: alone, on record, and to an end in words.

The look is written down before anything is made of it; then the policy is written or refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stage1_pro.core.cascade.options import early_end_of
from stage1_pro.core.cascade.prices import PRICES_MEANT, EarlyEnd
from stage1_pro.core.config.calibration import CalibrationArgs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.weight_tables import weights_of
from stage1_pro.core.errors import NothingCertified, NotWorthIt, UserError, raise_problems
from stage1_pro.core.metrics.margins import fnr_after_ratio, margins
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.certification import demand_binary
from stage1_pro.core.policies.gate import calibrate_gate, demand_gate
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.policies.softmax import SoftmaxExitPolicy, calibrate_softmax, softmax_fields
from stage1_pro.core.policies.usefulness import mask_figures, mend, valued
from stage1_pro.core.policies.verification import promised
from stage1_pro.core.records import ledger
from stage1_pro.core.records.looks import Look, alone, begin
from stage1_pro.core.records.policy_file import demand_uncalibrated, policy_header, write_policy
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.weights import Weights
from stage1_pro.core.report.run.calibration_words import (
    SEEN_FAILURES,
    end_notes,
    few_kept,
    next_look,
    policy_lines,
    priced_otherwise,
    stale_placement,
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a calibration is asked for beside its level. weights: known ones of another world; end: where prices end
    it. Both are fixed before val_calib is read."""

    weights: Weights | None = None
    end: EarlyEnd | None = None

    def record(self) -> dict[str, Any]:
        """What tells this test from one without them, for the ledger."""
        weights = {} if self.weights is None else {"weights": self.weights.digest}
        return weights if self.end is None else {**weights, "end": self.end.record()}


NO_WISHES = Wishes()


def wishes_of(run: Run, args: CalibrationArgs, *, certifies: bool = True) -> Wishes:
    """The wishes of a command line. certifies: False for a promise in expectation, which takes none.

    Raises UserError with all problems.
    """
    weights, problems = weights_of(run, args.weights, args.weight_bound)
    end, of_prices = early_end_of(args)
    asked = [name for name in ("weights", "prices") if getattr(args, name) is not None]
    if not certifies:
        problems += [f"--{name} goes with --scrc_variant SCRC-I: SCRC-T certifies no threshold" for name in asked]
    meant = PRICES_MEANT if any("prices" in problem for problem in of_prices) else ""
    raise_problems("this calibration cannot begin:", [*problems, *of_prices], meant)
    return Wishes(weights, end)


def wishes_of_policy(run: Run, policy: dict[str, Any]) -> Wishes:
    """The wishes that a policy file of this run was certified with."""
    named = policy["diagnostics"].get("ended_by")
    return Wishes(run.weights, None if named is None else EarlyEnd.of(named))


@dataclass(slots=True)
class Calibrating:
    """A calibration under way, whose look is on record. concluded: its outcome has been used."""

    run: Run
    risk: Risk
    look: Look
    even_if_useless: bool
    wishes: Wishes
    concluded: bool = False

    def conclude(
        self, *, certified: bool, notes: list[str], warnings: list[str], fields: Callable[[], dict[str, Any]]
    ) -> None:
        """Write down the outcome, then the policy file and its figure, and say what is promised.

        fields: the policy's part of its file. Raises what it raises where nothing was certified, after notes and
        warnings have been said: they may tell why. Raises NotWorthIt, and writes nothing, for a policy that is of no
        use, unless even_if_useless.
        """
        run, look, self.concluded = self.run, self.look, True
        policy = valued(fields(), run.config) if certified else {}
        refused = "useless" in policy and not self.even_if_useless
        look.settle(ledger.USELESS if refused else ledger.CERTIFIED if certified else ledger.NOTHING_CERTIFIED)
        for note in notes:
            say(note)
        own = *stale_placement(run, self.risk), *priced_otherwise(run, self.wishes.end), *few_kept(run)
        for warning in (*warnings, *own):
            say(f"warning: {warning}")
        if not certified:
            _refuse(fields, look)
        if refused:
            raise NotWorthIt(
                f"certified, but {policy['useless']}. No policy is written. {mend(policy['useless'])}; "
                "--even_if_useless writes this one all the same, marked as what it is, and is no further look. "
                f"{SEEN_FAILURES}"
            )
        header = policy_header(run, self.risk, look.earlier, look.entry.look)
        shift = run.scores("val_select").answer_shift
        policy = {**header, **policy, "answer_shift": shift, "margins": certified_margins(self.risk, run.config)}
        if run.weights is not None:
            policy["weights"] = run.weights.record(run.unweighted("val_calib"))
            run.weights.write(run.scores_path("weights"))
        if self.wishes.end is not None:
            policy["diagnostics"] = {**policy["diagnostics"], "ended_by": self.wishes.end.record()}
        policy["guarantee"] = promised(policy, run.policy_path)
        write_policy(run, policy)
        _draw(run, policy)
        for line in policy_lines(policy):
            say(line)


@contextmanager
def calibrating(
    run: Run, policy: str, risk: Risk, *, even_if_useless: bool = False, wishes: Wishes, **options: Any
) -> Iterator[Calibrating]:
    """Look at val_calib within the block, which calibrates and concludes.

    wishes: weights, and where prices end it; options: settings that decide the outcome beside the config. Raises
    UserError, and writes down nothing, for a run that is not ready for this policy or is being calibrated by another
    process. A look that ends any other way is on record, and counts unless a mistake was found before val_calib was
    read.
    """
    demand_uncalibrated(run, policy)
    with alone(run):
        demand_uncalibrated(run, policy)  # again: another process may have ended in between
        run.weigh(wishes.weights)
        for split in ("val_select", "val_calib"):
            demand_binary(run.scores(split))
            if policy != "softmax":
                demand_gate(run.scores(split), split)
        look = begin(run, policy, risk, options={**options, **wishes.record()}, repeat=even_if_useless)
        calibration = Calibrating(run, risk, look, even_if_useless, wishes)
        try:
            yield calibration
        except UserError:
            if not calibration.concluded:
                look.settle(ledger.NOT_READ)
            raise


def certify_softmax(run: Run, risk: Risk, *, even_if_useless: bool = False, wishes: Wishes = NO_WISHES) -> None:
    """Certify the softmax threshold of a run and write thresholds.json."""
    with calibrating(run, "softmax", risk, even_if_useless=even_if_useless, wishes=wishes) as calibration:
        select, calib = run.scores("val_select"), run.scores("val_calib")
        found = calibrate_softmax(select, calib, risk, run.config.exit_rule, wishes.end)
        calibration.conclude(
            certified=found.certified,
            notes=end_notes(found, wishes.end),
            warnings=found.warnings,
            fields=lambda: _judged(softmax_fields(found), calib, run.config.miss_rule),
        )


def _judged(fields: dict[str, Any], calib: Scores, rule: dict[str, Any] | None) -> dict[str, Any]:
    """Fields of a policy file with the miss rule, and what the masks on exits are worth apart from it."""
    if rule is None:
        return fields
    exits = SoftmaxExitPolicy(fields["exit_threshold"]).decide(calib).exits
    metrics = {**fields["val_calib_metrics"], **mask_figures(exits, calib)}
    return {**fields, "val_calib_metrics": metrics, "miss_rule": rule}


def certify_gate(
    run: Run,
    risk: Risk,
    *,
    even_if_useless: bool = False,
    wishes: Wishes = NO_WISHES,
    calibrator: str = "quantile",
) -> None:
    """Fit the gate's map on val_select, certify its threshold and write gateparams.json."""
    asked = {"even_if_useless": even_if_useless, "wishes": wishes}
    with calibrating(run, "gate", risk, **asked, calibrator=calibrator) as calibration:
        select, calib = run.scores("val_select"), run.scores("val_calib")
        gate = calibrate_gate(select, calib, risk, calibrator, run.config.exit_rule, wishes.end)
        found = gate.calibration
        notes = [*gate.notes, *end_notes(found, wishes.end)]
        calibration.conclude(certified=found.certified, notes=notes, warnings=found.warnings, fields=gate.fields)


def certify_scrc(
    run: Run,
    risk: Risk,
    *,
    even_if_useless: bool = False,
    wishes: Wishes = NO_WISHES,
    calibrator: str = "quantile",
    variant: str = "SCRC-I",
    dirichlet: str = "tied",
) -> None:
    """Fit the gate's and the Dirichlet map on val_select, certify a pair of thresholds and write scrcparams.json."""
    chosen = {"calibrator": calibrator, "variant": variant, "dirichlet": dirichlet}
    with calibrating(run, "scrc", risk, even_if_useless=even_if_useless, wishes=wishes, **chosen) as calibration:
        select, calib = run.scores("val_select"), run.scores("val_calib")
        maps = calibrator, variant, dirichlet
        scrc = calibrate_scrc(select, calib, risk, *maps, run.config.seed, run.config.exit_rule, wishes.end)
        found, versions = scrc.outcome, {"model_version": run.model_digest, "splits_version": run.splits.digest}
        calibration.conclude(
            certified=found.certified,
            notes=[*scrc.notes, *end_notes(found, wishes.end)],
            warnings=found.warnings,
            fields=lambda: {**versions, **scrc.fields()},
        )


CERTIFY: dict[str, Callable[..., None]] = {
    "softmax": certify_softmax,
    "gate": certify_gate,
    "scrc": certify_scrc,
}
"""How each policy of POLICY_TABLE is certified: (run, risk, even_if_useless=…, wishes=…, settings of its maps)."""


def map_options(kind: str, policy: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the maps that a policy of this kind was certified with, for CERTIFY."""
    options = {"softmax": (), "gate": ("calibrator",), "scrc": ("calibrator", "variant", "dirichlet")}[kind]
    found = {
        "calibrator": policy.get("calibrator_type"),
        "variant": policy.get("scrc_variant"),
        "dirichlet": "free" if "mu" in policy.get("dirichlet_params", {}) else "tied",
    }
    return {name: found[name] for name in options}


def _refuse(fields: Callable[[], dict[str, Any]], look: Look) -> None:
    """Raise with the evidence, the remedies, and what trying one of them costs."""
    try:
        fields()
    except NothingCertified as nothing:
        raise NothingCertified(f"{nothing}\n  {next_look(look)} {SEEN_FAILURES}") from None


def certified_margins(risk: Risk, config: Stage1ProConfig) -> dict[str, Any]:
    """What a policy file says of how far the world may move. risk: as certified."""
    ratio, level = config.robust_to, risk.target_fnr
    # the target out of the level, since a script may have been given another one than the config's
    target = level if ratio is None else round(fnr_after_ratio(level, ratio), 12)
    return {"target": target, "robust_to": ratio, **margins(target, level)}


def _draw(run: Run, policy: dict[str, Any]) -> None:
    from stage1_pro.core.report.run.charts import sweep_figure

    sweep_figure(policy, run.figures_path / "threshold_sweep.png")

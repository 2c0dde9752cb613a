"""The tables of the report: what each row is called, where its number stands, and how it is written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.models.licenses import UNKNOWN, derivative_notice
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.records.run import Run
from stage1_pro.core.report.common.cells import UNDEFINED, Form, gain, number, percent, percent_up, short

DIGESTS = ("model", "splits", "policy", "scores")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table of test figures, in words."""

    name: str
    value: str
    interval: str
    meaning: str


def _row(name: str, estimate: Any, form: Form, meaning: str = "") -> Row:
    """estimate: a plain number, or {value, low, high}."""
    if not isinstance(estimate, dict):
        return Row(name, form(estimate), "", meaning)
    low, high = estimate.get("low"), estimate.get("high")
    known = None not in (estimate["value"], low, high)
    return Row(name, form(estimate["value"]), f"[{form(low)}, {form(high)}]" if known else "", meaning)


EXITS = (
    ("right_exits", "Right exits", "of all cases, those that exit and are answered rightly"),
    ("utility", "Utility", "coverage less the price of wrong exits, in deferrals a case"),
    ("coverage", "Coverage", "of all cases, those that exit"),
    ("fnr_on_exits", "FNR on exits", "of the positives that exit, those answered negative"),
    ("fpr_on_exits", "FPR on exits", "of the negatives that exit, those answered positive"),
    ("precision_on_exits", "Precision on exits", "of the exits answered positive, those that are"),
    ("accuracy_on_exits", "Accuracy on exits", "of the cases that exit, those answered rightly"),
)


SELECTIVE = (
    ("augrc", "AUGRC", "area under the generalised risk–coverage curve; lower is better"),
    ("aurc", "AURC", "area under the risk–coverage curve; lower is better"),
    ("e_aurc", "E-AURC", "AURC above that of the perfect order"),
)


CALIBRATION = (
    ("ece", "ECE", "15 bins of equal width"),
    ("adaptive_ece", "Adaptive ECE", "15 bins of equal mass"),
    ("debiased_calibration_error", "Debiased squared error", "can be below 0"),
    ("classwise_ece", "Classwise ECE", "mean over classes"),
    ("nll", "NLL", "nats"),
    ("brier", "Brier score", "mean squared error"),
)


CONFUSIONS = (("exits", "Exits: answered by stage 1"), ("deferred", "Deferred: stage 1's answer is not used"))


def _exit_rows(evaluation: dict[str, Any]) -> Iterator[Row]:
    for key, name, meaning in EXITS:
        yield _row(name, evaluation["exits"][key], gain if key == "utility" else percent, meaning)
    upper = evaluation["exits"]["fnr_on_exits"].get("upper_bound")
    confidence = evaluation["fnr_confidence"]
    meaning = f"one-sided exact bound on FNR on exits at this threshold alone, at {100 * confidence:g}% confidence"
    yield _row("Upper bound", upper, percent_up, meaning)


def _selective_rows(evaluation: dict[str, Any]) -> Iterator[Row]:
    yield _row("Accuracy", evaluation["accuracy"], percent, "of all cases, were none deferred")
    selective = evaluation["selective"]
    for key, name, meaning in SELECTIVE:
        yield _row(name, selective[key], number, meaning)
    for coverage, risk in selective.get("risk_at_coverage", {}).items():
        yield _row(f"Wrong answers at {float(coverage):.0%} coverage", risk, percent)
    for risk, coverage in selective.get("coverage_at_risk", {}).items():
        yield _row(f"Coverage at {float(risk):.0%} wrong answers", coverage, percent)


def _calibration_rows(evaluation: dict[str, Any]) -> Iterator[Row]:
    for key, name, meaning in CALIBRATION:
        if key in evaluation["calibration"]:
            yield _row(name, evaluation["calibration"][key], number, meaning)


TEST_TABLES = (
    ("Exits", _exit_rows),
    ("Ranking by confidence", _selective_rows),
    ("Calibration of the probabilities", _calibration_rows),
)


def figure_tables(evaluation: dict[str, Any], masks: bool = False) -> list[tuple[str, list[Row]]]:
    """(title, rows) of the figures of eval.json; of positives alone without what they cannot tell, and of masks without
    calibration: their confidence is no probability of being right."""
    asked = [table for table in TEST_TABLES if not masks or table[1] is not _calibration_rows]
    told = [(title, list(rows(evaluation))) for title, rows in asked]
    if not evaluation["negatives"]:
        told = [(title, [row for row in rows if row.value != UNDEFINED]) for title, rows in told]
    return [(title, rows) for title, rows in told if rows]


def confusions(evaluation: dict[str, Any]) -> list[tuple[str, list[list[int]]]]:
    """(title, counts) of what exits and of what does not; a row is a label."""
    return [(title, evaluation["confusion"][key]) for key, title in CONFUSIONS]


PARAMETERS = ("exit_threshold", "gate_threshold", "threshold", "lambda1", "lambda2")


def _right_exits(row: dict[str, Any]) -> float | None:
    """Of the policy in use, or of one beside it, which older files do not record."""
    return row.get("val_calib_metrics", row).get("right_exits")


COMPARED: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("Right exits", lambda row: percent(_right_exits(row))),
    ("Coverage", lambda row: percent(row.get("coverage"))),
    ("FNR on exits", lambda row: percent(row.get("fnr_on_exits"))),
    ("Bound at the threshold alone", lambda row: "≤ " + percent_up(row.get("fnr_upper_bound"))),
    ("Missed", lambda row: f"{row['misses']:,} of {row['exited_positives']:,}" if "misses" in row else UNDEFINED),
    ("Threshold", lambda row: ", ".join(f"{row[name]:.4g}" for name in PARAMETERS if name in row)),
)


def comparison(policy: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the policy in use and of those beside it, and (measure, cells) rows, all on val_calib."""
    columns = dict(_columns(policy))
    return list(columns), [(measure, [cell(row) for row in columns.values()]) for measure, cell in COMPARED]


def _columns(policy: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    diagnostics = policy["diagnostics"]
    yield "In use" if in_expectation(policy) else "In use (certified)", policy
    naive = diagnostics.get("naive", {})
    if "coverage" in naive:
        yield f"Naive ({_certified(naive)})", naive
    for name, row in diagnostics.get("baselines", {}).items():
        yield f"{name} ({_certified(row)})", row


def _certified(row: dict[str, Any]) -> str:
    return "certified" if row.get("certified") else "not certified"


def provenance(run: Run, policy: dict[str, Any], evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, value) of all that the result depends on."""
    made = artifacts.read_json(run.environment_path, "environment")
    commit = short(made["git_commit"])
    yield "Command", made["command"]
    yield "Seed", str(made["seed"])
    yield "Commit", f"{commit} with uncommitted changes" if made["git_dirty"] else commit
    yield "Backbone", made.get("backbone", UNDEFINED)
    yield "Licence", derivative_notice(made.get("backbone_license", UNKNOWN))
    yield "Adapters", run.config.peft_words
    yield "Intended use", run.config.intended_use
    yield "Python", f"{made['python']} on {made['platform']}"
    yield "Packages", ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    yield "Trained", made["created_at"]
    yield "Calibrated", policy["created_at"]
    yield "Evaluated", evaluation["created_at"]
    yield "Digests", ", ".join(f"{name} {short(evaluation[f'{name}_digest'])}" for name in DIGESTS)

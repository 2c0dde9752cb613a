"""One self-contained page about one run: the answer first, then everything that it rests on."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1_pro.core import artifacts
from stage1_pro.core.commands import spoken
from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.incremental.state import STATE, read_state
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.words import PREVALENCE, end_words, exit_rule_words, margin_words, weight_words
from stage1_pro.core.records.run import Run
from stage1_pro.core.report.common.template import fill
from stage1_pro.core.report.run import tables
from stage1_pro.core.report.run.evidence import gather
from stage1_pro.core.report.run.pictures import EACH, picture_sheets
from stage1_pro.core.seeds import rng_of

if TYPE_CHECKING:  # matplotlib is imported where a report is written
    from stage1_pro.core.report.run.charts import Chart
    from stage1_pro.core.report.run.evidence import Evidence
    from stage1_pro.core.report.run.pictures import Sheet

SECTIONS = ("masks", "test", "calibration", "training", "stages")
"""Of the page, which show figures."""


def write_report(
    run: Run,
    policy: dict[str, Any],
    evaluation: dict[str, Any],
    paths: Mapping[str, str] | None = None,
    roots: Sequence[str] | None = None,
    *,
    pictures: bool = True,
) -> None:
    """Write figures/*.png and report.html of an evaluated run.

    policy, evaluation: the contents of its policy file and of eval.json; paths: case id → image file, for pictures;
    None: a report without them; roots: NAME=PATH of each source whose images have moved; pictures: False leaves out
    the figures that show cases.
    """
    from stage1_pro.core.report.run.charts import CHARTS

    evidence = gather(run, policy, evaluation, paths, roots)
    run.figures_path.mkdir(exist_ok=True)
    charts = [
        (chart, drawn(run.figures_path, chart, evidence))
        for chart in CHARTS
        if chart.shown(evidence) and (pictures or not chart.of_cases)
    ]
    sheets = evidence.masks.sheets if evidence.masks is not None and pictures else []
    if paths is not None:
        scores = run.scores("val_test")
        decisions = policy_from_artifact(run.policy_row.name, policy).decide(scores)
        rng = rng_of(run.config.seed, "pictures")
        sheets = picture_sheets(scores, decisions, paths, run.splits.class_names, rng)
    notices = evidence.masks.notices if evidence.masks is not None else []
    artifacts.write_bytes(run.report_path, page(run, policy, evaluation, charts, sheets, notices).encode())


def drawn(folder: Path, chart: "Chart", evidence: "Evidence") -> str:
    """Write one figure's PNG into the folder; returns its SVG element."""
    from stage1_pro.core.report.common.style import render

    rendering = render(lambda figure: chart.draw(figure, evidence), chart.height, chart.name)
    artifacts.write_bytes(folder / f"{chart.name}.png", rendering.png)
    return rendering.svg


def page(
    run: Run,
    policy: dict[str, Any],
    evaluation: dict[str, Any],
    charts: list[tuple["Chart", str]],
    sheets: Sequence["Sheet"] = (),
    notices: Sequence[str] = (),
) -> str:
    """The HTML of the report. charts: (row of the table of figures, its SVG element); sheets: of pictures; notices:
    what must not be overlooked."""
    from markupsafe import Markup

    return fill(
        "report.html",
        run=run,
        policy=policy,
        evaluation=evaluation,
        verdict=verdict(policy, evaluation),
        phase=PHASES[run.config.phase],
        tables=tables.figure_tables(evaluation, masks=run.config.task.has_masks),
        confusions=tables.confusions(evaluation),
        comparison=tables.comparison(policy),
        in_expectation=in_expectation(policy),
        exit_rule=exit_rule_words(policy, run.splits.class_names),
        margin=margin_words(policy),
        weighed=weight_words(policy),
        ended=end_words(policy),
        prevalence=PREVALENCE,
        prices=(run.config.false_alarm_price, run.config.miss_price),
        sheets=sheets,
        notices=notices,
        most=EACH,
        idle=run.config.without_effect,
        stages=read_state(run.path) if (run.path / STATE).exists() else None,
        provenance=tables.provenance(run, policy, evaluation),
        charts={
            section: [(chart, Markup(svg)) for chart, svg in charts if chart.section == section] for section in SECTIONS
        },
        next_command=spoken(f"python stage1_pro/scripts/50_export_bundle.py --run {shlex.quote(str(run.path))}"),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the test split agrees with the certificate. tone: good, unsure or bad; never without its words."""

    tone: str
    words: str


MOST_FALSE_ALARMS = 0.25
"""FPR on exits above which no badge is green, whatever the promise."""

VERDICTS = {
    "agrees": Verdict("good", "The test split agrees"),
    "too_few": Verdict("unsure", "Too few test positives to tell"),
    "contradicts": Verdict("bad", "The test split contradicts"),
}


def verdict(policy: dict[str, Any], evaluation: dict[str, Any]) -> Verdict:
    """By the exact interval of FNR on exits: a rate above the target says little where it reaches down to the target.

    A policy that is of no use, or of whose confidence nothing remains, never gets a green badge; nor does one that
    buys its promise with false alarms on the test split.
    """
    if policy.get("remaining_confidence", 1) == 0 and not in_expectation(policy):
        return Verdict("bad", "No confidence remains after so many looks")
    if "useless" in policy:
        return Verdict("bad", "Certified, but of no use")
    found = VERDICTS[evaluation["promise"]["verdict"]]
    dear = _dear(evaluation) if found.tone == "good" else ""
    return Verdict("unsure", f"{found.words}, {dear}") if dear else found


def _dear(evaluation: dict[str, Any]) -> str:
    """What the promise costs on the test split, in words, where it is too much for a green badge; else ""."""
    alarms, utility = (evaluation["exits"].get(name, {}).get("value") for name in ("fpr_on_exits", "utility"))
    if alarms is not None and alarms > MOST_FALSE_ALARMS:
        return f"but {alarms:.0%} of the negatives that exit are answered positive"
    if utility is not None and utility <= 0:
        return "but its exits are worth nothing there at the stated prices"
    return ""

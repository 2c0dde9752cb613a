"""One self-contained page about a bundle that was measured on another labelled set."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.commands import spoken
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.policies.words import exit_rule_words
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.report.common.cells import short
from stage1_pro.core.report.common.template import fill
from stage1_pro.core.report.run import tables
from stage1_pro.core.report.run.evidence import evidence_of
from stage1_pro.core.report.run.page import Verdict, drawn
from stage1_pro.core.report.run.pictures import EACH, picture_sheets
from stage1_pro.core.seeds import rng_of

PAGE = "report.html"
OF_POSITIVES = ("fnr_coverage", "score_histogram")
"""Charts that say something of positives alone."""
VERDICTS = {
    "agrees": Verdict("good", "The promise agrees with these cases"),
    "too_few": Verdict("unsure", "Too few positives to tell"),
    "contradicts": Verdict("bad", "These cases contradict the promise"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """What the page shows. policy, evaluation, manifest: contents of the policy file, eval.json and bundle.json."""

    scores: Scores
    decisions: ExitDecisions
    policy: dict[str, Any]
    evaluation: dict[str, Any]
    manifest: dict[str, Any]
    config: Stage1ProConfig


def write_measurement(folder: Path, shown: Measurement, paths: Mapping[str, str] | None, site: str) -> None:
    """Write figures/*.png and report.html.

    paths: case id → image file, for pictures; None: a page without them. site: config file of the labelled set.
    """
    from markupsafe import Markup

    from stage1_pro.core.report.run.charts import CHARTS

    policy, evaluation, names = shown.policy, shown.evaluation, shown.manifest["class_names"]
    evidence = evidence_of(shown.scores, shown.decisions, policy, evaluation)
    (folder / "figures").mkdir()
    charts = [
        (chart, Markup(drawn(folder / "figures", chart, evidence)))
        for chart in CHARTS
        if chart.section == "test" and chart.shown(evidence)
        if evaluation["negatives"] or chart.name in OF_POSITIVES
    ]
    sheets = []
    if paths is not None:
        sheets = picture_sheets(shown.scores, shown.decisions, paths, names, rng_of(shown.config.seed, "pictures"))
    html = fill(
        "measurement.html",
        policy=policy,
        evaluation=evaluation,
        facts=evaluation["measured"],
        names=names,
        verdict=VERDICTS[evaluation["promise"]["verdict"]],
        tables=tables.figure_tables(evaluation),
        confusions=tables.confusions(evaluation),
        in_expectation=in_expectation(policy),
        exit_rule=exit_rule_words(policy, names),
        prices=(shown.config.false_alarm_price, shown.config.miss_price),
        charts=charts,
        sheets=sheets,
        most=EACH,
        provenance=list(_provenance(evaluation)),
        next_command=spoken(
            "python stage1_pro/scripts/38_recalibrate.py "
            f"{shlex.join([evaluation['measured']['bundle'], '--config', site])}"
        ),
    )
    artifacts.write_bytes(folder / PAGE, html.encode())


def _provenance(evaluation: dict[str, Any]):
    facts = evaluation["measured"]
    yield "Bundle", facts["bundle"]
    yield "Measured on", facts["on"]
    yield "Measured", evaluation["created_at"]
    digests = {name: evaluation[f"{name}_digest"] for name in ("model", "policy", "scores")}
    digests |= {"manifest": facts["manifest_digest"], "cases": facts["cases_digest"]}
    yield "Digests", ", ".join(f"{name} {short(digest)}" for name, digest in digests.items())

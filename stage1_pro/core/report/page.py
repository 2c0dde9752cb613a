"""One self-contained page about one run: the answer first, then everything that it rests on."""

import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from stage1_pro.core import artifacts
from stage1_pro.core.config import Stage1ProConfig
from stage1_pro.core.incremental.state import STATE, read_state
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.metrics.calibration import top_label
from stage1_pro.core.phases import PHASES
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.policies.load import policy_from_artifact
from stage1_pro.core.report import tables
from stage1_pro.core.report.template import fill
from stage1_pro.core.run import Run

if TYPE_CHECKING:  # matplotlib is imported where a report is written
    from stage1_pro.core.report.drawings import Evidence
    from stage1_pro.core.report.figures import Chart


def write_report(run: Run, policy: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Write figures/*.png and report.html of an evaluated run.

    policy, evaluation: the contents of its policy file and of eval.json.
    """
    from stage1_pro.core.report.figures import CHARTS

    evidence = gather(run, policy, evaluation)
    run.figures_path.mkdir(exist_ok=True)
    charts = [(chart, _drawn(run, chart, evidence)) for chart in CHARTS if chart.shown(evidence)]
    artifacts.write_bytes(run.report_path, page(run, policy, evaluation, charts).encode())


def _drawn(run: Run, chart: "Chart", evidence: "Evidence") -> str:
    """Write one figure's PNG; returns its SVG element."""
    from stage1_pro.core.report.style import render

    rendering = render(lambda figure: chart.draw(figure, evidence), chart.height, chart.name)
    artifacts.write_bytes(run.figures_path / f"{chart.name}.png", rendering.png)
    return rendering.svg


def gather(run: Run, policy: dict[str, Any], evaluation: dict[str, Any]) -> "Evidence":
    """What the figures show: scores and decisions on val_test, and the epochs of training."""
    from stage1_pro.core.report.drawings import Evidence
    from stage1_pro.core.report.stages import staged

    scores = run.scores("val_test")
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(scores)
    logits, labels = np.asarray(scores.logits, np.float64), np.asarray(scores.labels, np.int64)
    finite = np.isfinite(logits).all(axis=1)
    confidence, correct = top_label(softmax(logits[finite], axis=1), labels[finite])
    epochs = read_epochs(run.metrics_path)
    return Evidence(
        policy=policy,
        evaluation=evaluation,
        scores=decisions.scores,
        answers=decisions.predictions,
        labels=labels,
        confidence=confidence,
        correct=correct,
        epochs=epochs,
        chosen_epoch=_chosen_epoch(epochs, run.config),
        stages=staged(run, run.config.monitor),
    )


def read_epochs(path: Path) -> dict[str, FloatArray]:
    """Columns of metrics.csv, NaN in its gaps; empty where the file is missing or empty."""
    import pandas as pd

    content = path.read_bytes() if path.exists() else b""
    if not content.strip():
        return {}
    frame = pd.read_csv(io.BytesIO(content)).apply(pd.to_numeric, errors="coerce")
    return {str(name): column.to_numpy(np.float64) for name, column in frame.items()}


def _chosen_epoch(epochs: dict[str, FloatArray], config: Stage1ProConfig) -> int | None:
    """Where the run's monitor is best; the first of equals, as ModelCheckpoint keeps it."""
    values = epochs.get(config.monitor, np.zeros(0))
    if not np.isfinite(values).any():
        return None
    return int(np.nanargmax(values) if PHASES[config.phase].mode == "max" else np.nanargmin(values))


def page(run: Run, policy: dict[str, Any], evaluation: dict[str, Any], charts: list[tuple["Chart", str]]) -> str:
    """The HTML of the report. charts: (row of the table of figures, its SVG element)."""
    from markupsafe import Markup

    return fill(
        "report.html",
        run=run,
        policy=policy,
        evaluation=evaluation,
        verdict=verdict(evaluation),
        phase=PHASES[run.config.phase],
        tables=tables.figure_tables(evaluation),
        confusions=tables.confusions(evaluation),
        comparison=tables.comparison(policy),
        in_expectation=in_expectation(policy),
        stages=read_state(run.path) if (run.path / STATE).exists() else None,
        provenance=tables.provenance(run, policy, evaluation),
        charts=[(chart, Markup(svg)) for chart, svg in charts],
        next_command=f"python stage1_pro/scripts/50_export_bundle.py --run {shlex.quote(str(run.path))}",
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the test split agrees with the certificate. tone: good, unsure or bad; never without its words."""

    tone: str
    words: str


def verdict(evaluation: dict[str, Any]) -> Verdict:
    """A test rate above the target says little where its exact interval still reaches down to the target."""
    held, fnr = evaluation["promise"]["held"], evaluation["exits"]["fnr_on_exits"]
    if held is None:
        return Verdict("unsure", "Cannot be judged on test")
    if held:
        return Verdict("good", "Promise held on test")
    if fnr["low"] <= evaluation["target_fnr_exit"]:
        return Verdict("unsure", "Not held on test, though within chance")
    return Verdict("bad", "Promise not held on test")

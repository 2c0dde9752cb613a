"""The figures of masks of a run that has no policy: what it draws can be looked at before anything is certified."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.policies.defer_all import decide_without_certificate
from stage1_pro.core.records.run import Run
from stage1_pro.core.report.common.style import render
from stage1_pro.core.report.run.charts import UNCERTIFIED_CHARTS
from stage1_pro.core.report.run.mask_evidence import FOLDER, mask_evidence


def draw_masks(run: Run, roots: Sequence[str] | None = None) -> list[Path]:
    """Write cases/val_test.csv and the figures of masks; return where they are. Every case counts as deferred."""
    select, scores = run.scores("val_select"), run.scores("val_test")
    decisions, _ = decide_without_certificate(run.config.exit_policy, select, scores, run.config.exit_rule)
    evidence: Any = SimpleNamespace(
        masks=mask_evidence(run, scores, decisions, roots),
        scores=decisions.scores,
        answers=scores.counted(decisions.predictions),
        labels=scores.labels,
        confidence_level=run.config.bootstrap_confidence,
        policy={"target_fnr_exit": run.config.target_fnr_exit},
    )
    written = [run.path / FOLDER / "val_test.csv"]
    for chart in [chart for chart in UNCERTIFIED_CHARTS if chart.shown(evidence)]:
        rendering = render(lambda figure, chart=chart: chart.draw(figure, evidence), chart.height, chart.name)
        written.append(run.figures_path / f"{chart.name}.png")
        written[-1].parent.mkdir(exist_ok=True)
        artifacts.write_bytes(written[-1], rendering.png)
    return written

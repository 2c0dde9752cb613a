"""One self-contained page about several runs, with its figures and its numbers."""

import shlex
from pathlib import Path

from stage1_pro.core import artifacts
from stage1_pro.core.commands import spoken
from stage1_pro.core.comparison.compare import Comparison, Standing
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.paths import unused_name
from stage1_pro.core.report.common.cells import DIGEST_SHOWN, percent, thousands
from stage1_pro.core.report.common.sides import Card, Chart, SidesPage, draw_charts
from stage1_pro.core.report.comparison import tables

PAGE, NUMBERS = "comparison.html", "comparison.json"


def free_folder(out: str | None) -> Path:
    """Where a comparison goes: the folder named, or runs/compare-<UTC time>. Raises UserError where it is in use."""
    folder = Path(out) if out else unused_name("compare")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists, and comparisons are never overwritten. Name another folder with --out.")
    return folder


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write figures/*.png, comparison.json and comparison.html beside a new or empty folder, and rename them to it:
    what is interrupted leaves nothing. Returns the page's path."""
    with artifacts.new_folder(folder.resolve()) as building:  # a link to an empty folder stays a link
        _write(comparison, building)
    return folder / PAGE


def _write(comparison: Comparison, folder: Path) -> None:
    charts = draw_charts(_charts(), comparison, len(comparison.standings), folder)
    artifacts.write_json(folder / NUMBERS, comparison.record(), "comparison")
    artifacts.write_bytes(folder / PAGE, page_of(comparison).html(charts).encode())


def page_of(comparison: Comparison) -> SidesPage:
    """What the page says, but for its figures."""
    standings = comparison.standings
    letters, paths = [one.letter for one in standings], [one.contender.path for one in standings]
    return SidesPage(
        title=f"{len(standings)} runs side by side",
        words=f"{thousands(len(comparison.cases.labels))} test cases · equal splits",
        date=comparison.created_at[:10],
        warnings=tables.warnings(comparison),
        cards=[_card(comparison, one) for one in standings],
        lead="On the test split, with intervals in brackets. Differences are paired: they are taken within each "
        "resample of the cases.",
        tables=[
            ("Side by side", letters, tables.figure_rows(comparison)),
            (f"Differences from {letters[0]}", letters[1:], tables.difference_rows(comparison)),
        ],
        remarks=[GAIN, *tables.remarks(comparison)],
        facts=[
            *((one.letter, _origin(one)) for one in standings),
            ("Splits", comparison.cases.splits_digest[:DIGEST_SHOWN]),
            ("Compared", comparison.created_at),
        ],
        command=spoken(f"python stage1_pro/scripts/40_eval_selective.py --compare {shlex.join(paths)}"),
    )


GAIN = (
    "Right exits are the cases that exit and are answered rightly. More of them are a gain where the promise is the "
    "same and FPR and accuracy on exits are no worse: answering every case positive would cover much and miss nothing."
)


def _card(comparison: Comparison, one: Standing) -> Card:
    tone, verdict = tables.VERDICTS[one.verdict]
    return Card(
        id=f"run-{one.letter}",
        letter=one.letter,
        name=one.contender.name,
        label=f"{tables.label(one)} · seed {one.contender.seed}",
        tone=tone,
        verdict=verdict,
        right_exits=percent(one.figures["right_exits"].value),
        error="",
        sentence=tables.sentence(comparison, one),
    )


def _origin(one: Standing) -> str:
    """Where a run is, and what it is made of."""
    digests = {name: digest and digest[:DIGEST_SHOWN] for name, digest in one.contender.digests.items()}
    policy = f"policy {digests['policy']}" if digests["policy"] else "no policy"
    return f"{one.contender.path}, model {digests['model']}, {policy}, scores {digests['scores']}"


def _charts() -> tuple[Chart, ...]:
    from stage1_pro.core.report.comparison import figures as drawings

    return (
        Chart(
            "standings",
            "Right exits and FNR on exits",
            "On the test split. FNR on exits is promised to stay left of the target; the bound at the threshold alone "
            "comes from val_calib, the interval from the test cases alone.",
            drawings.standings_height,
            drawings.draw_standings,
        ),
        Chart(
            "differences",
            "Differences from the first run",
            "In percentage points, utility and AUGRC as they are. Paired: each resample of the test cases measures "
            "both runs. Better is right of zero for right exits, utility, coverage and accuracy, left of it for FPR "
            "and AUGRC.",
            drawings.differences_height,
            drawings.draw_differences,
        ),
        Chart(
            "curves",
            "FNR on exits against coverage",
            "How many positives would be missed among those that exit, were each threshold moved. The promise is made "
            "for the marked points alone.",
            lambda runs: 3.2 + 0.2 * (runs // 4),
            drawings.draw_curves,
        ),
    )

"""One self-contained page about an A/B test, with its figures and its numbers."""

from pathlib import Path

from stage1_pro.core import artifacts
from stage1_pro.core.ab.outcome import ABTest, ArmStanding
from stage1_pro.core.report.ab import tables
from stage1_pro.core.report.common.cells import DIGEST_SHOWN, percent, percent_up, thousands
from stage1_pro.core.report.common.sides import Card, Chart, SidesPage, draw_charts

PAGE, NUMBERS = "ab.html", "ab.json"


def write_test(test: ABTest, folder: Path, command: str) -> Path:
    """Write ab.json, figures/*.png and ab.html over those of an earlier look; returns the page's path.

    command: the one that makes the page again.
    """
    artifacts.write_json(folder / NUMBERS, test.record(), "ab")
    charts = draw_charts(_charts(), test, len(test.standings), folder)
    artifacts.write_bytes(folder / PAGE, page_of(test, command).html(charts).encode())
    return folder / PAGE


def page_of(test: ABTest, command: str) -> SidesPage:
    """What the page says, but for its figures."""
    names, seeds = [one.arm.name for one in test.standings], len(test.seeds)
    promise = f"≤ {100 * test.risk.target_fnr:g}% at {100 * test.risk.confidence:g}%"
    return SidesPage(
        title=f"{len(names)} arms, {seeds} seed{'s' if seeds > 1 else ''}",
        words=f"{thousands(len(test.cases.labels))} test cases · equal splits and epochs · promise {promise}",
        date=test.created_at[:10],
        warnings=tables.warnings(test),
        cards=[_card(test, at, one) for at, one in enumerate(test.standings, 1)],
        lead="On the test split, at each run's certified threshold, mean over seeds ± standard error. Differences are "
        "paired by seed and by resample of the cases.",
        tables=[
            ("Side by side", names, tables.figure_rows(test)),
            (f"Differences from {names[0]}", names[1:], tables.difference_rows(test)),
            ("Cost of training", names, tables.cost_rows(test)),
        ],
        remarks=[GAIN, *tables.remarks(test)],
        facts=[
            *((one.arm.name, _runs(one)) for one in test.standings),
            ("Runs", f"{test.folder}/runs"),
            ("Splits", test.cases.splits_digest[:DIGEST_SHOWN]),
            ("Compared", test.created_at),
        ],
        command=command,
    )


GAIN = (
    "Right exits are the cases that exit and are answered rightly. More of them are a gain where FPR and accuracy on "
    "exits are no worse: answering every case positive would cover much and miss nothing."
)


def _card(test: ABTest, number: int, one: ArmStanding) -> Card:
    tone, verdict = tables.VERDICTS[one.verdict]
    right = one.figures["right_exits"]
    return Card(
        id=f"arm-{number}",
        letter="",
        name=one.arm.name,
        label=tables.settings(one),
        tone=tone,
        verdict=verdict,
        right_exits=percent(right.value),
        error="" if right.error is None else f" ± {percent(right.error)}",
        sentence=tables.sentence(test, one),
    )


def _runs(one: ArmStanding) -> str:
    """The runs of an arm in a line: what each was certified for, and what failed."""
    ended = []
    for result in one.results:
        certificate = result.contender.certificate
        bound = "nothing worth using certified" if certificate is None else f"bound {percent_up(certificate.bound)}"
        right, model = percent(result.figures["right_exits"]), str(result.contender.digests["model"])[:DIGEST_SHOWN]
        ended.append(f"seed {result.trial.seed}: {bound}, right exits {right}, model {model}")
    return "; ".join([*ended, *(f"{name} failed: {why}" for name, why in one.failures.items())])


def _charts() -> tuple[Chart, ...]:
    from stage1_pro.core.report.ab import figures as drawings

    return (
        Chart(
            "arms",
            "Right exits and FNR on exits",
            "On the test split, at the certified threshold of each run. A run for which nothing was certified counts "
            "as 0 right exits.",
            drawings.arms_height,
            drawings.draw_arms,
        ),
        Chart(
            "differences",
            "Differences from the reference",
            "Paired by seed, in percentage points, utility and AUGRC as they are. Better is right of zero for right "
            "exits, utility, coverage and accuracy, left of it for FPR and AUGRC.",
            drawings.differences_height,
            drawings.draw_differences,
        ),
        Chart(
            "cost",
            "Right exits against training time",
            "Bars are standard errors over seeds. Time is that of the epochs, validation included.",
            lambda arms: 3.0 + 0.2 * (arms // 3),
            drawings.draw_cost,
        ),
    )

"""One self-contained page about a run at prices, with its figures, its numbers and the cases for stage 2."""

from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.cascade.economy import Cascade
from stage1_pro.core.cascade.record import record
from stage1_pro.core.report.cascade import tables
from stage1_pro.core.report.common.cells import bracket, percent, short, thousands
from stage1_pro.core.report.common.sides import Chart, draw_charts
from stage1_pro.core.report.common.template import fill

PAGE, NUMBERS = "cascade.html", "cascade.json"
LISTS = {"deferred.csv": False, "exited.csv": True}
"""Test cases by whether stage 1 answers them: what stage 2 has to predict, and what it may."""


def write_cascade(cascade: Cascade, folder: Path, command: str) -> Path:
    """Write cascade.html, cascade.json, figures/*.png and the lists of cases into a folder; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    written = record(cascade)
    charts = draw_charts(_charts(), cascade, 1, folder)
    for name, exits in LISTS.items():
        members = cascade.bench.decisions.exits == exits
        rows = ({"case_id": case} for case in cascade.bench.test.case_id[members])
        artifacts.write_csv(folder / name, rows, ["case_id"])
    artifacts.write_json(folder / NUMBERS, written, "cascade")
    artifacts.write_bytes(folder / PAGE, page(cascade, written, charts, command).encode())
    return folder / PAGE


def page(cascade: Cascade, written: dict[str, Any], charts: list[tuple[Chart, str]], command: str) -> str:
    """The HTML. written: the content of cascade.json; charts: (figure, its SVG element)."""
    from markupsafe import Markup

    bench = cascade.bench
    return fill(
        "cascade.html",
        title=f"{bench.run.name}: what the cascade costs",
        words=f"{thousands(len(bench.labels))} test cases · {written['exit_policy']} exit policy",
        date=written["created_at"][:10],
        verdict=tables.verdict(cascade),
        numbers=_numbers(cascade),
        sentences=[
            tables.answer(cascade),
            tables.recall_words(cascade),
            tables.stage2_words(cascade),
            *tables.capacity_words(cascade),
        ],
        warnings=tables.warnings(cascade),
        lead="Per 1,000 cases on the test split, with intervals in brackets. Saved is against stage 2 alone.",
        tables=tables.tables_of(cascade),
        charts=[(chart, Markup(svg)) for chart, svg in charts],
        remarks=tables.remarks(cascade),
        facts=_facts(cascade, written),
        command=command,
    )


def _numbers(cascade: Cascade) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of what stands first on the page, all of the certified cascade."""
    one = cascade.certified
    return [
        ("Cost", tables.money(one.cost[0]), f"per 1,000 cases {bracket(*one.cost[1:], tables.money)}"),
        ("Saved", tables.money(one.saved[0]), f"against stage 2 alone {bracket(*one.saved[1:], tables.money)}"),
        ("Deferred", tables.rate(1 - one.coverage), "of the cases go on to stage 2"),
        (
            "System recall",
            tables.rate(one.recall[0]),
            f"of the positives are found {bracket(*one.recall[1:], percent)}",
        ),
        ("Misses", tables.per_thousand(one.misses), "per 1,000 cases"),
        ("False alarms", tables.per_thousand(one.false_alarms), "per 1,000 cases"),
    ]


def _facts(cascade: Cascade, written: dict[str, Any]) -> list[tuple[str, str]]:
    prices = cascade.prices
    stated = (
        f"{prices.stage1:g} a case in stage 1, {prices.stage2:g} in stage 2, {prices.miss:g} a miss, "
        f"{prices.false_alarm:g} a false alarm"
    )
    digests = ", ".join(f"{name} {short(written[f'{name}_digest'])}" for name in ("model", "policy", "scores"))
    return [
        ("Run", str(cascade.bench.run.path)),
        ("Promise", f"FNR on exits ≤ {100 * written['target_fnr_exit']:g}%"),
        ("Prices", stated),
        ("Stage 2", written["stage2"]["source"]),
        ("Digests", digests),
        ("Made", written["created_at"]),
    ]


def _charts() -> tuple[Chart, ...]:
    from stage1_pro.core.report.cascade import figures as drawings

    return (
        Chart(
            "cost",
            "Cost against coverage",
            "On the test split, were the threshold moved. The promise is made for the certified point alone; bars are "
            "intervals.",
            lambda _: 3.6,
            drawings.draw_cost,
        ),
        Chart(
            "net_benefit",
            "Net benefit against the price of a miss",
            "What each way saves against sending everything to stage 2, were a miss up to ten times cheaper or dearer. "
            "Where a line falls below zero, stage 2 alone is cheaper.",
            lambda _: 3.6,
            drawings.draw_net_benefit,
        ),
    )

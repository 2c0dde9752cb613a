"""From the A/B tests of the study of adaptation to its tables, losers included."""

import json
from pathlib import Path
from typing import Any

MARKERS = "<!-- adaptation tables: begin -->", "<!-- adaptation tables: end -->"
TITLES = (
    *("arm", "right exits", "less the reference", "over seeds", "over cases", "coverage", "FNR on exits"),
    *("above target", "none", "FPR on exits", "accuracy", "AUGRC"),
    *("trained numbers", "images/s", "seconds", "MiB", "verdict"),
)


def write_tables(tests: dict[str, Path], page: Path) -> str:
    """Put one table a question into the page, between its markers where it has them; returns them."""
    tables = "\n\n".join(_table(question, json.loads(path.read_text())) for question, path in tests.items())
    before, after = "", ""
    if page.exists() and all(marker in (text := page.read_text()) for marker in MARKERS):
        before, after = text.split(MARKERS[0])[0], text.split(MARKERS[1])[1].lstrip("\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{MARKERS[0]}\n\n{tables}\n\n{MARKERS[1]}\n{after}")
    return tables


def _table(question: str, test: dict[str, Any]) -> str:
    head = (
        f"**{question}**: {len(test['seeds'])} seeds, {test['cases']:,} test cases, {test['jobs']} runs side by side, "
        f"target {test['target_fnr_exit']:g} at {test['fnr_confidence']:g}, made {test['created_at'][:10]}"
    )
    rows = [TITLES, ("---",) * len(TITLES), *(_row(arm) for arm in test["arms"])]
    return "\n".join([head, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _row(arm: dict[str, Any]) -> tuple[str, ...]:
    difference, cost, runs = arm["differences"].get("right_exits"), arm["cost"], len(arm["runs"])
    return (
        arm["name"],
        _number(arm["figures"]["right_exits"]["value"]),
        "" if difference is None else f"{_number(difference['value'], '+')} ± {_number(difference['error'])}",
        "" if difference is None else _interval(difference["low"], difference["high"]),
        "" if difference is None else _interval(difference["case_low"], difference["case_high"]),
        _with_change(arm, "coverage"),
        _number(arm["figures"]["fnr_on_exits"]["value"]),
        f"{arm['above_target']} of {runs}",
        f"{arm['nothing_certified']} of {runs}",
        _with_change(arm, "fpr_on_exits"),
        _with_change(arm, "accuracy_on_exits"),
        _with_change(arm, "augrc"),
        *(f"{cost[name]:,.0f}" if cost else "–" for name in ("trainable", "images_per_second", "seconds", "peak_mib")),
        arm["verdict"],
    )


def _with_change(arm: dict[str, Any], name: str) -> str:
    difference = arm["differences"].get(name)
    change = "" if difference is None else f" ({_number(difference['value'], '+')})"
    return _number(arm["figures"][name]["value"]) + change


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"

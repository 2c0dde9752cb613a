"""The page of a run at prices: its figures are those of the formulas, and it is whole and self-contained."""

import re
from typing import Any

import numpy as np
import pytest
from made_runs import calibrate, make_run
from test_page import NASTY, Elements

from stage1_pro.core.cascade.bench import WAYS, Bench
from stage1_pro.core.cascade.economy import Demand, price_run
from stage1_pro.core.cascade.prices import Exits, Prices, StageTwo, break_even, cost_per_thousand, cost_without_stage1
from stage1_pro.core.cascade.record import record
from stage1_pro.core.cascade.stage_two import Assumed
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.records.policy_file import write_policy
from stage1_pro.core.report.cascade.page import write_cascade
from stage1_pro.core.report.cascade.tables import tables_of, verdict

PRICES, SECOND = Prices(0.001, 0.5, 20, 5), StageTwo(0.98, 0.99)
KNOWN = Assumed((0.98, 0.98), (0.99, 0.99))


@pytest.fixture(scope="module")
def benches(tmp_path_factory) -> dict[str, Bench]:
    """A run of every policy, with an evaluated test split."""
    found = {}
    for policy in ("softmax", "gate", "scrc"):
        run = make_run(tmp_path_factory.mktemp("runs") / policy, policy, NASTY)
        artifact = calibrate(run)
        write_policy(run, artifact)
        found[policy] = Bench.of(run, artifact)
    return found


@pytest.mark.parametrize("policy", ["softmax", "gate", "scrc"])
@pytest.mark.parametrize("prevalence", [None, 0.02])
def test_every_way_costs_what_the_formula_says(benches, policy, prevalence) -> None:
    bench = benches[policy]
    cascade = price_run(bench, PRICES, Demand(prevalence), KNOWN)
    share = float((bench.labels == 1).mean()) if prevalence is None else prevalence
    for key in ("certified", "all_exit"):
        exits = bench.exits_of(key, 0)
        rates = Exits.of(count_decisions(exits, bench.decisions.predictions, bench.labels), share)
        one = cascade.rows[key].measured
        assert one is not None
        assert one.cost[0] == pytest.approx(np.ravel(cost_per_thousand(PRICES, rates, SECOND))[0])
        assert one.cost[1] < one.cost[0] < one.cost[2]
        assert 1 - one.misses / 1000 / share == pytest.approx(np.ravel(rates.recall(SECOND))[0])
        assert one.precision == pytest.approx(np.ravel(rates.precision(SECOND))[0])
        even = [np.ravel(break_even(PRICES, rates, SECOND, stage1_runs=runs))[0] for runs in (True, False)]
        assert cascade.rows[key].break_even == pytest.approx(even)
    alone = cascade.rows["stage2_alone"].measured
    assert alone is not None
    assert alone.cost[0] == pytest.approx(cost_without_stage1(PRICES, share, SECOND))


@pytest.mark.parametrize("policy", ["softmax", "gate", "scrc"])
def test_the_ladder_decides_as_it_counts_and_holds_the_certified_policy(benches, policy) -> None:
    bench = benches[policy]
    counts = bench.ladder.counts(bench.test)
    for at in (0, len(bench.ladder.rows) // 2, len(bench.ladder.rows) - 1):
        decisions = bench.ladder.at(at).decide(bench.test)
        once = count_decisions(decisions.exits, decisions.predictions, bench.labels)
        assert (counts.exited[at], counts.misses[at]) == (once.exited[0], once.misses[0])
    assert (np.diff(counts.exited) >= 0).all()
    assert any((row == [getattr(bench.ladder.policy, name) for name in bench.ladder.fields]).all()
               for row in bench.ladder.rows)  # fmt: skip


def test_a_range_of_stage_2_widens_every_interval(benches) -> None:
    bench = benches["softmax"]
    narrow, wide = (price_run(bench, PRICES, Demand(), second) for second in (KNOWN, Assumed((0.9, 1.0), (0.95, 1.0))))
    for name in ("cost", "recall"):
        one, other = getattr(narrow.certified, name), getattr(wide.certified, name)
        assert other[2] - other[1] > one[2] - one[1]
    assert wide.least_recall == pytest.approx(0.9)
    assert narrow.least_recall == pytest.approx(0.95)


def test_what_pays_is_called_cheaper_and_what_does_not_dearer(benches) -> None:
    bench = benches["softmax"]
    tones = [verdict(price_run(bench, prices, Demand(), KNOWN))[0]
             for prices in (Prices(0, 10, 1, 1), Prices(0, 0.01, 1000, 1000))]  # fmt: skip
    assert tones == ["good", "bad"]


def test_the_page_is_whole_and_says_every_figure(benches, tmp_path) -> None:
    cascade = price_run(benches["gate"], PRICES, Demand(0.05, 5000, 800), Assumed((0.95, 0.99), (0.98, 0.98)))
    html = write_cascade(cascade, tmp_path / "out", "the command").read_text()
    elements = Elements(html)
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "b", "link", "iframe"})
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))
    for title, heads, rows in tables_of(cascade):
        assert title in elements.text
        for row in rows:
            assert len(row.cells) == len(heads)
            assert all(cell.value in elements.text and cell.interval in elements.text for cell in row.cells)
    assert all(name in elements.text for name in WAYS.values())
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} == {
        *("cascade.html", "cascade.json", "deferred.csv", "exited.csv", "cost.png", "net_benefit.png"),
    }


def test_the_capacity_is_told_as_the_page_of_numbers_has_it(benches) -> None:
    bench = benches["softmax"]
    written: dict[str, Any] = record(price_run(bench, PRICES, Demand(None, 5000, 800), KNOWN))
    assert round(written["capacity"]["coverage_floor"], 4) == 0.8517
    assert written["capacity"]["certified_coverage"] < 0.8517
    assert written["capacity"]["smallest_target"] > bench.artifact["target_fnr_exit"]
    mean, busy = written["rows"]["certified"]["deferrals"].values()
    assert mean < busy == 800 + written["capacity"]["over"]

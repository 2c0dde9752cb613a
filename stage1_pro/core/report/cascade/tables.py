"""A run at prices in words and cells, the same ones on the page and on the console."""

from collections.abc import Callable, Iterator
from math import ceil, isnan

from stage1_pro.core.cascade.economy import Cascade, Row
from stage1_pro.core.cascade.prices import LEAST_PLACING
from stage1_pro.core.cascade.stage_two import Predictions
from stage1_pro.core.cascade.study import Interval, Measured
from stage1_pro.core.errors import counted
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.report.common.cells import UNDEFINED, Cell, Form, MeasureRow, bracket, percent
from stage1_pro.core.report.common.lines import flat, table_lines

MEANINGS = {
    "stage2_alone": "stage 1 does not run",
    "stage2": "stage 1 runs, nothing exits",
    "certified": "the policy in force",
    "cheapest": "chosen on val_select; nothing is promised",
    "all_exit": "stage 1 answers everything; nothing is promised",
}
MOST_TARGET = 0.1
"""What a run may be certified for."""


def money(value: float | None) -> str:
    """An amount with as many decimals as it needs."""
    if value is None or isnan(value):
        return UNDEFINED
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.3g}"
    return text.replace("-", "−", 1)


def rate(value: float | None) -> str:
    return percent(None if value is None or isnan(value) else value)


def per_thousand(value: float) -> str:
    return UNDEFINED if isnan(value) else f"{value:.3g}"


# ---- the table


def tables_of(cascade: Cascade) -> list[tuple[str, list[str], list[MeasureRow]]]:
    """(title, names of columns, a row for each way to run the cascade)."""
    return [
        (title, [name for name, _ in columns], _rows(cascade, [cell for _, cell in columns]))
        for title, columns in _columns(cascade).items()
    ]


def _rows(cascade: Cascade, cells: list[Callable[[Row], Cell]]) -> list[MeasureRow]:
    return [MeasureRow(row.name, MEANINGS[row.key], [cell(row) for cell in cells]) for row in cascade.rows.values()]


def _columns(cascade: Cascade) -> dict[str, list[tuple[str, Callable[[Row], Cell]]]]:
    deferred = "Deferrals a day" if cascade.demand.volume else "Deferred"
    return {
        "Cost and load": [
            ("Cost", _of(lambda one: _interval(one.cost, money))),
            ("Saved", _saved),
            (deferred, _deferred),
            ("Break-even FNR", _break_even),
        ],
        "Errors": [
            ("FNR on exits", lambda row: Cell(rate(row.fnr))),
            ("Misses", _of(lambda one: Cell(per_thousand(one.misses)))),
            ("False alarms", _of(lambda one: Cell(per_thousand(one.false_alarms)))),
            ("System recall", _of(lambda one: _interval(one.recall, rate))),
            ("System precision", _of(lambda one: Cell(rate(one.precision)))),
        ],
    }


def _of(cell: Callable[[Measured], Cell]) -> Callable[[Row], Cell]:
    return lambda row: Cell(UNDEFINED) if row.measured is None else cell(row.measured)


def _interval(interval: Interval, form: Form) -> Cell:
    value, low, high = interval
    return Cell(form(value), "" if isnan(value) else bracket(low, high, form))


def _saved(row: Row) -> Cell:
    if row.key == "stage2_alone" or row.measured is None or isnan(row.measured.saved[0]):
        return Cell(UNDEFINED)
    cell, (_, low, high) = _interval(row.measured.saved, money), row.measured.saved
    return Cell(cell.value, cell.interval, tone="good" if low > 0 else "bad" if high < 0 else "")


def _deferred(row: Row) -> Cell:
    if row.deferrals is None:
        return Cell(rate(1 - row.coverage))
    mean, busy = row.deferrals
    return Cell(f"{mean:,.0f}", f"99% day {busy:,}")


def _break_even(row: Row) -> Cell:
    if row.break_even is None:
        return Cell(UNDEFINED)
    running, without = (_even(value) for value in row.break_even)
    return Cell(without, note=f"{running} if stage 1 runs anyway")


def _even(value: float) -> str:
    return "never dearer" if value >= 1 else "always dearer" if value < 0 else percent(value)


# ---- sentences


def verdict(cascade: Cascade) -> tuple[str, str]:
    """(tone, words) of what the certified cascade saves."""
    value, low, high = cascade.certified.saved
    if isnan(value):
        return "unsure", "Not compared: stage 2's answers to the exits are not known"
    if low > 0:
        return "good", "Cheaper than sending everything to stage 2"
    if high < 0:
        return "bad", "Dearer than sending everything to stage 2"
    return "unsure", "Too few cases to tell whether it is cheaper than stage 2 alone"


def answer(cascade: Cascade) -> str:
    """What the certified cascade costs and saves, in one sentence."""
    value, low, high = cascade.certified.saved
    cost = flat(_interval(cascade.certified.cost, money))
    words = f"At these prices 1,000 cases cost {cost} with the certified cascade"
    if isnan(value):
        return f"{words}."
    difference, word = ((value, low, high), "less") if value >= 0 else ((-value, -high, -low), "more")
    return f"{words}, {flat(_interval(difference, money))} {word} than with stage 2 alone."


def recall_words(cascade: Cascade) -> str:
    """What the certificate says of the cascade's recall."""
    low = cascade.on_deferred["sensitivity"][1]
    return (
        f"System recall is at least {rate(cascade.least_recall)} as surely as the certificate, if stage 2 finds at "
        f"least {rate(low)} of the positives that are deferred to it."
    )


def stage2_words(cascade: Cascade) -> str:
    """What is known of stage 2."""
    found = ", ".join(f"{name} {_rate(cascade.on_deferred[name])}" for name in ("sensitivity", "specificity"))
    if isinstance(cascade.second, Predictions):
        return f"Stage 2 on the deferred test cases, from {cascade.second.where}: {found}."
    return f"Stage 2 as assumed: {found}; intervals of cost span this range."


def _rate(interval: Interval) -> str:
    return rate(interval[0]) if interval[1] == interval[2] else flat(_interval(interval, rate))


def capacity_words(cascade: Cascade) -> list[str]:
    """Whether stage 2 can take what the certified policy defers, and what to do where it cannot."""
    found, demand = cascade.capacity, cascade.demand
    if found is None:
        return []
    need = (
        f"{demand.capacity:,} of {demand.volume:,} cases a day need a coverage of {rate(found.floor)} on 99 days of 100"
    )
    if found.fits:
        return [f"Stage 2 can take it: {need}, and {rate(found.certified)} is certified."]
    words = f"Stage 2 cannot take it: {need}, and {rate(found.certified)} is certified"
    return [f"{words}: {found.over:,} cases too many on such a day. {_remedy(cascade.smallest)}"]


def _remedy(smallest: float | None) -> str:
    advice = "Give stage 2 more capacity, or train a better model; a lower threshold would break the promise."
    if smallest is None:
        return advice
    if smallest > MOST_TARGET:
        return f"No target up to {MOST_TARGET:g} would be certified there. {advice}"
    target = ceil(smallest * 1e4) / 1e4
    return (
        f"The smallest target that these calibration cases show there is {target:g}; it was found after the look, so "
        f"it needs new calibration data. {advice}"
    )


def price_words(cascade: Cascade) -> str:
    """The prices in deferrals, as settings of training have them."""
    prices = cascade.prices
    words = f"In deferrals: false_alarm_price {prices.false_alarm_price:.4g}, miss_price {prices.miss_price:.4g}."
    if not prices.can_place:
        return (
            f"{words} A false alarm costs less than {LEAST_PLACING:g} deferrals: such a price cannot place answers, "
            "because nearly every answer would exit."
        )
    return words


def warnings(cascade: Cascade) -> list[str]:
    """What a reader must know before the figures."""
    return [*_of_promise(cascade), *_of_prices(cascade), *_of_evidence(cascade)]


def _of_promise(cascade: Cascade) -> Iterator[str]:
    bench, target = cascade.bench, cascade.bench.artifact["target_fnr_exit"]
    exits = bench.decisions.exits & bench.independent
    counts = count_decisions(exits, bench.decisions.predictions, bench.labels)
    low, _ = fnr_interval(counts.misses, counts.exited_positives, cascade.confidence)
    if low[0] > target:
        fnr = rate(float(counts.fnr[0]))
        yield f"The test split contradicts the promise: FNR on exits {fnr} against a target of {target:g}."
    if "useless" in bench.artifact:
        yield f"Certified, but {bench.artifact['useless']}."


def _of_prices(cascade: Cascade) -> Iterator[str]:
    config, prices = cascade.bench.run.config, cascade.prices
    placed, stated = config.false_alarm_price, prices.false_alarm_price
    if prices.can_place and abs(placed - stated) > 0.01 * stated and cascade.bench.artifact.get("answer_shift"):
        yield (
            f"The answers were placed at a false_alarm_price of {placed:g}; these prices say {stated:.4g}. A run "
            f"trained with --false_alarm_price {stated:.4g} places them anew."
        )


def _of_evidence(cascade: Cascade) -> Iterator[str]:
    if cascade.certified.too_few_misses:
        yield (
            f"Positives are missed in {counted(cascade.certified.missed_groups, 'test group')}: so few that their "
            "share of the cost has an exact interval, which is wide. More test positives narrow it."
        )
    unknown = [row.name for row in cascade.rows.values() if row.measured is None]
    if unknown:
        yield (
            f"Not measured: {', '.join(unknown)}. The predictions hold no answers of stage 2 to some of the cases that "
            "these would defer; predict all cases of deferred.csv and of exited.csv to see them."
        )
    if isinstance(cascade.second, Predictions) and cascade.second.unused:
        yield f"{cascade.second.where}: {counted(cascade.second.unused, 'row')} about no test case, not used."


def remarks(cascade: Cascade) -> list[str]:
    """How the figures were made, and what they do not say."""
    bench = cascade.bench
    unit = "groups" if bench.groups < len(bench.labels) else "cases"
    share = f"{100 * cascade.prevalence:.3g}%"
    stated = "as stated" if cascade.demand.prevalence is not None else "of the test split"
    return [
        f"Cost, savings, misses and false alarms are per 1,000 cases, at {share} positives, {stated}. --prevalence P "
        "weighs them for another share; FNR on exits does not depend on it.",
        f"Intervals at {100 * cascade.confidence:g}%: cost and savings by {cascade.samples:,} studentised resamples of "
        f"the test {unit}, the same ones for every way; recall exact, over one positive of each group.",
        "Only the certified row carries a promise. The cheapest threshold was chosen on val_select at these prices; "
        "its figures are estimates, and so are those of all exit.",
        "Break-even FNR: the FNR on exits at which a way costs as much as sending everything to stage 2.",
        price_words(cascade),
    ]


# ---- console


def console_lines(cascade: Cascade) -> Iterator[str]:
    """The table as plain lines, and what it says."""
    for title, heads, rows in tables_of(cascade):
        yield from table_lines([[title, *heads], *([row.name, *map(_plain, row.cells)] for row in rows)])
        yield ""
    yield answer(cascade)
    yield recall_words(cascade)
    yield stage2_words(cascade)
    yield from capacity_words(cascade)
    yield price_words(cascade)


def _plain(cell: Cell) -> str:
    return f"{flat(cell)} ({cell.note})" if cell.note else flat(cell)

"""An A/B test in words and cells, the same ones on the page and on the console."""

from collections.abc import Callable, Iterator
from typing import Any

from stage1_pro.core.ab.outcome import ABTest, ArmStanding
from stage1_pro.core.ab.statistics import TOLERANCE, PairedDifference, SeedMean, paid
from stage1_pro.core.comparison.contender import HEADLINE, PRICES
from stage1_pro.core.comparison.contender import MEASURES as BETTER
from stage1_pro.core.report.common.cells import (
    MEASURES,
    SHOWN,
    TONES,
    UNDEFINED,
    Cell,
    Measure,
    MeasureRow,
    bracket,
    measure_rows,
)
from stage1_pro.core.report.common.lines import flat, table_lines

VERDICTS = {
    "reference": ("plain", "Reference"),
    "incomplete": ("bad", "Runs failed: no verdict"),
    "one seed": ("plain", "One seed: no verdict"),
    "more": ("good", "More right exits"),
    "at a price": ("unsure", "More right exits, and errs more"),
    "price unknown": ("unsure", "More right exits, price unknown"),
    "less": ("bad", "Fewer right exits"),
    "like": ("plain", "No difference seen"),
}
"""(tone, words) of an arm's verdict."""


# ---- cells


def figure_rows(test: ABTest) -> list[MeasureRow]:
    """What each arm does on the test cases, mean over seeds."""
    refused = [
        Cell(f"{one.refused} of {len(one.results)}", tone="bad" if one.refused else "") for one in test.standings
    ]
    above = [Cell(f"{one.above(test.risk.target_fnr)} of {len(one.results)}") for one in test.standings]
    return [
        *measure_rows(SHOWN, test.standings, _mean),
        MeasureRow("Nothing certified", "or nothing worth certifying, in runs; they count as 0 right exits", refused),
        MeasureRow("Above the target", "runs whose FNR on exits on the test split, an estimate, is", above),
    ]


def difference_rows(test: ABTest) -> list[MeasureRow]:
    """The other arms less the first, paired by seed."""
    return measure_rows(MEASURES, test.standings[1:], _difference)


def cost_rows(test: ABTest) -> list[MeasureRow]:
    """What training took, mean over seeds."""
    memory = next((result.cost.memory for one in test.standings for result in one.results), "process")
    rows: list[tuple[str, str, Callable[[ArmStanding], Cell]]] = [
        ("Trained numbers", "parameters that training moves", lambda one: _cost(one, "trainable", "{:,.0f}")),
        ("Images per second", "of training steps, median over epochs", _speed),
        ("Training time", "seconds, validation included", _seconds),
        ("Epochs", "until training stopped", lambda one: _cost(one, "epochs", "{:.3g}")),
        ("Peak memory", f"of the {memory}, MiB", lambda one: _cost(one, "peak_mib", "{:,.0f}")),
    ]
    return [MeasureRow(name, meaning, [cell(one) for one in test.standings]) for name, meaning, cell in rows]


def _mean(one: ArmStanding, key: str) -> Cell:
    mean, row = one.figures[key], SHOWN[key]
    return Cell(row.form(mean.value), _error(mean, row), f"{mean.seeds} seeds" if mean.seeds < len(one.results) else "")


def _error(mean: SeedMean, row: Measure) -> str:
    return "" if mean.error is None else f"± {row.form(mean.error)}".replace("%", "")


def _difference(one: ArmStanding, key: str) -> Cell:
    row, difference = MEASURES[key], one.differences[key]
    return Cell(
        _change(difference, row), _bounds(difference, row), _case_bounds(difference, row), TONES[difference.sense]
    )


def _change(difference: PairedDifference, row: Measure) -> str:
    error = "" if difference.error is None else f" ± {_size(difference.error, row)}"
    return f"{row.change(difference.value)}{error}"


def _size(error: float, row: Measure) -> str:
    return row.change(error).lstrip("+")


def _bounds(one: PairedDifference, row: Measure) -> str:
    found = bracket(one.low, one.high, row.change)
    return found and f"seeds {found}"


def _case_bounds(one: PairedDifference, row: Measure) -> str:
    found = bracket(one.case_low, one.case_high, row.change)
    return found and f"cases {found}"


def _cost(one: ArmStanding, key: str, form: str) -> Cell:
    return Cell(form.format(one.cost[key]) if one.cost else UNDEFINED)


def _speed(one: ArmStanding) -> Cell:
    cached = any(result.cost.from_cache for result in one.results)
    cell = _cost(one, "images_per_second", "{:,.0f}")
    return Cell(cell.value, note="from cached features" if cached else "")


def _seconds(one: ArmStanding) -> Cell:
    ratio = "" if one.time_ratio is None else f"{one.time_ratio:.2g}× the reference"
    return Cell(_cost(one, "seconds", "{:,.1f}").value, note=ratio)


def settings(one: ArmStanding) -> str:
    """What an arm's file sets, in one line."""
    return ", ".join(f"{name} {value}" for name, value in _flat(one.arm.changes)) or "the base config as it is"


def _flat(changes: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# ---- sentences


def sentence(test: ABTest, one: ArmStanding) -> str:
    """What became of one arm beside the first, honest about few seeds."""
    words = [_certified(one), *([_ending(test, one)] if one is not test.standings[0] else [])]
    return " ".join(part for part in words if part)


def _certified(one: ArmStanding) -> str:
    count, refused = len(one.results), one.refused
    if not count:
        return "No run ended."
    if not refused:
        return f"Certified in {f'all {count} runs' if count > 1 else 'its one run'}."
    return f"Nothing worth using was certified in {refused} of {count} runs, which count as 0 right exits."


def _ending(test: ABTest, one: ArmStanding) -> str:
    first, gain = test.standings[0], one.differences[HEADLINE]
    if one.verdict == "incomplete":
        failed = ", ".join([*one.failures, *first.failures])
        return f"No verdict: {failed} failed, and the seeds that fail may be those that do badly."
    if one.verdict == "one seed":
        return f"{_gain(gain)}{_at(one)}; one seed says nothing of another, so no verdict: take more seeds."
    return f"{_gain(gain)} {_over(test, gain)}{_at(one)}: {_conclusion(one)}"


def _conclusion(one: ArmStanding) -> str:
    if one.verdict == "at a price":
        prices = " and ".join(_price(one, name) for name in PRICES if paid(one.differences, name))
        return f"not comparable, because {prices}."
    if one.verdict == "like":
        return "no difference seen, which is not the same as none."
    endings = {
        "more": "worth it where that time is, since FPR and accuracy on exits are no worse by more than "
        f"{100 * TOLERANCE:g} points.",
        "price unknown": "the reference exits nothing, so whether FPR and accuracy on exits pay for it cannot be told.",
        "less": "worse.",
    }
    return endings[one.verdict]


def _price(one: ArmStanding, name: str) -> str:
    row, value = MEASURES[name], one.differences[name].value or 0.0
    return f"{row.name} {'rose' if BETTER[name] < 0 else 'fell'} by {100 * abs(value):.2f} points"


def _gain(right: PairedDifference) -> str:
    return f"{_change(right, MEASURES[HEADLINE])} points of right exits"


def _over(test: ABTest, right: PairedDifference) -> str:
    row = MEASURES[HEADLINE]
    confidence = f"{100 * test.confidence:g}%"
    return f"({confidence} over {right.seeds} {_bounds(right, row)}, over test {_case_bounds(right, row)})"


def _at(one: ArmStanding) -> str:
    return "" if one.time_ratio is None else f" at {one.time_ratio:.2g}× the training time"


def warnings(test: ABTest) -> list[str]:
    """What a reader must know before the figures."""
    lines = []
    failed = {name: why for one in test.standings for name, why in one.failures.items()}
    if failed:
        lines.append(f"{len(failed)} of {len(failed) + test.runs} runs failed; left out: {', '.join(failed)}.")
    if 1 < len(test.seeds) < 5:
        lines.append(
            f"{len(test.seeds)} seeds: Student's interval has {len(test.seeds) - 1} "
            f"degree{'s' if len(test.seeds) > 2 else ''} of freedom, so only large differences can show."
        )
    return lines


def remarks(test: ABTest) -> list[str]:
    """What the figures do and do not say."""
    shared = (
        f"{test.jobs} runs shared the machine: speeds are those of a share, and times compare within this test only."
    )
    return [_intervals(test), _looks(test), _selection(test), *([shared] if test.jobs > 1 else [])]


def _intervals(test: ABTest) -> str:
    return (
        "± is the standard error over seeds; seeds [ ] is Student's interval of the mean paired difference over seeds, "
        f"cases [ ] comes from {test.samples:,} bootstrap resamples of the test {test.cases.unit}s, the same ones for "
        f"all runs; both at {100 * test.confidence:g}%. A difference counts as seen where neither holds 0. Neither "
        "speaks of another draw of the splits: another val_calib would move every threshold."
    )


def _looks(test: ABTest) -> str:
    others = len(test.standings) - 1
    if others == 1:
        return "Several looks: one difference is shown; further arms that were tried and are not shown count too."
    return (
        f"Several looks: {others} differences, each interval by itself. Were all arms equal, the chance that some "
        f"interval over seeds misses 0 would be up to {100 * test.false_alarm:.0f}%."
    )


def _selection(test: ABTest) -> str:
    others = len(test.cases.looks) - test.runs
    more = f", whose positives were looked at {others} more time{'' if others == 1 else 's'}" if others > 0 else ""
    return (
        f"Selection: {test.runs} runs were certified, or tried, on one val_calib{more}. Each certificate is tested at "
        f"{100 * test.risk.confidence:g}%; {_joint(test)} The test figures of an arm that is chosen for its test "
        "figures are a little too good."
    )


def _joint(test: ABTest) -> str:
    if test.joint_confidence > 0:
        return f"whichever run is picked, its certificate holds with {100 * test.joint_confidence:.4g}% at least."
    return (
        "for a run picked among so many nothing is left of that (union bound): certify the arm you choose anew, on "
        "a calibration split that no arm has seen."
    )


# ---- console


def console_lines(test: ABTest) -> Iterator[str]:
    """The test as plain lines: a table with a row for each arm, what it cost, then the verdicts."""
    names = [one.arm.name for one in test.standings]
    for head, arms, rows, words in (
        ("arm", names, figure_rows(test)[:-1], flat),
        (f"less {names[0]}", names[1:], difference_rows(test), _value_and_seeds),
        ("cost", names, cost_rows(test), _with_note),
    ):
        titles = [head, *(row.name for row in rows)]
        yield from table_lines(
            [titles, *([arm, *(words(row.cells[at]) for row in rows)] for at, arm in enumerate(arms))]
        )
        yield ""
    for one in test.standings:
        yield f"{one.arm.name}: {VERDICTS[one.verdict][1]}. {sentence(test, one)}"
    yield ""


def _value_and_seeds(cell: Cell) -> str:
    return f"{cell.value} {cell.interval.removeprefix('seeds ')}".rstrip()


def _with_note(cell: Cell) -> str:
    return f"{cell.value} ({cell.note})" if cell.note else cell.value

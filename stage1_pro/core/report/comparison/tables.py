"""A comparison in words and cells, the same ones on the page and on the console."""

from collections.abc import Iterator

from stage1_pro.core.comparison.compare import Comparison, Difference, Standing
from stage1_pro.core.comparison.contender import HEADLINE, PRICES, Contender
from stage1_pro.core.config.phases import POLICY_TABLE
from stage1_pro.core.report.common.cells import (
    MEASURES,
    SHOWN,
    TONES,
    Cell,
    MeasureRow,
    bracket,
    measure_rows,
    percent,
    percent_up,
)
from stage1_pro.core.report.common.lines import flat, table_lines

CONSOLE_COLUMNS = 3
"""Runs in one block of lines, so that a line fits a terminal."""
VERDICTS = {
    "first": ("plain", "Baseline"),
    "uncertified": ("bad", "Nothing certified"),
    "other promise": ("unsure", "Another promise"),
    "more": ("good", "More right exits"),
    "more at a price": ("unsure", "More right exits, and errs more"),
    "less": ("bad", "Fewer right exits"),
    "like": ("plain", "No clear difference in right exits"),
}
"""(tone, words) of a standing's verdict."""
SENSES = {1: "better", -1: "worse", 0: "within chance"}


def promise(contender: Contender) -> str:
    """What a run promises, or sought, in a few words."""
    target, confidence = f"{100 * contender.risk.target_fnr:g}%", _confidence(contender)
    if contender.in_expectation:
        return f"≤ {target} in expectation (share of single answers at {confidence})"
    return f"≤ {target} at {confidence}"


def _confidence(contender: Contender) -> str:
    """At which confidence a run was tested, and what the looks at its positives left of it."""
    nominal, left = contender.risk.confidence, contender.certificate and contender.certificate.remaining
    if left is None or left >= round(nominal, 12):
        return f"{100 * nominal:g}%"
    return f"{100 * nominal:g}%, of which {f'{100 * left:g}%' if left else 'nothing'} remains"


def label(standing: Standing) -> str:
    """Phase and policy of a run, in words."""
    contender = standing.contender
    variant = contender.certificate and contender.certificate.scrc_variant
    return f"phase {contender.phase}, {variant or POLICY_TABLE[contender.exit_policy].label} policy"


def figure_rows(comparison: Comparison) -> list[MeasureRow]:
    """What each run promises and what it does on the test cases."""
    standings = comparison.standings
    return [
        MeasureRow("Promise", "FNR on exits sought, and with which confidence", [_promise(one) for one in standings]),
        MeasureRow(
            "Bound", "on FNR on exits at this threshold alone, by val_calib", [_bound(one) for one in standings]
        ),
        *measure_rows(SHOWN, standings, _figure),
    ]


def difference_rows(comparison: Comparison) -> list[MeasureRow]:
    """The other runs minus the first one."""
    return measure_rows(MEASURES, comparison.standings[1:], _difference)


def _promise(standing: Standing) -> Cell:
    contender = standing.contender
    target, confidence = f"{100 * contender.risk.target_fnr:g}%", _confidence(contender)
    if contender.in_expectation:
        return Cell(f"≤ {target}", "in expectation", "approximately")
    return Cell(f"≤ {target}", f"at {confidence}")


def _bound(standing: Standing) -> Cell:
    certificate = standing.contender.certificate
    if certificate is None:
        return Cell("none", tone="bad")
    kind = "not certified" if standing.contender.in_expectation else "certified"
    return Cell(f"≤ {percent_up(certificate.bound)}", kind)


def _figure(standing: Standing, key: str) -> Cell:
    if key == "fnr_on_exits":
        return _fnr(standing)
    estimate, form = standing.figures[key], MEASURES[key].form
    return Cell(form(estimate.value), bracket(estimate.low, estimate.high, form))


def _fnr(standing: Standing) -> Cell:
    fnr = standing.fnr
    interval = bracket(fnr["low"], fnr["high"], percent)
    tone = "bad" if standing.promise_held is False and fnr["low"] > standing.contender.risk.target_fnr else ""
    counts = f"{fnr['misses']:,} of {fnr['exited_positives']:,}" if interval else ""
    return Cell(percent(fnr["value"]), interval, counts, tone)


def _difference(standing: Standing, key: str) -> Cell:
    change, difference = MEASURES[key].change, standing.differences[key]
    words = SENSES[difference.sense] if difference.value else ""
    return Cell(change(difference.value), _interval(difference, key), words, TONES[difference.sense])


def _interval(difference: Difference, key: str) -> str:
    return bracket(difference.low, difference.high, MEASURES[key].change)


# ---- sentences


def sentence(comparison: Comparison, standing: Standing) -> str:
    """What became of one run, beside the first."""
    first = comparison.standings[0]
    if standing.verdict == "uncertified":
        return "Nothing was certified, so every case goes to stage 2."
    if standing is first:
        bound = f"FNR on exits {_bound(standing).value}"
        in_expectation = standing.contender.in_expectation
        return f"No certificate: {bound} in expectation, approximately." if in_expectation else f"Certified: {bound}."
    if standing.verdict == "other promise":
        own, firsts = _stands_on(standing.contender), _stands_on(first.contender)
        return f"{own.capitalize()}; {first.letter} {firsts}: their right exits do not compare."
    clear = [_clear(key, standing) for key in (*PRICES, "augrc") if standing.differences[key].sense]
    return " ".join([_headline(standing.differences[HEADLINE], first.letter), *clear])


def _stands_on(contender: Contender) -> str:
    if contender.certificate is None:
        return f"certified nothing at {promise(contender)}"
    if contender.in_expectation:
        return f"promises {promise(contender)}, without a certificate"
    return f"has a certificate for {promise(contender)}"


def _headline(difference: Difference, first: str) -> str:
    if not difference.value:
        return f"As many right exits as {first}."
    amount = f"{100 * abs(difference.value):.2f} points {MEASURES[HEADLINE].higher[difference.value < 0]}"
    chance = "" if difference.sense else ", within chance"
    return f"Right exits: {amount} than {first} {_interval(difference, HEADLINE)}{chance}."


def _clear(key: str, standing: Standing) -> str:
    row, difference = MEASURES[key], standing.differences[key]
    higher = row.higher[(difference.value or 0) < 0]
    return f"{row.name} {higher}: {row.change(difference.value)} {_interval(difference, key)}."


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before the figures."""
    if not comparison.promises_differ:
        return []
    made: dict[str, list[str]] = {}
    for one in comparison.standings:
        made.setdefault(promise(one.contender), []).append(one.letter)
    listed = "; ".join(f"{', '.join(letters)} {words}" for words, letters in made.items())
    unlike = any(one.contender.in_expectation for one in comparison.standings)
    return [
        f"The runs promise different things ({listed}). A looser promise carries more right exits, which compare "
        "between runs with the same promise only."
        + (" A promise in expectation is no certificate, whatever its target." if unlike else "")
    ]


def remarks(comparison: Comparison) -> list[str]:
    """What the figures do and do not say."""
    cases = comparison.cases
    lines = [
        f"Intervals are at {100 * comparison.confidence:g}%, each by itself: exact for FNR on exits"
        + (" (one positive of each group)" if cases.unit == "group" else "")
        + f" and for a rate of 0 or 1, else {comparison.samples:,} bootstrap resamples of {cases.unit}s, the same ones "
        "for all runs. They speak of the draw of the test cases; another training seed or calibration split would move "
        "the figures too.",
        *_joint(comparison),
        "The test figures of a run that is chosen for its test figures are a little too good.",
    ]
    ranked = [(one.letter, one.contender.ranked_by) for one in comparison.standings if not one.contender.certificate]
    return [*lines, *(f"{letter} has no policy; its AUGRC ranks cases by its {words}." for letter, words in ranked)]


def _joint(comparison: Comparison) -> Iterator[str]:
    """What the promises are worth together, and which of them have no part in that."""
    standings = comparison.standings
    if comparison.joint_confidence is not None:
        refused = ", ".join(one.letter for one in standings if one.contender.certificate is None)
        yield (
            f"The {len(standings)} runs were tried on one val_calib. Each certificate holds with the confidence it "
            "states; whichever run with a certificate is chosen, its certificate holds with "
            f"{100 * comparison.joint_confidence:.4g}% at least{_other_looks(comparison)}."
            + (f" Tried in vain, and counted too: {refused}." if refused else "")
        )
    if unlike := ", ".join(f"{one.letter} ({label(one)})" for one in standings if one.contender.in_expectation):
        yield (
            f"Without a certificate: {unlike}. Such a promise is about the average over calibration splits and about "
            "set loss; FNR on exits follows approximately, and what one calibration gives may lie above it."
        )


def _other_looks(comparison: Comparison) -> str:
    """Say that looks of other runs are counted too, where there were any."""
    looks = len(comparison.cases.looks)
    return f", all {looks} looks at its positives counted" if looks > len(comparison.standings) else ""


# ---- console


def console_lines(comparison: Comparison) -> Iterator[str]:
    """The comparison as plain lines."""
    for one in comparison.standings:
        yield f"{one.letter}  {one.contender.path} ({label(one)}): {sentence(comparison, one)}"
    first, *others = [one.letter for one in comparison.standings]
    lines = [["", first, *others]]
    lines += [[row.name, *map(flat, row.cells)] for row in figure_rows(comparison)]
    lines += [[f"{row.name} less {first}", "", *map(flat, row.cells)] for row in difference_rows(comparison)]
    yield from table_lines(lines, CONSOLE_COLUMNS)
    yield ""

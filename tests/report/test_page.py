"""The report page: whole, self-contained, escaped, and honest where nothing is known."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from stage1_pro.core.evaluation import agreement
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.report.common.cells import percent, percent_up
from stage1_pro.core.report.run.evidence import read_epochs
from stage1_pro.core.report.run.page import page, verdict, write_report

NASTY = ('<script>alert("0")</script>', "<img src=https://evil.test/x> $x$ & 日本")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Elements(HTMLParser):
    """Every element with its attributes; fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def nasty_run(made):
    run, policy, evaluation = made(name="a <b>&'run", class_names=NASTY)
    write_report(run, policy, evaluation)
    return run, policy, evaluation


def test_the_page_opens_with_the_answer(nasty_run):
    run, policy, evaluation = nasty_run
    html = run.report_path.read_text()
    opening = html[html.index("<main>") : html.index("<h2>")]
    for name in ("right_exits", "coverage", "fnr_on_exits", "fpr_on_exits"):
        assert f"{evaluation['exits'][name]['value']:.2%}" in opening
    assert "<small>≤ </small>5%" in opening  # the target is what was certified
    assert percent_up(policy["fnr_upper_bound"]) not in opening
    assert f"bound at this threshold alone ≤ {percent_up(policy['fnr_upper_bound'])}" in html
    assert evaluation["promise"]["words"] in opening
    assert verdict(policy, evaluation).words in opening


def test_a_policy_of_no_use_has_no_green_badge(nasty_run):
    run, policy, evaluation = nasty_run
    evaluation = {**evaluation, "promise": {**evaluation["promise"], "verdict": "agrees"}}
    useless = {**policy, "useless": "its exits are worth nothing"}
    assert verdict(policy, evaluation).tone == "good"
    assert verdict(useless, evaluation).tone == "bad"
    html = page(run, useless, evaluation, [])
    assert "its exits are worth nothing" in html[html.index("<main>") : html.index("<h2>")]
    assert '<span class="verdict good">' not in html


@pytest.mark.parametrize(
    ("figure", "value", "tone", "words"),
    [
        ("fpr_on_exits", 0.25, "good", "agrees"),
        ("fpr_on_exits", 0.31, "unsure", "agrees, but 31% of the negatives that exit are answered positive"),
        ("fpr_on_exits", None, "good", "agrees"),
        ("utility", 0.0, "unsure", "agrees, but its exits are worth nothing there at the stated prices"),
    ],
)
def test_a_promise_bought_with_false_alarms_has_no_green_badge(nasty_run, figure, value, tone, words):
    _, policy, evaluation = nasty_run
    exits = {**evaluation["exits"], figure: {**evaluation["exits"][figure], "value": value}}
    found = verdict(policy, {**evaluation, "exits": exits, "promise": {"verdict": "agrees"}})
    assert (found.tone, found.words) == (tone, f"The test split {words}")
    contradicted = verdict(policy, {**evaluation, "exits": exits, "promise": {"verdict": "contradicts"}})
    assert contradicted.tone == "bad"


def test_names_are_escaped_everywhere(nasty_run):
    html = nasty_run[0].report_path.read_text()
    elements = Elements(html)
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "b", "link", "iframe"})
    assert all(name in elements.text for name in (*NASTY, "a <b>&'run"))


def test_nothing_is_loaded_from_anywhere(nasty_run):
    html = nasty_run[0].report_path.read_text()
    attributes = [pair for _, found in Elements(html).found for pair in found.items()]
    references = [value for key, value in attributes if key in ("src", "href", "xlink:href")]
    assert references
    assert all(value.startswith("#") for value in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_ids_are_unique_and_every_reference_has_its_target(nasty_run):
    html = nasty_run[0].report_path.read_text()
    elements = Elements(html).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    pointed = {attributes["aria-labelledby"] for _, attributes in elements if "aria-labelledby" in attributes}
    pointed |= {attributes["href"][1:] for _, attributes in elements if "href" in attributes}
    pointed |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert len(ids) == len(set(ids))
    assert pointed <= set(ids)


def test_figures_and_page_are_written_whole(nasty_run):
    run = nasty_run[0]
    names = sorted(path.name for path in run.figures_path.iterdir())
    assert names == sorted(f"{name}.png" for name in re.findall(r'<h3 id="title-(\w+)"', run.report_path.read_text()))
    for path in run.figures_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xaeB`\x82")
    assert not list(run.path.glob(".report*"))


def test_figures_follow_the_theme_of_the_page(nasty_run):
    html = nasty_run[0].report_path.read_text()
    defined = set(re.findall(r"(--fig-\w+):", html))
    assert set(re.findall(r"var\((--fig-\w+)\)", html)) <= defined
    svg = html[html.index("<svg") : html.rindex("</svg>")]
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", svg)


def test_a_policy_that_lets_nothing_exit_is_reported_as_such(made):
    run, policy, evaluation = made(threshold=1.0)
    assert evaluation["exits"]["fnr_on_exits"]["value"] is None
    write_report(run, policy, evaluation)
    html = run.report_path.read_text()
    assert verdict(policy, evaluation).tone == "unsure"
    assert "Too few test positives to tell" in html
    assert not re.search(r"\bnan\b|\bNone\b(?!\.)", Elements(html).text)  # "Warnings: None." is meant


def test_gaps_in_metrics_are_read_as_nan(made):
    epochs = read_epochs(made()[0].metrics_path)
    assert np.array_equal(epochs["train_loss"], [0.7, np.nan, 0.3], equal_nan=True)


@pytest.mark.parametrize(
    ("misses", "exited", "tone"),
    [(0, 3, "unsure"), (0, 400, "good"), (6, 100, "unsure"), (9, 100, "unsure"), (12, 100, "bad"), (0, 0, "unsure")],
)
def test_the_badge_is_green_or_red_only_where_chance_cannot_explain_it(misses, exited, tone):
    """At a target of .05: by the exact two-sided interval, all of it at or below the target, or all above."""
    estimate = {"value": None, "low": 0.0, "high": 1.0}
    low, high = fnr_interval(misses, exited, 0.95)
    fnr = {"value": misses / exited if exited else None, "low": float(low), "high": float(high)}
    exits = dict.fromkeys(("coverage", "right_exits", "fpr_on_exits"), estimate)
    promise = agreement({**exits, "fnr_on_exits": {**fnr, "misses": misses, "exited_positives": exited}}, 0.05, 0.95)
    assert verdict({}, {"promise": promise, "exits": exits}).tone == tone


def test_a_bound_is_never_rounded_down():
    bounds = np.random.default_rng(0).random(1000)
    assert all(float(percent_up(bound)[:-1]) / 100 >= bound - 1e-10 for bound in bounds)
    assert percent_up(0.02) == percent(0.02) == "2.00%"


def test_importing_the_report_imports_neither_torch_nor_pyplot():
    code = (
        "import sys, stage1_pro.core.report.run.page; assert 'matplotlib' not in sys.modules; "
        "import stage1_pro.core.report.run.charts; "
        "assert not {'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

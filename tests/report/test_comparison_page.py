"""The page of a comparison: whole, self-contained and escaped, whatever runs it holds."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from made_runs import looked, make_run, scrc_fields, softmax_fields
from test_page import NASTY, Elements

from stage1_pro.core.comparison.compare import Comparison
from stage1_pro.core.comparison.from_runs import compare_runs
from stage1_pro.core.errors import Interrupted, UserError
from stage1_pro.core.evaluation import evaluate_run
from stage1_pro.core.records import ledger
from stage1_pro.core.records.policy_file import policy_header, write_policy
from stage1_pro.core.report.common.cells import area_change, points
from stage1_pro.core.report.comparison.page import free_folder, write_comparison
from stage1_pro.core.report.comparison.tables import console_lines, figure_rows, warnings

LONG = "a-name-of-a-run-that-goes-on-and-on-without-a-space-to-break-it-at-all-and-then-some"


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """(comparison, folder) of five runs: nasty and long names, two names alike, the last one not certified."""
    names = ["plain", "a <b>&'$x$", LONG, "plain", "refused"]
    runs = [made(name=name, class_names=NASTY)[0] for name in names]
    refused = runs[4]
    refused.policy_path.unlink()
    looked(refused, "softmax", ledger.NOTHING_CERTIFIED, 0.02)
    comparison = compare_runs([str(run.path) for run in runs])
    folder = tmp_path_factory.mktemp("out") / "new"
    write_comparison(comparison, folder)
    return comparison, folder


def test_the_page_is_whole_and_loads_nothing(written):
    html = (written[1] / "comparison.html").read_text()
    elements = Elements(html)
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "b", "link", "iframe"})
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    pointed = {attributes["aria-labelledby"] for _, attributes in elements.found if "aria-labelledby" in attributes}
    references = [value for _, found in elements.found for key, value in found.items() if key in ("src", "href")]
    assert len(ids) == len(set(ids))
    assert pointed | {value[1:] for value in references} <= set(ids)
    assert all(value.startswith("#") for value in references)
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))


def test_every_run_and_every_figure_is_on_the_page(written):
    comparison, folder = written
    assert len({standing.contender.name for standing in comparison.standings}) == 5
    text = Elements((folder / "comparison.html").read_text()).text
    for standing in comparison.standings:
        assert standing.contender.name in text
        assert f"{standing.figures['right_exits'].value:.2%}" in text
        assert standing.contender.digests["model"][:12] in text
    assert "Nothing certified" in text
    assert "promise different things" in text  # the refused one was tried at another target
    assert not re.search(r"\bnan\b|\bNone\b", text)
    for name in ("standings", "differences", "curves"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_those_of_the_page(written):
    comparison, folder = written
    record = json.loads((folder / "comparison.json").read_text())
    assert record == comparison.record()
    assert [run["letter"] for run in record["runs"]] == ["A", "B", "C", "D", "E"]
    assert [run["certified"] for run in record["runs"]] == [True] * 4 + [False]
    assert record["runs"][4]["coverage"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert record["runs"][4]["target_fnr_exit"] == 0.02


def test_a_threshold_that_nothing_certified_does_not_take_part(made):
    runs = [made(name=name, threshold=threshold)[0] for name, threshold in (("certified", None), ("altered", 1.0))]
    with pytest.raises(UserError, match="the file has been altered"):
        compare_runs([str(run.path) for run in runs])


def evaluated(path, kind):
    """A run with a promise of that kind, or one where nothing was certified."""
    run = make_run(path, "scrc" if kind.startswith("SCRC") else "softmax")
    if kind == "nothing":
        looked(run, "softmax", ledger.NOTHING_CERTIFIED)
        return run
    certified = scrc_fields(run, kind) if kind.startswith("SCRC") else softmax_fields(run)
    policy = {**policy_header(run, run.risk()), **certified}
    write_policy(run, policy)
    evaluate_run(run, policy)
    return run


@pytest.mark.parametrize("kinds", [("softmax", "SCRC-T"), ("SCRC-T", "softmax")])
def test_a_promise_in_expectation_is_never_called_certified(kinds, tmp_path):
    kinds = [*kinds, "SCRC-I", "nothing"]
    comparison = compare_runs([str(evaluated(tmp_path / kind, kind).path) for kind in kinds])
    write_comparison(comparison, tmp_path / "out")
    runs = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    assert {run["run_id"]: (run["certified"], run["promise_kind"], run["scrc_variant"]) for run in runs} == {
        "softmax": (True, "binomial certificate", None),
        "SCRC-I": (True, "binomial certificate", "SCRC-I"),
        "SCRC-T": (False, "in expectation", "SCRC-T"),
        "nothing": (False, None, None),
    }
    letter = "AB"[kinds.index("SCRC-T")]
    page = Elements((tmp_path / "out" / "comparison.html").read_text()).text
    console = list(console_lines(comparison))
    (own,) = (line for line in console if line.startswith(f"{letter}  "))
    assert "phase 6, SCRC-T policy" in own
    assert ("No certificate" if letter == "A" else "without a certificate; A has a certificate for ≤ 5% at 95%") in own
    assert "Certified" not in own
    (bounds,) = (row.cells for row in figure_rows(comparison) if row.name == "Bound")
    expected = {"SCRC-T": "not certified", "nothing": ""}
    assert [cell.interval for cell in bounds] == [expected.get(kind, "certified") for kind in kinds]
    for text in (page, " ".join([*console, *warnings(comparison)])):
        assert "≤ 5% in expectation (share of single answers at 95%)" in text
        assert "A promise in expectation is no certificate" in text
    assert f"Without a certificate: {letter} (phase 6, SCRC-T policy)" in page
    assert "its certificate holds with 85% at least" in page  # three were tried for one
    assert "Tried in vain, and counted too: D" in page


def test_lines_of_the_console_fit_and_hold_every_run(written):
    lines = list(console_lines(written[0]))
    table = lines[5:]
    assert max(map(len, table)) <= 120
    assert sum(line.startswith("AUGRC less A") for line in table) == 2
    assert [line.split() for line in table if re.fullmatch(r" +[A-Z].*", line)] == [["A", "B", "C"], ["D", "E"]]


def test_a_folder_in_use_is_refused_and_names_never_clash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = free_folder(None)
    first.mkdir(parents=True)
    assert free_folder(None) != first
    assert free_folder(str(first)) == first  # empty
    (first / "note").touch()
    for used in (first, first / "note"):
        with pytest.raises(UserError, match="never overwritten"):
            free_folder(str(used))


class Interrupting(Comparison):
    """Ctrl-C when the figures are drawn and the numbers are asked for."""

    def record(self):
        raise Interrupted(130)


def test_what_is_interrupted_leaves_nothing_and_may_be_begun_again(written, tmp_path):
    comparison, before = written
    out = tmp_path / "new" / "out"
    with pytest.raises(Interrupted):
        write_comparison(
            Interrupting(**{name.name: getattr(comparison, name.name) for name in fields(comparison)}), out
        )
    assert list((tmp_path / "new").iterdir()) == []
    assert write_comparison(comparison, free_folder(str(out))) == out / "comparison.html"
    assert sorted(path.name for path in out.rglob("*")) == sorted(path.name for path in before.rglob("*"))
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_signs_are_written_and_zero_has_none():
    assert [points(value) for value in (0.0123, -0.0123, 0.0, -0.00001, None)] == [
        "+1.23",
        "−1.23",
        "0.00",
        "0.00",
        "–",
    ]
    assert area_change(-np.float64(0.00002)) == "−0.00002"


def test_comparing_imports_neither_torch_nor_pyplot():
    code = (
        "import sys, stage1_pro.core.comparison.from_runs, stage1_pro.core.report.comparison.page as page; "
        "assert 'matplotlib' not in sys.modules; page._charts(); "
        "assert not {'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

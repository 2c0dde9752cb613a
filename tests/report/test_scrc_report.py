"""The report of a pair of thresholds: both are drawn and named, and a promise in expectation is called one."""

from pathlib import Path

import pytest
from made_runs import make_run, scrc_fields

from stage1_pro.core.evaluation import evaluate_run
from stage1_pro.core.records.policy_file import policy_header, write_policy
from stage1_pro.core.report.run.page import write_report


@pytest.mark.parametrize("variant", ["SCRC-I", "SCRC-T"])
def test_the_page_shows_pairs_and_says_what_kind_of_promise_it_is(tmp_path: Path, variant: str) -> None:
    run = make_run(tmp_path / "run", "scrc")
    policy = {**policy_header(run, run.risk()), **scrc_fields(run, variant)}
    write_policy(run, policy)
    write_report(run, policy, evaluate_run(run, policy))
    page = run.report_path.read_text()
    expected = variant == "SCRC-T"
    for words in ("bound in expectation ≤", "one in expectation over calibration sets", "In use</th>"):
        assert (words in page) == expected, words
    for words in ("bound at this threshold alone ≤", "may mislead, as the confidence says", "Naive takes the largest"):
        assert (words in page) != expected, words
    assert ("pointwise bound" in page) != expected
    for words in ("λ2, class", "Reliability of the calibrated gate", "softmax (certified)", "gate (certified)"):
        assert words in page, words
    assert f"{policy['lambda1']:.4g}, {policy['lambda2']:.4g}" in page

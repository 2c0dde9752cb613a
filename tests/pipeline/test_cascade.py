"""45 on a real run: the page with its numbers, stage 2 known or assumed, and mistakes told all at once."""

import csv
import json
from pathlib import Path

import pytest
from chain import files_of, refused

from stage1_pro.core.records.run import Run

CASCADE = "45_cascade"
GOOD = "c1: 0.001\nc2: 0.5\ncm: 200\ncf: 5\n"
ASSUMED = ("--sensitivity", "0.9", "0.99", "--specificity", "0.95")


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    (tmp_path / "prices.yaml").write_text(GOOD)
    return tmp_path / "prices.yaml"


def read(folder: Path) -> dict:
    return json.loads((folder / "cascade.json").read_text())


def ids_of(path: Path) -> list[str]:
    with open(path, newline="") as file:
        return [row["case_id"] for row in csv.DictReader(file)]


def predictions(path: Path, answers: dict[str, object], head: str = "case_id,answer") -> Path:
    path.write_text("\n".join([head, *(f"{case},{answer}" for case, answer in answers.items())]) + "\n")
    return path


def test_a_run_at_prices_with_stage_2_assumed_then_known(evaluated, prices, script, tmp_path):
    before = files_of(evaluated)
    outcome = script(CASCADE, "--run", evaluated, "--prices", prices, *ASSUMED, "--volume", 1000, "--capacity", 10)
    assert outcome.status == 0, outcome
    folder = evaluated / "cascade"
    assert outcome.out.splitlines()[-1] == f"page  {folder}/cascade.html"
    assert "Stage 2 cannot take it" in outcome.out
    assert {path: content for path, content in files_of(evaluated).items() if path in before} == before
    written, evaluation = read(folder), json.loads((evaluated / "eval.json").read_text())
    certified = written["rows"]["certified"]
    assert certified["coverage"] == pytest.approx(evaluation["exits"]["coverage"]["value"])
    assert certified["fnr_on_exits"] == pytest.approx(evaluation["exits"]["fnr_on_exits"]["value"])
    assert written["prices"]["false_alarm_price"] == 10
    assert written["capacity"]["over"] > 0

    scores = Run.open(str(evaluated)).scores("val_test")
    labels = dict(zip(scores.case_id.tolist(), scores.labels.tolist(), strict=True))
    deferred, exited = ids_of(folder / "deferred.csv"), ids_of(folder / "exited.csv")
    assert sorted(deferred + exited) == sorted(labels)
    known = predictions(tmp_path / "all.csv", {case: ("blue", "red")[label] for case, label in labels.items()})
    assert (
        script(CASCADE, "--run", evaluated, "--prices", prices, "--stage2", known, "--out", tmp_path / "o").status == 0
    )
    rows = read(tmp_path / "o")["rows"]
    for row in (rows["stage2_alone"], rows["stage2"]):  # stage 2 is always right here
        assert (row["misses"], row["false_alarms"], row["recall"]["value"]) == (0, 0, 1)
    confusion = evaluation["confusion"]["exits"]
    assert rows["certified"]["misses"] == pytest.approx(1000 * confusion[1][0] / len(labels))
    assert rows["certified"]["false_alarms"] == pytest.approx(1000 * confusion[0][1] / len(labels))
    assert rows["stage2_alone"]["cost"]["value"] == pytest.approx(500)
    cost = 1 + 500 * len(deferred) / len(labels) + (200 * confusion[1][0] + 5 * confusion[0][1]) * 1000 / len(labels)
    assert rows["certified"]["cost"]["value"] == pytest.approx(cost)
    assert rows["certified"]["saved"]["value"] == pytest.approx(500 - cost)


def test_predictions_of_the_deferred_cases_alone_measure_what_they_can(evaluated, prices, script, tmp_path):
    assert script(CASCADE, "--run", evaluated, "--prices", prices, *ASSUMED).status == 0
    answers = {**dict.fromkeys(ids_of(evaluated / "cascade" / "deferred.csv"), 1), "elsewhere": "red"}
    partly = predictions(tmp_path / "deferred.csv", answers, "id;prediction").read_text().replace(",", ";")
    (tmp_path / "deferred.csv").write_text(partly)
    outcome = script(CASCADE, "--run", evaluated, "--prices", prices, "--stage2", tmp_path / "deferred.csv")
    assert outcome.status == 0, outcome
    rows = read(evaluated / "cascade")["rows"]
    assert rows["certified"]["cost"] is not None
    assert (rows["certified"]["saved"], rows["stage2_alone"]["cost"], rows["certified"]["break_even"]) == (None,) * 3
    assert "Not measured: All to stage 2" in outcome.out
    assert "1 row about no test case" in outcome.out


def test_mistakes_are_told_all_at_once(evaluated, prices, script, tmp_path):
    prices.write_text("c1: -1\nc2: 0\ncm: dear\nfc: 3\n")
    scores = Run.open(str(evaluated)).scores("val_test")
    first = scores.case_id[0]
    wrong = predictions(tmp_path / "wrong.csv", {first: "green"})
    outcome = script(CASCADE, "--run", evaluated, "--prices", prices, "--stage2", wrong, "--sensitivity", "0.9",
                     "--prevalence", "1.5", "--capacity", "3")  # fmt: skip
    refused(outcome, "c1 is -1", "c2 is 0", "cm is 'dear'", "cf is missing", "fc is not a known price",
            "'green'", "lacks", "--sensitivity is measured",
            "--prevalence is 1.5", "--capacity goes with --volume")  # fmt: skip
    assert not (evaluated / "cascade").exists()
    prices.write_text(GOOD)
    refused(script(CASCADE, "--run", evaluated, "--prices", prices), "how good is stage 2?")
    refused(script(CASCADE, "--run", evaluated, *ASSUMED), "--prices is missing")
    refused(
        script(CASCADE, "--run", evaluated, "--prices", prices, "--sensitivity", "0.9", "0.8"),
        "--sensitivity 0.9 0.8: allowed", "--specificity is missing",
    )  # fmt: skip
    for head, text in (("case,answer", "no column 'case_id'"), ("case_id,class", "no column 'answer'")):
        table = predictions(tmp_path / "t.csv", {first: "red"}, head)
        refused(script(CASCADE, "--run", evaluated, "--prices", prices, "--stage2", table), text)
    (tmp_path / "t.csv").write_text(f"case_id,answer\n{first},red\n{first},blue\n")
    refused(script(CASCADE, "--run", evaluated, "--prices", prices, "--stage2", tmp_path / "t.csv"), "two different")
    refused(script(CASCADE, "--run", evaluated, "--prices", prices, "--stage2", tmp_path / "none"), "does not exist")
    refused(script(CASCADE, "--run", evaluated, "--prices", tmp_path / "none.yaml", *ASSUMED), "does not exist")
    (evaluated / "scores" / "val_test.parquet").unlink()
    refused(script(CASCADE, "--run", evaluated, "--prices", prices, *ASSUMED), "Run 40_eval_selective.py")
    (evaluated / "thresholds.json").unlink()
    refused(script(CASCADE, "--run", evaluated, "--prices", prices, *ASSUMED), "no certified policy")

"""A bundle measured on another labelled set: what it has seen is left out, and one of three verdicts is given."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import chain
import numpy as np
import pytest
from chain import refused
from shared_folders import made_once
from test_new_site import SEEN_BEFORE, some_seen, yaml_of

from stage1_pro import Stage1Predictor
from stage1_pro.core.records.run import Run

EVALUATE = "40_eval_selective"
MISSED = ("red", "blue", "exit")


@pytest.fixture(scope="session")
def measured_once(tmp_path_factory, images, exported_once) -> Path:
    """A folder with images of a bluer camera, and in runs/look what 40 found on them."""

    def make(folder: Path) -> None:
        chain.draw(folder, cases=160, seed=9, cast=30)
        some_seen(folder, images, exported_once / "bundle")
        before = chain.files_of(exported_once / "bundle")
        words = "--bundle", exported_once / "bundle", "--on", folder / "labels.csv", "--out", folder / "runs" / "look"
        (folder / "said.txt").write_text(chain.done(EVALUATE, *words).out)
        assert chain.files_of(exported_once / "bundle") == before

    return made_once(tmp_path_factory, "measured", make)


def test_another_camera_contradicts_the_promise_and_the_way_on_is_named(measured_once):
    said, found = (
        (measured_once / "said.txt").read_text(),
        json.loads((measured_once / "runs/look/eval.json").read_text()),
    )
    assert found["promise"]["verdict"] == "contradicts"
    assert "The labelled set CONTRADICTS the promise" in said
    assert f"left out: {SEEN_BEFORE} cases that the bundle has seen before" in said
    assert (found["measured"]["left_out"], found["cases"], found["positives"]) == (SEEN_BEFORE, 160, 80)
    assert "38_recalibrate.py" in said.splitlines()[-1]


def test_the_figures_are_those_of_what_the_bundle_decides(measured_once, exported_once):
    with open(measured_once / "runs" / "look" / "decisions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    predictor = Stage1Predictor.load(exported_once / "bundle")
    expected = predictor.predict([str(measured_once / row["case_id"]) for row in rows])
    assert [(row["answer"], row["decision"]) for row in rows] == [(one.answer, one.decision) for one in expected]
    exited = [row for row in rows if row["decision"] == "exit" and row["label"] == "red"]
    found = json.loads((measured_once / "runs" / "look" / "eval.json").read_text())["exits"]["fnr_on_exits"]
    assert found["exited_positives"] == len(exited)
    assert found["misses"] == sum(row["answer"] == "blue" for row in exited) > 0


def test_a_certificate_on_the_same_cases_counts_the_measurement(measured_once, exported_once, tmp_path):
    """Once, although the same measurement was made twice: it shows nothing new."""
    bundle, folder = exported_once / "bundle", tmp_path / "runs"
    for name in ("first", "second"):
        chain.done(EVALUATE, "--bundle", bundle, "--on", measured_once / "labels.csv", "--out", folder / name)
    with open(folder / "calibrations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["outcome"], row["repeated"]) for row in rows] == [("measured", "1")]
    config = yaml_of(tmp_path)
    config.write_text(config.read_text().replace(f"{tmp_path}/labels.csv", f"{measured_once}/labels.csv"))
    told = chain.call("38_recalibrate", bundle, "--config", config, "--out", folder / "site")
    assert told.status == 0, told
    policy = json.loads((folder / "site" / "thresholds.json").read_text())
    assert policy["calib_use_count"] == 2
    assert policy["remaining_confidence"] == pytest.approx(0.9)


def test_the_same_camera_agrees_and_three_cases_tell_nothing(bundle, tmp_path, script):
    """Also as class folders, with the target of a site's config, which is not what is measured."""
    for name, cases, verdict in (("many", 800, "agrees with the promise"), ("few", 6, "has too few positives to tell")):
        folder = tmp_path / name
        folder.mkdir()
        chain.draw(folder, cases=cases, seed=10)
        for label, rest in (("blue", 0), ("red", 1)):
            (folder / "classes" / label).mkdir(parents=True)
            for index in range(rest, cases, 2):
                (folder / f"{index:03d}.png").rename(folder / "classes" / label / f"{index:03d}.png")
        (folder / "site.yaml").write_text(
            f"target_fnr_exit: 0.02\ndataset_params: {{sources: [{{root: {folder}/classes}}]}}"
        )
        for on, out in ((folder / "classes", "a"), (folder / "site.yaml", "b")):
            told = script(EVALUATE, "--bundle", bundle, "--on", on, "--out", folder / out)
            assert told.status == 0, told
            assert f"The labelled set {verdict}" in told.out
        assert "target_fnr_exit 0.02 is for a new certificate; measured is the bundle's promise, 0.1" in told.out
        found = [json.loads((folder / out / "eval.json").read_text()) for out in ("a", "b")]
        assert found[0]["exits"] == found[1]["exits"]
        assert {one["target_fnr_exit"] for one in found} == {0.1}


def test_positives_alone_tell_the_promise_and_nothing_of_false_alarms(measured_once, exported_once, tmp_path):
    """The same positives as beside their negatives have the same FNR on exits; what needs negatives is undefined."""
    rows = (measured_once / "labels.csv").read_text().splitlines()
    table, out = measured_once / "positives.csv", tmp_path / "look"
    table.write_text("\n".join(row for row in rows if not row.endswith("blue")))
    told = chain.done(EVALUATE, "--bundle", exported_once / "bundle", "--on", table, "--out", out).out
    alone, beside = (json.loads((at / "eval.json").read_text()) for at in (out, measured_once / "runs" / "look"))
    assert (alone["positives"], alone["negatives"]) == (beside["positives"], 0)
    assert alone["exits"]["fnr_on_exits"] == beside["exits"]["fnr_on_exits"]
    assert alone["promise"]["verdict"] == "contradicts"
    assert "CONTRADICTS the promise: of its cases, all positive," in told
    assert "FPR, precision and calibration are not measured: they need negatives" in told
    assert "it takes negatives of the site too" in told
    assert "next " not in told
    exits = {name: one["value"] for name, one in alone["exits"].items() if name not in ("coverage", "right_exits")}
    assert [name for name, value in exits.items() if value is not None] == ["fnr_on_exits"]
    assert alone["accuracy"]["value"] is alone["selective"]["augrc"]["value"] is alone["calibration"]["ece"] is None
    assert sorted(path.stem for path in (out / "figures").iterdir()) == ["fnr_coverage", "score_histogram"]
    page = (out / "report.html").read_text()
    assert [words for words in ("FPR on exits<", "AUGRC<", "ECE<", "Utility<") if words in page] == []
    assert f"of {alone['cases']} positives exit and are answered rightly" in page
    config = yaml_of(tmp_path)
    config.write_text(config.read_text().replace(f"{tmp_path}/labels.csv", str(table)))
    told = chain.call("38_recalibrate", exported_once / "bundle", "--config", config, "--out", tmp_path / "site")
    refused(told, "no cases of blue, and a certificate takes cases of both classes")
    assert not (tmp_path / "site").exists()


def test_mistakes_are_told_and_nothing_is_written(bundle, tmp_path, script):
    chain.draw(tmp_path, cases=8, seed=11)
    table, out, before = tmp_path / "labels.csv", tmp_path / "out", chain.files_of(tmp_path)
    refused(script(EVALUATE, "--bundle", bundle), "--bundle BUNDLE and --on SET go together")
    refused(script(EVALUATE, "--on", table), "--bundle BUNDLE and --on SET go together")
    refused(script(EVALUATE, "--bundle", bundle, "--on", table, "--run", "x"), "--bundle takes the place of --run")
    refused(script(EVALUATE, "--bundle", bundle, "--on", tmp_path / "none.csv"), "no such file or folder")
    refused(script(EVALUATE, "--bundle", bundle, "--on", table, "--out", bundle / "new"), "lies in the bundle")
    refused(script(EVALUATE, "--bundle", bundle, "--on", table, "--out", tmp_path), "nothing is overwritten")
    refused(script(EVALUATE, "--bundle", tmp_path, "--on", table, "--out", "x"), "is not a bundle folder")
    refused(script(EVALUATE, "--device", "cpu"), "--device is of a measurement")
    (tmp_path / "blue.csv").write_text("\n".join(f"{index:03d}.png,blue" for index in range(0, 8, 2)))
    refused(script(EVALUATE, "--bundle", bundle, "--on", tmp_path / "blue.csv", "--out", out), "none of the 4 cases")
    (tmp_path / "blue.csv").unlink()
    assert chain.files_of(tmp_path) == before


def test_a_site_whose_images_have_moved(bundle, tmp_path, script):
    folder = tmp_path / "now"
    folder.mkdir()
    chain.draw(folder, cases=8, seed=13)
    site, out = yaml_of(tmp_path), tmp_path / "out"
    refused(script(EVALUATE, "--bundle", bundle, "--on", site, "--out", out), "Name an existing CSV in sources[site]")
    told = script(EVALUATE, "--bundle", bundle, "--on", site, "--out", out, "--root", f"site={folder}")
    assert told.status == 0, told
    words = "--config", site, "--out", tmp_path / "runs" / "site", "--root", f"site={folder}"
    assert script("38_recalibrate", bundle, *words).status == 3  # 2 positives certify nothing
    assert len(Run(tmp_path / "runs" / "site").scores("val_test")) > 0


def test_an_interruption_leaves_nothing(bundle, tmp_path):
    chain.draw(tmp_path, cases=8, seed=14)
    out = tmp_path / "found" / "runs" / "look"
    words = EVALUATE, "--bundle", bundle, "--on", tmp_path / "labels.csv", "--out", out
    told = chain.call(*words, at={"scoring": lambda: os.kill(os.getpid(), signal.SIGINT)})
    assert told.status == 130, told
    assert list(out.parent.iterdir()) == []
    assert chain.done(*words).out
    assert out.is_dir()


def test_what_was_measured_elsewhere_is_no_evaluation_of_the_run(measured_once, exported_once, runs, tmp_path):
    run = chain.copy(exported_once, runs)
    (run / "eval.json").write_bytes((measured_once / "runs" / "look" / "eval.json").read_bytes())
    refused(
        chain.call("50_export_bundle", "--run", run, "--out", tmp_path / "new"), "of other cases than the run's test"
    )


def test_a_bundle_that_keeps_what_it_has_seen_to_itself_is_measured_with_a_warning(bundle, tmp_path, script):
    (bundle / "seen.json").unlink()
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["files"]["seen.json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    chain.draw(tmp_path, cases=8)  # those of the training
    told = script(EVALUATE, "--bundle", bundle, "--on", tmp_path / "labels.csv", "--out", tmp_path / "out")
    assert told.status == 0, told
    assert "warning: the bundle has no seen.json" in told.out
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["measured"]["seen_checked"] is False
    assert np.isfinite(found["exits"]["coverage"]["value"])


def test_the_page_shows_what_was_missed_and_holds_it(measured_once):
    html = (measured_once / "runs" / "look" / "report.html").read_text()
    assert "These cases contradict the promise" in html
    sources = re.findall(r'<img src="([^"]*)" alt="([^:"]*): red, answered blue', html)
    with open(measured_once / "runs" / "look" / "decisions.csv", newline="") as file:
        missed = [row for row in csv.DictReader(file) if (row["label"], row["answer"], row["decision"]) == MISSED]
    assert {name for _, name in sources} <= {row["case_id"] for row in missed}
    assert len(sources) == min(12, len(missed)) > 0
    assert all(source.startswith("data:image/") for source, _ in sources)


def test_pictures_stay_out_where_they_must_not_leave_their_place(measured_once, exported_once, tmp_path, runs):
    table, run = measured_once / "labels.csv", chain.copy(exported_once, runs)
    words = "--bundle", run / "bundle", "--on", table, "--out", tmp_path / "look", "--no_pictures"
    chain.done(EVALUATE, *words)
    assert "<img" in (run / "report.html").read_text()
    chain.done(EVALUATE, "--run", run, "--no_pictures")
    for report in (tmp_path / "look" / "report.html", run / "report.html"):
        assert "<img" not in report.read_text()

"""A certificate for each camera: from a column of the label table through calibration and bundle to 60, 65 and 70."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import call, copy, done, draw, refused, train_run
from serving import Server

from stage1_pro import Stage1Predictor, load_exit_policy
from stage1_pro.core.bundle.contents import verify_bundle
from stage1_pro.core.cluster.actor import Work
from stage1_pro.core.cluster.actor import decided as of_a_part
from stage1_pro.core.cluster.decide import decide_table
from stage1_pro.core.cluster.folder import Folder
from stage1_pro.core.cluster.parts import mark
from stage1_pro.core.cluster.table import open_table
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.records import UNCOVERED
from stage1_pro.core.records.run import Run

CASES = 1000


def named(folder: Path, cameras: np.ndarray) -> None:
    """labels.csv with a camera for each case."""
    pd.read_csv(folder / "labels.csv").assign(camera=cameras).to_csv(folder / "labels.csv", index=False)


@pytest.fixture(scope="module")
def yard(tmp_path_factory) -> Path:
    """Noisy squares of three cameras, of which one has seen few of them; one case has none."""
    draw(folder := tmp_path_factory.mktemp("yard"), CASES, seed=7)
    cameras = np.random.default_rng(7).choice(["east", "west", "loft"], CASES, p=[0.48, 0.47, 0.05]).astype(object)
    cameras[4] = None
    named(folder, cameras)
    return folder


@pytest.fixture(scope="module")
def settings(yard, config, tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("settings") / "cameras.yaml"
    sources = f"sources: [{{name: yard, labels: {yard}/labels.csv}}]"
    path.write_text(f"certificate_groups: camera\ndataset_params:\n  {sources}\n")
    return ["--config", str(config), "--config", str(path)]


@pytest.fixture(scope="module")
def exported(settings, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("cameras") / "runs" / "yard"
    train_run(run, [*settings, "--phase", "2"])
    outcome = done("25_threshold_sweep", "--run", run)
    assert "loft: every case defers: val_calib holds" in outcome.out
    for script in ("40_eval_selective", "50_export_bundle"):
        done(script, "--run", run)
    return run


def table(yard: Path, path: Path) -> Path:
    """What 60 takes: id and camera of every image; one camera is new."""
    rows = pd.read_csv(yard / "labels.csv")
    ids, cameras = [str(yard / name) for name in rows["path"]], rows["camera"].to_numpy()
    cameras[6] = "roof"
    pd.DataFrame({"id": ids, "camera": cameras}).to_csv(path, index=False)
    return path


def test_each_camera_has_a_certificate_in_policy_report_and_bundle(exported) -> None:
    policy, evaluation = (json.loads((exported / name).read_text()) for name in ("thresholds.json", "eval.json"))
    assert policy["certificate_groups"] == "camera"
    assert (sorted(policy["groups"]), sorted(policy["groups_deferred"])) == (["east", "west"], ["loft"])
    assert [group["delta"] for group in policy["groups"].values()] == pytest.approx([0.025, 0.025])
    assert "in all of them at once: east, west. A case of any other defers." in policy["guarantee"]["words"]
    rows = {row["name"]: row for row in evaluation["by_certificate_group"]}
    assert [rows[name]["certified"] for name in ("east", "loft", "west")] == [True, False, True]
    assert rows["loft"]["coverage"] == 0
    assert sum(row["cases"] for row in rows.values()) == evaluation["cases"]
    assert "Of the certified groups" in evaluation["promise"]["words"]
    report, readme = ((exported / name).read_text() for name in ("report.html", "bundle/README.md"))
    assert "Each camera by itself" in report
    assert "every case of another one, or of none, defers" in report
    assert "| loft | defers: val_calib holds" in readme
    assert "6. Every case comes with its `camera`." in readme
    assert verify_bundle(exported / "bundle").manifest["certificate_groups"] == "camera"


SALT = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def decided(exported, yard, tmp_path_factory) -> Path:
    """The decisions of 60, all of them audited."""
    folder = tmp_path_factory.mktemp("decided")
    (folder / "salt").write_text(SALT)
    cameras, audit = table(yard, folder / "g.csv"), ["--audit_share", 1, "--audit_salt", folder / "salt"]
    options = ["--certificate_groups", cameras, *audit, "--time", "2026-01-01T10:00:00Z"]
    outcome = done("60_predict", exported / "bundle", yard, "--out", folder / "d.csv", *options)
    lofts = (pd.read_csv(cameras)["camera"] == "loft").sum()
    assert f"uncovered {lofts + 2} of certificate groups without a certificate: {lofts} 'loft', " in outcome.out
    return folder


def test_60_decides_by_the_camera_and_70_what_60_decides(exported, yard, decided) -> None:
    bundle = exported / "bundle"
    rows = pd.read_csv(decided / "d.csv", keep_default_na=False).set_index("id")
    test = Run.open(str(exported)).scores("val_test")
    decisions = load_exit_policy(bundle).decide(test)
    known = np.flatnonzero(test.case_id != "006.png")
    ids = [str(yard / name) for name in test.case_id[known]]
    assert rows.loc[ids, "decision"].tolist() == np.where(decisions.exits[known], "exit", "defer").tolist()
    uncovered = ~rows["certificate_group"].isin(["east", "west"])
    assert (rows.loc[uncovered, "decision"] == "defer").all()
    assert (rows.loc[uncovered, "reason"] == UNCOVERED).all()
    first = rows.index[(rows["certificate_group"] == "east") & (rows["decision"] == "exit")][0]
    content = Path(first).read_bytes()
    predictor = Stage1Predictor.load(bundle, "cpu")
    pair = predictor.predict([content, content], groups=["east", "roof"])
    assert [one.decision for one in pair] == ["exit", "defer"]
    assert predictor.predict(content, groups="east")[0].decision == "exit"
    with pytest.raises(ValueError, match="each group of 'camera' by itself"):
        predictor.predict(content)
    with Server(bundle) as server:
        assert server.ask("/v1/model").body["certificate_groups"] == "camera"
        answer = server.ask("/v1/decide?certificate_group=east", content).body
        assert (answer["certificate_group"], answer["decision"]) == ("east", "exit")
        assert answer["score"] == float(rows.loc[first, "score"])
        for query, name in (("?certificate_group=roof", "roof"), ("", None)):
            answer = server.ask(f"/v1/decide{query}", content).body
            assert (answer["certificate_group"], answer["decision"], answer["reason"]) == (name, "defer", UNCOVERED)
        assert b"stage1_uncovered_total 2.0" in server.ask("/metrics").content


def test_61_reads_the_camera_from_its_table(exported, yard, decided, tmp_path) -> None:
    """What an actor of it makes of a part; Ray only spreads the parts."""
    rows = pd.read_csv(decided / "d.csv", keep_default_na=False)
    table = rows[["id", "certificate_group"]].assign(path=rows["id"]).iloc[:40]
    table.to_parquet(tmp_path / "in.parquet")
    read = open_table(str(tmp_path / "in.parquet"))
    predictor = Stage1Predictor.load(exported / "bundle", "cpu")
    work = Work({}, read, Folder.at(str(tmp_path)), 40, "/", "cpu", 1, 0, None, {})
    found = of_a_part(work, predictor, range(40))
    assert found["certificate_group"].tolist() == table["certificate_group"].tolist()
    assert found["decision"].tolist() == rows["decision"].iloc[:40].tolist()
    marker = json.loads(mark(found, b"content"))
    assert sum(marker["uncovered"].values()) == (found["reason"] == UNCOVERED).sum() >= 2
    table.drop(columns="certificate_group").to_parquet(tmp_path / "in.parquet")
    contents, read = verify_bundle(exported / "bundle"), open_table(str(tmp_path / "in.parquet"))
    with pytest.raises(UserError, match="in a column certificate_group of"):
        decide_table(contents, read, str(tmp_path / "out"), rows_per_part=40, actors=1)


@pytest.mark.slow
def test_a_registered_bundle_takes_the_camera_of_each_image(exported, decided, tmp_path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done("50_export_bundle", "--verify", exported / "bundle", "--register", "yard", "--tracking_uri", uri)
    mlflow.set_tracking_uri(uri)
    rows = pd.read_csv(decided / "d.csv", keep_default_na=False).iloc[:40]
    model = mlflow.pyfunc.load_model("models:/yard/1")
    named = rows[["id", "certificate_group"]].rename(columns={"id": "path"})
    found = model.predict(named)
    assert found["decision"].tolist() == rows["decision"].tolist()
    assert 0 < (found["reason"] == UNCOVERED).sum() < (found["decision"] == "defer").sum()
    with pytest.raises(mlflow.MlflowException, match="certificate_group"):
        model.predict(named[["path"]])


def test_65_watches_each_camera(exported, yard, decided, script, tmp_path) -> None:
    bundle, out, salt = exported / "bundle", decided / "d.csv", decided / "salt"
    rows = pd.read_csv(yard / "labels.csv")
    wrong = rows["camera"].eq("west") & (rows.index % 3 == 0)  # a third of west's negatives turn out positive
    labels = rows.assign(id=[str(yard / name) for name in rows["path"]], label=rows["label"].mask(wrong, "red"))
    labels = labels.assign(label_time="2026-01-02T00:00:00Z")[["id", "label", "label_time"]]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert "in each of 2 groups" in done("65_monitor", bundle).out
    arguments = ["--out", tmp_path / "watch", "--decisions", out, "--labels", tmp_path / "labels.csv"]
    outcome = script("65_monitor", bundle, *arguments, "--audit_salt", salt, "--as_of", "2026-01-03")
    assert outcome.status == 5
    assert "(west)" in outcome.err
    assert "(east)" not in outcome.err
    settings = json.loads((tmp_path / "watch" / "monitor.json").read_text())["settings"]
    assert settings["streams"] == ["east", "west"]
    pd.read_csv(out).drop(columns="certificate_group").to_csv(tmp_path / "d.csv", index=False)
    arguments[3] = tmp_path / "d.csv"
    refused(script("65_monitor", bundle, *arguments, "--audit_salt", salt), "no column certificate_group")


def test_audits_certify_each_camera_anew_and_one_that_joined(exported, decided, tmp_path) -> None:
    """roof and attic joined after the certificate; of the attic nobody has labelled a case."""
    bundle, salt, count = exported / "bundle", decided / "salt", 900
    (folder := tmp_path / "later").mkdir()
    draw(folder, count, seed=23)
    cameras = np.random.default_rng(23).choice(["east", "west", "roof", "attic"], count, p=[0.3, 0.3, 0.3, 0.1])
    ids = np.array(sorted(map(str, folder.glob("*.png"))))
    pd.DataFrame({"id": ids, "camera": cameras}).to_csv(tmp_path / "cameras.csv", index=False)
    audit, files = ["--audit_share", 1, "--audit_salt", salt, "--device", "cpu"], []
    for day in (1, 2):
        files.append(tmp_path / f"{day}.csv")
        words = [
            *ids[(day - 1) * count // 2 : day * count // 2],
            "--out",
            files[-1],
            "--certificate_groups",
            tmp_path / "cameras.csv",
            *audit,
        ]
        done("60_predict", bundle, *words, "--time", f"2026-02-0{day}")
    truth = pd.read_csv(folder / "labels.csv")["label"]
    labels = pd.DataFrame({"id": ids, "label": truth, "label_time": "2026-02-03"})
    labels[cameras != "attic"].to_csv(tmp_path / "labels.csv", index=False)
    words = ["--decisions", *files, "--labels", tmp_path / "labels.csv", "--audit_salt", salt]
    call("65_monitor", bundle, "--out", tmp_path / "watch", *words, "--as_of", "2026-06-01")

    anew = ["--from_audit", tmp_path / "watch", "--since", "2026-02-01", *words]
    said = done("38_recalibrate", bundle, *anew, "--out", tmp_path / "runs" / "anew").out
    assert f"left out  {(cameras == 'attic').sum()} audited cases of 'attic', none of them labelled" in said
    policy = json.loads((tmp_path / "runs" / "anew" / "thresholds.json").read_text())
    spent = 1 - policy["fnr_confidence"]
    assert spent == pytest.approx(0.05 * 6 / np.pi**2)
    assert [group["delta"] for group in policy["groups"].values()] == pytest.approx([spent / 3] * 3)
    calib = pd.read_csv(tmp_path / "runs" / "anew.csv").query("split == 'val_calib' and label == 'red'")["camera"]
    for name, group in policy["groups"].items():
        assert group["exited_positives"] <= (calib == name).sum()
    first = ids[(cameras == "roof") & (np.arange(count) % 2 == 0)][0]
    assert sorted(policy["groups"]) == ["east", "roof", "west"]
    predictor = Stage1Predictor.load(tmp_path / "runs" / "anew" / "bundle", "cpu")
    assert [one.reason == UNCOVERED for one in predictor.predict([first] * 2, groups=["attic", "roof"])] == [
        True,
        False,
    ]
    # half of the roof's labels are none: which ones are missing may depend on what they are
    labels[(cameras != "attic") & ((cameras != "roof") | (np.arange(count) % 2 == 0))].to_csv(words[4], index=False)
    told = call("38_recalibrate", bundle, *anew, "--out", tmp_path / "runs" / "part")
    refused(told, "audited cases of the window without one label", "to_recertify.csv")


def test_mistakes_about_cameras_are_told(exported, yard, settings, script, tmp_path) -> None:
    bundle, out = exported / "bundle", tmp_path / "d.csv"
    refused(script("60_predict", bundle, yard, "--out", out), "certifies each 'camera' by itself", "one of east, west")
    refused(script("60_predict", bundle, yard, "--out", out, "--certificate_groups", "eastt"), "did you mean 'east'?")
    pd.DataFrame({"id": ["a", "a"], "camera": ["east", "west"]}).to_csv(tmp_path / "g.csv", index=False)
    told = script("60_predict", bundle, yard, "--out", out, "--certificate_groups", tmp_path / "g.csv")
    refused(told, "1 id with two values of camera: a")

    def split(*flags: str):
        return script("00_make_splits", *settings, "--phase", "2", "--run", tmp_path / "new", *flags)

    refused(split("--certificate_groups", "kamera"), "has no column 'kamera' (certificate_groups)", "mean 'camera'?")
    refused(split("--certificate_groups", "group"), "$.certificate_groups is group, which says something else")
    refused(split("--decide_by", "group"), "$.certificate_groups is camera, and decide_by is group")


def test_an_altered_column_is_found_out(exported, script, tmp_path) -> None:
    run = copy(exported, tmp_path / "runs")
    path = run / "thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "certificate_groups": "site"}))
    refused(script("40_eval_selective", "--run", run), "$.certificate_groups is not the run's own")
    (bundle := run / "bundle" / "bundle.json").write_text(
        json.dumps({**json.loads(bundle.read_text()), "certificate_groups": "site"})
    )
    with pytest.raises(UserError, match="different certificate_groups"):
        verify_bundle(run / "bundle")


@pytest.mark.slow
def test_another_site_is_measured_and_certified_camera_by_camera(exported, settings, script, tmp_path) -> None:
    (folder := tmp_path / "site").mkdir()
    draw(folder, CASES, seed=11)
    named(folder, np.where(np.arange(CASES) % 3 > 0, "east", "gate"))
    config = tmp_path / "site.yaml"
    config.write_text(f"dataset_params:\n  sources: [{{name: site, labels: {folder}/labels.csv}}]\n")
    found = tmp_path / "found"
    done("40_eval_selective", "--bundle", exported / "bundle", "--on", config, "--out", found)
    rows = {row["name"]: row for row in json.loads((found / "eval.json").read_text())["by_certificate_group"]}
    assert (rows["gate"]["coverage"], rows["east"]["certified"]) == (0, True)
    assert rows["east"]["coverage"] > 0.5
    outcome = done("38_recalibrate", exported / "bundle", "--config", config, "--out", tmp_path / "new")
    assert "with the old bundle" in outcome.out
    assert sorted(json.loads((tmp_path / "new" / "thresholds.json").read_text())["groups"]) == ["east", "gate"]
    source = f"{{name: site, labels: {folder}/labels.csv, columns: {{group: null}}}}"
    config.write_text(f"certificate_groups: null\ndataset_params:\n  sources: [{source}]\n")
    measured = script("40_eval_selective", "--bundle", exported / "bundle", "--on", config, "--out", tmp_path / "x")
    refused(measured, "name the column of the set that holds them")
    outcome = done("38_recalibrate", exported / "bundle", "--config", config, "--out", tmp_path / "whole")
    assert "not measured: it certifies each 'camera'" in outcome.out

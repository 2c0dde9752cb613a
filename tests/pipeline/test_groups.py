"""A group of images, one decision: from the label table through calibration and bundle to 60 and 70."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import copy, done, refused, train_run
from PIL import Image
from serving import Server, form

from stage1_pro import Stage1Predictor, load_exit_policy
from stage1_pro.core.bundle.contents import verify_bundle
from stage1_pro.core.config import extras
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.views import Views
from stage1_pro.core.records.run import Run

TRACKS, VIEWS = 220, 3
CONFIG = """
decide_by: group
views: 3
dataset_params:
  order: frame
  sources: [{{name: tracks, labels: {images}/labels.csv}}]
"""


def draw(folder: Path) -> None:
    """Tracks of two to six noisy squares, a little redder or bluer, each frame a little more or less so."""
    rng = np.random.default_rng(5)
    lines = ["path,label,group,frame"]
    for track in range(TRACKS):
        label = ("blue", "red")[track % 2]
        centre = rng.normal(45, 18) * (1 if label == "red" else -1)
        for frame in rng.permutation(int(rng.integers(2, 7))):
            shift = centre + rng.normal(0, 30)
            pixels = np.array([128 + shift, 100, 128 - shift]) + rng.normal(0, 40, (32, 32, 3))
            name = f"t{track:03d}/frame_{frame}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},{label},t{track:03d},{frame}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracks")
    draw(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tracks, config, tmp_path_factory) -> Path:
    """A run whose groups get one decision each, with its bundle."""
    folder = tmp_path_factory.mktemp("grouped")
    (folder / "groups.yaml").write_text(CONFIG.format(images=tracks))
    flags = ["--config", str(config), "--config", str(folder / "groups.yaml"), "--phase", "2"]
    run = folder / "runs" / "tracks"
    train_run(run, flags)
    for script in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
        done(script, "--run", run)
    return run


@pytest.fixture
def run(exported, tmp_path) -> Path:
    return copy(exported, tmp_path / "runs")


def table(tracks: Path, path: Path, **change: object) -> Path:
    """What 60 takes: id, group and order of every image."""
    rows = pd.read_csv(tracks / "labels.csv")
    ids = [str(tracks / name) for name in rows["path"]]
    pd.DataFrame({"id": ids, "group": rows["group"], "order": rows["frame"]}).assign(**change).to_csv(path, index=False)
    return path


def test_a_group_is_a_case_from_calibration_to_the_bundle(exported) -> None:
    policy, evaluation = (json.loads((exported / name).read_text()) for name in ("thresholds.json", "eval.json"))
    splits = Run.open(str(exported)).splits
    images = [len(splits.indices(split)) for split in ("val_calib", "val_test")]
    assert policy["val_calib_metrics"]["cases"] == policy["val_calib_metrics"]["groups"] < images[0] / 2
    assert (policy["decide_by"], policy["views"], policy["view_rule"]) == ("group", VIEWS, "mean")
    assert "among the positive groups that exit" in policy["guarantee"]["words"]
    assert (evaluation["frames"], evaluation["bootstrap"]["unit"]) == (images[1], "case")
    assert sum(row["groups"] for row in evaluation["by_length"]) == evaluation["cases"]
    assert sum(row["misses"] for row in evaluation["by_length"]) == evaluation["exits"]["fnr_on_exits"]["misses"]
    bundle = exported / "bundle"
    assert verify_bundle(bundle).manifest["views"] == VIEWS
    assert "3 of its frames, evenly spaced" in (bundle / "README.md").read_text()
    assert "By number of images" in (exported / "report.html").read_text()


def test_a_policy_of_groups_decides_no_single_image(exported) -> None:
    scores = Run.open(str(exported)).image_scores("val_test")
    policy = load_exit_policy(exported / "bundle")
    with pytest.raises(ValueError, match="decides groups"):
        policy.decide(scores)
    predictor = Stage1Predictor.load(exported / "bundle", "cpu")
    assert predictor.views == Views(VIEWS)
    with pytest.raises(ValueError, match="predict_groups"):
        predictor.predict([b""])
    with pytest.raises(ValueError, match="no images"):
        predictor.predict_groups([[]])


def test_60_decides_what_was_scored_and_70_what_60_decides(exported, tracks, script, tmp_path) -> None:
    bundle, frames = exported / "bundle", pd.read_csv(tracks / "labels.csv")
    out = tmp_path / "decisions.csv"
    outcome = script("60_predict", bundle, tracks, "--groups", table(tracks, tmp_path / "g.csv"), "--out", out)
    assert outcome.status == 0, outcome
    sizes = frames.groupby("group").size()
    assert f"{(sizes < VIEWS).sum()} of them have fewer than {VIEWS}: all of theirs are looked at" in outcome.out
    rows = pd.read_csv(out).set_index("id")
    assert set(rows.index) == set(frames["group"])
    assert (rows["frames"] == sizes[rows.index]).all()
    assert (rows["views"] == np.minimum(sizes[rows.index], VIEWS)).all()
    run = Run.open(str(exported))
    test = run.scores("val_test")
    decisions = load_exit_policy(bundle).decide(test)
    assert rows.loc[test.case_id, "decision"].tolist() == np.where(decisions.exits, "exit", "defer").tolist()
    assert rows.loc[test.case_id, "answer"].tolist() == [("blue", "red")[at] for at in decisions.predictions]
    assert np.abs(rows.loc[test.case_id, "score"] - decisions.scores).max() < 1e-4
    with Server(bundle) as server:
        assert server.ask("/v1/model").body["views"] == VIEWS
        for name in rows.index[:6]:
            own = frames[frames["group"] == name].sort_values("frame")["path"]
            contents = [(tracks / path).read_bytes() for path in own]
            body, kind = form(*(("image", content) for content in contents), ("group", str(name).encode()))
            answer = server.ask("/v1/decide", body, Content_Type=kind)
            assert answer.status == 200, answer.body
            found = answer.body
            assert (found["group"], found["frames"], found["views"]) == (name, len(own), min(len(own), VIEWS))
            assert (found["decision"], found["answer"]) == (rows.decision[name], rows.answer[name])
            assert found["score"] == rows.score[name]
        assert server.ask("/v1/decide/batch", body, Content_Type=kind).code == "bad_request"
        broken, kind = form(("image", contents[0]), ("image", b"no image"))
        assert server.ask("/v1/decide", broken, Content_Type=kind).code == "unreadable"


def test_60_defers_a_group_whose_image_is_broken(run, tracks, script, tmp_path) -> None:
    bundle, groups = run / "bundle", table(tracks, tmp_path / "g.csv")
    (broken := tmp_path / "images").mkdir()
    for name in ("t000", "t001", "t002"):
        copy(tracks / name, broken)
    first = sorted((broken / "t000").iterdir())
    first[0].write_bytes(b"no image")
    rows = [(str(path), path.parent.name, path.stem.split("_")[1]) for path in sorted(broken.rglob("*.png"))]
    pd.DataFrame(rows, columns=["id", "group", "order"]).to_csv(groups, index=False)
    out = tmp_path / "d.jsonl"
    outcome = script("60_predict", bundle, broken, "--groups", groups, "--out", out)
    assert (outcome.status, "1 of 3 groups could not be read" in outcome.err) == (4, True)
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert (rows["t000"]["decision"], rows["t000"]["answer"]) == ("defer", "")
    assert f"{first[0]}: " in rows["t000"]["reason"]
    assert script("60_predict", bundle, broken, "--groups", groups, "--out", out).status == 2
    again = script("60_predict", bundle, broken, "--groups", groups, "--out", out, "--overwrite")
    assert again.status == 4


def test_61_names_the_script_that_decides_groups(exported, tracks, script, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "ray", ())  # refused before Ray is needed
    rows = pd.read_csv(table(tracks, tmp_path / "g.csv"))
    rows.assign(path=rows["id"]).to_parquet(tmp_path / "in.parquet")
    outcome = script("61_predict_ray", exported / "bundle", tmp_path / "in.parquet", tmp_path / "out")
    refused(outcome, f"{exported / 'bundle'} decides groups of images. Decide them with 60_predict.py --groups.")
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_groups_is_not_registered_for_single_images(run, script, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "mlflow", ())  # refused before MLflow is needed
    register = ["--register", "red", "--tracking_uri", f"sqlite:///{tmp_path}/m.db"]
    for words in (["--verify", run / "bundle"], ["--run", run, "--out", tmp_path / "new"]):
        outcome = script("50_export_bundle", *words, *register)
        refused(outcome, "decides groups of images, and a registered model decides single images")
    assert not (tmp_path / "new").exists()


def test_mistakes_about_groups_are_told(run, tracks, config, script, tmp_path) -> None:
    bundle = run / "bundle"
    refused(script("60_predict", bundle, tracks, "--out", tmp_path / "d.csv"), "frame_10 sorts before frame_2")
    rows = pd.read_csv(table(tracks, tmp_path / "g.csv"))
    rows.iloc[3:].assign(order=1).to_csv(tmp_path / "bad.csv", index=False)
    refused(script("60_predict", bundle, tracks, "--groups", tmp_path / "bad.csv", "--out", tmp_path / "d.csv"),
            "no group for 3 of", "with an order that another one of the group has")  # fmt: skip
    rows.drop(columns="order").to_csv(tmp_path / "bad.csv", index=False)
    refused(script("60_predict", bundle, tracks, "--groups", tmp_path / "bad.csv", "--out", tmp_path / "d.csv"),
            "no column order")  # fmt: skip
    (tmp_path / "bad.csv").write_bytes(gzip.compress(b"id,group,order\n"))
    refused(script("60_predict", bundle, tracks, "--groups", tmp_path / "bad.csv", "--out", tmp_path / "d.csv"),
            "bad.csv: not text in UTF-8. Save it as CSV in UTF-8, not packed.")  # fmt: skip

    labels = pd.read_csv(tracks / "labels.csv")
    (tmp_path / "groups.yaml").write_text(CONFIG.format(images=tmp_path))

    def split(frame: pd.DataFrame, *flags: str):
        frame.assign(path=[str(tracks / name) for name in frame["path"]]).to_csv(tmp_path / "labels.csv", index=False)
        return script("00_make_splits", "--config", config, "--config", tmp_path / "groups.yaml", "--phase", "2",
                      "--run", tmp_path / "new", *flags)  # fmt: skip

    mixed = labels.assign(label=np.where(labels.index == 0, "red", labels["label"]), frame=labels["frame"] % 2)
    refused(split(mixed), "1 group (t000) hold images of different labels", "group_label: majority", "another image of")
    refused(split(labels.drop(columns="group")), "no case has a group")
    refused(split(labels.drop(columns="frame")), "no column 'frame'")
    refused(split(labels.assign(frame="x")), "without a number in 'frame'")
    refused(split(labels, "--dataset_params.group_label", "any"), "no rule for one positive image among many")
    refused(split(labels, "--dataset_params.order", "null"), "frame_10 sorts before frame_2")
    refused(split(labels, "--phase", "3", "--exit_policy", "gate"), "set exit_policy: softmax")
    refused(split(labels, "--decide_by", "case"), "settings of decide_by: group")
    assert split(labels.assign(label=mixed["label"]), "--dataset_params.group_label", "majority").status == 0


def test_an_altered_rule_is_found_out(run, script) -> None:
    path = run / "thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "views": 2}))
    refused(script("40_eval_selective", "--run", run), "not the run's own")
    (bundle := run / "bundle" / "bundle.json").write_text(json.dumps({**json.loads(bundle.read_text()), "views": 2}))
    with pytest.raises(UserError, match="other groups or views"):
        verify_bundle(run / "bundle")

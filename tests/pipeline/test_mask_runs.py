"""A run with masks: the scripts of every run, on discs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from chain import call, copy, done, killed, train_run
from made_masks import STAGES, disc_case, settings, write_cases
from PIL import Image
from shared_folders import made_once

from stage1_pro.core.config import extras

pytest.importorskip("monai", reason="the extra seg is not installed")

RATIOS = {"val_select_ratio": 0.15, "val_calib_ratio": 0.35, "val_test_ratio": 0.15}


@pytest.fixture(scope="module")
def masks_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        root = write_cases(folder / "discs", 100, empty=4)
        made = settings(root, **RATIOS) | {"epochs": 10, "lr_head": 5e-3}
        (folder / "masks.yaml").write_text(yaml.safe_dump(made))

    return made_once(tmp_path_factory, "masks", make) / "masks.yaml"


@pytest.fixture(scope="module")
def masks_once(masks_config: Path, make_once: Callable[..., Path]) -> Path:
    """A trained and scored run."""

    def make(run: Path) -> None:
        done("00_make_splits", "--config", masks_config, "--run", run)
        done("20_train", "--config", masks_config, "--run", run)

    return make_once("masks", make)


def test_a_run_is_trained_and_scored(masks_once: Path) -> None:
    metrics = pd.read_csv(masks_once / "metrics.csv")
    assert {"val_dice", "val_dice_disc", "val_augrc", "val_loss", "val_share_missed"} <= set(metrics)
    assert metrics["val_dice"].max() > 0.8
    scores = pd.read_parquet(masks_once / "scores" / "val_calib.parquet")
    assert {"missed", "dice", "uncertainty", "logit_0", "logit_1"} <= set(scores)
    assert (scores["logit_0"] == 0).all()
    assert set(scores["missed"][scores["label"] == 0]) <= {-1}
    assert set(scores["missed"][scores["label"] == 1]) <= {0, 1}
    assert scores["dice"].between(0, 1).all()


def test_a_second_training_gives_the_same_weights_and_scores(
    masks_once: Path, masks_config: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    done("00_make_splits", "--config", masks_config, "--run", again)
    done("20_train", "--config", masks_config, "--run", again, "--dataset_params.num_workers", "2")
    first, second = (pd.read_parquet(run / "scores" / "val_calib.parquet") for run in (masks_once, again))
    pd.testing.assert_frame_equal(first, second)


@pytest.fixture(scope="module")
def exported(masks_once: Path, go_on_once: Callable[..., Path]) -> Path:
    """A run that is certified, evaluated and exported."""
    return go_on_once(masks_once, "exported", "25_threshold_sweep", "40_eval_selective", "50_export_bundle")


def test_a_run_is_certified_and_its_promise_names_the_miss_rule(exported: Path) -> None:
    policy = json.loads((exported / "thresholds.json").read_text())
    assert policy["exit_rule"] == "symmetric"
    assert policy["miss_rule"] == {"rule": "dice", "dice": 0.5, "overlap": 0.1, "min_voxels": 1}
    assert "or a Dice below 0.5 with the true mask" in policy["guarantee"]["words"]
    scores = pd.read_parquet(exported / "scores" / "val_calib.parquet")
    positive = scores["label"] == 1
    confidence = 1 / (1 + np.exp(-scores["logit_1"].abs().astype(float)))
    exits = confidence >= policy["exit_threshold"]
    assert policy["misses"] == int((exits & positive & (scores["missed"] == 1)).sum())
    assert policy["exited_positives"] == int((exits & positive).sum()) > 28
    assert json.loads((exported / "eval.json").read_text())["exits"]["coverage"]["value"] > 0.5


@pytest.mark.parametrize("rule", ["lesion", "empty"])
def test_an_untrained_network_that_passes_a_lax_rule_gets_no_policy(
    rule: str, masks_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the looks at val_calib are counted
    made = yaml.safe_load(masks_config.read_text()) | {"epochs": 1, "lr_head": 1e-8, "use_ema": False}
    made |= {"segmentation_params": {"miss_rule": {"rule": rule}}}
    (tmp_path / "lax.yaml").write_text(yaml.safe_dump(made))
    run = train_run(tmp_path / "run", ["--config", str(tmp_path / "lax.yaml")])
    outcome = call("25_threshold_sweep", "--run", run)
    assert outcome.status == 3, outcome.err
    assert "its masks are hardly better than marking every voxel" in outcome.err
    assert "prices" not in outcome.err
    assert not (run / "thresholds.json").exists()


def test_a_network_that_draws_nothing_is_told_of_whatever_its_val_dice(tmp_path: Path) -> None:
    root, rng = write_cases(tmp_path / "unseen", 60, empty=40), np.random.default_rng(0)
    for file in sorted((root / "images").iterdir()):  # nothing to be seen of the discs
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
    made = settings(root, **RATIOS) | {"epochs": 12, "lr_head": 1e-2, "segmentation_params": {"dice_weight": 0.0}}
    for monitor, mend in (("val_dice", "set checkpoint_by: val_loss, or train longer"), ("val_loss", "Train longer")):
        config, run = tmp_path / f"{monitor}.yaml", tmp_path / monitor
        config.write_text(yaml.safe_dump(made | {"checkpoint_by": monitor}))
        done("00_make_splits", "--config", config, "--run", run)
        said = done("20_train", "--config", config, "--run", run).out
        assert pd.read_csv(run / "metrics.csv")["val_dice"].max() > 0.6
        assert re.search(
            rf"warning: 'disc' is hardly drawn: mean Dice 0.00 over the \d cases of val_select.* {mend}\n", said
        )


def test_the_report_shows_cases_and_the_table_holds_them_all(exported: Path) -> None:
    cases, scores = (
        pd.read_csv(exported / "cases" / "val_test.csv", dtype={"case_id": str}),
        exported / "scores" / "val_test.parquet",
    )
    assert len(cases) == len(pd.read_parquet(scores))
    assert cases["dice"].round(5).tolist() == pd.read_parquet(scores)["dice"].round(5).tolist()
    assert (cases["true_components"] <= 1).all()
    assert cases["hd95_disc"].dropna().ge(0).all()
    evaluation = json.loads((exported / "eval.json").read_text())
    exited = cases[(cases["exits"] == 1) & (cases["label"] == 1)]
    assert int((exited["missed"] == 1).sum()) == evaluation["exits"]["fnr_on_exits"]["misses"]
    page = (exported / "report.html").read_text()
    assert "Masks of the test split" in page
    assert "mask_overlays" in page
    assert "Calibration of the probabilities" not in page  # the confidence of a mask is none
    assert not (exported / "figures" / "reliability.png").exists()
    assert (exported / "figures" / "mask_overlays.png").exists()
    shown = set(re.findall(r'<img src="data:image/jpeg;base64,[^"]*" alt="([^:"]*): Dice', page))
    missed, deferred = exited[exited["missed"] == 1], cases[cases["exits"] == 0]
    assert set(missed.nsmallest(12, "dice")["case_id"]) <= shown <= set(cases["case_id"])
    assert len(shown & set(deferred["case_id"])) == min(12, len(deferred))
    assert len(shown) >= 12
    for title, total in (("Missed on exits", len(missed)), ("Deferred", len(deferred))):
        assert (f"<h3>{title} <span" in page) == (total > 0)


def test_pictures_of_masks_stay_out_where_they_must(exported: Path, tmp_path: Path) -> None:
    run = copy(exported, tmp_path)
    done("40_eval_selective", "--run", run, "--no_pictures")
    page = (run / "report.html").read_text()
    assert "<img" not in page
    assert "mask_overlays" not in page


def test_a_policy_for_another_miss_rule_is_not_exported(exported: Path, tmp_path: Path) -> None:
    run = copy(exported, tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["segmentation_params"]["miss_rule"]["dice"] = 0.4
    (run / "config.json").write_text(json.dumps(config))
    refused = call("50_export_bundle", "--run", run, "--out", tmp_path / "bundle")
    assert refused.status == 2
    assert "$.miss_rule is" in refused.err


def test_new_images_get_decisions_and_masks_on_their_own_grid(
    exported: Path, masks_config: Path, tmp_path: Path
) -> None:
    images = tmp_path / "new"
    images.mkdir()
    for index, side in ((500, 32), (501, 45), (502, 19)):
        Image.fromarray(disc_case(index, side)[0]).save(images / f"{index}.png")
    (images / "broken.png").write_bytes(b"no image")
    decided = call("60_predict", exported / "bundle", images, "--out", tmp_path / "decisions.csv")
    assert decided.status == 4, decided.err
    rows = pd.read_csv(tmp_path / "decisions.csv", keep_default_na=False)
    assert rows["answer"].tolist() == ["disc"] * 3 + [""]
    assert rows["decision"].iloc[3] == "defer"
    for index, side in ((500, 32), (501, 45), (502, 19)):
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{index}.png"))
        assert mask.shape == (side, side)
        assert set(np.unique(mask)) <= {0, 1}
    truth, mask = disc_case(500)[1], np.asarray(Image.open(tmp_path / "masks" / "500.png"))
    assert 2 * (truth & mask).sum() / (truth.sum() + mask.sum()) > 0.8
    assert not (tmp_path / "masks" / "broken.png").exists()


def test_no_masks_but_its_own_are_written_over(exported: Path, tmp_path: Path) -> None:
    data = write_cases(tmp_path / "data", 3)
    true = {path.name: path.read_bytes() for path in (data / "masks").iterdir()}
    decide = ["60_predict", exported / "bundle", data / "images", "--out"]
    refused = call(*decide, data / "decisions.csv", "--overwrite")
    assert (refused.status, "masks would be written over them" in refused.err) == (2, True)
    assert {path.name: path.read_bytes() for path in (data / "masks").iterdir()} == true
    assert not (data / "decisions.csv").exists()
    refused = call("60_predict", exported / "bundle", data, "--out", tmp_path / "d.csv")  # nor decided as images
    assert (refused.status, f"and masks are no images to decide. Name {data}/images." in refused.err) == (2, True)

    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "masks").write_text("no folder")
    refused = call(*decide, tmp_path / "file" / "d.csv")
    assert (refused.status, "is a file, and masks go into a folder" in refused.err) == (2, True)

    first, second = tmp_path / "out" / "first.csv", tmp_path / "out" / "second.csv"
    done(*decide, first)
    refused = call(*decide, second)
    assert (refused.status, "holds the masks of first.csv" in refused.err) == (2, True)
    done(*decide, first, "--overwrite")
    first.unlink()
    refused = call(*decide, first)
    assert (refused.status, "of an earlier first.csv: add --overwrite" in refused.err) == (2, True)
    done(*decide, first, "--overwrite")


def test_odd_images_are_decided_like_plain_ones_or_not_at_all(exported: Path, tmp_path: Path) -> None:
    images = tmp_path / "odd"
    images.mkdir()
    pixels = disc_case(500)[0]
    plain = Image.fromarray(pixels)
    plain.save(images / "a-plain.png")
    plain.convert("L").save(images / "b-grey.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(images / "c-sixteen.png")
    plain.convert("RGBA").save(images / "d-alpha.png")
    plain.convert("RGB").save(images / "e.bmp")
    Image.fromarray(pixels[:3, :2]).save(images / "f-tiny.png")
    two = f"{images / 'a-plain.png'};{images / 'b-grey.png'}"
    grey = ";".join([str(images / "b-grey.png")] * 3)  # as many channels, and not the colours of one file
    decided = call("60_predict", exported / "bundle", images, two, grey, "--out", tmp_path / "d.csv")
    assert decided.status == 4, decided.err
    rows = pd.read_csv(tmp_path / "d.csv", keep_default_na=False)
    assert rows["answer"].tolist()[:5] == ["disc"] * 5
    np.testing.assert_allclose(rows["score"][:5].astype(float), float(rows["score"][0]), rtol=0, atol=1e-6)
    assert rows["answer"].tolist()[5] != ""  # a case below any window is padded
    assert rows["decision"].tolist()[6:] == ["defer"] * 2
    assert rows["reason"].str.contains("other dimensions or channels").tolist()[6:] == [True] * 2
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "masks").glob("*.png"))]
    assert [mask.shape for mask in drawn] == [(32, 32)] * 5 + [(3, 2)]
    assert all((mask == drawn[0]).all() for mask in drawn[1:5])
    parted = call("60_predict", exported / "bundle", two, "--out", tmp_path / "two" / "d.csv")
    assert parted.status == 4, parted.err  # its files are there, though no file has that name
    plain.save(tmp_path / "whole;name.png")
    whole = call("60_predict", exported / "bundle", tmp_path / "whole;name.png", "--out", tmp_path / "one" / "d.csv")
    assert whole.status == 0, whole.err
    assert (np.asarray(Image.open(tmp_path / "one" / "masks" / "whole;name.png")) == drawn[0]).all()


def test_scores_of_a_split_are_those_of_60(exported: Path, masks_config: Path, tmp_path: Path) -> None:
    root = Path(yaml.safe_load(masks_config.read_text())["dataset_params"]["sources"][0]["root"])
    scores = pd.read_parquet(exported / "scores" / "val_test.parquet")
    images = [root / "images" / f"{case}.png" for case in scores["case_id"]]
    done("60_predict", exported / "bundle", *images, "--out", tmp_path / "d.csv", "--batch_size", 3)
    rows = pd.read_csv(tmp_path / "d.csv")
    confidence = 1 / (1 + np.exp(-scores["logit_1"].abs().astype(float)))
    np.testing.assert_allclose(rows["score"], confidence, rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def any_once(tmp_path_factory: pytest.TempPathFactory, make_once: Callable[..., Path]) -> Path:
    """A run for any of three classes, exported. Two look alike, so that who draws a disc cannot know which it is, and
    the third, single pixels, cannot be seen at all."""

    def make(run: Path) -> None:
        root = write_cases(tmp_path_factory.mktemp("alike") / "discs", 100, empty=10)
        for index in range(0, 100, 2):
            file = root / "masks" / f"{index:03}.png"
            Image.fromarray(2 * np.asarray(Image.open(file))).save(file)
        for index in range(10, 100, 3):
            file = root / "masks" / f"{index:03}.png"
            mask = np.array(Image.open(file))
            mask[1, index % 32] = 3
            Image.fromarray(mask).save(file)
        made = settings(root, **RATIOS, class_names=["background", "left", "right", "speck"], positive_class="any")
        made |= {"epochs": 8, "lr_head": 1e-2, "segmentation_params": {"miss_rule": {"rule": "dice", "dice": 0.6}}}
        config = root.parent / "any.yaml"
        config.write_text(yaml.safe_dump(made))
        train_run(run, ["--config", str(config)])
        for script in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
            done(script, "--run", run)
        images = sorted((root / "images").iterdir())
        done("60_predict", run / "bundle", *images, "--out", run.parent / "any.csv")

    return make_once("any", make)


def test_any_class_has_sums_of_its_own_from_scores_to_masks(any_once: Path) -> None:
    policy = json.loads((any_once / "thresholds.json").read_text())
    assert policy["exited_positives"] > 28
    assert json.loads((any_once / "bundle" / "bundle.json").read_text())["class_names"][1] == "any class"
    decided = pd.read_csv(any_once.parent / "any.csv").set_index("id")
    scores = pd.read_parquet(any_once / "scores" / "val_calib.parquet").set_index("case_id")
    root = Path(decided.index[0]).parents[1]
    for case, row in scores.iterrows():
        truth, mask = (np.asarray(Image.open(folder / "masks" / f"{case}.png")) for folder in (root, any_once.parent))
        own = [
            2 * np.sum((truth == c) & (mask == c)) / max(1, np.sum(truth == c) + np.sum(mask == c)) for c in (1, 2, 3)
        ]
        union = 2 * np.sum((truth > 0) & (mask > 0)) / max(1, np.sum(truth > 0) + np.sum(mask > 0))
        assert row["label"] == (truth > 0).any()
        assert row["missed"] == (union < 0.6 if row["label"] else -1), (case, union, own)
        inside = np.sum(truth > 0)
        assert row["positive_dice"] == pytest.approx(union if inside or (mask > 0).any() else 1.0)
        assert row["marked_dice"] == pytest.approx(2 * inside / (truth.size + inside))
        known = [dice for c, dice in enumerate(own, 1) if (truth == c).any() or (mask == c).any()]
        assert row["dice"] == pytest.approx(np.mean(known) if known else 1.0)
        assert decided.loc[str(root / "images" / f"{case}.png"), "answer"] == (
            "any class" if (mask > 0).any() else "without any class"
        )
    page = (any_once / "report.html").read_text()
    assert "class &#39;speck&#39; is hardly drawn: mean Dice 0.00 over" in page
    assert "class &#39;left&#39; is hardly" not in page
    positive = scores[scores["label"] == 1]
    assert positive["dice"].median() < 0.6 < 0.9 < 1 - positive["missed"].mean()


def test_a_bundle_of_masks_says_who_takes_it(
    exported: Path, masks_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage1_pro import Stage1Predictor
    from stage1_pro.core.errors import UserError

    assert "pipeline_tag: image-segmentation\n" in (exported / "bundle" / "README.md").read_text()
    with pytest.raises(UserError, match=r"its answers are masks, which only 60_predict\.py takes"):
        Stage1Predictor.load(exported / "bundle", device="cpu")
    for script in ("65_monitor", "70_serve"):
        refused = call(script, exported / "bundle")
        assert (refused.status, "its answers are masks" in refused.err) == (2, True)
    monkeypatch.setitem(extras.EXTRAS, "ray", ())  # refused before Ray is needed
    pd.DataFrame({"path": ["a.png"]}).to_parquet(tmp_path / "in.parquet")
    refused = call("61_predict_ray", exported / "bundle", tmp_path / "in.parquet", tmp_path / "out")
    assert refused.status == 2
    assert f"{exported / 'bundle'}: its answers are masks, which only 60_predict.py takes. Decide" in refused.err
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(extras.EXTRAS, "mlflow", ())
    register = ["--register", "discs", "--tracking_uri", f"sqlite:///{tmp_path}/m.db"]
    refused = call("50_export_bundle", "--verify", exported / "bundle", *register)
    assert (refused.status, "answers with masks, and a registered model decides single" in refused.err) == (2, True)
    audited = call("60_predict", exported / "bundle", exported, "--audit_share", "0.5", "--out", exported / "d.csv")
    assert audited.status == 2
    verified = done("50_export_bundle", "--verify", exported / "bundle")
    root = yaml.safe_load(masks_config.read_text())["dataset_params"]["sources"][0]["root"]
    assert re.search(rf"whole.*\nnext .* {root}/images --out ", verified.out), verified.out  # and not its masks


def test_a_bundle_of_masks_holds_golden_inputs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(exported / "bundle" / "golden.npz", allow_pickle=False) as arrays:
        assert len(np.unique(arrays["logits"][:, 1])) == 8
    checked = done("50_export_bundle", "--verify", exported / "bundle", "--golden")
    assert "within 0 of the recorded ones" in checked.out
    monkeypatch.setattr("stage1_pro.core.data.masks.inputs.LEAST_DEVIATION", 10.0)  # a host that scales otherwise
    refused = call("50_export_bundle", "--verify", exported / "bundle", "--golden")
    assert (refused.status, "outputs differ by up to" in refused.err) == (2, True)


def test_weights_of_another_task_are_refused(
    masks_once: Path, masks_config: Path, trained_once: Path, tmp_path: Path
) -> None:
    done("00_make_splits", "--config", masks_config, "--run", tmp_path / "other")
    refused = call("20_train", "--config", masks_config, "--run", tmp_path / "other", "--init_from", trained_once)
    assert refused.status == 2
    assert "a run of task classification, and" in refused.err


COMPARED = ("state.json", "stages.csv", "selections.csv", "model_best.pth")


@pytest.fixture(scope="module")
def staged_config(masks_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        made = yaml.safe_load(masks_config.read_text()) | {
            "incremental_params": {**STAGES, "early_stopping_patience": 3}
        }
        (folder / "stages.yaml").write_text(yaml.safe_dump(made))

    return made_once(tmp_path_factory, "mask-stages", make) / "stages.yaml"


@pytest.fixture(scope="module")
def staged(staged_config: Path, make_once: Callable[..., Path]) -> Path:
    """A run by stages, with what a process that is killed within leaves behind."""
    moments = ("epoch 2/", "stage 1 ended", "epoch 5/")
    return make_once("mask-stages", lambda run: train_run(run, ["--config", str(staged_config)], *moments))


def test_cases_are_admitted_by_the_dice_of_their_masks(staged: Path) -> None:
    stages, picked = pd.read_csv(staged / "stages.csv"), pd.read_csv(staged / "selections.csv")
    assert stages["active_cases"].tolist() == [6, 10, 14]
    picked = picked[picked["difficulty"].notna()]  # the initial cases were not scored
    assert picked["difficulty"].between(0, 1).all()
    assert picked["uncertainty"].between(0, 1).all()
    assert picked["difficulty"].nunique() > 4  # 1 − Dice of masks, and no 0 or 1 of a class


@pytest.mark.parametrize("moment", ["epoch 2/", "stage 1 ended", "epoch 5/"])
def test_a_kill_within_a_stage_or_between_two_ends_as_if_there_was_none(
    staged: Path, moment: str, tmp_path: Path
) -> None:
    run = killed(staged, moment, tmp_path / staged.parent.name / staged.name)
    done("20_train", "--resume", run)
    for name in COMPARED[1:]:
        assert (run / name).read_bytes() == (staged / name).read_bytes(), name
    first, second = (pd.read_parquet(one / "scores" / "val_calib.parquet") for one in (staged, run))
    pd.testing.assert_frame_equal(first, second)

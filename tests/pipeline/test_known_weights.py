"""--weights and --prices of the calibration scripts: another world's certificate, and one that prices end early."""

import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import call, copy, done, refused
from made_runs import make_run

from stage1_pro.core.errors import UserError
from stage1_pro.core.evaluation import trusted_policy
from stage1_pro.core.finish_calibration import Wishes, certify_scrc
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.weights import Weights

BOUND = 2.0
PRICES = "c1: 0.001\nc2: 0.5\ncm: 20\ncf: 5\n"


def table_of(run: Path, at: Path) -> Path:
    """Weights of all cases that are held out, 1 or 2 by a digit of the id that says nothing of the label."""
    select = set(Run(run).image_scores("val_select").case_id)
    names = [f"{number:03}.png" for number in range(640)]
    assert select <= set(names)
    pd.DataFrame({"case_id": names, "weight": [1 + int(name[1]) % 2 for name in names]}).to_csv(at, index=False)
    return at


def kept(run: Path, split: str) -> np.ndarray:
    """(N,) by the hash as it is documented."""
    scores = Run(run).image_scores(split)
    purpose = f"known weights:{scores.splits_digest}:"
    draws = [int.from_bytes(blake2b(f"{purpose}{name}".encode(), digest_size=8).digest()) for name in scores.group]
    weights = np.array([1 + int(name[1]) % 2 for name in scores.case_id])
    return np.array(draws) < weights / BOUND * 2.0**64


def test_a_run_is_certified_and_measured_in_the_other_world(trained, tmp_path):
    table = table_of(trained, tmp_path / "w.csv")
    outcome = done("25_threshold_sweep", "--run", trained, "--weights", table, "--weight_bound", BOUND)
    policy = json.loads((trained / "thresholds.json").read_text())
    calib, stays = Run(trained).image_scores("val_calib"), kept(trained, "val_calib")
    z = calib.logits[:, 1].astype(float) - calib.logits[:, 0]
    exits = stays & ((z >= 0) | (1 / (1 + np.exp(-np.abs(z))) >= policy["exit_threshold"]))
    positive = calib.labels == 1
    assert policy["exited_positives"] == (exits & positive).sum()
    assert policy["misses"] == (exits & positive & (z < 0)).sum()
    weights = policy["weights"]
    assert (weights["cases"], weights["kept"]) == (len(calib), stays.sum())
    assert policy["val_calib_metrics"]["cases"] == stays.sum() < len(calib)
    assert "kept with probability w / 2," in policy["guarantee"]["words"].replace("probability\n", "probability ")
    assert f"Known weights: {stays.sum()} of {len(calib)} calibration cases were kept" in outcome.out
    done("40_eval_selective", "--run", trained)
    assert json.loads((trained / "eval.json").read_text())["cases"] == kept(trained, "val_test").sum()
    assert "Known weights: " in (trained / "report.html").read_text()
    done("50_export_bundle", "--run", trained)
    assert "Known weights: " in (trained / "bundle" / "README.md").read_text()
    done("50_export_bundle", "--verify", trained / "bundle")
    file = trained / "scores" / "weights.parquet"
    content = file.read_bytes()
    pd.read_parquet(file).assign(weight=2.0).to_parquet(file)
    refused(call("40_eval_selective", "--run", trained), "weights.parquet: no", "Restore the run's scores folder")
    file.write_bytes(content)
    (trained / "thresholds.json").write_text(
        json.dumps({name: value for name, value in policy.items() if name != "weights"})
    )
    refused(call("40_eval_selective", "--run", trained), "$.guarantee does not say what its numbers do")


def test_weights_that_cannot_be_used_are_told_at_once(trained, tmp_path):
    table = table_of(trained, tmp_path / "w.csv")
    good, calib = pd.read_csv(table), Run(trained).image_scores("val_calib")
    one = str(calib.case_id[0])

    def tried(frame: pd.DataFrame, *more: object, bound: float = BOUND):
        frame.to_csv(table, index=False)
        outcome = call("25_threshold_sweep", "--run", trained, "--weights", table, "--weight_bound", bound, *more)
        assert not (trained / "thresholds.json").exists()
        return outcome

    bad = good.astype({"weight": object})
    bad.loc[bad["case_id"] == one, "weight"] = -1
    bad.loc[600:610, "weight"] = 5
    bad.loc[611, "weight"] = "much"
    bad = pd.concat([bad, pd.DataFrame({"case_id": ["630.png"], "weight": [0.5]})])
    (prices := tmp_path / "prices.yaml").write_text("c1: -1\nc2: 0.5\ncm: -20\n")
    refused(tried(bad, "--prices", prices, "--sensitivity", 2),
            "1 row with a weight below 0: " + one, "11 rows with a weight above --weight_bound 2",
            "1 row without a number as weight: 611.png", "1 case with two different weights: 630.png",
            "c1 is -1; allowed 0 or more", "cm is -20; allowed 0 or more", "cf is missing", "--sensitivity 2: allowed",
            "--specificity is missing")  # fmt: skip
    few = good[good["case_id"].isin(set(calib.case_id) - {one})]
    refused(tried(few), f"no weight for 1 case of val_calib: {one}", "beside val_calib, and val_test holds")
    refused(tried(good.rename(columns={"weight": "weights"})), "no column weight (is it 'weights'?)")
    refused(tried(good.assign(weight=1.0)), "change of prevalence alone leaves FNR on exits as it was")
    refused(tried(good.head(0)), "no rows below its header")
    refused(tried(good, bound=0), "--weight_bound is 0; allowed above 0")
    refused(call("25_threshold_sweep", "--run", trained, "--weights", table), "--weight_bound is missing")
    refused(call("25_threshold_sweep", "--run", trained, "--weight_bound", 2), "--weights is missing")
    refused(call("25_threshold_sweep", "--run", trained, "--weights", tmp_path / "none.csv", "--weight_bound", 2),
            "none.csv does not exist")  # fmt: skip
    assert not (trained.parent / "calibrations.csv").exists()


def test_prices_end_the_certification_early(trained, calibrated_once, tmp_path):
    """Of equal candidates the first ones are tried, and the file says by what the certification ended."""
    (prices := tmp_path / "prices.yaml").write_text(PRICES)
    whole = json.loads((calibrated_once / "thresholds.json").read_text())
    asked = ("--prices", prices, "--sensitivity", 0.9, 1, "--specificity", 0.97, "--prevalence", 0.2)
    outcome = done("25_threshold_sweep", "--run", trained, *asked)
    ended = json.loads((trained / "thresholds.json").read_text())
    tried, all_of_them = ([row["threshold"] for row in policy["sweep_results"]] for policy in (ended, whole))
    assert tried == all_of_them[: len(tried)]
    assert len(tried) < len(all_of_them)
    assert ended["coverage"] <= whole["coverage"]
    assert ended["diagnostics"]["ended_by"] == {
        "c1": 0.001, "c2": 0.5, "cm": 20, "cf": 5, "sensitivity": 0.95, "specificity": 0.97, "prevalence": 0.2,
    }  # fmt: skip
    assert "val_select's cheapest threshold" in outcome.out
    done("40_eval_selective", "--run", trained)
    words = (
        "Prices ended the certification: no threshold was tried beyond the one that is cheapest on val_select, at c1"
    )
    assert words in (trained / "report.html").read_text()


def test_where_nothing_is_certified_the_end_is_told(trained, tmp_path):
    (prices := tmp_path / "prices.yaml").write_text(PRICES)
    asked = ("--prices", prices, "--sensitivity", 1, "--specificity", 1, "--target_fnr_exit", 0.001)
    outcome = call("25_threshold_sweep", "--run", trained, *asked)
    assert outcome.status == 3, outcome
    assert "no threshold beyond val_select's cheapest was tried: without --prices looser ones are" in outcome.out


def test_the_end_is_where_the_formula_of_costs_is_least(trained, tmp_path):
    """Costs of every threshold on val_select, by hand."""
    (prices := tmp_path / "prices.yaml").write_text(PRICES)
    done("25_threshold_sweep", "--run", trained, "--prices", prices, "--sensitivity", 0.97, "--specificity", 0.97)
    ended = json.loads((trained / "thresholds.json").read_text())["sweep_results"]
    select = Run(trained).scores("val_select")
    z = select.logits[:, 1].astype(float) - select.logits[:, 0]
    sure, positive = 1 / (1 + np.exp(-np.abs(z))), select.labels == 1

    def cost(threshold: float) -> float:
        exits = (z >= 0) | (sure >= threshold)
        wrong = np.where(exits, (z >= 0) != positive, 0.03)
        return float(np.mean(0.5 * ~exits + wrong * np.where(positive, 20, 5)))

    tried = np.sort(np.unique(sure[z < 0]))[::-1]
    costs = [cost(threshold) for threshold in tried]
    assert cost(ended[-1]["threshold"]) == pytest.approx(min(costs), abs=0.01)
    assert cost(ended[-1]["threshold"]) == min(cost(row["threshold"]) for row in ended)


def test_what_goes_with_prices_alone_is_refused(trained, scrc_once, runs, tmp_path):
    refused(call("25_threshold_sweep", "--run", trained, "--prevalence", 0.1), "--prevalence goes with --prices")
    (prices := tmp_path / "prices.yaml").write_text(PRICES)
    run = copy(scrc_once, runs)
    refused(call("36_calibrate_scrc", "--run", run, "--scrc_variant", "SCRC-T", "--prices", prices,
                 "--sensitivity", 0.9, "--specificity", 0.9), "--prices goes with --scrc_variant SCRC-I")  # fmt: skip


def test_what_scrc_promises_is_checked_on_what_the_weights_keep(tmp_path):
    run = make_run(tmp_path / "scrc", "scrc", step=0.2)
    names = np.array([f"case{at:05}" for at in range(2000)])
    weights = Weights(names, np.where(np.arange(2000) % 3 == 0, 1.0, 2.0), 2.0)
    certify_scrc(run, run.risk(), wishes=Wishes(weights))
    again = Run(run.path)
    found = trusted_policy(again)
    assert found["weights"]["kept"] == len(again.scores("val_calib")) == found["val_calib_metrics"]["cases"] < 2000
    again.weigh(None)
    with pytest.raises(UserError, match="file or scores have been altered"):
        trusted_policy(again)

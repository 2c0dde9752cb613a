"""Known weights: which cases stay, whole groups of them, and the file that a policy names."""

from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pandas as pd
import pytest
from made_runs import make_run

from stage1_pro.core.data.weight_tables import weights_of
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.weights import Weights, read_weights

CASES = 20_000
NAMES = np.array([f"case{at:05}" for at in range(CASES)], dtype=object)


def split(groups: np.ndarray = NAMES) -> Scores:
    rng = np.random.default_rng(0)
    labels = (rng.random(CASES) < 0.3).astype(np.int8)
    return Scores("val_calib", NAMES, groups, labels, rng.normal(size=(CASES, 2)).astype(np.float32), None, "m", "s")


def weights(bound: float = 3.0) -> Weights:
    values = np.where(np.arange(CASES) % 4 == 0, bound, 1.0)
    values[1::4] = 0.0
    return Weights(NAMES.astype(str), values, bound)


def test_each_case_is_kept_with_its_probability_and_by_its_name_alone() -> None:
    """The hash as it is documented: BLAKE2b of purpose, splits digest and group, below weight / bound of its range."""
    kept, found = weights().kept(split()), weights()
    assert (kept[0::4].all(), kept[1::4].any()) == (True, False)
    assert kept[2::4].mean() == pytest.approx(1 / 3, abs=0.02)
    draws = [int.from_bytes(blake2b(f"known weights:s:{name}".encode(), digest_size=8).digest()) for name in NAMES]
    np.testing.assert_array_equal(kept, np.array(draws) < found.weight / 3 * 2.0**64)
    shuffled = np.random.default_rng(1).permutation(CASES)
    np.testing.assert_array_equal(found.kept(split().take(shuffled)), kept[shuffled])
    other = replace(split(), splits_digest="t")
    assert (found.kept(other) != kept).mean() > 0.1


def test_groups_stay_whole_and_all_columns_with_them() -> None:
    groups = np.repeat(NAMES[:: CASES // 2000], 10)
    of_groups = Weights(NAMES.astype(str), np.repeat(np.random.default_rng(2).uniform(0, 2, 2000), 10), 2.0)
    kept = of_groups.kept(split(groups)).reshape(-1, 10)
    assert (kept.all(axis=1) == kept.any(axis=1)).all()
    thin = of_groups.thinned(split(groups))
    np.testing.assert_array_equal(thin.case_id, NAMES[kept.ravel()])
    assert {len(getattr(thin, name)) for name in ("case_id", "group", "labels", "logits")} == {int(kept.sum())}
    record = of_groups.record(split(groups))
    assert (record["cases"], record["kept"]) == (CASES, len(thin))
    assert (record["positives"], record["kept_positives"]) == (split().positives, thin.positives)


def test_the_file_is_what_was_written_or_refused(tmp_path) -> None:
    path, found = tmp_path / "weights.parquet", weights()
    found.write(path)
    again = read_weights(path, found.digest)
    np.testing.assert_array_equal(again.weight, found.weight)
    np.testing.assert_array_equal(again.kept(split()), found.kept(split()))
    for other in (replace(found, bound=3.5), replace(found, weight=found.weight[::-1].copy())):
        other.write(path)
        with pytest.raises(UserError, match="not the weights that the policy was certified with"):
            read_weights(path, found.digest)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no weights"):
        read_weights(path, found.digest)


def test_a_case_without_a_weight_is_named() -> None:
    few = Weights(NAMES[:-1].astype(str), np.ones(CASES - 1), 1.0)
    with pytest.raises(UserError, match=r"val_calib: 1 case without a weight: case19999"):
        few.thinned(split())


def test_a_group_that_would_be_torn_is_refused(tmp_path) -> None:
    run = make_run(tmp_path / "run", "softmax")
    calib = run.image_scores("val_calib")
    pairs = replace(calib, group=np.repeat(calib.case_id[::2], 2))
    pairs.write(run.scores_path("val_calib"))
    names = [*calib.case_id, *(f"other{at}" for at in range(len(calib)))]
    weight = np.repeat(np.where(np.arange(len(calib)) % 4 == 0, 2.0, 1.0), 2)
    pd.DataFrame({"case_id": names, "weight": weight}).to_csv(tmp_path / "w.csv", index=False)
    found, problems = weights_of(run, str(tmp_path / "w.csv"), 2.0)
    assert (type(found), problems) == (Weights, [])
    weight[0] = 0.5
    pd.DataFrame({"case_id": names, "weight": weight}).to_csv(tmp_path / "w.csv", index=False)
    found, problems = weights_of(run, str(tmp_path / "w.csv"), 2.0)
    assert found is None
    assert "1 group with cases of different weights (case00000)" in problems[0]

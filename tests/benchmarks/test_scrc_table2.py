"""The rules of the SCRC benchmark allow the misses that they should, and its truth is the truth."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from scrc_experiment import ALPHA, COLUMNS, XI, Pool, draw  # noqa: E402
from scrc_rules import (  # noqa: E402
    cases_needed,
    ceil_example,
    exact,
    hoeffding_grid,
    released,
    transductive_corrected,
    transductive_published,
)


@pytest.mark.parametrize(
    ("m", "alpha", "published", "corrected"),
    [(74, 0.02, 1, 0), (99, 0.02, 1, 1), (29, 0.1, 2, 2), (48, 0.02, 0, -1), (1750, 0.1, 175, 174)],
)
def test_ceil_allows_one_miss_too_many_unless_the_product_is_whole(m, alpha, published, corrected) -> None:
    assert transductive_published(np.array([m]), m, alpha, np.nan).tolist() == [published]
    assert transductive_corrected(np.array([m]), m, alpha, np.nan).tolist() == [corrected]


def test_ceil_breaks_its_mean_where_floor_keeps_it() -> None:
    found = ceil_example(74, 0.02, 20_000, seed=0)
    assert found["ceil"][1] == pytest.approx(2 / 75, abs=5 * found["ceil"][2])
    assert found["floor"][1] == pytest.approx(1 / 75, abs=5 * found["floor"][2])


def test_exact_rule_wants_the_least_evidence_that_certifies() -> None:
    m = np.array([313, 148, 149, 235, 236, 312])
    assert exact(m, 1000, 0.02, 0.05).tolist() == [2, -1, 0, 0, 1, 1]


def test_released_rule_corrects_the_share_kept_and_nothing_else() -> None:
    # eps = sqrt(ln 40 / 5000) = .02716; ceil(2501 * .1 * (.7 - .02716)) - 1
    assert released(np.array([1750]), 2500, 0.1, 0.05).tolist() == [168]
    assert released(np.array([10]), 2500, 0.1, 0.05).tolist() == [-1]


def test_hoeffding_grid_allows_its_first_set_where_it_says() -> None:
    needed = cases_needed(0.02, 0.7, 0.05)
    assert needed == 29_769
    for n, sign in ((needed - 9, -1), (needed + 1, 0)):  # both n are whole multiples of ten
        assert hoeffding_grid(np.array([7 * n // 10]), n, 0.02, 0.05).tolist() == [sign]


def test_risk_and_size_are_those_of_the_pool() -> None:
    """Against plain loops over cases, with ties in both scores."""
    rng = np.random.default_rng(0)
    pool = Pool(np.zeros((300, 4)), rng.integers(0, 4, 300))
    rank, sets = rng.integers(0, 60, 300) / 60, rng.random((300, 4)).round(2)
    drawn = rng.integers(0, 300, (5, 120))
    risk, size = draw(pool, rank, sets, drawn)
    for r, cases in enumerate(drawn):
        cut = sorted(rank[cases], reverse=True)[int(np.ceil(XI * 121)) - 1]
        truths = sorted(sets[i, pool.labels[i]] for i in cases if rank[i] > cut)
        for k, (rule, delta) in enumerate(COLUMNS):
            allowed = int(rule.allowed(np.array([len(truths)]), 120, ALPHA, delta)[0])
            if rule.on_grid:
                continue
            threshold = truths[len(truths) - 1 - allowed] if allowed >= 0 else np.inf
            kept = [i for i in range(300) if rank[i] > cut]
            assert risk[r, k] == pytest.approx(np.mean([sets[i, pool.labels[i]] > threshold for i in kept]))
            assert size[r, k] == pytest.approx(np.mean([np.sum(sets[i] <= threshold) for i in kept]))


def test_script_prints_its_tables_from_a_file_and_without_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("calib", "test"):
        arrays[f"{split}_labels_0"] = rng.integers(0, 10, 2000).astype(np.int8)
        arrays[f"{split}_logits_0"] = rng.standard_normal((2000, 10)).astype(np.float32)
    np.savez(tmp_path / "logits.npz", **arrays)
    for options in (["--logits", str(tmp_path / "logits.npz")], []):
        done = run("--draws", "1", *options)
        assert done.returncode == 0, done.stderr
        assert "RESEARCH" in done.stdout
        assert "the paper, Table 2" in done.stdout
        assert "Which rule gives what" in done.stdout
    missing = run("--logits", str(tmp_path / "no.npz"))
    assert missing.returncode == 2
    assert "wanted calib_logits_0" in missing.stderr


def run(*options: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "benchmarks" / "scrc_table2.py"
    return subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)

"""What 00 says of the cases in one glance, and what it says that their positives can certify."""

import numpy as np
import pandas as pd
import pytest

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.overview import carries, describe, smallest_sure_target
from stage1_pro.core.data.splitting import make_splits
from stage1_pro.core.metrics.binomial import minimum_positives, positives_for_power


def said(capsys: pytest.CaptureFixture, labels: np.ndarray, groups: np.ndarray | None = None) -> list[str]:
    """The lines on a table with these labels, of which the last class is positive."""
    ids = np.array([f"{index:05}" for index in range(len(labels))], dtype=object)
    names = ids if groups is None else np.array([f"g{group}" for group in groups], dtype=object)
    columns = {"case_id": ids, "path": ids, "label": labels, "group": names, "split": "", "content": ids}
    classes = tuple(f"c{label}" for label in range(int(max(labels)) + 1))
    cases = CaseTable(pd.DataFrame(columns), classes, groups is not None, False)
    config = merge_configs([("test", {"dataset_params": {"val_calib_ratio": 0.2}})])
    describe(cases, make_splits(cases, config), config)
    return capsys.readouterr().out.splitlines()


def row(lines: list[str], name: str) -> list[str]:
    return next(line.split()[1:] for line in lines if line.split()[:1] == [name])


def test_every_split_and_all_of_them_are_counted(capsys: pytest.CaptureFixture) -> None:
    labels = (np.arange(2000) % 10 == 0).astype(int)
    lines = said(capsys, labels)
    assert lines[0] == "positive: c1 (against c0)"
    assert lines[1].split() == ["cases", "c0", "c1"]
    assert row(lines, "val_calib") == ["400", "360", "40"]
    assert row(lines, "all") == ["2,000", "1,800", "200"]
    assert len({len(line) for line in lines[1:7]}) == 1  # the columns stand below each other


def test_groups_are_counted_where_there_are_some(capsys: pytest.CaptureFixture) -> None:
    lines = said(capsys, (np.arange(2000) // 5 % 10 == 0).astype(int), np.arange(2000) // 5)
    assert lines[1].split() == ["cases", "c0", "c1", "groups", "with", "c1"]
    assert row(lines, "all") == ["2,000", "1,800", "200", "400", "40"]
    assert row(lines, "val_calib")[2:] == ["40", "80", "8"]
    assert "val_calib: 8 independent positives; target_fnr_exit 0.02 needs 149 exits" in "\n".join(lines)


def test_a_thousand_classes_fit_on_a_line(capsys: pytest.CaptureFixture) -> None:
    lines = said(capsys, np.r_[np.arange(12_000) % 1000, np.zeros(5000, dtype=int)])
    assert max(map(len, lines[:7])) < 120
    assert lines[1].split()[-3:] == ["c999", "993", "others"]
    counts = [int(cell.replace(",", "")) for cell in row(lines, "all")]
    assert counts[0] == sum(counts[1:]) == 17_000


@pytest.mark.parametrize("positives", [29, 60, 149, 400, 2000])
def test_the_targets_that_it_carries_are_the_smallest_ones(positives: int) -> None:
    words = carries(positives, 0.05)
    least = float(words.split(" from ")[1].split()[0])
    assert minimum_positives(least, 0.05) <= positives < minimum_positives(least - 0.001, 0.05)
    surely = smallest_sure_target(positives, 0.05)
    assert (surely is None) == (positives < 76) == ("none up to 0.1" in words)
    if surely:
        assert positives_for_power(surely / 4, surely, 0.05) <= positives
        assert positives_for_power(0.99 * surely / 4, 0.99 * surely, 0.05) > positives


def test_too_few_positives_carry_nothing() -> None:
    assert carries(28, 0.05) == carries(0, 0.05) == "it can carry no target up to 0.1, the largest there is"

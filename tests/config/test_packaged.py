"""Names of packaged configs: found from anywhere, and never in the place of a file of the user's."""

from pathlib import Path

import pytest

from stage1_pro.core.config.load import read_config_file
from stage1_pro.core.config.packaged import CONFIGS, config_names
from stage1_pro.core.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_name_and_the_path_of_a_checkout_find_every_packaged_config() -> None:
    assert {"demo", "smoke", "phase1", "phase6", "ab/lora"} <= set(config_names())
    for name in config_names():
        packaged = read_config_file(CONFIGS / f"{name}.yaml")
        assert read_config_file(Path(name)) == read_config_file(Path(f"configs/{name}.yaml")) == packaged


def test_a_file_of_that_name_comes_first() -> None:
    Path("configs").mkdir()
    for mine in ("phase3", "configs/phase3.yaml"):
        Path(mine).write_text("seed: 7\n")
        assert read_config_file(Path(mine)) == {"seed": 7}


@pytest.mark.parametrize("missing", ["phase3.yaml", "phas3", "conf/phase3.yaml", "configs/phase3.yml"])
def test_a_missing_file_is_not_replaced_by_a_packaged_one(missing: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_config_file(Path(missing))
    with pytest.raises(UserError, match=r"with --config \(did you mean 'phase3'\?\)"):
        read_config_file(Path("phase3.yaml"))

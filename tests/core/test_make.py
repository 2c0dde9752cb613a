"""What make would run, without running it: the user's config, or else the demo's images."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FIRST = "no data named: the demo's images serve (configs/demo.yaml). CONFIG=my.yaml trains on yours"
SOURCES = "--dataset_params.sources"
OURS = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PHASE", "RUN", "CONFIG", "ARGS")  # of the make that runs the tests


def planned(*words: str) -> list[str]:
    """The lines of `make -n`, which begins with setting up where there is no environment yet."""
    command = ["make", "--no-print-directory", "-n", *words]
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", ["train", "pipeline"])
def test_without_data_the_demo_serves_and_the_first_line_says_so(target: str) -> None:
    for arguments, settings in (("", ""), ("--epochs 3", "--epochs 3 ")):
        lines = planned(target, "PHASE=3", f"ARGS={arguments}")
        assert lines[0] == FIRST
        command = f"20_train.py --config configs/phase3.yaml --config configs/demo.yaml {settings}--phase 3"
        assert any(line.endswith(command) for line in lines)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["CONFIG=my.yaml"], "--config my.yaml"),
        (["CONFIG=my.yaml", "ARGS=--epochs 3"], "--config my.yaml --epochs 3"),
        (["ARGS=--config my.yaml"], "--config my.yaml"),
        (["ARGS=--config=my.yaml"], "--config=my.yaml"),
        ([f"ARGS={SOURCES} '[]'"], f"{SOURCES} '[]'"),
        ([f"ARGS={SOURCES}=[]"], f"{SOURCES}=[]"),
    ],
)
def test_data_that_is_named_is_taken_alone(words: list[str], settings: str) -> None:
    lines = planned("train", "PHASE=3", "RUN=runs/none", *words)
    assert FIRST not in lines
    command = f"--config configs/phase3.yaml {settings} --phase 3"
    assert lines[-2].endswith(f"00_make_splits.py {command} --run runs/none")
    assert lines[-1].endswith(f"20_train.py {command} --run runs/none")
    assert not any("demo" in line for line in lines)


@pytest.mark.parametrize(("words", "offline"), [([], "1"), (["CONFIG=my.yaml"], "0"), (["ARGS=--config a.yaml"], "0")])
def test_weights_that_your_config_names_may_be_downloaded(words: list[str], offline: str) -> None:
    show = "--eval=show:; @echo $$HF_HUB_OFFLINE"
    environment = {name: value for name, value in os.environ.items() if name not in (*OURS, "HF_HUB_OFFLINE")}
    done = subprocess.run(
        ["make", show, "show", *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [offline], done.stderr


def test_the_other_targets_take_the_run_alone() -> None:
    for target in ("calibrate", "evaluate", "export"):
        lines = planned(target, "PHASE=3", "RUN=runs/mine")
        assert FIRST not in lines
        assert "--run runs/mine" in " ".join(lines[-2:])


def test_a_bundle_is_certified_for_the_site_that_is_named() -> None:
    lines = planned("recalibrate", "RUN=runs/mine", "CONFIG=site.yaml", "ARGS=--out runs/site")
    assert FIRST not in lines
    assert lines[-1].endswith("38_recalibrate.py runs/mine/bundle --config site.yaml --out runs/site")


def test_clean_removes_no_data_that_make_did_not_prepare() -> None:
    (line,) = planned("clean")
    assert "data/demo" in line.split()
    assert "data" not in line.split()

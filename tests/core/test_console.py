"""Progress where there is no terminal: a line now and then, with the time that is left; and what readers end of."""

import subprocess
import sys

import pytest

from stage1_pro.core import console


def lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float, brief: bool
) -> list[str]:
    """What 100 steps of so many seconds print."""
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    with console.bar("reading images", brief) as progress:
        for done in range(1, 101):
            now[0] += seconds
            progress(done, 100)
    return capsys.readouterr().out.splitlines()


def test_a_long_step_says_where_it_is_and_how_long_it_will_take(monkeypatch, capsys) -> None:
    printed = lines(monkeypatch, capsys, 0.5, brief=True)
    assert printed[0] == "  reading images: 20 of 100, about 40 s left"
    assert printed[-2:] == ["  reading images: 80 of 100, about 10 s left", "  reading images: 100"]
    assert len(printed) == 5


@pytest.mark.parametrize(("brief", "expected"), [(True, []), (False, ["  reading images: 100"])])
def test_a_short_step_has_no_lines_on_the_way(brief, expected, monkeypatch, capsys) -> None:
    assert lines(monkeypatch, capsys, 0.05, brief) == expected


@pytest.mark.parametrize(("seconds", "words"), [(1, "99 s"), (5, "8 min"), (600, "16.5 h")])
def test_the_unit_suits_the_time(seconds, words, monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "EVERY", 0.1)
    assert lines(monkeypatch, capsys, seconds, brief=False)[0].endswith(f"1 of 100, about {words} left")


CROWDED = """
import resource
from torch import zeros
from torch.utils.data import DataLoader
from stage1_pro.core.cli import exit_with

def keep():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 4096))
    return list(DataLoader([zeros(2)] * 400, batch_size=1, num_workers=2))  # each batch is an open file

exit_with(keep)
"""


def test_too_many_open_files_are_not_taken_for_too_little_memory() -> None:
    ended = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert "too many files are open" in ended.stderr
    assert "memory" not in ended.stderr
    raised = CROWDED.replace("(100, 4096)", "(4096, 4096)")  # as the message says
    assert subprocess.run([sys.executable, "-c", raised], capture_output=True, timeout=60).returncode == 0

"""`stage1`: its table, its words, and that a sub-command is the script itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from stage1_pro.core import commands
from stage1_pro.core.commands import COMMANDS, NAMES
from stage1_pro.core.config.phases import POLICY_TABLE

SCRIPTS = Path(__file__).parents[2] / "stage1_pro" / "scripts"


def stage1(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "stage1_pro", *words], capture_output=True, text=True, cwd=folder)


def test_every_script_has_one_sub_command() -> None:
    assert sorted(NAMES) == sorted(path.name for path in SCRIPTS.glob("*.py") if path.name != "__init__.py")
    assert COMMANDS["calibrate"].scripts == tuple(row.script for row in POLICY_TABLE.values())


def test_the_overview_has_a_line_for_each_command_and_fits_a_terminal() -> None:
    shown = stage1("--help")
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for command in COMMANDS.values():
        assert f"  {command.name:<11}  {command.summary}" in shown.stdout.splitlines()
    bare = stage1()
    assert (bare.returncode, bare.stdout) == (2, shown.stdout)


@pytest.mark.parametrize(
    ("word", "meant"), [("trian", "train"), ("40_eval_selective.py", "evaluate"), ("Export", "export"), ("xyz", None)]
)
def test_a_wrong_command_gets_a_suggestion(word: str, meant: str | None) -> None:
    done = stage1(word)
    assert done.returncode == 2
    assert done.stderr.startswith(f"python -m stage1_pro: '{word.removesuffix('.py')}' is not a command")
    assert ("did you mean" in done.stderr) == (meant is not None)
    assert meant is None or f"(did you mean '{meant}'?)" in done.stderr


def test_the_options_of_a_script_are_those_of_its_command() -> None:
    done = stage1("export", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m stage1_pro export [--run RUN]")
    assert "python -m stage1_pro export --verify runs/demo/bundle" in done.stdout
    assert ".py" not in done.stdout


def test_calibrate_shows_the_options_of_every_policy() -> None:
    done = stage1("calibrate", "--help")
    assert done.returncode == 0
    headings = [line for line in done.stdout.splitlines() if line.startswith("----")]
    assert headings == [f"---- for a run with exit_policy {name}" for name in POLICY_TABLE]
    assert "--scrc_variant" in done.stdout


@pytest.mark.parametrize("launcher", ["script", "stage1", "module"])
def test_a_next_command_runs_as_it_is_printed(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, and where `python` on the path is not the interpreter in use."""
    program = tmp_path / "a b" / "stage1"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom stage1_pro.__main__ import main\nmain()\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parents[1]))
    own = {"script": SCRIPTS / "00_make_splits.py", "stage1": program, "module": SCRIPTS.parent / "__main__.py"}
    monkeypatch.setattr(sys, "argv", [str(own[launcher])])
    monkeypatch.setattr(commands, "_in_use", [])
    if launcher != "script":
        commands.use("stage1" if launcher == "stage1" else "python -m stage1_pro")
    line = commands.runnable("next  python stage1_pro/scripts/40_eval_selective.py --help").removeprefix("next  ")
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stderr)
    assert "--scores_only" in done.stdout


def test_mistakes_are_told_in_the_words_of_the_command(tmp_path: Path) -> None:
    done = stage1("export", "--run", "runs/nope", folder=tmp_path)
    words = "runs/nope does not exist. Prepare it with python -m stage1_pro splits."
    assert (done.returncode, done.stderr) == (2, f"python -m stage1_pro export: {words}\n")

"""The public interface: its examples run as they stand, and a host without POSIX decides the same."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stage1_pro

WINDOWS = """
import runpy, sys, warnings
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None  # importing it raises ImportError, as on Windows
warnings.filterwarnings("error", category=EncodingWarning, module=r"stage1_pro\\.")  # UTF-8 is not the default there
from stage1_pro import load_exit_policy, verify_bundle
script, bundle, *_ = sys.argv[1:]
assert type(load_exit_policy(bundle)) is type(verify_bundle(bundle).policy)
assert "torch" not in sys.modules
from stage1_pro import Stage1Predictor
assert Stage1Predictor.load(bundle, device="cpu").class_names == ("blue", "red")
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture
def smoke_places(bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths that the examples name."""
    for name, target in (("runs/smoke/p2/bundle", bundle), ("data/smoke/images/0000.png", images / "000.png")):
        place = tmp_path / "here" / name
        place.parent.mkdir(parents=True)
        place.symlink_to(target)
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.usefixtures("smoke_places")
def test_every_example_of_the_public_names_runs() -> None:
    for name in stage1_pro.__all__:
        public = getattr(stage1_pro, name)
        tests = [test for test in doctest.DocTestFinder().find(public, name) if test.examples]
        assert tests, f"{name} has no example"
        for test in tests:
            report: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test, out=report.append)
            assert not report, "".join(report)


def test_the_python_of_the_readme_runs(bundle: Path, images: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    block = text.partition("```python\n")[2].partition("```")[0]
    for name, target in (("runs/latest/bundle", bundle), ("data/demo/images", images)):
        place = tmp_path / "there" / name
        place.parent.mkdir(parents=True)
        place.symlink_to(target)
    monkeypatch.chdir(tmp_path / "there")
    exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert {line.split()[0] for line in lines} <= {"exit", "defer"}
    assert {line.split()[1] for line in lines} <= {"blue", "red"}


def test_every_public_method_says_what_it_does() -> None:
    public = {name: member for name, member in vars(stage1_pro.Stage1Predictor).items() if not name.startswith("_")}
    assert {"load", "outputs", "decide", "class_names"} <= set(public)
    assert [name for name, member in public.items() if not inspect.getdoc(member)] == []


def test_a_host_without_posix_decides_the_same(bundle: Path, images: Path, tmp_path: Path, script) -> None:
    words = [str(bundle), str(images), "--device", "cpu", "--out"]
    assert script("60_predict", *words, tmp_path / "posix.csv").status == 0
    path = Path(stage1_pro.__file__).parent / "scripts" / "60_predict.py"
    command = [sys.executable, "-X", "warn_default_encoding", "-c", WINDOWS, str(path), *words, "any.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "any.csv").read_bytes() == (tmp_path / "posix.csv").read_bytes()

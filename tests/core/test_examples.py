"""Examples in docstrings say what happens; those that need a bundle are run where there is one (test_public_door)."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "stage1_pro"
NEED_A_BUNDLE = {PACKAGE / "core" / "bundle" / "contents.py", PACKAGE / "core" / "inference" / "predictor.py"}
FILES = sorted(file for file in PACKAGE.rglob("*.py") if ">>>" in file.read_text() and file not in NEED_A_BUNDLE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_examples_give_what_they_show(file: Path) -> None:
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    tried = 0
    for example in doctest.DocTestFinder().find(import_module(name)):
        tried += runner.run(example, out=report.append).attempted
    assert not report, "".join(report)
    assert tried

"""What the Monte Carlo tests measured, one line a cell, in the terminal and as a table for the docs.

    python -m pytest -q -m mc tests/validity --mc-table docs/validity.md
A file that holds the two MARKERS keeps all but what stands between them; any other is written anew.
"""

from collections.abc import Iterator
from pathlib import Path

import montecarlo
import numpy as np
import pytest

MARKERS = ("<!-- monte carlo figures: begin -->", "<!-- monte carlo figures: end -->")
TITLES = (
    *("policy", "cell", "target", "delta", "draws", "false", "allowed", "none found", "mean coverage"),
    *("softmax oracle", "promise"),
)
PROPERTY = "monte carlo"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mc-draws", metavar="N", type=int, help="draws of each Monte Carlo cell (default 1000)")
    parser.addoption("--mc-table", metavar="PATH", type=Path, help="write the Monte Carlo figures as a markdown table")


def pytest_configure(config: pytest.Config) -> None:
    montecarlo.DRAWS = config.getoption("--mc-draws", None) or montecarlo.DRAWS
    if not hasattr(config, "workerinput"):  # where tests run side by side, the process that hears of all of them
        config.pluginmanager.register(Figures())


@pytest.fixture(autouse=True)
def _collect_what_this_test_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    montecarlo.MEASURED.clear()
    yield
    policy = request.node.path.stem.removeprefix("test_").removesuffix("_validity")
    name = request.node.name.removeprefix("test_").replace("_", " ").replace("[", ": ").removesuffix("]")
    rows = [(policy, name, *_figures(measured)) for measured in montecarlo.MEASURED]
    request.node.user_properties.append((PROPERTY, rows))


def _figures(measured: montecarlo.Measured) -> tuple[str, ...]:
    found, risk = measured.found, measured.risk
    return (
        *(f"{risk.target_fnr:g}", f"{risk.delta:.2g}", str(found.fnr.size), str(measured.false)),
        *(str(measured.allowed), f"{found.none_found:.1%}", _share(found.mean_coverage), _share(found.oracle)),
        "kept" if measured.false <= measured.allowed else "broken",
    )


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


class Figures:
    """The rows of all tests, shown when they are over."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.rows += [tuple(row) for name, rows in report.user_properties if name == PROPERTY for row in rows]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        rows = [TITLES, *sorted(self.rows)]
        if len(rows) == 1:
            return
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        terminalreporter.section("Monte Carlo: certificates that promise more than the truth, and what they cover")
        for row in rows:
            terminalreporter.line(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            )
        if path := config.getoption("--mc-table", None):
            write_table(path, rows)
            terminalreporter.line(f"written to {path}")


def write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    """rows: the titles first."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    table = "\n".join([head, "|---" * len(rows[0]) + "|", *body])
    before, after = "", ""
    if path.exists() and all(marker in (text := path.read_text()) for marker in MARKERS):
        before, after = text.split(MARKERS[0])[0], text.split(MARKERS[1])[1].lstrip("\n")
    path.write_text(f"{before}{MARKERS[0]}\n\n{table}\n\n{MARKERS[1]}\n{after}")

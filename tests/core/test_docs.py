"""Pages say what is: quoted messages, links, paths, configs, targets, rooms and commands exist."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from stage1_pro.core.commands import COMMANDS, NAMES

REPOSITORY = Path(__file__).parents[2]
CORE = REPOSITORY / "stage1_pro" / "core"
PAGES = sorted(page for folder in (".", "docs", "benchmarks") for page in (REPOSITORY / folder).glob("*.md"))
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def blocks(text: str, kind: str) -> list[str]:
    """The content of blocks fenced as ```kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def quoted() -> list[tuple[str, str]]:
    """(page, message) of every line of a block fenced as ```text message."""
    return [
        (page.name, line.strip())
        for page in PAGES
        for block in blocks(page.read_text(), "text message")
        for line in block.splitlines()
        if line.strip()
    ]


def words(literal: ast.AST) -> str:
    """A string literal with … for what is filled in when it is printed."""
    if isinstance(literal, ast.JoinedStr):
        return "".join(words(part) if isinstance(part, ast.Constant) else "…" for part in literal.values)
    assert isinstance(literal, ast.Constant)
    return re.sub(r"\{[^{}]*\}", "…", str(literal.value))  # what `format` fills in


def merged(text: str) -> str:
    """One … where several stand side by side."""
    return re.sub(r"…(?:\s*…)+", "…", text)


@cache
def printed() -> str:
    """Every string literal of the package but docstrings, one a paragraph."""
    found = []
    for file in (REPOSITORY / "stage1_pro").rglob("*.py"):
        tree = ast.parse(file.read_text())
        silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            literal = isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
            if literal and id(node) not in silent:
                found.append(merged(words(node)))
    return "\n\n".join(found)


def test_every_message_that_a_page_quotes_is_one_that_the_code_prints() -> None:
    assert len(quoted()) > 20
    unknown = [f"{page}: {line}" for page, line in quoted() if merged(line) not in printed()]
    assert unknown == []


def test_quoted_messages_say_something_of_their_own() -> None:
    for page, line in quoted():
        assert len(line.replace("…", "").strip()) >= 12, f"{page}: {line} would be found anywhere"


def test_a_message_that_nobody_prints_is_found_out() -> None:
    assert "nothing certified: no candidate shows FNR on exits <= … at confidence ….  " not in printed()
    assert "nothing certified: no candidate shows FNR on entries" not in printed()


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = target.partition("#")[0]
            if not target.startswith(("http", "#")) and not (page.parent / path).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_files_that_pages_name_exist() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text()
        names = re.findall(r"(?<![\w/.<>-])((?:stage1_pro|configs|tests|benchmarks|docs)/[\w./-]*[\w/])", text)
        names += [
            f"stage1_pro/scripts/{name}" for name in re.findall(r"(?<![\w/-])(\d\d_\w+\.py|prepare_demo\.py)", text)
        ]
        names += [
            f"stage1_pro/core/{name}"
            for name in re.findall(r"`((?:metrics|policies|losses|training)/[\w/]+\.py)`", text)
        ]
        placeholders = {name for name in names if re.search("[A-Z]", name)}  # configs/phaseN.yaml
        missing += [f"{page.name}: {name}" for name in set(names) - placeholders if not (REPOSITORY / name).exists()]
    assert missing == []


def test_packaged_configs_that_pages_name_exist() -> None:
    """`--config phase2` finds configs/phase2.yaml."""
    for page in PAGES:
        for name in re.findall(r"--config ([a-z]\w*)(?![\w./-])", page.read_text()):
            assert (REPOSITORY / "configs" / f"{name}.yaml").exists(), f"{page.name}: --config {name}"


def test_make_targets_that_pages_name_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^ {4}make ([a-z-]+)", text, re.MULTILINE))
        assert named <= TARGETS, f"{page.name}: {sorted(named - TARGETS)}"


def test_the_page_of_commands_lists_every_script_command_and_target() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text()
    rows = {
        (script, command) for script, command in re.findall(r"^\| `(\w+\.py)` \| `([\w-]+)` \|", text, re.MULTILINE)
    }
    assert rows == set(NAMES.items())
    assert {path.name for path in (REPOSITORY / "stage1_pro" / "scripts").glob("[!_]*.py")} == set(NAMES)
    public = set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert public == set(re.findall(r"`make ([a-z-]+)`", text))


def test_the_page_of_benchmarks_names_every_one_that_can_be_called() -> None:
    folder = REPOSITORY / "benchmarks"
    callable_ones = {file.name for file in folder.glob("*.py") if '\nif __name__ == "__main__":' in file.read_text()}
    assert len(callable_ones) > 15
    assert callable_ones <= set(re.findall(r"\w+\.py", (folder / "README.md").read_text()))


def test_sub_commands_that_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"(?:^ {4}|`)stage1 ([a-z][\w-]*)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: stage1 {name}"


def test_the_page_of_the_architecture_lists_every_room_in_the_order_that_pyproject_keeps() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(row["layers"] for row in contracts if row["name"] == "Imports point downward")
    assert blocks(text, "text layers")[0].splitlines() == layers
    rooms = {path.stem for path in CORE.iterdir() if not path.name.startswith("_")}
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert rooms <= {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_pages_uses_names_that_exist(page: Path) -> None:
    """Imports are tried; methods of Stage1Predictor are looked up."""
    import importlib

    for block in blocks(page.read_text(), "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("predictor", "Stage1Predictor"):
                from stage1_pro import Stage1Predictor

                assert hasattr(Stage1Predictor, node.attr), node.attr

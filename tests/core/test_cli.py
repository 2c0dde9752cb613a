"""The command line: what is parsed, what is refused, and with which status a script ends."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from stage1_pro.core import cli
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.schemas import schema

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted(str(path) for path in (REPOSITORY / "stage1_pro" / "scripts").glob("[0-9p]*.py"))

HELP = """
import contextlib, io, runpy, sys
heavy = {"torch", "lightning", "timm", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "monai", "onnxruntime"}
for script in sys.argv[1:]:
    out, sys.argv = io.StringIO(), [script, "--help"]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(script, end.code, len(out.getvalue().splitlines()) > 5, sorted(heavy & set(sys.modules)), sep="|")
"""


@dataclass(frozen=True)
class Args:
    run: str | None = None
    """A run."""
    dry_run: bool = False
    """Only check."""


def parsed(*argv: str) -> tuple[Args, Stage1ProConfig]:
    args, layers = cli.parse_with_config(Args, "doc", argv)
    return args, merge_configs(layers)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as refused:
        parsed(*argv)
    return str(refused.value)


@pytest.fixture
def yaml_file(tmp_path: Path) -> str:
    (tmp_path / "a.yaml").write_text("epochs: 3\nseed: 3\ndataset_params: {image_size: 32, num_workers: 3}\n")
    return str(tmp_path / "a.yaml")


def test_flags_win_wherever_the_config_stands(yaml_file: str) -> None:
    flags = ["--epochs", "4", "--dataset_params.image_size=64", "--dry_run", "--run", "runs/x"]
    for at in (0, 2, 3, 4, 6):
        args, config = parsed(*flags[:at], "--config", yaml_file, *flags[at:])
        assert args == Args("runs/x", True)
        assert (config.epochs, config.seed) == (4, 3)
        assert (config.dataset_params.image_size, config.dataset_params.num_workers) == (64, 3)


def test_later_configs_win_over_earlier_ones(yaml_file: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("epochs: 5\n")
    config = parsed("--seed", "9", f"--config={yaml_file}", "--config", str(tmp_path / "b.yaml"))[1]
    assert (config.epochs, config.seed) == (5, 9)


@pytest.mark.parametrize(
    ("argv", "setting", "value"),
    [
        (["--lr_head", "1e-3"], "lr_head", 1e-3),
        (["--lr_head=1e-3"], "lr_head", 1e-3),
        (["--precision", "32"], "precision", "32"),
        (["--use_ema", "false"], "use_ema", False),
        (["--model_path", "file:a:b"], "model_path", "file:a:b"),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)
def test_settings_keep_their_types(argv: list[str], setting: str, value: object) -> None:
    assert getattr(parsed(*argv)[1], setting) == value


def test_structured_settings_take_yaml() -> None:
    sources = "[{name: s, labels: l.csv}]"
    config = parsed("--dataset_params.class_names", "[a, b]", "--dataset_params.sources", sources)[1]
    data = config.dataset_params
    assert data.class_names == ("a", "b")
    assert (data.sources[0].name, data.sources[0].labels) == ("s", "l.csv")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--epoch", "3"], "epoch is not a known setting (did you mean 'epochs'?)"),
        (["--dataset_params.imagesize", "3"], "imagesize is not a known setting (did you mean 'image_size'?)"),
        (["--epochs"], "--epochs: expected --setting VALUE"),
        (["--epochs", "--seed", "3"], "--epochs: expected --setting VALUE"),
        (["--dry-run"], "--dry-run (did you mean '--dry_run'?): expected --setting VALUE"),
        (["3", "--seed", "3"], "3: expected --setting VALUE"),
        (["my.yaml"], "my.yaml (did you mean --config my.yaml?): expected --setting VALUE"),
        (["--epochs", "3", "4"], "4: expected --setting VALUE"),
        (
            ["3", "x", "--rum", "y", "--epochs"],
            "3, x, --epochs: expected --setting VALUE; --rum (did you mean '--run'?): no such setting. See --help.",
        ),
        (["--config"], "--config: expected"),
        (["--config", "nope.yaml"], "nope.yaml does not exist"),
        (["--target_coverage", ".7"], "coverage is maximised under target_fnr_exit"),
        (["--epochs.x", "3"], "$.epochs is"),
        (["--lr_head", ""], "$.lr_head is null"),
        (["--run"], "--run"),
        (["--dry_run", "yes"], "yes"),
    ],
)
def test_a_bad_line_is_refused_in_words(argv: list[str], words: str) -> None:
    assert words in refusal(*argv)


def test_problems_of_file_and_flags_come_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("epohcs: 3\nlr_head: -1\n")
    message = refusal("--sede", "3", "--config", str(tmp_path / "a.yaml"), "--exit_policy", "gate", "--dropout", "2")
    for words in ("a.yaml: epohcs", "command line: sede", "$.lr_head is -1.0", "$.dropout is 2.0"):
        assert words in message


def test_misspelt_options_of_plain_scripts_get_a_suggestion() -> None:
    for word in ("--rum", "--rum=x"):
        with pytest.raises(UserError, match=r"is not an option \(did you mean '--run'\?\)\. See --help"):
            cli.parse(Args, "doc", [word, "x"])


@dataclass(frozen=True)
class Typed:
    bundle: str = field(metadata={"nargs": None})
    """A bundle."""
    images: list[str] | None = field(default=None, metadata={"nargs": "+"})
    """Images."""
    key: str | None = None
    """A key."""
    out: str | None = None
    """A file."""
    port: int = 1
    """A port."""
    share: float | None = None
    """A share."""
    kind: Literal["a", "b"] | None = None
    """A kind."""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["b", "--port", "x"], "--port x: must be a whole number. See --help."),
        (["b", "--share", "half"], "--share half: must be a number or null. See --help."),
        (["b", "--kind", "tflite"], "--kind tflite: must be a or b or null. See --help."),
        # an unset variable of the shell: no key would be no check
        (["b", "--key", ""], "--key: an empty word, as an unset variable gives. Name something, or leave it out."),
        (["", "--images", "a.png", ""], "bundle, --images: an empty word, "),
        (["b", "--out", "s3://shelf/d.csv"], "--out s3://shelf/d.csv is a URL. Name a path of this machine"),
    ],
)
def test_a_word_that_means_nothing_is_refused_in_words(argv: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        cli.parse(Typed, "doc", argv)
    assert str(refused.value).startswith(words)


def test_every_help_is_there_and_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *SCRIPTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{script}|0|True|[]" for script in SCRIPTS]
    assert len(SCRIPTS) >= 7


def leaves(node: dict, path: str = "") -> Iterator[str]:
    for name, below in node["properties"].items():
        yield from leaves(below, f"{path}{name}.") if "properties" in below else [path + name]


def test_help_tells_about_every_setting_of_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parsed("--help")
    assert not end.value.code
    options = capsys.readouterr().out.split("\n  --")[1:]
    told = {option.split()[0]: re.split(r"\((?:type|default):", option)[0].split()[2:] for option in options}
    settings = {*leaves(schema("config"))} - {"schema_version", "backbone_license"}
    assert len(settings) > 100
    assert {name for name in settings if len(told.get(name, [])) < 2} == set()


JOB = """
import os, signal, sys
from stage1_pro.core import cli, console, errors
from dataclasses import dataclass

@dataclass(frozen=True)
class Args:
    pass

def main(args):
    {body}

sys.argv = ["77_job.py", *sys.argv[1:]]
cli.run(main, Args, "doc")
"""


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("pass", 0, ""),
        ("raise RuntimeError('bug')", 1, "Traceback"),
        ("raise errors.UserError('your mistake')", 2, "77_job.py: your mistake\n"),
        ("raise errors.NothingCertified('nothing')", 3, "77_job.py: nothing\n"),
        ("raise errors.SomeInputsUnreadable('some')", 4, "77_job.py: some\n"),
        ("open('/none/x')", 2, "77_job.py: /none/x: No such file or directory. Fix this and run again.\n"),
        ("raise FileNotFoundError(2, 'No usable folder')", 2, "77_job.py: No usable folder. Fix this and run again.\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "77_job.py: Interrupted; the files on disk are whole.\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "77_job.py: Interrupted; the files on disk are whole.\n"),
    ],
)
def test_the_status_says_how_it_ended(body: str, status: int, words: str) -> None:
    done = subprocess.run([sys.executable, "-c", JOB.format(body=body)], capture_output=True, text=True)
    assert done.returncode == status
    assert words in done.stderr if status == 1 else words == done.stderr


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    job = JOB.format(body="[console.say('line') for _ in range(100_000)]")
    writer = subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    stderr = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait() != 0
    assert stderr == b""


def test_a_real_script_takes_its_path_and_its_module_name(tmp_path: Path) -> None:
    script = "stage1_pro/scripts/25_threshold_sweep.py"
    for command in ([str(REPOSITORY / script)], ["-m", "stage1_pro.scripts.25_threshold_sweep"]):
        done = subprocess.run(
            [sys.executable, *command, "--run", "runs/nope"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        assert done.stderr == "25_threshold_sweep.py: runs/nope does not exist. Prepare it with 00_make_splits.py.\n"

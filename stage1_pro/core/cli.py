"""The command line of every script: arguments, exit status, and nothing else.

A script is `main(args)` and a frozen dataclass of arguments whose field docstrings are its help.
Statuses: 0 done, 1 our bug, 2 the user's mistake, 3 nothing certified or
nothing gained, 4 some inputs unreadable,
130/143 interrupted.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from stage1_pro.core.commands import current, described, spoken
from stage1_pro.core.errors import Interrupted, UserError
from stage1_pro.core.schemas import did_you_mean, schema

SIGNAL_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def run(main: Callable[[Any], None], arguments: type, doc: str | None) -> None:
    """Parse the command line into `arguments`, call `main`, and exit with the status of the outcome."""
    exit_with(lambda: main(parse(arguments, doc, sys.argv[1:])))


def run_with_config(main: Callable[[Any, Any], None], arguments: type, doc: str | None) -> None:
    """Like `run`, for scripts that also take the whole training config: `main(args, config_layers)`."""
    exit_with(lambda: main(*parse_with_config(arguments, doc, sys.argv[1:])))


def parse(arguments: type, doc: str | None, argv: Sequence[str]) -> Any:
    """Parse flags into the dataclass `arguments`."""
    parser = _parser(doc)
    _add_arguments(parser, arguments)
    return _instantiate(parser, argv, arguments)


def parse_with_config(arguments: type, doc: str | None, argv: Sequence[str]) -> tuple[Any, list[tuple[str, Any]]]:
    """Split the command line into the script's own arguments and the layers of the config.

    Returns (arguments, layers): layers are what `config.merge_configs` takes, every
    --config file first and in turn, the flags last, wherever they stood on the line.
    """
    from stage1_pro.core.config.settings import Stage1ProConfig

    parser = _parser(doc)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings, or the name of a packaged one (phase3, demo); may be given several times",
    )
    _add_arguments(parser, arguments)
    own = {f"--{field.name}" for field in fields(arguments)}
    if {"-h", "--help"} & set(argv):
        parser.usage = "%(prog)s [--config FILE …] [--SETTING VALUE …] " + " ".join(
            f"[{option}]" for option in sorted(own)
        )
        parser.add_class_arguments(Stage1ProConfig, None)
        parser.parse_args(["--help"])
    several = {f"--{field.name}" for field in fields(arguments) if "nargs" in field.metadata}
    files, script_argv, settings = _split(argv, own, several)
    return _instantiate(parser, script_argv, arguments), _layers(files, settings)


def exit_with(job: Callable[[], None]) -> None:
    """Run the job of a command, and end with the status of its outcome and one message where it failed."""
    for number in SIGNAL_STATUS:
        signal.signal(number, _interrupt)
    try:
        job()
    except (UserError, Interrupted) as outcome:
        print(f"{current()}: {spoken(str(outcome))}", file=sys.stderr, flush=True)
        sys.exit(outcome.exit_status)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written to: not ours to mend
        print(f"{current()}: {error.filename}: {error.strerror}. Mend that and run again.", file=sys.stderr)
        sys.exit(UserError.exit_status)


def _interrupt(number: int, _frame: Any) -> None:
    raise Interrupted(SIGNAL_STATUS[signal.Signals(number)])


def _parser(doc: str | None):
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse")
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Types and defaults from the dataclass, the description as the script's docstring has it."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(
        prog=current(),
        description=described(doc or ""),
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Formatter,
    )


def _add_arguments(parser, arguments: type) -> None:
    """One option per field; booleans are bare flags. metadata {'nargs': …} and what else argparse
    takes: how many values, positional where the field has no default."""
    from docstring_parser import parse_from_object

    kinds = reversed(arguments.__mro__[:-1])  # a dataclass of options may extend another
    helps = {item.arg_name: item.description for kind in kinds for item in parse_from_object(kind).params}
    for field in fields(arguments):
        common = {"help": spoken(helps.get(field.name) or "")}
        if "nargs" in field.metadata:
            option = {} if field.default is MISSING else {"default": field.default}
            name = f"--{field.name}" if option else field.name
            parser.add_argument(name, type=str, **field.metadata, **common, **option)
        elif field.type is bool:
            parser.add_argument(f"--{field.name}", action="store_true", **common)
        else:
            parser.add_argument(f"--{field.name}", type=field.type, default=field.default, **common)


def _instantiate(parser, argv: Sequence[str], arguments: type) -> Any:
    from jsonargparse import ArgumentError

    try:
        parsed = parser.parse_args(list(argv))
    except ArgumentError as error:
        known = [f"--{field.name}" for field in fields(arguments)]
        unknown = [word for word in argv if word.startswith("--") and word.split("=")[0] not in [*known, "--help"]]
        hints = [f"{word} is not an option{did_you_mean(word.split('=')[0], known)}" for word in unknown]
        text = "; ".join(hints) or " ".join(str(error).split())
        raise UserError(f"{text}. See --help.") from None
    return arguments(**{field.name: parsed[field.name] for field in fields(arguments)})


def _split(argv: Sequence[str], own: set[str], several: set[str]) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """(config files, words for the script's own options, (setting, text) pairs), all problems at once.

    own: the script's options; several: those of them that take more than one word.
    """
    files: list[str] = []
    script_argv: list[str] = []
    settings: list[tuple[str, str]] = []
    bare: list[str] = []
    words = iter(argv)
    pending = next(words, None)
    while pending is not None:
        option, joined, value = pending.partition("=")
        following = next(words, None)
        if not joined and following is not None and not following.startswith("--"):
            value, following, joined = following, next(words, None), "="
        if option in own:
            script_argv += [option] + ([value] if joined else [])
            while option in several and following is not None and not following.startswith("--"):
                script_argv.append(following)
                following = next(words, None)
        elif not option.startswith("--") or not joined:
            bare.append(pending)
        elif option == "--config":
            files.append(value)
        else:
            settings.append((option[2:], value))
        pending = following
    if bare:
        words = [f"{word}{did_you_mean(word, sorted(own))}" for word in bare]
        raise UserError(f"{', '.join(words)}: expected --setting VALUE. See --help.")
    near = [f"--{key}{hint}" for key, _ in settings if (hint := _own_option_meant(key, own))]
    if near:
        raise UserError(f"{', '.join(near)}: no such setting. See --help.")
    return files, script_argv, settings


def _own_option_meant(key: str, own: set[str]) -> str:
    """A hint where an unknown setting looks like one of the script's own options."""
    known = schema("config")["properties"]
    return "" if key.split(".")[0] in known else did_you_mean(f"--{key}", [*own, "--config"], cutoff=0.8)


def _layers(files: list[str], settings: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    import yaml

    layers: list[tuple[str, Any]] = [(file, Path(file)) for file in files]
    for key, text in settings:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for part in reversed(key.split(".")):
            value = {part: value}
        layers.append(("command line", value))
    return layers

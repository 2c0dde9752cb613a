"""The command line of every script: arguments, exit status, and nothing else.

A script is `main(args)` and a frozen dataclass of arguments whose field docstrings are its help.
Statuses: 0 done, 1 our bug, 2 the user's mistake, 3 nothing certified, or nothing worth it, 4 some inputs unreadable,
5 the monitor alarms, 6 the certificate has expired, 130/143 interrupted.
"""

import gc
import os
import re
import signal
import sys
import warnings
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from stage1_pro.core.commands import current, described, runnable, spoken
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.config.yaml_text import parse_yaml, takes_text
from stage1_pro.core.console import lost_readers_told
from stage1_pro.core.errors import Interrupted, UserError
from stage1_pro.core.schemas import did_you_mean, schema

SPINS = "10000"
"""Turns for which a thread of a forward pass waits for the others before it sleeps (libgomp's GOMP_SPINCOUNT).

By itself libgomp waits some milliseconds, several hundred times a pass. Alone on its cores a pass is no faster for it;
where anything else runs there, the thread that is waited for gets no core meanwhile. Seen with two threads on two
shared cores: 35 to 140 ms of CPU an image, and 17 with this; 4.5 alone.
"""

OF_SECTIONS = ("_ActionConfigLoad", "_ActionHelpClassPath")
"""Kinds of jsonargparse's own options: a file for a section, help on a class."""
LOCAL = ("run", "out", "log")
"""Options of all scripts that name something to be written on this machine."""
HELP = {"-h", "--help"}
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
    parser = _parser(doc)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings, or the name of a packaged one (phase3, demo); may be given several times",
    )
    _add_arguments(parser, arguments)
    if HELP & set(argv):
        own = " ".join(sorted(f"[--{field.name}]" for field in fields(arguments)))
        parser.usage = f"%(prog)s [--config FILE …] [--SETTING VALUE …] {own}"
        parser.add_class_arguments(Stage1ProConfig, None)
        _leave_out_of_help(parser)
        parser.print_help()  # without the defaults, which parsing would work out first
        parser.exit()
    files, own_words, settings = _sort_out(argv, arguments)
    # files before flags, wherever they stand: the parser would apply them as they come, and undo a flag in silence
    layers: list[tuple[str, Any]] = [(file, Path(file)) for file in files]
    layers += [("command line", _nested(key, text)) for key, text in settings]
    return _instantiate(parser, own_words, arguments), layers


def _leave_out_of_help(parser) -> None:
    """Drop what jsonargparse offers for each section and the command line here does not take."""
    for action in parser._actions:
        if type(action).__name__ in OF_SECTIONS:
            action.help = SUPPRESS


def share_cores() -> None:
    """Let threads of forward passes wait for SPINS where the environment says nothing, before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def exit_with(job: Callable[[], None]) -> None:
    """Run the job of a command, and end with the status of its outcome and one message where it failed."""
    share_cores()
    for number in SIGNAL_STATUS:
        signal.signal(number, _interrupt)
    if HELP & set(sys.argv):
        gc.disable()  # a process that prints its help ends before there is anything to collect
    try:
        with lost_readers_told():
            job()
    except (UserError, Interrupted) as outcome:
        if isinstance(outcome, Interrupted):  # whoever asks again, while libraries tidy up, gets the end at once
            _leave_signals(SIGNAL_STATUS)
        print(f"{current()}: {runnable(str(outcome))}", file=sys.stderr, flush=True)
        sys.exit(outcome.exit_status)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written to: not ours to fix
        named = f"{error.filename}: " if error.filename else ""
        print(f"{current()}: {named}{error.strerror or error}. Fix this and run again.", file=sys.stderr)
        sys.exit(UserError.exit_status)


def _interrupt(number: int, _frame: Any) -> None:
    if hasattr(
        signal, "SIGCHLD"
    ):  # a scheduler ends the processes that read images too, and torch would raise for each
        _leave_signals([signal.SIGCHLD])
    raise Interrupted(SIGNAL_STATUS[signal.Signals(number)])


@contextmanager
def lasting() -> Iterator[None]:
    """Keep the garbage collector away, for good, from what comes in the block: modules, which stay until the end.

    It would look through them again and again while they come, a sixth of their time, and in each forked process, which
    has to copy their memory then.
    """
    if gc.get_freeze_count():  # most of it has come before
        yield
        return
    gc.disable()
    try:
        yield
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()


def _leave_signals(numbers: Iterable[int]) -> None:
    """What the system does by itself at these signals is done from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)


def _parser(doc: str | None):
    # jsonargparse is imported late: what fails before it need not wait for it
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse")
    from docstring_parser import DocstringStyle
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Types and defaults from the dataclass, the description as the script's docstring has it."""

    # the string under a field is its help; one named style, since trying all of them takes longer
    set_parsing_settings(docstring_parse_style=DocstringStyle.REST, docstring_parse_attribute_docstrings=True)
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
    from docstring_parser import DocstringStyle, parse_from_object

    kinds = reversed(arguments.__mro__[:-1])  # a dataclass of options may extend another
    helps = {
        item.arg_name: item.description
        for kind in kinds
        for item in parse_from_object(kind, DocstringStyle.REST).params
    }
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
        text = "; ".join(hints) or _told(" ".join(str(error).split()), arguments)
        raise UserError(f"{text}. See --help.") from None
    _demand_words(parsed, arguments)
    return arguments(**{field.name: parsed[field.name] for field in fields(arguments)})


def _demand_words(parsed: Any, arguments: type) -> None:
    """Raise UserError for every option without a word, as `--key "$KEY"` gives where KEY is not set: taken for none, a
    signature would not be looked at. And for a URL where something is written: as a path it is a folder "s3:"."""
    empty = []
    for field in fields(arguments):
        value = parsed[field.name]
        if value == "" or (isinstance(value, list) and "" in value):
            empty.append(field.name if field.default is MISSING else f"--{field.name}")
        if field.name in LOCAL and "://" in (value or ""):
            raise UserError(f"--{field.name} {value} is a URL. Name a path of this machine, and copy what is written.")
    if empty:
        raise UserError(
            f"{', '.join(empty)}: an empty word, as an unset variable gives. Name something, or leave it out."
        )


_WRONG_TYPE = re.compile(r'Parser key "(\w+)": .*(?:Given|Got) value: (.*)')
_IN_WORDS = {int: "a whole number", float: "a number", str: "text", type(None): "null"}


def _told(error: str, arguments: type) -> str:
    """An error of the parser in our words, where a value has the wrong type."""
    found = _WRONG_TYPE.fullmatch(error)
    if found is None:
        return error
    name, value = found.groups()
    kind = next(field.type for field in fields(arguments) if field.name == name)
    return f"--{name} {value}: must be {' or '.join(_allowed(kind))}"


def _allowed(kind: Any) -> list[str]:
    """What an option of this type may be."""
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    return [_IN_WORDS[kind]] if kind in _IN_WORDS else [word for one in get_args(kind) for word in _allowed(one)]


def _sort_out(argv: Sequence[str], arguments: type) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Return (config files, words for the script's own options, (setting, text) pairs).

    Raises one UserError with all words that are none of these, each with the option that was probably meant.
    """
    own = {f"--{field.name}": "nargs" in field.metadata for field in fields(arguments)}  # True: takes several words
    files: list[str] = []
    own_words: list[str] = []
    settings: list[tuple[str, str]] = []
    strays: list[str] = []
    for option, words in _options(argv):
        taken = words if own.get(option) else words[:1]
        if option in own:
            own_words += [option, *taken]
        elif not option.startswith("--") or not words:
            strays.append(option)
        elif option == "--config":
            files += taken
        else:
            settings.append((option[2:], taken[0]))
        strays += words[len(taken) :]
    expected = [f"{word}{_config_meant(word) or did_you_mean(word, sorted(own))}" for word in strays]
    unknown = [f"--{key}{hint}" for key, _ in settings if (hint := _own_option_meant(key, set(own)))]
    problems = [(expected, "expected --setting VALUE"), (unknown, "no such setting")]
    if text := "; ".join(f"{', '.join(words)}: {problem}" for words, problem in problems if words):
        raise UserError(f"{text}. See --help.")
    return files, own_words, settings


def _options(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option with the words up to the next one; `--a=b` is `--a b`. A word before all options stands alone."""
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        option, joined, value = word.partition("=")
        if option.startswith("--"):
            found.append((option, [value] if joined else []))
        elif found and found[-1][0].startswith("--"):
            found[-1][1].append(word)
        else:
            found.append((word, []))
    return found


def _config_meant(word: str) -> str:
    return f" (did you mean --config {word}?)" if word.endswith((".yaml", ".yml")) else ""


def _own_option_meant(key: str, own: set[str]) -> str:
    """A hint where an unknown setting looks like one of the script's own options."""
    known = schema("config")["properties"]
    return "" if key.split(".")[0] in known else did_you_mean(f"--{key}", [*own, "--config"], cutoff=0.8)


def _nested(key: str, text: str) -> Any:
    """`a.b`, "1" → {a: {b: 1}}: text is YAML where it can be, and as it is written where the setting takes text."""
    node = schema("config")
    for part in key.split("."):
        node = node.get("properties", {}).get(part, {})
    value: Any = text
    if not takes_text(node) or text.strip()[:1] in ("[", "{", '"', "'") or text in ("null", "~", ""):
        try:
            value, unquoted = parse_yaml(text, node, f"$.{key}")
        except (yaml.YAMLError, ValueError, RecursionError):
            unquoted = []
        if unquoted:
            raise UserError(f"--{key}: {'; '.join(unquoted)}.")
    for part in reversed(key.split(".")):
        value = {part: value}
    return value

"""The `stage1` command: one sub-command a script, with the script's own options and exit status.

stage1 train --config phase3 --config my.yaml
python -m stage1_pro train --config phase3 --config my.yaml     # the same, where `stage1` is not on the path
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from stage1_pro import __version__
from stage1_pro.core import cli
from stage1_pro.core.commands import COMMANDS, NAMES, Command, use
from stage1_pro.core.config.packaged import CONFIGS, CONSTRAINTS, config_names
from stage1_pro.core.errors import UserError
from stage1_pro.core.schemas import did_you_mean

HELP = ("-h", "--help")
STATUSES = (
    "0 done, 1 a bug of ours, 2 a mistake in the input, 3 nothing certified, or nothing worth it, 4 some images "
    "unreadable, 5 the monitor alarms, 6 the certificate has expired, 130 and 143 interrupted."
)


def main(launcher: str = "stage1") -> None:
    """Run the sub-command that the command line names, and exit with its status."""
    use(launcher)
    cli.exit_with(lambda: _run(launcher, sys.argv[1:]))


def _run(launcher: str, words: Sequence[str]) -> None:
    if not words or words[0] in HELP:
        print(overview(launcher))
        sys.exit(0 if words else UserError.exit_status)
    if words[0] == "--version":
        print(f"stage1-pro {__version__}\nconfigs      {CONFIGS}\nconstraints  {CONSTRAINTS}")
        return
    command = _command(words[0])
    use(launcher, command.name)
    options = list(words[1:])
    if len(command.scripts) == 1:
        _run_script(command.scripts[0], options)
    elif set(HELP) & set(options):
        _help_of_each_policy()
    else:
        _run_script(_script_of_run(options), options)


def overview(launcher: str) -> str:
    """Return what `stage1 --help` prints: a line for each sub-command."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {launcher} COMMAND [OPTIONS]",
            "",
            "Train, certify and ship the first stage of a classifier cascade.",
            "",
            *(f"  {row.name:<{width}}  {row.summary}" for row in COMMANDS.values()),
            "",
            f"{launcher} COMMAND --help lists the options of a command.",
            f"{launcher} --version says where configs and version constraints lie.",
            "",
            fill(f"--config FILE, or a name: {', '.join(config_names())}.", subsequent_indent="  "),
            fill(f"Exit status: {STATUSES}", subsequent_indent="  "),
        ]
    )


def _command(name: str) -> Command:
    """The row of a sub-command; raises UserError with the name probably meant, also where a script is named."""
    if name in COMMANDS:
        return COMMANDS[name]
    stem = name.removesuffix(".py")
    meant = NAMES.get(f"{stem}.py")
    hint = f" (did you mean '{meant}'?)" if meant else did_you_mean(name, list(COMMANDS))
    raise UserError(f"'{stem}' is not a command{hint}. Commands: {', '.join(COMMANDS)}. See --help.")


def _script_of_run(options: Sequence[str]) -> str:
    """The script that certifies the policy of the run that the options name."""
    from stage1_pro.core.records.run import LATEST, Run

    path = LATEST
    for option, following in zip(options, [*options[1:], ""], strict=True):
        if option == "--run" and following:
            path = following
        elif option.startswith("--run="):
            path = option.removeprefix("--run=")
    return Run.open(path).policy_row.script


def _help_of_each_policy() -> None:
    """The options of every policy's script, one after another: the run's policy decides which one runs."""
    from stage1_pro.core.config.phases import POLICY_TABLE

    for policy in POLICY_TABLE.values():
        print(f"---- for a run with exit_policy {policy.name}")
        try:
            _run_script(policy.script, ["--help"])
        except SystemExit:
            print()


def _run_script(script: str, options: Sequence[str]) -> None:
    """Run a script as `python -m` would, so that processes which it starts find the same entry point."""
    sys.argv[1:] = options
    runpy.run_module(f"stage1_pro.scripts.{Path(script).stem}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main("python -m stage1_pro")

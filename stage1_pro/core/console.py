"""Lines for people: what a script says, its progress bar, and the command that comes next."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stage1_pro.core.commands import spoken
from stage1_pro.core.errors import Interrupted


def say(line: str = "") -> None:
    """One line for people, in the words of the command in use; whoever reads a pipe gets it at once."""
    print(spoken(line), flush=True)


def say_next(run_path: Path, script: str | None, words: list[str] | None = None) -> None:
    """The last lines of every script: where the results are and what to run next (with these words after it)."""
    say(f"run   {run_path}")
    if script:
        say(f"next  python stage1_pro/scripts/{script} --run {shlex.join([str(run_path), *(words or [])])}")


def words_without(option: str) -> list[str]:
    """This command's own arguments less one option and its value, for a next command that needs the same."""
    words = list(sys.argv[1:])
    if option in words:
        at = words.index(option)
        del words[at : at + 2]
    return [word for word in words if not word.startswith(f"{option}=")]


@contextmanager
def resumable(run_path: Path, script: str = "20_train.py") -> Iterator[None]:
    """Within the block an interruption ends with the command that goes on where it stopped."""
    try:
        yield
    except Interrupted:
        line = f"resume with: python stage1_pro/scripts/{script} --resume {run_path}"
        print(spoken(line), file=sys.stderr, flush=True)
        raise


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for the block; call what it yields with (done, total). Nothing is shown if it is never called."""
    if sys.stdout.isatty():
        yield from _live(title)
        return
    total = 0

    def count(_: int, of: int) -> None:
        nonlocal total
        total = of

    yield count
    if total:
        say(f"  {title}: {total}")


def _live(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(title, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)

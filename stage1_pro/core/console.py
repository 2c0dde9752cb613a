"""Lines for people: what a script says, its progress bar, and the command that comes next."""

import errno
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from traceback import walk_tb

from stage1_pro.core.commands import runnable
from stage1_pro.core.errors import Interrupted, UserError

BEGUN = ("config.json", "pretraining.json")
"""Files of which one is there once a run or an adaptation can be resumed."""
EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""


def say(line: str = "") -> None:
    """One line for people, in the words of the command in use; whoever reads a pipe gets it at once."""
    print(runnable(line), flush=True)


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
    """Within the block an interruption, a full disk, or the end of a process that reads images ends with the command
    that goes on where it stopped."""
    try:
        with lost_readers_told():
            yield
    except (Interrupted, OSError, LostReader) as stopped:
        if not isinstance(stopped, Interrupted) and not any((run_path / name).exists() for name in BEGUN):
            raise
        line = f"resume with: python stage1_pro/scripts/{script} --resume {shlex.quote(str(run_path))}"
        print(runnable(line), file=sys.stderr, flush=True)
        raise


class LostReader(UserError):
    """A process that reads images was ended from outside, or is not heard any more."""


_LOST = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)")
_FROM_READERS = "_try_get_data"
"""Where torch takes what its processes send."""
_REASONS = {"Bus error": "the memory that processes share is full: raise its limit (docker run --shm-size=8g)"}
"""By the signal that ended a process; for any other memory is what it most likely lacked."""
_TOO_MANY = "too many files are open to hear those that read images: raise the limit (ulimit -n 4096)"


@contextmanager
def lost_readers_told() -> Iterator[None]:
    """Raise LostReader where the block ends with an error because a process that reads images was killed, or because
    this one may not open the memory in which it gets them."""
    try:
        yield
    except LostReader:
        raise
    except Exception as error:  # torch raises in whatever is done at that moment, and that may raise something else
        errors = list(_chain(error))
        found = list(filter(None, map(_LOST.search, map(str, errors))))
        cut_off = list(filter(_cut_off, errors))
        if not found and not cut_off:
            raise
        if hasattr(signal, "SIGCHLD"):  # the others end with this process, and torch would raise for each
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name = next((match["signal"] for match in found if match["signal"]), "")
        by = f" by the signal '{name}'" if name else ""
        reason = _REASONS.get(name, "most likely memory ran out: leave it more")
        full = any(getattr(one, "errno", None) == errno.EMFILE for one in cut_off)
        why = _TOO_MANY if full else f"a process that reads images was ended{by}; {reason}"
        raise LostReader(f"{why}, or begin again with a lower num_workers.") from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _cut_off(error: BaseException) -> bool:
    """Whether a process was lost before torch knew it, in the middle of what it sent."""
    frames = (frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, OSError | EOFError) and _FROM_READERS in frames


@contextmanager
def bar(title: str, brief: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar for the block; call what it yields with (done, total). Nothing is shown if it is never called.

    Where there is no terminal, one line every EVERY seconds, with the time that is left, and one at the end. brief:
    of a block that is over in EVERY seconds nothing stays on the screen.
    """
    if sys.stdout.isatty():
        yield from _live(title, brief)
        return
    begun = told = monotonic()
    total = 0

    def count(done: int, of: int) -> None:
        nonlocal told, total
        total, now = of, monotonic()
        if now - told >= EVERY and 0 < done < of:
            told = now
            say(f"  {title}: {done:,} of {of:,}, about {span((now - begun) * (of - done) / done)} left")

    yield count
    if total and (not brief or told > begun):
        say(f"  {title}: {total}")


def span(seconds: float) -> str:
    """A time in the unit that suits it: 50 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _live(title: str, brief: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=brief) as progress:
        task = progress.add_task(title, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)

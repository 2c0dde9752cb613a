"""Outcomes that end a script with a message instead of a traceback."""

from collections.abc import Iterable, Sequence
from itertools import islice

SHOWN_PROBLEMS = 10


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and how to fix it."""

    exit_status = 2


class NothingCertified(UserError):
    """Certification ran and no candidate policy passed: an honest outcome, not a failure of the code."""

    exit_status = 3


class NotWorthIt(UserError):
    """A policy was certified, and its exits are worth no more than deferring every case."""

    exit_status = 3


class NoGain(UserError):
    """Pretraining ran and its guard blocks the result: an honest outcome, not a failure of the code."""

    exit_status = 3


class SomeInputsUnreadable(UserError):
    """The job is done, but some of its inputs could not be read."""

    exit_status = 4


class PromiseAlarm(UserError):
    """A monitor has shown that at some time FNR on exits was above its target."""

    exit_status = 5


class CertificateExpired(UserError):
    """The certificate has ended, by its date or by its number of audited cases."""

    exit_status = 6


class Interrupted(BaseException):
    """Ctrl-C or a scheduler's signal; what is on disk is whole.

    No Exception, so that no library takes it for a failure of its own, and no KeyboardInterrupt, which
    Lightning would turn into exit status 1.
    """

    def __init__(self, exit_status: int):
        super().__init__("Interrupted; the files on disk are whole.")
        self.exit_status = exit_status


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, which agrees in number.

    >>> counted(1, "problem"), counted(3, "problem")
    ('1 problem', '3 problems')
    """
    return f"{number} {noun if number == 1 else noun + 's'}"


def one_line(name: str) -> str:
    """Return a name with escapes for what would break a line, such as \\n.

    >>> one_line("Maß\\n5")
    'Maß\\\\n5'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def first_few(names: Iterable[object], most: int = SHOWN_PROBLEMS) -> str:
    """Return names with commas between them, at most ten.

    >>> first_few(range(12), most=3)
    '0, 1, 2, …'
    """
    shown = [one_line(str(name)) for name in islice(names, most + 1)]
    return ", ".join(shown[:most]) + (", …" if len(shown) > most else "")


def first_line(error: Exception, most: int = 120) -> str:
    """Return the first line of what another library raised, or the name of its kind.

    >>> first_line(ValueError("no footer\\nat offset 4")), first_line(ValueError())
    ('no footer', 'ValueError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


def raise_problems(title: str, problems: Sequence[str], mend: str = "") -> None:
    """Raise one UserError that lists every problem (the first ten, and how many more)."""
    if not problems:
        return
    shown = [f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"  … and {len(problems) - SHOWN_PROBLEMS} more")
    raise UserError("\n".join([title, *shown, *([mend] if mend else [])]))

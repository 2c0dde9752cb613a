"""Actors that take one part after another: whoever is free gets the next, and a part that costs actors is given up."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from stage1_pro.core.console import say
from stage1_pro.core.errors import UserError

TRIES = 3
"""Actors that a part may cost before it is given up; starts in a row that may fail before there are fewer actors."""
PAUSE_S = 2
"""Seconds from the loss of an actor to what is done about it, in which the others go on: where memory ran out it is
free by then, and whoever ends all processes of a job has come to this one."""
CHECK_S = 1
"""Seconds between two looks at what all actors depend on."""
REASONS = {
    "low on memory": "its node ran out of memory",
    "connection error code": "its process was killed, or crashed",
}
"""What Ray says of a lost actor, in a paragraph, and what that means."""
START = -1
"""What an actor is at before it has a part."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a part. problem: words for the user, empty where it is written; given_up: it cost TRIES actors."""

    part: int
    problem: str = ""
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class _Loss:
    """An actor that was lost at a part. due: time.monotonic() at which something is done about it."""

    part: int
    error: Exception
    due: float


class Pool:
    """Actors on their way and at work.

    make: starts an actor, whose methods `start` and `decide` return the words of a user's mistake, empty for none;
    work: what `start` gets; check: called every CHECK_S seconds, raises where no actor can work any more. An
    actor that is lost is replaced, and its part is tried again after all others.
    """

    def __init__(
        self, make: Callable[[], Any], work: Any, parts: Iterable[int], check: Callable[[], object] = lambda: None
    ):
        self._make, self._work, self._check = make, work, check
        self._waiting = deque(parts)
        self._busy: dict[Future, tuple[Any, int]] = {}
        self._losses: deque[_Loss] = deque()
        self._lost: Counter[int] = Counter()

    def outcomes(self, actors: int) -> Iterator[Outcome]:
        """Yield what came of each part, as they end. Raises UserError where no actor starts.

        What an actor raises is our bug, and is raised here.
        """
        for _ in range(actors):
            self._begin()
        # whoever has not started when no part is left is not waited for: the cluster may never have room for it
        while self._waiting or any(part != START for part in self._at_hand()):
            for future in self._ended():
                yield from self._after(future)
            while self._losses and self._losses[0].due <= monotonic():
                yield from self._without(self._losses.popleft())

    def _at_hand(self) -> list[int]:
        """The parts that actors are at, or were at when they were lost."""
        return [*(part for _, part in self._busy.values()), *(loss.part for loss in self._losses)]

    def _ended(self) -> Iterable[Future]:
        """Wait for actors that have ended what they were at, no longer than until a loss or a check is due."""
        self._check()
        patience = min(CHECK_S, max(0, self._losses[0].due - monotonic())) if self._losses else CHECK_S
        if not self._busy:
            sleep(patience)
        # not ray.wait, in which a signal waits for up to a second
        return wait(self._busy, patience, FIRST_COMPLETED).done

    def _begin(self) -> None:
        actor = self._make()
        self._busy[actor.start.remote(self._work).future()] = actor, START

    def _after(self, future: Future) -> Iterator[Outcome]:
        """Give the actor its next part, and say what came of the last one."""
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]

        actor, part = self._busy.pop(future)
        try:
            problem = future.result()
        except RayTaskError:
            raise
        except RayError as error:
            self._losses.append(_Loss(part, error, monotonic() + PAUSE_S))
            return
        if part == START:
            self._lost[START] = 0
        if self._waiting:
            following = self._waiting.popleft()
            self._busy[actor.decide.remote(following).future()] = actor, following
        if problem or part != START:
            yield Outcome(part, problem)

    def _without(self, loss: _Loss) -> Iterator[Outcome]:
        """Go on after an actor was lost."""
        part, why = loss.part, reason(loss.error)
        self._lost[part] += 1
        tries = self._lost[part]
        if part == START and tries >= TRIES:
            if not self._busy and not self._losses:
                raise UserError(f"No actor starts: {why}, {tries} times. Fix this and run again.")
            say(f"going on with fewer actors: {why} as it started, {tries} times in a row")
            return
        if part != START:
            say(f"part {part}: its actor was lost, {tries} of {TRIES} times: {why}")
            if tries < TRIES:
                self._waiting.append(part)
            else:
                yield Outcome(part, given_up=True)
        if self._waiting:
            self._begin()


def reason(error: Exception) -> str:
    r"""Why Ray lost an actor, in a line.

    >>> reason(RuntimeError("The actor died.\n\tpid: 7\nModuleNotFoundError: No module named 'a'\n"))
    "ModuleNotFoundError: No module named 'a'"
    """
    text = str(error)
    for known, words in REASONS.items():
        if known in text:
            return words
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:120].rstrip(".")

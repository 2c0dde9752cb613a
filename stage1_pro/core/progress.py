"""Progress for people: a live bar on a terminal, one plain line elsewhere."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stage1_pro.core.cli import say


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


def quiet_lightning() -> None:
    """Our own lines say what a user needs; Lightning's hints about other products do not."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*in eval mode at the start of training.*",  # a frozen backbone is meant to be
        ".*LeafSpec.*",
        ".*sync_dist=True.*",  # validation figures are computed from all ranks' cases already
        ".*AccumulateGrad node's stream.*",
    ):
        warnings.filterwarnings("ignore", message=message)

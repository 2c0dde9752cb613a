"""Decisions on image files as a table, one row an image, or one a group of images that are decided together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.image_files import shown
from stage1_pro.core.errors import Interrupted
from stage1_pro.core.inference.finding import NO_COPIES, Copies
from stage1_pro.core.inference.groups import ImageGroup, digest_words
from stage1_pro.core.inference.jobs import ROWS, Job, already_there, job_record
from stage1_pro.core.inference.predictor import RawOutputs, Stage1Predictor
from stage1_pro.core.inference.processes import workers_for
from stage1_pro.core.inference.records import Decision
from stage1_pro.core.inference.tables import Output, Tally, write_table


class MoreColumns(Protocol):
    """Adds columns to tables of decisions. record: what job.json keeps of them."""

    @property
    def record(self) -> dict[str, Any]: ...

    def added(self, rows: pd.DataFrame, record: dict[str, Any]) -> pd.DataFrame:
        """The rows with more columns. record: as the job began with it."""
        ...


def decide_into(
    predictor: Stage1Predictor,
    bundle: Path,
    paths: Sequence[str],
    out: Output,
    *,
    batch_size: int | None = None,
    workers: int | str = 0,
    overwrite: bool = False,
    more: MoreColumns | None = None,
    groups: Sequence[ImageGroup] | None = None,
    certificate_groups: Sequence[str] | None = None,
    copies: Copies = NO_COPIES,
) -> Tally:
    """Decide every file and write the table of `decisions_of` to `out`; return the counts.

    groups: of these files, for a bundle that decides groups; the table is then that of `group_decisions_of`;
    certificate_groups: of each file, for a bundle that certifies each camera or site by itself; copies: of those that
    are URLs.

    A regular file appears only when it is whole; a job that is killed leaves its parts, and the same call goes on with
    them. What is no regular file gets the rows as they come. workers: a number, or "auto"; more: adds columns. Raises
    UserError where `out` exists and is not to be overwritten, and where its parts belong to another bundle, to other
    images or other columns.
    """
    items = _Items(paths, groups, certificate_groups, copies)
    processes = workers_for(workers, predictor, list(map(copies.path, paths)))
    tally = Tally(unit="image" if groups is None else "group")

    def rows_of(positions: Sequence[int], record: dict[str, Any]) -> Iterator[pd.DataFrame]:
        frames = items.decided(predictor, positions, batch_size, processes)
        return frames if more is None else (more.added(rows, record) for rows in frames)

    if out.path is None or not out.regular:
        with out.opened() as stream:
            frames = rows_of(range(len(items.names)), more.record if more else {})
            rows = _grouped(frames, [ROWS] * (1 + len(items.names) // ROWS))
            write_table(tally.counting(rows), stream, out.format)
        return tally
    job = Job(out.path, items.names)
    demand_free(out, overwrite)
    with job.begun(job_record(bundle, items.inputs, predictor.device.type, more.record if more else None)) as begun:
        missing = job.missing()
        if missing and job.out.exists() and not overwrite:
            raise already_there(job.out)
        _decide_missing(job, missing, lambda positions: rows_of(positions, begun), f"{tally.unit}s")
        job.finish(out.format, overwrite, tally)
    job.remove()
    return tally


@dataclass(frozen=True, slots=True, eq=False)
class _Items:
    """What gets a row each: images, or groups of them. certificate_groups: of the images, one each."""

    paths: Sequence[str]
    groups: Sequence[ImageGroup] | None
    certificate_groups: Sequence[str] | None
    copies: Copies

    @property
    def names(self) -> Sequence[str]:
        """One a row."""
        return self.paths if self.groups is None else [group.name for group in self.groups]

    @property
    def inputs(self) -> list[str]:
        """What pins a job on these items."""
        words = self.paths if self.groups is None else digest_words(self.groups)
        named = [] if self.certificate_groups is None else [artifacts.digest_json(list(self.certificate_groups))]
        return [*map(self.copies.path, words), *named]

    def decided(
        self, predictor: Stage1Predictor, positions: Sequence[int], batch_size: int | None, workers: int
    ) -> Iterator[pd.DataFrame]:
        """Decide the items at these positions, in frames of rows."""
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "copies": self.copies}
        if self.groups is not None:
            return group_decisions_of(predictor, [self.groups[at] for at in positions], **options)
        held = None if self.certificate_groups is None else [self.certificate_groups[at] for at in positions]
        return decisions_of(predictor, [self.paths[at] for at in positions], **options, certificate_groups=held)


def demand_free(out: Output, overwrite: bool) -> None:
    """Raise UserError where the file exists, is not to be overwritten, and no job to write it is under way."""
    if out.regular and out.path and out.path.exists() and not overwrite and not Job(out.path, ()).folder.exists():
        raise already_there(out.path)


def _decide_missing(
    job: Job, missing: list[range], rows_of: Callable[[list[int]], Iterator[pd.DataFrame]], unit: str
) -> None:
    positions = [position for at in missing for position in at]
    if done := len(job.paths) - len(positions):
        say(f"going on: {done} of {len(job.paths)} {unit} are decided")
    frames = rows_of(positions)
    try:
        for at, rows in zip(missing, _grouped(frames, [len(at) for at in missing]), strict=True):
            job.keep(at, rows)
    except Interrupted:
        say(f"what is decided is in {job.folder}; the same command goes on where it stopped")
        raise


def decisions_of(
    predictor: Stage1Predictor,
    paths: Sequence[str],
    *,
    batch_size: int | None,
    workers: int,
    certificate_groups: Sequence[str] | None = None,
    copies: Copies = NO_COPIES,
) -> Iterator[pd.DataFrame]:
    """Decide every file, batch after batch: columns id (its path, as `shown` writes it), answer, probability, decision,
    score, reason, and prediction_set (the classes that remain possible) where the policy has such sets.
    certificate_groups: of each file, for a policy that certifies each by itself; then they are a column too.

    An unreadable file has no answer and is deferred.
    """
    done = 0
    for outputs in _streamed(predictor, paths, batch_size, workers, copies):
        own = slice(done, done + len(outputs))
        named = None if certificate_groups is None else certificate_groups[own]
        rows = decision_rows(predictor.records(outputs, named), list(map(shown, paths[own])))
        yield rows if named is None else rows.assign(certificate_group=named)
        done += len(outputs)


def group_decisions_of(
    predictor: Stage1Predictor, groups: Sequence[ImageGroup], *, batch_size: int | None, workers: int, copies: Copies
) -> Iterator[pd.DataFrame]:
    """Decide every group: the columns of `decisions_of`, id being its name, frames (how many images it has) and views
    (how many of them were looked at).

    A group of which one of these cannot be read is deferred, and its reason names the file.
    """
    paths = [path for group in groups for path in group.seen]
    ends = np.cumsum([0, *(len(group.seen) for group in groups)])
    held, reasons, done, first = [], {}, 0, 0
    for outputs in _streamed(predictor, paths, batch_size, workers, copies):
        held.append(outputs.logits)
        reasons |= {done + at: f"{shown(paths[done + at])}: {why}" for at, why in outputs.unreadable.items()}
        done += len(outputs)
        last = int(np.searchsorted(ends, done, side="right")) - 1
        if last > first:
            logits, own = np.concatenate(held), int(ends[last] - ends[first])
            whole = groups[first:last]
            found = {at - int(ends[first]): why for at, why in reasons.items() if at < ends[last]}
            records = predictor.group_records(logits[:own], [len(group.seen) for group in whole], found)
            rows = decision_rows(records, [group.name for group in whole])
            yield rows.assign(frames=[group.size for group in whole], views=[len(group.seen) for group in whole])
            held, first = [logits[own:]], last
            reasons = {at: why for at, why in reasons.items() if at >= ends[last]}


def _streamed(
    predictor: Stage1Predictor, paths: Sequence[str], batch_size: int | None, workers: int, copies: Copies
) -> Iterator[RawOutputs]:
    """Raw outputs of image files, with a bar."""
    done, sources = 0, list(map(copies.path, paths))
    with bar("deciding") as progress:
        for outputs in predictor.outputs(sources, batch_size=batch_size, workers=workers):
            names = paths[done : done + len(outputs)]
            yield replace(outputs, unreadable=copies.told(names, outputs.unreadable))
            done += len(outputs)
            progress(done, len(paths))


def _grouped(frames: Iterator[pd.DataFrame], sizes: Iterable[int]) -> Iterator[pd.DataFrame]:
    """The same rows in frames of these sizes; the last ones may come out shorter."""
    held: list[pd.DataFrame] = []
    for size in sizes:
        while sum(map(len, held)) < size and (frame := next(frames, None)) is not None:
            held.append(frame)
        rows = pd.concat(held, ignore_index=True) if held else pd.DataFrame()
        held = [rows.iloc[size:]] if len(rows) > size else []
        if len(rows):
            yield rows.iloc[:size]


def decision_rows(records: Sequence[Decision], ids: Sequence[str]) -> pd.DataFrame:
    """Records as the table of `decisions_of`, with these ids."""
    table = pd.DataFrame([asdict(record) for record in records])
    table.insert(0, "id", ids)
    if table["prediction_set"].isna().all():
        return table.drop(columns="prediction_set")
    table["prediction_set"] = table["prediction_set"].map("|".join)
    return table

"""Decisions on image files as a table, one row an image, or one a group of images that are decided together."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.image_files import BadImage, Listing, is_url, list_images, shown
from stage1_pro.core.data.remote import CHECK, images_behind
from stage1_pro.core.errors import Interrupted, UserError
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


@dataclass(frozen=True, slots=True)
class Copies:
    """Where the images behind URLs lie: URL → local copy, or why there is none. A URL that is not among them leads to
    no file."""

    of: Mapping[str, str | BadImage] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """The file to read for an image as it was named; for one that was not copied the name, which is no file."""
        found = self.of.get(name, name)
        return name if isinstance(found, BadImage) else found

    def told(self, names: Sequence[str], unreadable: Mapping[int, str]) -> dict[int, str]:
        """Reasons by position, with those of the images that were not delivered."""
        found = {at: self.of.get(names[at]) for at in unreadable}
        return {at: str(bad) if isinstance(bad := found[at], BadImage) else why for at, why in unreadable.items()}


NO_COPIES = Copies()


def find_images(names: list[str], store: Path, also: tuple[str, ...] = ()) -> tuple[Listing, Copies]:
    """Files and URLs as named, and the images below the folders named, in the order of the names.

    store: folder for copies of what lies behind URLs; also: suffixes of files that are inputs too.

    A name without a file stays among the others, to be deferred. Raises UserError where no name leads to an image.
    """
    behind, copied = images_behind(list(filter(is_url, names)), store, also)
    copies = Copies(copied)
    parts = [behind[name] if is_url(name) else _found(name, also) for name in names]
    found = Listing(
        tuple(path for part in parts for path in part.paths),
        sum(part.hidden for part in parts),
        sum((part.others for part in parts), Counter()),
    )
    words = ", ".join(map(shown, names))
    if not any(isinstance(copy, str) for copy in copied.values()) and not any(map(os.path.lexists, names)):
        for url, bad in copied.items():
            raise UserError(f"{url}: {bad}. {CHECK}")
        if not any(behind[url].left_out() for url in behind):
            raise UserError(f"{words}: no such image or folder.")
    if not found.paths:
        raise UserError(f"{words}: no images there" + (f" ({found.left_out()})." if found.left_out() else "."))
    return found, copies


def _found(name: str, also: tuple[str, ...]) -> Listing:
    return list_images(name, also) if os.path.isdir(name) else Listing((name,), 0, Counter())


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
    processes = workers_for(workers, predictor, list(map(copies.path, paths)))
    options: dict[str, Any] = {"batch_size": batch_size, "workers": processes, "copies": copies}
    items = paths if groups is None else groups
    named = [] if certificate_groups is None else [artifacts.digest_json(list(certificate_groups))]
    tally = Tally(unit="image" if groups is None else "group")

    def rows_of(positions: Iterable[int]) -> Iterator[pd.DataFrame]:
        if groups is None:
            own = list(positions)
            held = None if certificate_groups is None else [certificate_groups[at] for at in own]
            return decisions_of(predictor, [paths[at] for at in own], **options, certificate_groups=held)
        return group_decisions_of(predictor, [groups[at] for at in positions], **options)

    if out.path is None or not out.regular:
        with out.opened() as stream:
            frames = _widened(rows_of(range(len(items))), more, more.record if more else {})
            rows = _grouped(frames, [ROWS] * (1 + len(items) // ROWS))
            write_table(tally.counting(rows), stream, out.format)
        return tally
    job = Job(out.path, paths if groups is None else [group.name for group in groups])
    demand_free(out, overwrite)
    inputs = [*map(copies.path, paths if groups is None else digest_words(groups)), *named]
    with job.begun(job_record(bundle, inputs, predictor.device.type, more.record if more else None)) as begun:
        missing = job.missing()
        if missing and job.out.exists() and not overwrite:
            raise already_there(job.out)
        _decide_missing(job, missing, lambda positions: _widened(rows_of(positions), more, begun), f"{tally.unit}s")
        job.finish(out.format, overwrite, tally)
    job.remove()
    return tally


def demand_free(out: Output, overwrite: bool) -> None:
    """Raise UserError where the file exists, is not to be overwritten, and no job to write it is under way."""
    if out.regular and out.path and out.path.exists() and not overwrite and not Job(out.path, ()).folder.exists():
        raise already_there(out.path)


def _widened(
    frames: Iterator[pd.DataFrame], more: MoreColumns | None, record: dict[str, Any]
) -> Iterator[pd.DataFrame]:
    return frames if more is None else (more.added(rows, record) for rows in frames)


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

    An unreadable file has no answer and is deferred. Raises UserError where a process that decodes was killed.
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
    """Raw outputs of image files, with a bar. Raises UserError where a process that decodes was killed."""
    done = 0
    with bar("deciding") as progress:
        try:
            sources = list(map(copies.path, paths))
            for outputs in predictor.outputs(sources, batch_size=batch_size, workers=workers):
                names = paths[done : done + len(outputs)]
                yield replace(outputs, unreadable=copies.told(names, outputs.unreadable))
                done += len(outputs)
                progress(done, len(paths))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that decodes images was ended from outside after {done} of {len(paths)} images; most often "
                f"memory ran out. Run the same command again with --num_workers {workers // 2}."
            ) from None


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

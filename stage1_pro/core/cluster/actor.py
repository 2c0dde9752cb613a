"""What runs on a node of the cluster: an actor that loads the bundle once and decides one part after another."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from stage1_pro.core.bundle.contents import GOLDEN, verify_bundle
from stage1_pro.core.cluster.folder import Folder
from stage1_pro.core.cluster.images import sources
from stage1_pro.core.cluster.parts import mark, marker_name, part_name
from stage1_pro.core.cluster.table import BYTES, CERTIFICATE_GROUP, GROUP, ID, PATH, InputTable
from stage1_pro.core.console import lost_readers_told
from stage1_pro.core.data.image_files import shown
from stage1_pro.core.errors import UserError
from stage1_pro.core.inference.decisions import MoreColumns, decision_rows
from stage1_pro.core.inference.golden import check_golden
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.preparing import Staying, preparing_of
from stage1_pro.core.inference.tables import write_table


@dataclass(frozen=True, slots=True)
class Work:
    """What every actor gets.

    bundle: name → content of its files, so that no node needs the folder; rows_per_part: rows of every part but the
    last; base: folder that relative paths start from; threads: of a forward pass; workers: processes that decode beside
    the actor, from its start to its end; more: adds columns, with record.
    """

    bundle: Mapping[str, bytes]
    table: InputTable
    out: Folder
    rows_per_part: int
    base: str
    device: str
    threads: int
    workers: int
    more: MoreColumns | None
    record: dict[str, Any]

    def positions(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, len(self.table)))


class PartDecider:
    """An actor: `start`, then `decide` for one part after another, each of which writes that part and its marker.

    Both return a mistake of the user in words, empty for none, since Ray would wrap and log whatever is raised; our own
    bugs are raised.
    """

    def start(self, work: Work) -> str:
        """Load the bundle."""
        self.work = work
        return self._problem(self._load)

    def decide(self, part: int) -> str:
        """Decide the rows of a part."""
        return self._problem(lambda: write_part(self.work, self.predictor, part))

    def _load(self) -> None:
        self.predictor = loaded(self.work)
        if self.work.workers:
            reading = preparing_of(self.predictor.model.spec.preprocessing, self.predictor.device)
            self.predictor.images = Staying(reading, self.work.workers)

    def _problem(self, job: Callable[[], None]) -> str:
        try:
            with lost_readers_told():
                job()
        except UserError as error:
            return str(error)
        except OSError as error:  # a full disk, a folder that may not be written to
            return f"{error.filename or self.work.out.name}: {error.strerror or error}. Fix this and run again."
        return ""


def loaded(work: Work) -> Stage1Predictor:
    """The predictor, after the bundle's files and its golden inputs were checked on this machine."""
    import torch

    torch.set_num_threads(work.threads)
    with TemporaryDirectory(prefix="stage1-bundle-") as folder:
        for name, content in work.bundle.items():
            (Path(folder) / name).write_bytes(content)
        predictor = Stage1Predictor.load(folder, work.device)
        if GOLDEN in work.bundle:
            check_golden(verify_bundle(folder), predictor=predictor)
    return predictor


def write_part(work: Work, predictor: Stage1Predictor, part: int) -> None:
    """Decide the rows of a part, write them, then the marker that says they are whole."""
    rows = decided(work, predictor, work.positions(part))
    content = io.BytesIO()
    write_table([rows], content, "parquet")
    work.out.write(part_name(part), content.getvalue())
    work.out.write(marker_name(part), mark(rows, content.getvalue()))


def decided(work: Work, predictor: Stage1Predictor, at: range) -> pd.DataFrame:
    """The rows of 60_predict.py for these rows of the table."""
    columns = {
        name: values.to_pylist() for name, values in zip(work.table.columns, work.table.rows(at).columns, strict=True)
    }
    nothing = [None] * len(at)
    paths, contents = columns.get(PATH, nothing), columns.get(BYTES, nothing)
    frames, done = [], 0
    ids, named = names(at, columns.get(ID, nothing), paths), None
    if predictor.certificate_groups is not None:
        named = [str(name or "").strip() for name in columns.get(CERTIFICATE_GROUP, nothing)]
    for images in sources(paths, contents, work.base):
        for outputs in predictor.outputs(images, workers=work.workers):
            own = slice(done, done + len(outputs))
            frames.append(decision_rows(predictor.records(outputs, named and named[own]), ids[own]))
            done += len(outputs)
    rows = pd.concat(frames, ignore_index=True)
    if named is not None:
        rows[CERTIFICATE_GROUP] = named
    if work.more is None:
        return rows
    groups = [None if name in (None, "") else str(name) for name in columns.get(GROUP, nothing)]
    return work.more.added(rows.assign(group=pd.Series(groups, rows.index, dtype=object)), work.record)


def names(at: range, given: list[Any], paths: list[str | None]) -> list[str]:
    """The id of each row: what the table says, else its path, else its position; an empty word says nothing."""
    rows = zip(given, paths, at, strict=True)
    return [shown(str(next(word for word in row if word not in (None, "")))) for row in rows]

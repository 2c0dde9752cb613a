"""Decide a table of images on Ray: actors write its parts, and the driver hands out their numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from stage1_pro.core.bundle.contents import BundleContents, demand_images, demand_outside
from stage1_pro.core.cluster.actor import PartDecider, Work
from stage1_pro.core.cluster.folder import Folder
from stage1_pro.core.cluster.parts import (
    alone,
    counted_parts,
    demand_no_strays,
    opened_job,
    remove_leftovers,
    whole_parts,
)
from stage1_pro.core.cluster.pool import TRIES, Outcome, Pool
from stage1_pro.core.cluster.session import Resources, connected, demand_own_ray, threads_each
from stage1_pro.core.cluster.table import CERTIFICATE_GROUP, InputTable
from stage1_pro.core.console import bar, say
from stage1_pro.core.errors import Interrupted, UserError, counted, raise_problems
from stage1_pro.core.inference.decisions import MoreColumns
from stage1_pro.core.inference.jobs import record_of
from stage1_pro.core.inference.processes import MOST_WORKERS
from stage1_pro.core.inference.tables import Tally

ROWS_PER_PART = {"cpu": 1024, "cuda": 4096}
"""Rows of a part: a second or two of the device's work, and several batches for each process that decodes."""


def decide_table(
    contents: BundleContents,
    table: InputTable,
    outdir: str,
    *,
    rows_per_part: int | None = None,
    actors: int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    address: str | None = None,
    more: MoreColumns | None = None,
) -> Tally:
    """Decide every row and write OUTDIR; return the counts of all parts, also of those that were there.

    rows_per_part: None for ROWS_PER_PART; actors: None for as many as the cluster has room for; workers: processes that
    decode beside each, None for the CPUs that fall to its GPU; address: of a running cluster, None to start Ray on this
    machine; more: adds columns. Raises UserError where OUTDIR holds another job, and for whatever keeps a part from
    being written; the parts before it are whole.
    """
    rows_per_part = rows_per_part or ROWS_PER_PART[device]
    demand_images(contents)
    if contents.manifest.get("decide_by") == "group":
        raise UserError(f"{contents.path} decides groups of images. Decide them with 60_predict.py --groups.")
    column = contents.manifest.get("certificate_groups")
    if column is not None and CERTIFICATE_GROUP not in table.columns:
        raise UserError(
            f"{contents.path} certifies each '{column}' by itself: name that of every image in a column "
            f"{CERTIFICATE_GROUP} of {table.name}."
        )
    out = Folder.at(outdir)
    record = record_of(contents.path, table.digest, device, rows_per_part, more.record if more else None)
    bundle = {entry.name: entry.read_bytes() for entry in sorted(contents.path.iterdir())}
    base = os.getcwd()
    work = Work(bundle, table, out, rows_per_part, base, device, threads_each(), workers or 0, more, record)
    demand_outside(contents.path, out.local, "OUTDIR")
    out.make()
    demand_no_strays(out)
    parts = -(-len(table) // rows_per_part)
    with alone(out):
        work = replace(work, record=opened_job(out, record))
        missing = sorted(set(range(parts)) - whole_parts(out, parts))
        if missing:
            _decide(work, missing, actors, address, decoding=workers is None)
        remove_leftovers(out)
    tally = Tally(certificate=work.record.get("certificate"))
    counted_parts(out, range(parts), tally)
    return tally


def _decide(work: Work, missing: list[int], actors: int | None, address: str | None, decoding: bool) -> None:
    """decoding: processes that decode fill the CPUs of each GPU."""
    rows = {part: len(work.positions(part)) for part in missing}
    total, done = sum(rows.values()), 0
    given_up: list[int] = []
    if before := len(work.table) - total:
        say(f"going on: {before} of {len(work.table)} images are decided")
    with _told(work.out), connected(address, (work.threads + work.workers) * (actors or 1)) as found:
        if decoding and work.device == "cuda":
            work = replace(work, workers=min(MOST_WORKERS, max(0, found.gpu_cpus - work.threads)))
        each = work.threads + work.workers
        _demand_room(found, each, work.device)
        size = min(actors or _room(found, each, work.device), len(missing))
        beside = f" and {counted(work.workers, 'worker')}" if work.workers else ""
        say(f"{counted(size, 'actor')} of {counted(work.threads, 'thread')}{beside}")
        with bar("deciding") as progress:
            for outcome in _outcomes(work, missing, size, each):
                if outcome.problem:
                    raise UserError(outcome.problem)
                if outcome.given_up:
                    given_up.append(outcome.part)
                    continue
                done += rows[outcome.part]
                progress(done, total)
        _demand_all(work, sorted(given_up))


def _demand_all(work: Work, given_up: list[int]) -> None:
    """Raise UserError for parts that cost too many actors; all others are written."""
    ranges = [(part, work.positions(part)) for part in given_up]
    raise_problems(
        f"{counted(len(given_up), 'part')} could not be decided: the process of the actor ended {TRIES} times, as one "
        "does that runs out of memory, or meets an image that breaks a decoder.",
        [f"part {part}: rows {at.start} to {at.stop - 1} of {work.table.name}, counted from 0" for part, at in ranges],
        "If it was memory, use fewer --actors. If it was an image, move its file away, so that it is deferred as "
        "missing; one in a column bytes must be left out of the table, and another OUTDIR named. All other parts are "
        "decided.",
    )


@contextmanager
def _told(out: Folder) -> Iterator[None]:
    try:
        yield
    except (Interrupted, UserError):
        say(f"what is decided is in {out.name}; the same command goes on where it stopped")
        raise


def _outcomes(work: Work, missing: list[int], actors: int, cpus: int) -> Iterator[Outcome]:
    import ray  # pyright: ignore[reportMissingImports]

    # actors of Ray itself, not of Ray Data, whose executor looks at its actors together and left each of two idle for
    # a fifth of the time; a lost one is replaced by the pool, which counts what a part costs
    needs = {"num_cpus": cpus, "num_gpus": 1 if work.device == "cuda" else 0, "max_restarts": 0, "max_task_retries": 0}
    make = ray.remote(**needs)(PartDecider).remote
    yield from Pool(make, ray.put(work), missing, demand_own_ray).outcomes(actors)


def _room(found: Resources, cpus: int, device: str) -> int:
    """Actors that the cluster has room for."""
    by_cpu = max(1, found.cpus // cpus)
    return min(by_cpu, max(1, found.gpus)) if device == "cuda" else by_cpu


def _demand_room(found: Resources, cpus: int, device: str) -> None:
    """Raise UserError where not one actor would ever start."""
    if found.node_cpus < cpus:
        raise UserError(
            f"an actor takes {cpus} CPUs, and no node of the cluster has more than {found.node_cpus}: lower "
            "OMP_NUM_THREADS or --num_workers."
        )
    if device == "cuda" and not found.gpus:
        raise UserError("--device cuda: the cluster has no GPU. Leave --device out to decide on CPUs.")

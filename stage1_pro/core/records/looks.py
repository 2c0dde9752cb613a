"""Who has looked at which positives: looks are written down, counted, and priced in confidence.

A look is known in two places: as a row of the ledger of all runs beside looks/<look>.npy, the hashes of the positives
that it saw, and again in RUN/looks, so that a copied run carries what its count rests on.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk, remaining_confidence
from stage1_pro.core.records import ledger
from stage1_pro.core.records.paths import RUNS
from stage1_pro.core.records.positives import HashArray, overlap, positives_of, read_positives, write_positives
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores

LEDGER = "calibrations.csv"
REFUSED = (ledger.NOTHING_CERTIFIED, ledger.USELESS)


@dataclass(frozen=True, slots=True)
class Look:
    """One look that is written down. earlier: confidences of the other looks that share its positives."""

    run: Run
    entry: ledger.Entry
    earlier: tuple[float, ...] = ()

    @property
    def remaining(self) -> float:
        """Confidence that remains for what this look certifies."""
        return remaining_confidence([*self.earlier, self.entry.fnr_confidence])

    def settle(self, outcome: str) -> None:
        """Write down how the look ended."""
        for place in (_ledger_of(self.run.path), self.run.path / "looks" / LEDGER):
            ledger.change(place, self.entry.look, lambda _: {"outcome": outcome})


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Calibrate within the block: one process a run, since two at once would both certify.

    Raises UserError where another one is under way. The lock of a killed process has ended with it.
    """
    from filelock import FileLock, Timeout

    folder = run.path.resolve() / "looks"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{run.path}: another calibration of this run is under way. Wait until it has ended.") from None
    try:
        yield
    finally:
        lock.release()


def begin(run: Run, policy: str, risk: Risk, *, options: Mapping[str, Any] | None = None, repeat: bool = False) -> Look:
    """Write a look at val_calib down before anything is made of it, and count the others at its positives.

    options: settings of the calibration that decide its outcome beside the config; repeat: where the very same test has
    been made before, its row is marked as repeated instead, since the same test again spends nothing.
    """
    place, own = _ledger_of(run.path), run.path / "looks"
    entry = ledger.Entry(
        time=utc_now(),
        val_calib_digest=run.splits.metadata["val_calib_digest"],
        run=run.name,
        policy=policy,
        target_fnr_exit=risk.target_fnr,
        fnr_confidence=risk.confidence,
        outcome=ledger.BEGUN,
        run_path=_key(run.path, place),
        model_digest=run.model_digest,
        test=_test_digest(run, policy, risk, options or {}),
    )
    entry = replace(entry, look=_name(entry.test, place, own))
    positives = positives_of(run.image_scores("val_calib"))
    if repeat and (same := _same_test(entry, place, own)):
        entry = replace(same, outcome=ledger.BEGUN, repeated=same.repeated + 1, run_path=entry.run_path)
    elif positives is not None:
        for folder in (place.parent / "looks", own):
            write_positives(folder / f"{entry.look}.npy", positives)
    rows = _written(place, entry)
    others = {row.get("look") or f"row {index}": row for index, row in enumerate(rows)}
    others |= {row.look: asdict(row) for row in ledger.read(own / LEDGER) if row.look not in others}
    others.pop(entry.look, None)
    folders = (place.parent / "looks", own)
    shared = [row for row in others.values() if _shares(row, entry.val_calib_digest, positives, folders)]
    _written(own / LEDGER, entry)
    _keep(shared, own, place.parent / "looks")
    return Look(run, entry, tuple(_confidence(row, risk) for row in shared))


def record_measurement(folder: Path, scores: Scores, policy: str, risk: Risk, test: str) -> None:
    """Write down that a certified bundle is measured on labelled cases: a later certificate on them counts it.

    folder: where the figures go; scores: of the cases; policy, risk: what the bundle promises; test: digest of the
    bundle's policy and the cases. The same measurement again shows nothing new, and only marks the row as repeated.
    """
    place, positives = _ledger_of(folder), positives_of(scores)
    if same := next((row for row in ledger.read(place) if row.test == test), None):
        return ledger.change(place, same.look, lambda row: {"repeated": row.repeated + 1})
    entry = ledger.Entry(
        time=utc_now(),
        val_calib_digest=scores.splits_digest,
        run=folder.name,
        policy=policy,
        target_fnr_exit=risk.target_fnr,
        fnr_confidence=risk.confidence,
        outcome=ledger.MEASURED,
        run_path=_key(folder, place),
        model_digest=scores.model_digest,
        look=test[:16],
        test=test,
    )
    if positives is not None:
        write_positives(place.parent / "looks" / f"{entry.look}.npy", positives)
    ledger.append(place, entry)
    return None


def _same_test(entry: ledger.Entry, place: Path, own: Path) -> ledger.Entry | None:
    """Return the row of the very same test of this run, also where the run was copied away from its ledger."""
    here, carried = ledger.read(place), ledger.read(own / LEDGER)
    found = [row for row in here if (row.run_path, row.test) == (entry.run_path, entry.test)]
    known = {row.look for row in here}
    found += [row for row in carried if (row.run, row.test) == (entry.run, entry.test) and row.look not in known]
    return found[0] if found else None


def _test_digest(run: Run, policy: str, risk: Risk, options: Mapping[str, Any]) -> str:
    """Digest of all that determines what a calibration finds."""
    scores = [artifacts.digest_file(run.scores_path(split)) for split in ("val_select", "val_calib")]
    rule = {"policy": policy, "exit_rule": run.config.exit_rule, **options}
    return artifacts.digest_json({"scores": scores, "risk": [risk.target_fnr, risk.confidence], **rule})


def _name(test: str, place: Path, own: Path) -> str:
    """Return the id of a look: the same chain gives the same id, the same test again another one."""
    known = {row.look for book in (place, own / LEDGER) for row in ledger.read(book) if row.test == test}
    return artifacts.digest_json([test, len(known)])[:16]


def _written(place: Path, entry: ledger.Entry) -> list[ledger.Row]:
    """Write an entry, in place of the row of its look where there is one. Returns all rows, perhaps its own too."""
    if any(row.look == entry.look for row in ledger.read(place)):
        ledger.change(place, entry.look, lambda _: {"outcome": entry.outcome, "repeated": entry.repeated})
        return ledger.rows_of(place)
    return ledger.append(place, entry)


def _shares(row: ledger.Row, digest: str, positives: HashArray | None, folders: Iterable[Path]) -> bool:
    """Whether a look that counts saw these positives: the same split, or a tenth of the smaller set."""
    if row.get("outcome") == ledger.NOT_READ:
        return False
    if row.get("val_calib_digest") == digest:
        return True
    if positives is None or not row.get("look"):
        return False
    sets = (read_positives(folder / f"{row['look']}.npy") for folder in folders)
    return any(seen is not None and overlap(positives, seen) for seen in sets)


def _keep(shared: Iterable[ledger.Row], own: Path, folder: Path) -> None:
    """Copy the looks that count into the run."""
    have = {row.look for row in ledger.read(own / LEDGER)}
    for row in shared:
        if (entry := ledger.entry_of(row)) is None or not entry.look or entry.look in have:
            continue
        ledger.append(own / LEDGER, entry)
        if (seen := read_positives(folder / f"{entry.look}.npy")) is not None:
            write_positives(own / f"{entry.look}.npy", seen)


def _confidence(row: ledger.Row, risk: Risk) -> float:
    """Of the look of a row; of a fragment that does not hold it, the one of now."""
    entry = ledger.entry_of(row)
    return entry.fnr_confidence if entry else risk.confidence


def confidences_spent(run: Run) -> tuple[float, ...]:
    """Return the confidences of all looks so far that share the positives of this run's val_calib."""
    place = _ledger_of(run.path)
    digest, positives = run.splits.metadata["val_calib_digest"], positives_of(run.image_scores("val_calib"))
    rows = [row for row in ledger.rows_of(place) if _shares(row, digest, positives, [place.parent / "looks"])]
    return tuple(entry.fnr_confidence for row in rows if (entry := ledger.entry_of(row)))


def look_of(run: Run, look: str) -> ledger.Entry | None:
    """Return what the run, or else the ledger, says of a look; None where neither knows it."""
    places = (run.path / "looks" / LEDGER, _ledger_of(run.path))
    return next((entry for place in places for entry in ledger.read(place) if entry.look == look), None)


def looks_counted(run: Run) -> int:
    """Return how many looks the run itself knows to share its positives, its own included."""
    return sum(entry.outcome != ledger.NOT_READ for entry in ledger.read(run.path / "looks" / LEDGER))


def attempts(run: Run) -> list[ledger.Entry]:
    """Return the looks of the run's weights here, oldest first."""
    path = _ledger_of(run.path)
    sought = _key(run.path, path), run.model_digest, run.config.exit_policy, run.splits.metadata["val_calib_digest"]
    return [
        entry
        for entry in ledger.read(path)
        if (entry.run_path, entry.model_digest, entry.policy, entry.val_calib_digest) == sought
        and entry.outcome != ledger.NOT_READ
    ]


def refused_attempt(run: Run) -> ledger.Entry | None:
    """Return the newest of these attempts, where it ended with nothing certified, or nothing worth it."""
    own = attempts(run)
    return own[-1] if own and own[-1].outcome in REFUSED else None


def _ledger_of(folder: Path) -> Path:
    """One ledger for all runs below a folder `runs`, the innermost one; beside the run where there is none.

    The `runs` of an A/B test, beside its splits.json, is passed over: its runs are counted with those around the test.
    """
    real = folder.resolve()
    roots = [parent for parent in real.parents if parent.name == RUNS.name]
    outside = [root for root in roots if not (root.parent / "splits.json").exists()]
    return next(iter([*outside, *roots, real.parent])) / LEDGER


def _key(folder: Path, path: Path) -> str:
    """Return what tells runs of one ledger apart, also after all of them have been moved together."""
    return folder.resolve().relative_to(path.parent).as_posix()

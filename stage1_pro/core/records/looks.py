"""Who has looked at which val_calib: a run's rows in the ledger of certification attempts."""

from pathlib import Path

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.records import ledger
from stage1_pro.core.records.paths import RUNS
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.records.run import Run


def record_attempt(run: Run, policy: str, risk: Risk, certified: bool) -> int:
    """Append one certification attempt to the ledger, and return how often this val_calib has been used."""
    path = _ledger_of(run)
    entry = ledger.Entry(
        time=utc_now(),
        val_calib_digest=run.splits.metadata["val_calib_digest"],
        run=run.name,
        policy=policy,
        target_fnr_exit=risk.target_fnr,
        fnr_confidence=risk.confidence,
        outcome="certified" if certified else ledger.NOTHING_CERTIFIED,
        run_path=_key(run, path),
        model_digest=run.model_digest,
    )
    return ledger.append(path, entry)


def attempts(run: Run) -> list[ledger.Entry]:
    """Return the certification attempts of the run's weights here, oldest first."""
    path = _ledger_of(run)
    sought = _key(run, path), run.model_digest, run.config.exit_policy, run.splits.metadata["val_calib_digest"]
    return [
        entry
        for entry in ledger.read(path)
        if (entry.run_path, entry.model_digest, entry.policy, entry.val_calib_digest) == sought
    ]


def refused_attempt(run: Run) -> ledger.Entry | None:
    """Return the newest of these attempts, where it ended with nothing certified."""
    own = attempts(run)
    return own[-1] if own and own[-1].outcome == ledger.NOTHING_CERTIFIED else None


def _ledger_of(run: Run) -> Path:
    """One ledger for all runs below a folder `runs`; beside the run where there is no such folder."""
    real = run.path.resolve()
    roots = [parent for parent in real.parents if parent.name == RUNS.name]
    return (roots[-1] if roots else real.parent) / "calibrations.csv"


def _key(run: Run, path: Path) -> str:
    """Return what tells runs of one ledger apart, also after all of them have been moved together."""
    return run.path.resolve().relative_to(path.parent).as_posix()

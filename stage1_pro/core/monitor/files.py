"""monitor.json and the file of open cases beside it: two files, one state, whatever the moment of a kill.

The cases go first, into a file named after the revision; monitor.json, which names that file and its digest, goes
second and makes the revision; older files of cases are removed last. Killed in between, the folder holds the
revision before.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.monitor.days import stream_row
from stage1_pro.core.monitor.drift import DriftWealth
from stage1_pro.core.monitor.state import Alarm, Drift, Monitor, Settings, Store, Stream, Watch, day_text, time_text
from stage1_pro.core.monitor.tables import Audited, Closed, Others, Sample, Table, Tally, Waiting
from stage1_pro.core.monitor.wealth import Wealth

MONITOR = "monitor.json"
TABLES: dict[str, type[Table]] = {
    "audited": Audited,
    "others": Others,
    "waiting": Waiting,
    "sample": Sample,
    "tally": Tally,
    "closed": Closed,
}
ROUNDING = 1e-6
"""What another processor or another version of a library may make of equal numbers."""
WATCHES = ("confidence", "signed")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One reading at a time in this folder; a killed one holds no lock. Raises UserError where another is at work."""
    from filelock import FileLock, Timeout  # deferred: who only reads takes no lock

    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file. Name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise UserError(f"{folder}: another 65_monitor.py is at work there. Wait until it has ended.") from None
    with lock:
        yield


def write_monitor(folder: Path, monitor: Monitor) -> None:
    """Write the monitor's revision. Raises UserError where the folder holds another history than it goes on from."""
    path = folder / MONITOR
    if path.exists():
        _demand_continued(path, monitor)
    cases = folder / f"cases-{monitor.revision}.npz"
    content = _pack(monitor)
    artifacts.write_bytes(cases, content)
    data = _to_json(monitor, {"file": cases.name, "sha256": artifacts.digest_bytes(content)})
    artifacts.write_json(path, data, "monitor")
    for other in (*folder.glob("cases-*.npz"), *folder.glob(".cases-*.npz.*")):  # the latter of killed readings
        if other != cases:
            other.unlink()


def read_monitor(folder: Path) -> Monitor:
    """The monitor in a folder. Raises UserError where a file is missing, damaged or of another revision."""
    path = folder / MONITOR
    data = artifacts.read_json(path, "monitor")
    cases = folder / data["cases"]["file"]
    content = artifacts.read_bytes(cases, artifacts.MENDS["monitor"])
    if artifacts.digest_bytes(content) != data["cases"]["sha256"]:
        raise UserError(f"{cases}: not the file that {path} was written with. {artifacts.MENDS['monitor']}")
    monitor = _from_json(data, content)
    raise_problems(
        f"{path}: altered since it was written:", list(_contradictions(data, monitor)), artifacts.MENDS["monitor"]
    )
    return monitor


def _contradictions(data: dict[str, Any], monitor: Monitor) -> Iterator[str]:
    """Where the file says something that does not follow from the rest of it."""
    if data["revision"] != monitor.revision:
        yield f"$.revision is {data['revision']}, and there are {monitor.revision} readings"
    if data["certificate"] != monitor.certificate:
        yield f"$.certificate is {data['certificate']}, and the rest of the file says {monitor.certificate}"
    test = monitor.settings.test
    for stream in monitor.streams:
        above = test.log_wealth(stream.wealth) - test.bar
        if above < -ROUNDING if stream.alarm else above > ROUNDING:
            yield f"$.streams: the wealth of {stream.name} and its alarm contradict each other"
    rows = monitor.days[-1]["streams"] if monitor.days else []
    for row, stream in zip(rows, monitor.streams, strict=bool(rows)):
        if not all(_alike(value, row[name]) for name, value in stream_row(stream, test).items()):
            yield f"$.streams says of {stream.name} something else than the last day"


def _alike(value: Any, other: Any) -> bool:
    return abs(value - other) <= ROUNDING if isinstance(value, float) else value == other


def _demand_continued(path: Path, monitor: Monitor) -> None:
    before = artifacts.read_json(path, "monitor")
    for name, rows in (("days", monitor.days), ("readings", monitor.readings)):
        if before[name] != list(rows[: len(before[name])]):
            raise UserError(
                f"{path}: its {name} are not those that this monitor goes on from. {artifacts.MENDS['monitor']}"
            )


# ---- monitor.json


def _to_json(monitor: Monitor, cases: dict[str, str]) -> dict[str, Any]:
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "revision": monitor.revision,
        "as_of": time_text(monitor.as_of),
        "certificate": monitor.certificate,
        "closed_through": None if monitor.closed_through is None else day_text(monitor.closed_through),
        "settings": {**asdict(monitor.settings), "streams": list(monitor.settings.streams)},
        "streams": [_stream_to_json(stream) for stream in monitor.streams],
        "drift": {name: _alarm_day(getattr(monitor.drift, name)) for name in WATCHES},
        "days": list(monitor.days),
        "readings": list(monitor.readings),
        "cases": cases,
    }


def _alarm_day(watch: Watch) -> dict[str, Any]:
    return {"alarm_day": None if watch.alarm_day is None else day_text(watch.alarm_day)}


def _stream_to_json(stream: Stream) -> dict[str, Any]:
    alarm = stream.alarm
    return {
        "name": stream.name,
        "log_start": stream.wealth.start.tolist(),
        "log_change": [None if value == -np.inf else value for value in stream.wealth.change.tolist()],
        "fed": stream.wealth.fed,
        "best": list(stream.best),
        "worst": list(stream.worst),
        "alarm": None if alarm is None else {**asdict(alarm), "day": day_text(alarm.day)},
    }


def _stream_from_json(data: dict[str, Any]) -> Stream:
    change = np.array([-np.inf if value is None else value for value in data["log_change"]], dtype=np.float64)
    alarm = None if data["alarm"] is None else Alarm(**{**data["alarm"], "day": _day(data["alarm"]["day"])})
    wealth = Wealth(np.array(data["log_start"], dtype=np.float64), change, data["fed"])
    best, worst = (tuple(data[name]) for name in ("best", "worst"))
    return Stream(data["name"], wealth, alarm, best, worst)  # type: ignore[arg-type]


def _from_json(data: dict[str, Any], content: bytes) -> Monitor:
    settings = Settings(**{**data["settings"], "streams": tuple(data["settings"]["streams"])})
    through = data["closed_through"]
    store, drift = _unpack(content, data)
    return Monitor(
        settings,
        tuple(_stream_from_json(stream) for stream in data["streams"]),
        drift,
        store,
        None if through is None else _day(through),
        int(np.datetime64(data["as_of"].removesuffix("Z"), "s").astype(np.int64)),
        tuple(data["days"]),
        tuple(data["readings"]),
    )


def _day(text: str) -> int:
    return int(np.datetime64(text, "D").astype(np.int64))


# ---- the file of cases


def _pack(monitor: Monitor) -> bytes:
    """All arrays as an npz; texts as UTF-8 bytes and their ends, so that nothing is pickled."""
    arrays: dict[str, np.ndarray] = {"latest_label": np.array(monitor.store.latest_label)}
    for table in TABLES:
        for name, column in getattr(monitor.store, table).columns().items():
            if column.dtype == object:
                texts = [str(value).encode() for value in column]
                arrays[f"{table}.{name}.ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
                column = np.frombuffer(b"".join(texts), dtype=np.uint8)
            arrays[f"{table}.{name}"] = column
    for name in WATCHES:
        watch: Watch = getattr(monitor.drift, name)
        arrays |= {
            f"{name}.past": watch.past,
            f"{name}.counts": watch.wealth.counts,
            f"{name}.begun": watch.wealth.begun,
        }
    arrays |= {"reference": monitor.drift.reference, "seen": monitor.drift.seen}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpack(content: bytes, data: dict[str, Any]) -> tuple[Store, Drift]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    tables = {name: _table(arrays, name, kind) for name, kind in TABLES.items()}
    watches = []
    for name in WATCHES:
        alarm_day = data["drift"][name]["alarm_day"]
        wealth = DriftWealth(arrays[f"{name}.counts"], arrays[f"{name}.begun"])
        watches.append(Watch(wealth, arrays[f"{name}.past"], None if alarm_day is None else _day(alarm_day)))
    store = Store(**tables, latest_label=int(arrays["latest_label"]))  # type: ignore[arg-type]
    return store, Drift(watches[0], watches[1], arrays["reference"], arrays["seen"])


def _table(arrays: dict[str, np.ndarray], table: str, kind: type[Table]) -> Table:
    columns = {}
    for field in fields(kind):  # type: ignore[arg-type]
        column = arrays[f"{table}.{field.name}"]
        if f"{table}.{field.name}.ends" in arrays:
            ends = arrays[f"{table}.{field.name}.ends"]
            text, starts = column.tobytes(), np.concatenate([[0], ends[:-1]]) if ends.size else ends
            column = np.array([text[a:b].decode() for a, b in zip(starts, ends, strict=True)], dtype=object)
        columns[field.name] = column
    return kind(**columns)

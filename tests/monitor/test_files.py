"""monitor.json and its cases: what is written is what goes on, and no kill loses a revision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streams import START, settings, world

from stage1_pro.core.errors import UserError
from stage1_pro.core.monitor.files import MONITOR, locked, read_monitor, write_monitor
from stage1_pro.core.monitor.state import Monitor
from stage1_pro.core.monitor.tables import DAY
from stage1_pro.core.monitor.update import update

STREAM = world(np.random.default_rng(5), 25, 80, np.where(np.arange(25) < 12, 0.01, 0.3), frames=2, delay_days=4)
RULES = settings(max_label_delay_days=6, expires_at=START + 300 * DAY)
REFERENCE = np.random.default_rng(0).random((500, 2))


def read_to(monitor: Monitor, day: int) -> Monitor:
    return update(monitor, *STREAM.until(day), START + (day + 1) * DAY)


def test_a_monitor_read_back_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    kept = stopped = Monitor.start(RULES, REFERENCE)
    for day in range(35):
        kept = read_to(kept, day)
        write_monitor(tmp_path, read_to(stopped, day))
        stopped = read_monitor(tmp_path)
    assert stopped.days == kept.days
    assert stopped.readings == kept.readings
    assert stopped.streams[0].alarm == kept.streams[0].alarm
    assert stopped.certificate == "alarm"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases-35.npz", MONITOR]


@pytest.mark.parametrize("step", range(4))
def test_killed_at_any_step_the_folder_holds_a_whole_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each rename and each removal of a file is a moment to be killed at."""
    first = read_to(Monitor.start(RULES), 9)
    write_monitor(tmp_path, first)
    second = read_to(first, 14)
    left = step

    def dying(function):
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying(os.replace))
        patched.setattr(Path, "unlink", dying(Path.unlink))
        try:
            write_monitor(tmp_path, second)
            finished = True
        except KeyboardInterrupt:
            finished = False
    assert finished == (step == 3)
    found = read_monitor(tmp_path)
    assert found.revision == (1 if step < 2 else 2)
    assert found.days == (first if step < 2 else second).days
    # the next reading makes up for it, and tidies up
    write_monitor(tmp_path, read_to(found, 20))
    assert read_monitor(tmp_path).days == read_to(second, 20).days
    assert len(list(tmp_path.glob("cases-*.npz"))) == 1


def test_history_is_only_added_to(tmp_path: Path) -> None:
    first = read_to(Monitor.start(RULES), 9)
    write_monitor(tmp_path, first)
    second = read_to(first, 20)
    write_monitor(tmp_path, second)
    with pytest.raises(UserError, match="not those that this monitor goes on from"):
        write_monitor(tmp_path, read_to(Monitor.start(RULES), 24))
    with pytest.raises(UserError, match="goes on from"):
        write_monitor(tmp_path, first)
    assert read_monitor(tmp_path).days == second.days


def test_damage_is_refused(tmp_path: Path) -> None:
    write_monitor(tmp_path, read_to(Monitor.start(RULES), 9))
    cases = tmp_path / "cases-1.npz"
    content = cases.read_bytes()
    cases.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="not the file that"):
        read_monitor(tmp_path)
    cases.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_monitor(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(note="all is well"), "note is not a known field"),
        (lambda data: data["streams"][0].update(log_start=[]), "log_start"),
        (lambda data: data["days"][0].pop("decisions"), "decisions is missing"),
        (lambda data: data.update(certificate="fine"), "certificate"),
        (lambda data: data["settings"].update(delta=1.5), "delta"),
    ],
)
def test_what_the_schema_does_not_know_is_refused(tmp_path: Path, change, told: str) -> None:
    write_monitor(tmp_path, read_to(Monitor.start(RULES), 9))
    data = json.loads((tmp_path / MONITOR).read_text())
    change(data)
    (tmp_path / MONITOR).write_text(json.dumps(data))
    with pytest.raises(UserError, match=told):
        read_monitor(tmp_path)


def test_what_contradicts_the_rest_of_the_file_is_refused(tmp_path: Path) -> None:
    """An alarm cannot be taken out of it, nor can evidence be added."""
    write_monitor(tmp_path, read_to(Monitor.start(RULES), 24))
    whole = json.loads((tmp_path / MONITOR).read_text())
    assert whole["certificate"] == "alarm"
    calm = [{**whole["streams"][0], "alarm": None}]
    for change, told in (
        ({"revision": 7}, "there are 1 readings"),
        ({"certificate": "in force"}, "the rest of the file says alarm"),
        ({"certificate": "in force", "streams": calm}, "its alarm contradict each other"),
        ({"streams": [{**whole["streams"][0], "best": [9999, 0]}]}, "something else than the last day"),
    ):
        (tmp_path / MONITOR).write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=told):
            read_monitor(tmp_path)


def test_two_readings_at_once_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="is at work there"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


MILLION = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
import pandas as pd
from streams import START, settings, world
from test_reading import BUNDLE, rows
from stage1_pro.core.monitor.reading import Reader
from stage1_pro.core.monitor.state import Monitor
from stage1_pro.core.monitor.tables import DAY
from stage1_pro.core.monitor.update import update

decisions, labels = sys.argv[3:]
if sys.argv[2] == "write":
    stream = world(np.random.default_rng(0), 365, 2740, share=0.1)
    rows(stream.decisions).to_csv(decisions, index=False)
    given = stream.labels
    times = [f"{time}Z" for time in given.time.astype("datetime64[s]")]
    table = {"id": given.id, "label": np.where(given.positive, "red", "other"), "label_time": times}
    pd.DataFrame(table).to_csv(labels, index=False)
else:
    began, now = time.process_time(), START + 400 * DAY
    reader = Reader(BUNDLE, ("other", "red"), now)
    read = reader.decisions([decisions])[0], reader.labels([labels])[0]
    monitor = update(Monitor.start(settings(audit_share=0.1)), *read, now)
    print(len(read[0]), len(monitor.days), time.process_time() - began)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 2**20)  # getrusage would count the memory of the process that started this one
"""


@pytest.mark.slow
def test_a_million_decisions_take_a_minute_and_a_gigabyte(tmp_path: Path) -> None:
    words = [sys.executable, "-c", MILLION, str(Path(__file__).parent)]
    files = [str(tmp_path / "decisions.csv"), str(tmp_path / "labels.csv")]
    subprocess.run([*words, "write", *files], check=True)
    done = subprocess.run([*words, "read", *files], capture_output=True, text=True, check=True)
    cases, days, seconds, gigabytes = map(float, done.stdout.split())
    assert cases > 1e6
    assert days == 365
    assert seconds < 60
    assert gigabytes < 1

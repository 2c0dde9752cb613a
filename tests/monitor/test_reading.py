"""Files of decisions and labels: any format, any order of columns, and every mistake told with its file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streams import START, world

from stage1_pro.core.errors import UserError
from stage1_pro.core.monitor.reading import Reader
from stage1_pro.core.monitor.tables import DAY, Decisions

BUNDLE = "ab" * 32
READER = Reader(BUNDLE, ("other", "red"), START + 30 * DAY)
STREAM = world(np.random.default_rng(2), 3, 40, frames=4, share=0.5)


def rows(cases: Decisions = STREAM.decisions) -> pd.DataFrame:
    """The table as 60 writes it."""
    return pd.DataFrame(
        {
            "id": cases.id,
            "group": cases.group,
            "time": [f"{time}Z" for time in cases.time.astype("datetime64[s]")],
            "answer": np.where(cases.answered_positive, "red", "other"),
            "probability": cases.probability,
            "decision": np.where(cases.exits, "exit", "defer"),
            "score": cases.probability,
            "reason": "said, with a comma",
            "audit": cases.audited,
            "audit_probability": cases.audit_probability,
            "certificate": "none",
            "bundle": BUNDLE,
        }
    )


def write(table: pd.DataFrame, path: Path) -> str:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True, double_precision=15)
    return str(path)


def same(found: Decisions, expected: Decisions) -> None:
    for name, column in expected.columns().items():
        if column.dtype == float:  # JSON has 15 digits
            np.testing.assert_allclose(getattr(found, name), column, rtol=1e-14, err_msg=name)
        else:
            np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_decisions_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    found, others = READER.decisions([write(rows(), tmp_path / f"d{suffix}")])
    same(found, STREAM.decisions)
    assert others == 0
    turned = rows()[list(reversed(rows().columns))].assign(note="of somebody")
    same(READER.decisions([write(turned, tmp_path / f"turned{suffix}")])[0], STREAM.decisions)
    # a case without a group is its own; one that was not audited has no probability of it
    bare = rows().assign(group=None, audit=None, audit_probability=None, probability=None)
    found, _ = READER.decisions([write(bare, tmp_path / f"bare{suffix}")])
    assert (found.group == found.id).all()
    assert not found.audited.any()
    assert np.isnan(found.audit_probability).all()


def test_a_log_that_is_being_written_and_rows_of_other_bundles(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    mixed = rows()
    mixed.loc[:9, "bundle"] = "cd" * 32
    mixed.loc[119, "time"] = f"{np.datetime64(READER.now + 4, 's')}Z"  # since the reading began
    write(mixed, path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:70])  # a torn last line
    found, others = READER.decisions([str(path)])
    assert (len(found), others) == (110, 10)
    path.write_bytes(b"")
    assert len(READER.decisions([str(path)])[0]) == 0
    with pytest.raises(UserError, match="all 120 decisions are of other bundles"):
        READER.decisions([write(rows().assign(bundle="cd" * 32), path)])


def test_times_are_instants(tmp_path: Path) -> None:
    table = rows().head(3).assign(time=["2024-10-04T02:00:00+02:00", "2024-10-04T00:00:00.250Z", "2024-10-04"])
    found, _ = READER.decisions([write(table, tmp_path / "d.csv")])
    assert found.time.tolist() == [START, START, START]
    table = table.assign(time=pd.to_datetime(["2024-10-04"] * 3, utc=True))
    assert READER.decisions([write(table, tmp_path / "d.parquet")])[0].time.tolist() == [START] * 3


def test_labels_are_classes_of_the_bundle(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"id": ["1", "2", "3"], "label": ["red", "other", None], "label_time": "2024-10-05", "source": "auditor"}
    )
    for suffix in (".csv", ".jsonl", ".parquet"):
        found, blank = READER.labels([write(table, tmp_path / f"l{suffix}")])
        assert found.id.tolist() == ["1", "2"]
        assert found.positive.tolist() == [True, False]
        assert blank == 1


def refused(function, *files: str) -> str:
    with pytest.raises(UserError) as raised:
        function(list(files))
    return str(raised.value)


def test_a_spreadsheet_that_saves_semicolons_is_read_and_an_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("id;label;label_time\r\na,b;red;2024-10-05\r\n")
    labels, _ = READER.labels([str(tmp_path / "l.csv")])
    assert labels.id.tolist() == ["a,b"]
    assert labels.positive.tolist() == [True]
    (tmp_path / "l.csv").write_text("")
    with pytest.raises(UserError, match=r"l\.csv: an empty file; one without rows still has its header"):
        READER.labels([str(tmp_path / "l.csv")])


def test_mistakes_of_all_files_come_at_once(tmp_path: Path) -> None:
    table = rows().astype({"time": object, "id": object})
    table.loc[0, "time"], table.loc[1, "time"], table.loc[2, "decision"] = "yesterday", "2031-01-01", "maybe"
    table.loc[3, "id"] = ""
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "no.jsonl").write_text(json.dumps({"when": 1}) + "\n")
    labels = pd.DataFrame({"id": ["a", "b"], "label": ["rd", "1"], "label_time": ["2024-10-05", "soon"]})
    given = write(labels, tmp_path / "l.csv")
    message = refused(
        lambda decisions: READER.both(decisions, [given]),
        write(table, tmp_path / "a.csv"),
        write(rows().rename(columns={"audit": "audits"}), tmp_path / "b.csv"),
        *(str(tmp_path / name) for name in ("text.txt", "broken.parquet", "no.jsonl", "gone.csv")),
    )
    for words in (
        "a.csv: 1 rows whose time is no time such as 2026-03-01T12:00:00Z (yesterday)",
        "a.csv: 1 rows whose time lies more than 300 s after",
        "a.csv: 1 rows whose decision is neither exit nor defer",
        "a.csv: 1 rows without an id",
        "b.csv: no column audit (did you mean 'audits'?)",
        "text.txt: the suffix says the format",
        "broken.parquet: ",
        "no.jsonl: no column id",
        "gone.csv: no such file",
        "l.csv: 2 labels are none of other, red: rd, 1",
        "whose label_time is no time",
    ):
        assert words in message, message
    assert message.endswith("\nNothing was written.")

"""From decisions with an audit to the monitor's page: 60, then 65, as a user calls them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from chain import call, done, refused
from serving import Server

from stage1_pro.core.inference import jobs
from stage1_pro.core.monitor.audit import Audit

SALT = "sixteen bytes or more"
COLUMNS = [
    *("id", "group", "time", "answer", "probability", "decision", "score", "reason"),
    *("audit", "audit_probability", "certificate", "bundle"),
]


@pytest.fixture
def salt(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("STAGE1_AUDIT_SALT", raising=False)
    path = tmp_path / "audit.salt"
    path.write_text(SALT + "\n")
    return path


@pytest.fixture
def paths(images) -> list[Path]:
    return sorted(images.glob("*.png"))[:60]


@pytest.fixture
def decided(bundle, paths, salt, tmp_path) -> Path:
    out = tmp_path / "d.csv"
    audited(bundle, paths, salt, out)
    return out


def audited(bundle: Path, paths: list[Path], salt: Path, out: Path, *flags: object):
    words = ("--audit_share", 0.5, "--audit_salt", salt, "--time", "2025-03-01T12:00:00Z", "--device", "cpu", *flags)
    return done("60_predict", bundle, *paths, "--out", out, *words)


def watch(bundle: Path, out: Path, *flags: object):
    return call("65_monitor", bundle, "--out", out, *flags)


def labelled(decisions: Path, out: Path, truth: str | None = None) -> Path:
    """Labels of the audited cases: what stage 1 answered, or one class for all."""
    table = pd.read_csv(decisions)
    table = table[table["audit"]]
    table.assign(label=truth or table["answer"], label_time="2025-03-02").to_csv(
        out, columns=["id", "label", "label_time"], index=False
    )
    return out


# ---- 60


def test_rows_of_an_audit_are_those_of_the_hash(decided, bundle, paths):
    table = pd.read_csv(decided)
    assert list(table.columns) == COLUMNS
    assert table["audit"].tolist() == Audit(0.5, SALT.encode()).chooses(map(str, paths)).tolist()
    assert set(table["time"]) == {"2025-03-01T12:00:00Z"}
    assert set(table["certificate"]) == {"none"}
    assert table["group"].isna().all()
    plain = decided.with_name("plain.csv")
    done("60_predict", bundle, *paths, "--out", plain, "--device", "cpu")
    pd.testing.assert_frame_equal(pd.read_csv(plain), table[list(pd.read_csv(plain).columns)])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_formats_hold_the_same(decided, bundle, paths, salt, suffix):
    out = decided.with_suffix(suffix)
    audited(bundle, paths, salt, out)
    found = pd.read_parquet(out) if suffix == ".parquet" else pd.read_json(out, lines=True, dtype=False)
    assert list(found.columns) == COLUMNS
    assert found["audit"].tolist() == pd.read_csv(decided)["audit"].tolist()
    assert found["audit"].dtype == bool


def test_a_job_that_goes_on_keeps_its_audit(bundle, paths, salt, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "ROWS", 16)
    whole = audited(bundle, paths, salt, tmp_path / "whole.csv")
    assert "audited   " in whole.out

    def stop(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(jobs.Job, "finish", stop)
        flags = ("--audit_share", 0.5, "--audit_salt", salt, "--time", "2025-03-01T12:00:00Z", "--device", "cpu")
        assert call("60_predict", bundle, *paths, "--out", tmp_path / "d.csv", *flags).status == 2
    (tmp_path / "d.csv.parts" / "part-000002.parquet").unlink()
    other = tmp_path / "other.salt"
    other.write_text("quite another salt of bytes")
    out = ("60_predict", bundle, *paths, "--out", tmp_path / "d.csv", "--device", "cpu")
    refused(call(*out, "--audit_share", 0.5, "--audit_salt", other), "another audit salt")
    refused(call(*out, "--audit_share", 0.4, "--audit_salt", salt), "another audit share")
    refused(call(*out), "another audit share, or none", "another audit salt")
    # a later moment is not another job: its rows keep the moment that the job began at
    done(*out, "--audit_share", 0.5, "--audit_salt", salt)
    assert (tmp_path / "d.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_groups_are_audited_as_wholes(bundle, paths, salt, tmp_path):
    for at, path in enumerate(paths):
        folder = tmp_path / "tracks" / f"{at // 3:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    audited(bundle, [tmp_path / "tracks"], salt, tmp_path / "d.csv", "--groups", "folder")
    table = pd.read_csv(tmp_path / "d.csv")
    assert table["group"].nunique() == 20
    assert (table.groupby("group")["audit"].nunique() == 1).all()
    assert table["audit"].nunique() == 2
    names = pd.DataFrame({"id": list(map(str, paths)), "group": ["a", "b"] * 30})
    names.to_csv(tmp_path / "groups.csv", index=False)
    audited(bundle, paths, salt, tmp_path / "e.csv", "--groups", tmp_path / "groups.csv")
    assert pd.read_csv(tmp_path / "e.csv")["group"].tolist() == names["group"].tolist()
    names.iloc[1:].to_csv(tmp_path / "groups.csv", index=False)
    flags = ("--audit_share", 0.5, "--audit_salt", salt)
    outcome = call(
        "60_predict", bundle, *paths, "--out", tmp_path / "f.csv", *flags, "--groups", tmp_path / "groups.csv"
    )
    refused(outcome, f"no group for 1 of 60 images, such as {paths[0]}")


def test_what_cannot_be_audited_is_refused_at_once(bundle, paths, salt, tmp_path):
    out = ("60_predict", bundle, paths[0], "--out", tmp_path / "d.csv")
    refused(call(*out, "--audit_share", 0, "--audit_salt", salt), "the audit share is 0", "nothing is ever known")
    refused(call(*out, "--audit_share", 0.1), "STAGE1_AUDIT_SALT: no audit salt", "secrets.token_hex(32)")
    refused(call(*out, "--audit_salt", salt), "--audit_salt without --audit_share")
    refused(call(*out, "--groups", "folder"), "--groups and --time are for audits")
    (tmp_path / "short.salt").write_text("short")
    refused(
        call(*out, "--audit_share", 0.1, "--audit_salt", tmp_path / "short.salt", "--monitor", tmp_path / "none"),
        "a salt of 5 bytes",
        "does not exist",
    )
    assert not (tmp_path / "d.csv").exists()


def test_doubtful_answers_are_audited_more_often_and_weighed_by_it(bundle, paths, salt, tmp_path):
    out, flags = tmp_path / "d.csv", ("--audit", "doubtful")
    audited(bundle, paths, salt, out, *flags)
    table = pd.read_csv(out)
    quiet = (table["answer"] == "blue") & (table["decision"] == "exit")
    assert set(table.loc[~quiet, "audit_probability"]) == {0.5}
    chances = table[quiet].sort_values("score")["audit_probability"]
    assert chances.is_monotonic_decreasing
    assert chances.iloc[0] > 0.5 > chances.iloc[-1] >= 0.3 * 0.5
    drawn = Audit(0.5, SALT.encode()).chooses(table["id"], table["audit_probability"])
    assert table["audit"].tolist() == drawn.tolist()
    words = ("--decisions", out, "--labels", labelled(out, tmp_path / "l.csv"), "--as_of", "2025-03-05")
    words = (*words, "--audit_salt", salt)
    refused(watch(bundle, tmp_path / "watch", *words), "start a new one with --audit doubtful")
    refused(watch(bundle, tmp_path / "watch", *words, *flags), "needs --audit_share")
    assert watch(bundle, tmp_path / "watch", *words, *flags, "--audit_share", 0.5).status == 0
    settings = json.loads((tmp_path / "watch" / "monitor.json").read_text())["settings"]
    assert (settings["least"], settings["audit_share"]) == (0.5, 0.5)
    refused(watch(bundle, tmp_path / "watch", "--audit", "uniform"), "--audit is uniform, and doubtful since its first")
    again = ("60_predict", bundle, paths[0], "--out", tmp_path / "e.csv", "--audit_share", 0.5, "--audit_salt", salt)
    refused(call(*again, "--monitor", tmp_path / "watch"), "for an audit that is doubtful")
    refused(call(*again, *flags, "--groups", "folder"), "cases that stand alone")
    refused(call(*again[:5], *flags), "--audit doubtful without --audit_share")


# ---- 65


def test_a_monitor_from_the_first_reading_to_the_alarm(decided, bundle, salt, tmp_path, paths):
    out = tmp_path / "watch"
    first = watch(bundle, out, "--decisions", decided, "--audit_salt", salt, "--as_of", "2025-03-01T18:00:00Z")
    assert (first.status, first.err) == (0, "")
    for words in ("plan      FNR on exits <= 0.1 is promised", "60 read: 60 new", "none closed yet", "awaited   "):
        assert words in first.out
    wanted = pd.read_csv(out / "to_label.csv")
    assert set(wanted["id"]) == set(pd.read_csv(decided).query("audit and decision == 'exit'")["id"])
    assert list(wanted.columns) == ["id", "time", "label", "label_time"]  # and no answer that would tell
    good = labelled(decided, tmp_path / "good.csv")
    second = watch(bundle, out, "--decisions", decided, "--labels", good, "--as_of", "2025-03-03")
    assert second.status == 0
    assert "60 repeated" in second.out
    assert "certificate in force" in second.out
    assert len(pd.read_csv(out / "to_label.csv")) == 0
    assert json.loads((out / "monitor.json").read_text())["revision"] == 2
    # a second day on which every answer 0 was a miss
    bad = decided.with_name("bad.csv")
    flags = ("--monitor", out)
    done(
        *("60_predict", bundle, *paths[:60], "--out", bad, "--audit_share", 1, "--audit_salt", salt, "--device", "cpu"),
        *("--time", "2025-03-04T12:00:00Z", *flags),
    )
    table = pd.read_csv(bad)
    assert set(table["certificate"]) == {"in force"}
    table.assign(id="new/" + table["id"]).to_csv(bad, index=False)
    third = watch(
        *(bundle, out, "--decisions", bad, "--labels", labelled(bad, tmp_path / "bad_labels.csv", "red")),
        *("--as_of", "2025-03-05"),
    )
    assert third.status == 5, third
    assert "ALARM: at some time FNR on exits was above 0.1, seen at 2025-03-04" in third.err
    assert "Traceback" not in third.err
    page = (out / "monitor.html").read_text()
    assert ">Alarm<" in page
    assert "does not say that the rate is above the target today" in page
    assert watch(bundle, out, "--as_of", "2025-03-06").status == 5  # it stays
    done(
        *("60_predict", bundle, paths[0], "--out", tmp_path / "after.csv", "--audit_share", 0.5, "--audit_salt", salt),
        *("--monitor", out / "monitor.json", "--device", "cpu"),
    )
    assert pd.read_csv(tmp_path / "after.csv")["certificate"].tolist() == ["alarm"]


def test_without_a_folder_it_only_says_what_audits_buy(bundle, tmp_path):
    outcome = done("65_monitor", bundle)
    assert outcome.out.count("--audit_share") >= 4
    assert "from the start" in outcome.out
    refused(call("65_monitor", bundle, "--decisions", "d.csv"), "--decisions without --out")


def test_mistakes_leave_the_monitor_as_it_was(decided, bundle, salt, tmp_path):
    out, good = tmp_path / "watch", labelled(decided, tmp_path / "good.csv")
    flags = ("--decisions", decided, "--as_of", "2025-03-03")
    refused(watch(bundle, out), "a new monitor needs --audit_share")
    refused(watch(bundle, out, "--audit_share", 0, "--max_label_delay_days", -1), "--audit_share 0", "-1: must be 0")
    refused(watch(bundle, bundle / "watch", *flags), "whose set of files is closed")
    refused(
        watch(bundle, out, "--decisions", decided, "--as_of", "2025-09-01"), "are past the longest delay", "for good"
    )
    assert not (out / "monitor.json").exists()
    assert watch(bundle, out, *flags, "--labels", good, "--audit_salt", salt).status == 0
    before = (out / "monitor.json").read_bytes()
    table = pd.read_csv(decided)
    unasked = table[~table["audit"] & (table["decision"] == "exit")].head(3)
    odd = tmp_path / "odd.csv"
    unasked.assign(label="red", label_time="2025-03-02").to_csv(odd, index=False)
    told = ("labels are of exits that were not audited", "whoever chose them had a reason")
    fresh = tmp_path / "fresh"
    refused(watch(bundle, fresh, *flags, "--labels", good, odd), *told)
    other = tmp_path / "other.salt"
    other.write_text("quite another salt of bytes")
    refused(watch(bundle, out, *flags, "--audit_salt", other), "the salt changed")
    refused(watch(bundle, out, *flags, "--audit_share", 0.4), "--audit_share is 0.4, and 0.5 since its first reading")
    refused(watch(bundle, fresh, *flags, "--audit_salt", other), "were audited by another salt")
    refused(watch(bundle, out, "--as_of", "soon"), "soon is no time")
    refused(
        call("60_predict", bundle, decided, "--out", tmp_path / "x.csv", "--monitor", out),
        "needs audits: add --audit_share 0.5",
    )
    flags = ("--audit_share", 0.5, "--audit_salt", other, "--monitor", out)
    refused(call("60_predict", bundle, decided, "--out", tmp_path / "x.csv", *flags), "the salt is another one")
    assert (out / "monitor.json").read_bytes() == before
    odds = ("--decisions", tmp_path / "no.csv", "--labels", tmp_path / "none.csv")
    refused(watch(bundle, out, *odds), "no.csv: no such file", "none.csv: no such file")
    ahead = ("--decisions", decided, "--audit_salt", salt)
    assert watch(bundle, fresh, *ahead, "--as_of", "2025-03-01T18:00:00Z").status == 0
    refused(
        watch(bundle, fresh, "--as_of", "2925-03-03"), "lies ahead of the clock", "given up without a label, for good"
    )
    # another bundle of the same run has its own monitor
    done("50_export_bundle", "--run", bundle.parent, "--out", tmp_path / "second")
    refused(watch(tmp_path / "second", out, "--decisions", decided), "it watches another bundle")


def test_a_year_without_labels_says_so(decided, bundle, tmp_path):
    """Half of the labels never come: the page and the lines tell what that means."""
    half = labelled(decided, tmp_path / "half.csv")
    pd.read_csv(half).iloc[::2].to_csv(half, index=False)
    wanted = pd.read_csv(decided).query("audit and decision == 'exit'")["id"]
    outcome = watch(bundle, tmp_path / "watch", "--decisions", decided, "--labels", half, "--as_of", "2025-05-01")
    assert outcome.status == 0
    missing = int((~wanted.isin(pd.read_csv(half)["id"])).sum())
    assert f"warning   {missing} audited cases of closed days without a label in time" in outcome.out
    assert f"{missing} audited cases had no label in time" in (tmp_path / "watch" / "monitor.html").read_text()


def test_a_certificate_with_an_end(calibrated_bundle, paths, salt, tmp_path):
    """A date, and a number of cases that only a monitor counts: everything goes on, and says so."""
    bundle, out = calibrated_bundle("--expires", "2098-01-01", "--expires_after", 5), tmp_path / "watch"
    assert "expires on 2098-01-01T00:00:00Z or after 5 audited exited positives" in (bundle / "README.md").read_text()
    for time, certificate in (("2097-12-31", "none"), ("2098-01-01", "expired")):
        decided = tmp_path / f"{time}.csv"
        words = ("--audit_share", 1, "--audit_salt", salt, "--time", time, "--device", "cpu")
        done("60_predict", bundle, *paths, "--out", decided, *words)
        assert set(pd.read_csv(decided)["certificate"]) == {certificate}
    plain = tmp_path / "plain.csv"
    done("60_predict", bundle, paths[0], "--out", plain, "--device", "cpu")
    assert pd.read_csv(plain)[["certificate", "audit"]].isna().sum().tolist() == [0, 1]
    decided = tmp_path / "2097-12-31.csv"
    labels = labelled(decided, tmp_path / "labels.csv")
    pd.read_csv(labels).assign(label_time="2097-12-31").to_csv(labels, index=False)
    words = ("--decisions", decided, "--labels", labels, "--as_of", "2098-01-01")
    outcome = watch(bundle, out, *words)
    assert outcome.status == 6, outcome
    assert "the certificate has expired on 2098-01-01" in outcome.err
    assert json.loads((out / "monitor.json").read_text())["settings"]["planned"] == 5
    refused(
        call("50_export_bundle", "--run", bundle.parent, "--out", tmp_path / "b", "--expires", "2020-01-01"), "past"
    )
    refused(call("50_export_bundle", "--verify", bundle, "--expires", "2098-01-01"), "Drop one")


@pytest.fixture
def calibrated_bundle(evaluated):
    def export(*flags: object) -> Path:
        done("50_export_bundle", "--run", evaluated, *flags)
        return evaluated / "bundle"

    return export


def test_the_server_audits_as_60_does_and_says_what_holds(bundle, paths, salt, tmp_path):
    refused(call("70_serve", bundle, "--audit_share", 0.5, "--audit_salt", salt), "--audit_share without --log")
    watched, log, begun = tmp_path / "watch", tmp_path / "decisions.jsonl", tmp_path / "begun.csv"
    audited(bundle, paths, salt, begun)
    words = ("--audit_salt", salt, "--as_of", "2025-03-02")
    assert (
        watch(bundle, watched, "--decisions", begun, "--labels", labelled(begun, tmp_path / "l.csv"), *words).status
        == 0
    )
    flags = ("--log", log, "--audit_share", 0.5, "--audit_salt", salt, "--monitor", watched)
    with Server(bundle, *flags) as server:
        for path in paths[:20]:
            assert server.ask(f"/v1/decide?id={path.stem}", path.read_bytes()).status == 200
        assert server.ask(f"/v1/decide?id=a&group={paths[3].stem}", paths[0].read_bytes()).status == 200
        assert server.ask("/v1/decide", paths[0].read_bytes()).code == "bad_request"
        assert server.ask("/readyz").body["certificate"] == "in force"
        assert server.ask("/v1/model").body["audits"]
        broken = json.loads((watched / "monitor.json").read_text()) | {"certificate": "alarm"}
        (watched / "monitor.json").write_text(json.dumps(broken))
        answer = server.ask("/v1/decide?id=b", paths[0].read_bytes()).body
        assert answer["certificate"] == server.ask("/readyz").body["certificate"] == "alarm"
        (watched / "monitor.json").write_text("{")  # half a file on a slow disk: what it said last
        assert server.ask("/readyz").body["certificate"] == "alarm"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    names = [row["group"] or row["id"] for row in rows]
    assert [row["audit"] for row in rows] == Audit(0.5, SALT.encode()).chooses(names).tolist()
    assert {row["audit_probability"] for row in rows} == {0.5}
    outcome = watch(bundle, tmp_path / "of_log", "--decisions", log, "--audit_salt", salt)
    assert outcome.status == 0, outcome
    assert "22 read: 22 new" in outcome.out


def test_drift_is_held_against_the_scores_of_val_calib(bundle, paths, salt, tmp_path):
    """Older bundles hold none, and the page says so."""
    for at, count in (("new", 1), ("old", 0)):
        if at == "old":
            manifest = json.loads((bundle / "bundle.json").read_text())
            del manifest["files"]["calib_scores.json"]
            (bundle / "calib_scores.json").unlink()
            (bundle / "bundle.json").write_text(json.dumps(manifest))
        out = tmp_path / f"{at}.csv"
        audited(bundle, paths, salt, out)
        labels = labelled(out, tmp_path / f"{at}_labels.csv")
        outcome = watch(bundle, tmp_path / at, "--decisions", out, "--labels", labels, "--as_of", "2025-03-05")
        assert outcome.status == 0, outcome
        (row,) = json.loads((tmp_path / at / "monitor.json").read_text())["days"]
        assert (row["drift"]["psi_signed"] is not None) == bool(count)
        page = (tmp_path / at / "monitor.html").read_text()
        assert page.count("Drift of the scores, without labels") == count
        assert page.count("does not hold the scores of val_calib") == 1 - count

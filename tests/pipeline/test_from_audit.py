"""A certificate out of what a monitor has audited: 60, 65, then 38 --from_audit."""

import json
from pathlib import Path

import chain
import pandas as pd
import pytest
from chain import call, done, refused
from shared_folders import made_once

from stage1_pro import verify_bundle
from stage1_pro.core.records.run import Run

SALT = "sixteen bytes or more"
DAYS = ("2026-08-01", "2026-08-05", "2026-08-09", "2026-08-13")
CASES = 480


@pytest.fixture(scope="session")
def year_once(tmp_path_factory, exported_once) -> Path:
    """A folder with images of a darker camera, decided on four days, all audited and labelled, and its monitor."""

    def make(folder: Path) -> None:
        chain.draw(folder, cases=CASES, seed=11, light=0.8)
        (folder / "audit.salt").write_text(SALT)
        truth = pd.read_csv(folder / "labels.csv").set_index("path")["label"]
        paths = sorted(folder.glob("*.png"))
        step = CASES // len(DAYS)
        for at, day in enumerate(DAYS):
            decided = folder / f"{day}.csv"
            words = ("--audit_share", 1, "--audit_salt", folder / "audit.salt", "--time", day, "--device", "cpu")
            done("60_predict", exported_once / "bundle", *paths[at * step : (at + 1) * step], "--out", decided, *words)
        table = pd.concat([pd.read_csv(folder / f"{day}.csv") for day in DAYS])
        labels = table["id"].map(lambda name: truth[Path(name).name])
        table.assign(label=labels, label_time="2026-08-14").to_csv(folder / "given.csv", index=False)
        flags = ("--labels", folder / "given.csv", "--audit_salt", folder / "audit.salt", "--as_of", "2026-09-30")
        files = [folder / f"{day}.csv" for day in DAYS]
        call("65_monitor", exported_once / "bundle", "--out", folder / "watch", "--decisions", *files, *flags)

    return made_once(tmp_path_factory, "year", make)


@pytest.fixture
def words(year_once, tmp_path):
    """The command line, with a copy of the monitor."""
    import shutil

    shutil.copytree(year_once / "watch", tmp_path / "watch")
    return (
        *("--from_audit", tmp_path / "watch", "--decisions", *(year_once / f"{day}.csv" for day in DAYS)),
        *("--audit_salt", year_once / "audit.salt", "--labels", year_once / "given.csv"),
    )


def attempts(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "watch" / "attempts.csv")


def test_the_new_bundle_is_certified_on_the_newer_half(words, exported_once, tmp_path, year_once):
    out = tmp_path / "runs" / "again"
    said = done("38_recalibrate", exported_once / "bundle", *words, "--since", DAYS[0], "--out", out).out
    assert "attempt   1 at a certificate from audits: confidence 0.969604" in said
    run, table = Run(out), pd.read_csv(out.with_name("again.csv"))
    assert run.policy_path.exists()
    policy = json.loads(run.policy_path.read_text())
    assert policy["fnr_confidence"] == pytest.approx(1 - 0.05 * 6 / 3.14159265**2)
    newer = {name for day in DAYS[2:] for name in pd.read_csv(year_once / f"{day}.csv")["id"]}
    calib = set(table.loc[table["split"] == "val_calib", "path"])
    assert calib == newer
    assert len(table) == CASES
    assert 40 < (table["split"] == "val_test").sum() < 120
    origin = verify_bundle(run.bundle_path).manifest["provenance"]["recalibrated_from"]
    assert (origin["attempt"], origin["promised_confidence"]) == (1, 0.95)
    assert attempts(tmp_path)["attempt"].tolist() == [1]
    # a second attempt spends less, and counts the first one, also where it leads to nothing
    flags = ("--since", DAYS[1], "--target_fnr_exit", 0.001, "--out", tmp_path / "runs" / "third")
    outcome = call("38_recalibrate", exported_once / "bundle", *words, *flags)
    assert outcome.status == 3, outcome
    assert attempts(tmp_path)["fnr_confidence"].round(4).tolist() == [0.9696, 0.9924]


def test_labels_that_are_not_complete_are_refused_and_listed(words, exported_once, tmp_path, year_once):
    given = pd.read_csv(year_once / "given.csv")
    given.iloc[3:].to_csv(tmp_path / "some.csv", index=False)
    flags = ("--since", DAYS[0], "--out", tmp_path / "runs" / "again")
    outcome = call("38_recalibrate", exported_once / "bundle", *words[:-1], tmp_path / "some.csv", *flags)
    refused(outcome, "3 audited cases of the window without one label", "those that defer too")
    listed = pd.read_csv(tmp_path / "watch" / "to_recertify.csv")
    assert listed["id"].tolist() == given["id"].iloc[:3].tolist()
    # filled in, as the message says
    listed.assign(label=given["label"].iloc[:3], label_time="2026-09-01").to_csv(tmp_path / "rest.csv", index=False)
    files = (tmp_path / "some.csv", tmp_path / "rest.csv")
    done("38_recalibrate", exported_once / "bundle", *words[:-1], *files, *flags)


def test_what_does_not_fit_is_said_and_no_attempt_is_spent(words, exported_once, tmp_path, year_once):
    bundle, out = exported_once / "bundle", ("--out", tmp_path / "runs" / "again")
    refused(call("38_recalibrate", bundle, "--from_audit", tmp_path / "watch", *out), "--since is missing", "--labels")
    refused(call("38_recalibrate", bundle, "--since", DAYS[0], *out), "--since is for --from_audit")
    since = ("--since", DAYS[0], *out)
    refused(call("38_recalibrate", bundle, "--from_audit", tmp_path, *words[2:], *since), "no monitor.json there")
    (tmp_path / "other.salt").write_text("quite another salt of bytes")
    at = words.index("--audit_salt")
    other = (*words[: at + 1], tmp_path / "other.salt", *words[at + 2 :])
    # this monitor was started with the salt, so that another one is noticed at once
    refused(call("38_recalibrate", bundle, *other, *since), "the salt changed")
    refused(call("38_recalibrate", bundle, *words, "--since", "2027-01-01", *out), "Choose an earlier --since")
    table = pd.read_csv(year_once / f"{DAYS[0]}.csv")
    table.assign(id=table["id"].map(lambda name: Path(name).name)).to_csv(tmp_path / "short.csv", index=False)
    short = (*words[:2], "--decisions", tmp_path / "short.csv", *words[at:])
    audit_all = (*short, "--images", tmp_path, "--since", DAYS[0], *out)
    refused(call("38_recalibrate", bundle, *audit_all), f"is a file in {tmp_path}, as", "name with --images")
    assert not (tmp_path / "watch" / "attempts.csv").exists()
    assert not (tmp_path / "runs" / "again").exists()

"""A year after deployment, scripted: audits every month, a new camera in July, the alarm, and a new certificate.

    python benchmarks/demo_year.py runs/year/first --out runs/year/2026

Takes a run on the demo's images with its bundle. Production is made of the run's test images, drawn again and again
with small changes of light and noise; from July on they come from a camera with another colour and less light.
Everything else is what a user does: `stage1 predict`, `stage1 monitor`, `stage1 recalibrate`, whose commands and last
lines are shown. The truth is known here, so that each month's FNR on exits can stand beside what the monitor says.
"""

import argparse
import io
import os
import shlex
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stage1_pro.__main__ import main as command
from stage1_pro.core.data.run_cases import cases_of
from stage1_pro.core.records.run import Run

YEAR, MONTHS, NEW_CAMERA, RECERTIFIED = 2026, 12, 7, 10
SHARE = 0.5
CAST = np.array([0.55, 0.9, 1.1])
"""Red, green and blue of the new camera, as factors."""


@dataclass(frozen=True)
class Month:
    """One month of production. table: its cases with path and truth; decided: what stage 1 made of them."""

    number: int
    folder: Path
    table: pd.DataFrame

    @property
    def name(self) -> str:
        return f"{YEAR}-{self.number:02}"

    @property
    def decided(self) -> Path:
        return self.folder.parent / f"{self.name}.csv"

    @property
    def labels(self) -> Path:
        return self.folder.parent / f"{self.name}-labels.csv"

    @property
    def next_day(self) -> str:
        """The first day of the month after it, on which the monitor is read."""
        return f"{YEAR}-{self.number + 1:02}-01" if self.number < MONTHS else f"{YEAR + 1}-01-01"

    def label(self) -> None:
        """Write what the auditors say: of the cases that are audited, on the 25th."""
        rows = pd.read_csv(self.decided)
        audited = rows[rows["audit"]].merge(self.table, left_on="id", right_on="path")
        audited.assign(label_time=f"{self.name}-25").to_csv(
            self.labels, columns=["id", "truth", "label_time"], header=["id", "label", "label_time"], index=False
        )

    def truth(self, positive: str) -> tuple[float, float]:
        """(coverage, FNR on exits), which nobody knows in production."""
        rows = pd.read_csv(self.decided).merge(self.table, left_on="id", right_on="path")
        exits = rows[rows["decision"] == "exit"]
        positives = exits[exits["truth"] == positive]
        return len(exits) / len(rows), float((positives["answer"] != positive).mean())


def draw_month(number: int, folder: Path, cases: pd.DataFrame, names: list[str], count: int, seed: int) -> Month:
    """Images of a month: test images drawn with replacement, each a little brighter or darker, and with noise."""
    rng = np.random.default_rng([seed, number])
    folder.mkdir(parents=True)
    rows = []
    for position, chosen in enumerate(rng.integers(0, len(cases), count).tolist()):
        case = cases.iloc[chosen]
        with Image.open(case["path"]) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
        pixels = pixels * rng.uniform(0.97, 1.03) + rng.normal(0, 1, pixels.shape)
        if number >= NEW_CAMERA:
            pixels = pixels * CAST
        path = folder / f"{position:04}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        rows.append({"path": str(path), "truth": names[case["label"]]})
    return Month(number, folder, pd.DataFrame(rows))


def stage1(*words: object, lines: int = 3, allowed: tuple[int, ...] = (0,)) -> int:
    """Run a command of stage1, show it and its last lines, and return its status.

    In this process: a new one for each of the 26 commands would spend most of its time on imports.
    """
    told = [str(word) for word in words]
    print(f"\n$ stage1 {shlex.join(told)}", flush=True)
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, sys.argv = sys.argv, ["stage1", *told]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            command("python -m stage1_pro")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for line in [*out.getvalue().splitlines()[-lines:], *err.getvalue().splitlines()[-2:]]:
        print(f"  {line}")
    if status not in allowed:
        sys.exit(f"status {status}")
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run on the demo's images, with its bundle")
    parser.add_argument("--out", default="runs/year/2026", help="folder of the year, which must not exist")
    parser.add_argument("--images", type=int, default=400, help="images a month")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run, out = Run.open(args.run), Path(args.out)
    if out.exists():
        sys.exit(f"{out} exists. Remove it, or name another --out.")
    cases = cases_of(run, run.config).frame.iloc[run.splits.indices("val_test")]
    out.mkdir(parents=True)
    (out / "audit.salt").write_text("a salt of the demo, which everybody knows\n")
    year = [
        draw_month(number, out / f"{YEAR}-{number:02}", cases, run.splits.class_names, args.images, args.seed)
        for number in range(1, MONTHS + 1)
    ]
    live(year, run, out)


def live(year: list[Month], run: Run, out: Path) -> None:
    """Go through the months: decide, label, read the monitor; certify anew once the alarm has gone off."""
    bundle, watch, audit = run.bundle_path, out / "watch", ("--audit_salt", out / "audit.salt")
    stage1("monitor", bundle, "--audit_share", SHARE, lines=6)
    told, alarmed, certificate = [], False, "first"
    for month in year:
        if month.number == RECERTIFIED and alarmed:
            bundle, watch = certified_anew(year[NEW_CAMERA - 1 : RECERTIFIED - 1], bundle, watch, out), out / "watch-2"
            certificate = "again"
        known = ("--monitor", watch) if (watch / "monitor.json").exists() else ()
        words = ("--out", month.decided, "--audit_share", SHARE, *audit, "--time", f"{month.name}-15", *known)
        stage1("predict", bundle, month.folder, *words, lines=1)
        month.label()
        words = ("--decisions", month.decided, "--labels", month.labels, *audit, "--as_of", month.next_day)
        status = stage1("monitor", bundle, "--out", watch, *words, lines=4, allowed=(0, 5))
        alarmed = alarmed or status == 5
        told.append((month, certificate, status))
    print("\nmonth     bundle  coverage  true FNR on exits  monitor at its end")
    for month, certificate, status in told:
        coverage, fnr = month.truth(run.splits.positive_class)
        print(f"{month.name}   {certificate}   {coverage:7.1%}  {fnr:17.1%}  {'ALARM' if status == 5 else 'in force'}")
    print(f"\nlook at  {out}/watch/monitor.html    when the alarm went off, and what was missed since")
    if certificate == "again":
        print(f"         {out}/again/report.html     the new certificate, for the new camera")
        print(f"         {out}/watch-2/monitor.html  the new bundle, in force")


def certified_anew(months: list[Month], bundle: Path, watch: Path, out: Path) -> Path:
    """A certificate out of the new camera's audited cases; stage 2's labels are those of the deferred ones."""
    words = ("--decisions", *(month.decided for month in months), "--labels", *(month.labels for month in months))
    since = ("--since", f"{months[0].name}-01", "--audit_salt", out / "audit.salt", "--out", out / "again")
    stage1("recalibrate", bundle, "--from_audit", watch, *words, *since, lines=6)
    return out / "again" / "bundle"


if __name__ == "__main__":
    # months are small, and threads that wait for each other cost more than they bring
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

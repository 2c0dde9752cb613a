"""65: watch whether the promise of a bundle holds in production, from decisions and labels of audited cases.

    python stage1_pro/scripts/65_monitor.py runs/demo/bundle
    python stage1_pro/scripts/65_monitor.py runs/demo/bundle --out watch --decisions d.csv --labels labels.csv
reads   a bundle; decisions of 60_predict.py or 70_serve.py, made with --audit_share; labels: id, label, label_time
writes  OUT/monitor.json, a revision each time, OUT/monitor.html, and OUT/to_label.csv: whose labels are awaited

Without --out it only says what a share of audits buys. Files may overlap with earlier ones, and come in any order;
labels of cases that were not audited are refused. Exits with status 5 where the monitor alarms, 6 where the certificate
has expired.
"""

from dataclasses import dataclass, field
from typing import Literal

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    bundle: str = field(metadata={"nargs": None})
    """Bundle folder, as 50_export_bundle.py writes it."""
    out: str | None = None
    """Folder of the monitor, beside the bundle; a new one begins a monitor."""
    decisions: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """Files of decisions: .csv, .jsonl or .parquet, the rotated ones of a server too."""
    labels: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """Files of labels with the columns id, label (a class of the bundle) and label_time, as to_label.csv filled in."""
    audit_share: float | None = None
    """Share of the groups that are audited, above 0 to 1, fixed when a monitor begins; null: that of the decisions."""
    audit: Literal["uniform", "doubtful"] | None = None
    """Kind of the audit, as 60 and 70 were told, fixed when the monitor begins; null: uniform."""
    audit_salt: str | None = None
    """Key file with the secret salt, with which every row is checked; null: the environment variable STAGE1_AUDIT_SALT,
    or no check of single rows."""
    max_label_delay_days: int | None = None
    """Days after which a day no longer waits for its labels, 0 or more, fixed when the monitor begins; null: 30."""
    group_days: int | None = None
    """Days after the first case of a group in which its cases still belong to it, 0 or more, fixed when the monitor
    begins; null: 0."""
    planned: int | None = None
    """Audited exited positives that are planned until the next certification, 1 or more, fixed when the monitor begins:
    changes after them are noticed late. null: as many as the certificate holds for, else 2000."""
    as_of: str | None = None
    """Moment of this reading, as in 2026-03-01T12:00:00Z; null: now."""


def main(args: Args) -> None:
    import os
    import time
    from pathlib import Path

    from stage1_pro.core.bundle.contents import demand_images, verify_bundle
    from stage1_pro.core.errors import raise_problems
    from stage1_pro.core.monitor.opening import salt_of
    from stage1_pro.core.monitor.state import seconds
    from stage1_pro.core.monitor.watching import read_on
    from stage1_pro.core.monitor.words import SHARES, first_reading, outcome, plan_lines, reading_lines
    from stage1_pro.core.records.paths import unused

    raise_problems("these options do not go together:", problems(args), "See --help.")
    contents = verify_bundle(args.bundle)
    demand_images(contents)
    if args.out is None:
        for line in plan_lines(contents, args.audit_share):
            console.say(line)
        console.say(first_reading(contents.path, unused(contents.path.parent / "watch"), args.audit_share or SHARES[1]))
        return
    clock = int(time.time())
    now = clock if args.as_of is None else seconds(args.as_of)
    chosen = {
        name: getattr(args, name) for name in ("audit", "audit_share", "max_label_delay_days", "group_days", "planned")
    }
    folder, salt = Path(args.out), salt_of(args.audit_salt, os.environ)
    options = {"clock": clock, "salt": salt, "chosen": chosen}
    reading = read_on(contents, folder, args.decisions or [], args.labels or [], now, **options)

    from stage1_pro.core.report.monitor.page import write_page

    page = write_page(reading.monitor, contents.path, folder)
    for line in plan_lines(contents, reading.monitor.settings.audit_share) if reading.first else ():
        console.say(line)
    for line in reading_lines(reading, folder):
        console.say(line)
    console.say(f"page      {page}")
    console.say(f"certificate {reading.monitor.certificate}")
    if ended := outcome(reading.monitor, page):
        raise ended


def problems(args: Args) -> list[str]:
    """What is out of range, and what is said without effect."""
    found = []
    if args.audit_share is not None and not 0 < args.audit_share <= 1:
        found.append(f"--audit_share {args.audit_share:g}: allowed above 0, up to 1; without audits nothing is known")
    for name in ("max_label_delay_days", "group_days"):
        value = getattr(args, name)
        if value is not None and value < 0:
            found.append(f"--{name} {value}: must be 0 or more")
    if args.planned is not None and args.planned < 1:
        found.append(f"--planned {args.planned}: must be 1 or more")
    idle = [name for name in ("decisions", "labels", "as_of") if getattr(args, name) and args.out is None]
    found += [f"--{name} without --out: name the monitor's folder" for name in idle]
    return found


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

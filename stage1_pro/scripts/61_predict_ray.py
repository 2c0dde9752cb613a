"""61: decide a table of any number of images with a bundle, on all cores of a machine or on a Ray cluster.

    python stage1_pro/scripts/61_predict_ray.py runs/demo/bundle images.parquet decisions --actors 2
reads   a bundle; INPUT, a Parquet file or a folder of them, one image a row: column path (local, s3://, gs://, az://)
        or bytes (the content of the file), and optionally id and group; certificate_group with a bundle that certifies
        each camera or site by itself
writes  OUTDIR (a folder, s3://, gs://, az://): part-000000.parquet …, each with the rows of 60_predict.py for so many
        rows of INPUT, done-000000.json once that part is whole, and job.json

Needs the extra: pip install 'stage1-pro[ray]'. Decisions are those of 60_predict.py. Killed at any moment, the same
command goes on where it stopped and ends with the same bytes; OUTDIR of another bundle, table or part size is refused.
Exits with status 4 where some images could not be read; they are deferred, with the reason.
"""

from dataclasses import dataclass, field
from typing import Literal

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    bundle: str = field(metadata={"nargs": None})
    """Bundle folder, as 50_export_bundle.py writes it. Other nodes of a cluster get its files."""
    input: str = field(metadata={"nargs": None})
    """Parquet file, or a folder of *.parquet in the order of their names: column path or bytes, optionally id (else the
    path, else the position of the row) and group. Relative paths start from the current folder."""
    outdir: str = field(metadata={"nargs": None})
    """Folder for the parts, new or one to go on with."""
    rows_per_part: int | None = None
    """Rows of a part, 1 or more: what a kill costs each actor at most. null: 1,024, or 4,096 with --device cuda."""
    actors: int | None = None
    """Processes that decide, 1 or more; null: as many as there are cores, or GPUs with --device cuda. Each takes
    OMP_NUM_THREADS cores, 1 where it is not set."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu, or cuda: every actor takes a GPU of its own."""
    num_workers: int | None = None
    """Processes that decode beside each actor, 0 or more; 0: the actor decodes. null: 0, or with --device cuda the CPUs
    that fall to a GPU, 16 at most."""
    address: str | None = None
    """Address of a running Ray cluster, as in auto or HOST:6379; null: the environment variable RAY_ADDRESS, else Ray
    is started on this machine for the time of the job."""
    audit_share: float | None = None
    """Share of the cases, or of their groups, whose labels are wanted, above 0 to 1; adds the columns that
    65_monitor.py reads. null: nothing is audited."""
    audit: Literal["uniform", "doubtful"] = "uniform"
    """uniform, or doubtful: negative answers that are nearly deferred are audited more often."""
    audit_salt: str | None = None
    """Key file with the secret salt that draws the audited groups; null: the environment variable STAGE1_AUDIT_SALT."""
    monitor: str | None = None
    """Folder or monitor.json of 65_monitor.py: every row then says whether the certificate is in force."""
    require_signature: str | None = None
    """Public key file: the bundle must be signed by its owner. null: signatures are not looked at."""
    time: str | None = None
    """When these cases were met, as in 2026-03-01T12:00:00Z; null: now."""


def main(args: Args) -> None:
    import os
    from pathlib import Path

    from stage1_pro.core.config.extras import demand_extra
    from stage1_pro.core.errors import SomeInputsUnreadable, raise_problems

    least = {"rows_per_part": 1, "actors": 1, "num_workers": 0}
    given = {name: getattr(args, name) for name in least}
    wrong = [f"--{name} {value}: must be {least[name]} or more" for name, value in given.items()
             if value is not None and value < least[name]]  # fmt: skip
    raise_problems("options out of range:", wrong)
    demand_extra("ray")

    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.bundle.signature import demand_signed
    from stage1_pro.core.cluster.decide import decide_table
    from stage1_pro.core.cluster.table import open_table
    from stage1_pro.core.inference.closing import closing_lines
    from stage1_pro.core.monitor.columns import columns_of_rows
    from stage1_pro.core.monitor.deployed import deployed_by

    if args.require_signature:  # before a byte of it is parsed
        demand_signed(args.bundle, args.require_signature, "--require_signature")
    contents = verify_bundle(args.bundle)
    found = deployed_by(args, contents, os.environ)
    table = open_table(args.input)
    tally = decide_table(
        contents,
        table,
        args.outdir,
        rows_per_part=args.rows_per_part,
        actors=args.actors,
        device=args.device,
        workers=args.num_workers,
        address=args.address,
        more=None if found is None else columns_of_rows(found[0], *table.distinct_groups(), found[1]),
    )
    if tally.certificate is not None:
        console.say(f"audited   {tally.audited} of {tally.images}; certificate: {tally.certificate}")
    for line in closing_lines(tally, Path(args.bundle)):
        console.say(line)
    console.say(f"decisions {args.outdir.rstrip('/')}/part-*.parquet")
    if tally.unreadable:
        raise SomeInputsUnreadable(tally.unreadable_words)


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

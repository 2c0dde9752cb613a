"""60: decide new images with a bundle: answer, or defer to stage 2.

    python stage1_pro/scripts/60_predict.py runs/demo/bundle data/demo/images --out decisions.csv
reads   a bundle; image files, folders of images, and URLs of both, such as s3://bucket/folder
writes  one row an image: id, answer, probability, decision (exit or defer), score, reason, and with an SCRC policy
        prediction_set, the classes that remain possible; with --audit_share or --monitor, and where the certificate of
        the bundle has an end, also group, time, audit, audit_probability, certificate, bundle; where the
        bundle certifies each camera or site by itself also certificate_group; where the
        bundle draws masks also masks/, beside OUT, which must hold no others. With a bundle that decides groups of
        images (decide_by: group) one row a group: its name as id, and also frames (images that it has) and views (those
        that were looked at)

The rows are collected in OUT.parts/, and OUT appears when it is whole; killed at any moment, the same command goes on
where it stopped. `--out -` is standard output; a device or a pipe gets the rows as they come, a link is followed.
What lies in a folder is an image by its content, or claims to be one by its suffix; hidden files are left out, and all
that is left out is counted. A name that is not UTF-8 is written with escapes such as \\xe9.
Exits with status 4 where some images could not be read; they are deferred, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stage1_pro.core import cli, console

if TYPE_CHECKING:
    from stage1_pro.core.bundle.contents import BundleContents
    from stage1_pro.core.inference.tables import Output, Tally
    from stage1_pro.core.monitor.columns import Columns


@dataclass(frozen=True)
class Args:
    bundle: str = field(metadata={"nargs": None})
    """Bundle folder, as 50_export_bundle.py writes it."""
    images: list[str] = field(metadata={"nargs": "+"})
    """Image files, folders with images at any depth, and URLs of files and folders that fsspec reaches, such as
    s3://bucket/folder or https://host/a.png."""
    out: str | None = None
    """File to write; its suffix chooses the format: .csv, .jsonl, .parquet. -: standard output. Without it
    decisions.<format>."""
    format: Literal["csv", "jsonl", "parquet"] | None = None
    """Format of the decisions, where no suffix says it; null: csv."""
    overwrite: bool = False
    """Replace a finished file of that name."""
    batch_size: int | None = None
    """Images decoded before they go through the model, 1 or more; null: the bundle's forward_batch. The forward passes
    of a bundle with forward_batch always have that size, so this changes the time and no decision."""
    num_workers: str = "auto"
    """Processes that decode images; 0: this one; auto: as many as suits a few images, which are timed first."""
    device: str = "auto"
    """Device: auto, cpu, cuda, …"""
    audit_share: float | None = None
    """Share of the cases, or of their groups, whose labels are wanted, above 0 to 1; adds the columns that
    65_monitor.py reads. null: nothing is audited."""
    audit: Literal["uniform", "doubtful"] = "uniform"
    """uniform, or doubtful: negative answers that are nearly deferred are audited more often. That notices a broken
    promise sooner where misses are doubtful, and later where they are confident."""
    audit_salt: str | None = None
    """Key file with the secret salt that draws the audited groups; null: the environment variable STAGE1_AUDIT_SALT."""
    groups: str | None = None
    """Cases that depend on each other: 'folder' for one group a folder, or a .csv or .parquet file with the columns id
    and group. A group is audited as a whole. null: each case stands for itself. A bundle that decides groups takes it
    for the images of each (null: folder), with a column order where it looks at a part of a group."""
    certificate_groups: str | None = None
    """With a bundle that certifies each camera or site by itself, that of each image: 'folder' for the name of the
    folder that it lies in, a .csv or .parquet file with the columns id and the one that the bundle names, or the name
    of one for all images. Images of another one, or of none, defer and are counted."""
    monitor: str | None = None
    """Folder or monitor.json of 65_monitor.py: every row then says whether the certificate is in force."""
    require_signature: str | None = None
    """Public key file: the bundle must be signed by its owner. null: signatures are not looked at."""
    cache_folder: str | None = None
    """Folder for copies of images behind URLs; null: stage1_pro in the user's cache folder, or in that of temporary
    files where the user has no home."""
    time: str | None = None
    """When these cases were met, as in 2026-03-01T12:00:00Z; null: now."""


def main(args: Args) -> None:
    from stage1_pro.core.bundle.contents import verify_bundle
    from stage1_pro.core.bundle.signature import demand_signed
    from stage1_pro.core.errors import SomeInputsUnreadable, UserError
    from stage1_pro.core.inference.decisions import demand_free
    from stage1_pro.core.inference.tables import output_of

    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: must be 1 or more.")
    if args.num_workers != "auto" and not args.num_workers.isdecimal():
        raise UserError(f"--num_workers {args.num_workers}: must be auto, or 0 or more.")
    out = output_of(args.out, args.format)
    demand_free(out, args.overwrite)
    with out.talk_elsewhere():
        if args.require_signature:  # before a byte of it is parsed
            demand_signed(args.bundle, args.require_signature, "--require_signature")
        tally = decided(args, verify_bundle(args.bundle), out)
    if tally.unreadable:
        raise SomeInputsUnreadable(tally.unreadable_words)


def decided(args: Args, contents: "BundleContents", out: "Output") -> "Tally":
    """Find the images, decide them, write the table, and say what came of it."""
    from functools import partial

    from stage1_pro.core.bundle.contents import demand_outside
    from stage1_pro.core.data.image_files import shown
    from stage1_pro.core.data.store import cache_folder
    from stage1_pro.core.inference.certificate_groups import certificate_groups_of
    from stage1_pro.core.inference.closing import closing_lines
    from stage1_pro.core.inference.decisions import decide_into
    from stage1_pro.core.inference.finding import find_images
    from stage1_pro.core.inference.groups import group_words, groups_of_images
    from stage1_pro.core.inference.mask_files import demand_images_alone, mark_masks, masks_beside
    from stage1_pro.core.metrics.views import views_of

    task = contents.task
    masks = None
    if task.has_masks:
        demand_images_alone(args.images)
        masks = masks_beside(out, args.overwrite)
    for written in (out.path if out.regular else None, masks):
        demand_outside(contents.path, written, "--out")
    images, copies = find_images(args.images, cache_folder(args.cache_folder), task.suffixes, task.part("files"))
    options = {"batch_size": args.batch_size, "workers": args.num_workers, "overwrite": args.overwrite}
    views, ids, depends = views_of(contents.manifest), list(map(shown, images.paths)), args.groups
    if views is not None:  # a row is a group, and stands for itself
        options["groups"] = groups = groups_of_images(images.paths, args.groups, views)
        ids, depends = [group.name for group in groups], None
        console.say(group_words(groups, views))
    options["certificate_groups"] = certificate_groups_of(ids, args.certificate_groups, contents.policy)
    options["more"] = columns(args, contents, ids, depends)
    predictor = task.part("predictor").of_verified(contents, args.device)
    if masks is not None:
        begun = partial(mark_masks, masks, out)
        predictor.draw_into(masks, images.paths, list(map(copies.path, images.paths)), begun)
    tally = decide_into(predictor, contents.path, images.paths, out, copies=copies, **options)
    if tally.certificate is not None:
        console.say(f"audited   {tally.audited} of {tally.images}; certificate: {tally.certificate}")
    if images.left_out():
        console.say(f"left out of the folders: {images.left_out()}")
    for line in closing_lines(tally, contents.path):
        console.say(line)
    console.say(f"decisions {args.out or out}")
    if masks is not None:
        console.say(f"masks     {masks}")
    return tally


def columns(args: Args, contents: "BundleContents", ids: Sequence[str], groups: str | None) -> "Columns | None":
    """The columns of the audit, where one is asked for. groups: which cases depend on each other."""
    import os

    from stage1_pro.core.monitor.columns import columns_of
    from stage1_pro.core.monitor.deployed import deployed_by

    found = deployed_by(args, contents, os.environ, groups)
    return None if found is None else columns_of(found[0], ids, groups, found[1])


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

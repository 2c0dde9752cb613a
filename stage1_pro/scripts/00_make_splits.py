"""00: check the labelled images and assign them to four splits.

    python stage1_pro/scripts/00_make_splits.py --config configs/smoke.yaml --run runs/try
    python stage1_pro/scripts/00_make_splits.py --config configs/smoke.yaml --plan
reads   the images and labels of dataset_params.sources
writes  runs/<id>/splits.json
"""

from dataclasses import dataclass
from typing import Any

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    run: str | None = None
    """Directory of the new run; without it runs/p<phase>-<UTC time>."""
    plan: bool = False
    """Write nothing: say what these positives can certify, how many would do, which steps follow, and how long they
    take on this machine."""


def main(args: Args, layers: list[tuple[str, Any]]) -> None:
    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.training.start import new_run

    config = merge_configs(layers)
    if args.plan:
        from stage1_pro.core.training.forecast import print_forecast

        return print_forecast(config)
    run, _ = new_run(args.run, config)
    console.say_next(run.path, "20_train.py", console.words_without("--run"))
    return None


if __name__ == "__main__":
    cli.run_with_config(main, Args, __doc__)

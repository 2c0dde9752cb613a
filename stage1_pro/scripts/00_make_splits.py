"""00: check the labelled images and deal them out to four splits.

    python stage1_pro/scripts/00_make_splits.py --config configs/smoke.yaml --run runs/try
reads   the images and labels of dataset_params.sources
writes  runs/<id>/splits.json
"""

from dataclasses import dataclass
from typing import Any

from stage1_pro.core import cli


@dataclass(frozen=True)
class Args:
    run: str | None = None
    """Directory of the new run; without it runs/p<phase>-<UTC time>."""


def main(args: Args, layers: list[tuple[str, Any]]) -> None:
    from stage1_pro.core.begin import new_run
    from stage1_pro.core.config import merge_configs

    config = merge_configs(layers)
    run, _ = new_run(args.run, config)
    cli.say_next(run.path, "20_train.py", cli.words_without("--run"))


if __name__ == "__main__":
    cli.run_with_config(main, Args, __doc__)

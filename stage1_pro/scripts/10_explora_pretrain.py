"""10: adapt a backbone to unlabelled images (ExPLoRA), guarded by a probe on labelled train cases.

    python stage1_pro/scripts/10_explora_pretrain.py --config configs/explora.yaml --images data/demo/images --out out/a
reads   --images (folder, or CSV with a column path), the labelled images of --run or dataset_params.sources
writes  OUT/backbone.safetensors, backbone.json (for model_path local-dir:OUT), train.yaml (settings for 20_train.py),
        pretraining.csv, pretraining.png, pretraining.json, checkpoints/

Images that val_calib or val_test hold are left out by content. Nothing is exported where the probe ends below step 0
(status 3), unless --force is given. Of the training settings it takes model_path, dataset_params, batch_size,
weight_decay, max_grad_norm, seed, precision, devices, num_nodes and strategy.
"""

from dataclasses import dataclass
from typing import Any

from stage1_pro.core import cli, console
from stage1_pro.core.pretraining.settings import Pretraining


@dataclass(frozen=True)
class Args(Pretraining):
    images: str | None = None
    """Unlabelled images: a folder, or a CSV file with a column path."""
    out: str | None = None
    """Folder of the adapted backbone, new."""
    run: str | None = None
    """The labelled run whose val_calib and val_test are protected and whose train cases are probed; without it those of
    the config's sources, split as 00_make_splits.py would."""
    resume: str | None = None
    """Continue the adaptation in this folder with its own settings."""
    force: bool = False
    """Export the best probe after step 0 also where the probe ended below step 0."""
    dry_run: bool = False
    """Check everything, print the plan, and stop."""


def main(args: Args, layers: list[tuple[str, Any]]) -> None:
    import shlex

    from stage1_pro.core.pretraining.task import changed, new_task, task_to_resume

    if args.resume:
        task = task_to_resume(args.resume, changed(args, "resume", "force", "dry_run"), layers)
    else:
        settings = Pretraining(**Pretraining.values(args))
        task = new_task(args.images, args.out, args.run, settings, layers)

    from stage1_pro.core.training.imports import import_lightly

    import_lightly()  # before Lightning comes
    from stage1_pro.core.pretraining import loop as training
    from stage1_pro.core.training.start import is_first_process

    adaptation = training.Adaptation(task)
    training.print_plan(task, adaptation)
    if args.dry_run:
        return
    with console.resumable(task.folder, "10_explora_pretrain.py"):
        training.record_begin(task, adaptation)
        training.fit(task, adaptation)
        if is_first_process():
            training.finish(task, adaptation, args.force)
            console.say(f"backbone    {task.folder}: for model_path local-dir:{task.folder}")
            console.say(f"next  python stage1_pro/scripts/20_train.py {shlex.join(training.words_to_train(task))}")


if __name__ == "__main__":
    cli.run_with_config(main, Args, __doc__)

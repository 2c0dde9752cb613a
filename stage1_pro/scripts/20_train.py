"""20: train the stage-1 model of a run, keep its best weights, and score the two validation splits.

    python stage1_pro/scripts/20_train.py --config configs/smoke.yaml --phase 1
reads   runs/<id>/splits.json (drawn first where no --run is named), the images
writes  runs/<id>/config.json, environment.json, metrics.csv, checkpoints/, model_best.pth,
        scores/val_select.parquet, scores/val_calib.parquet, seen.json,
        suspects.csv (training labels, the least probable first)

Settings come from the defaults, then every --config file in turn, then the flags.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from stage1_pro.core import cli, console
from stage1_pro.core.errors import UserError


@dataclass(frozen=True)
class Args:
    run: str | None = None
    """A run prepared by 00_make_splits.py; without it a new run is begun."""
    resume: str | None = None
    """Continue this run with its own config; takes no other option but --root and --restore_state, and --epochs N after
    its end: then training goes on to epoch N, with a schedule that begins anew."""
    root: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "NAME=PATH"})
    """With --resume, where images have moved: the source and its new folder. They must be the same, which their content
    tells."""
    restore_state: bool = False
    """With --resume: first put state.json of an incremental training back from the checkpoint's copy."""
    init_from: str | None = None
    """Start from the weights of this run, which must have the same splits."""
    dry_run: bool = False
    """Check everything, print the plan, and stop."""


def main(args: Args, layers: list[tuple[str, Any]]) -> None:
    if args.restore_state and not args.resume:
        raise UserError("--restore_state goes with --resume RUN: name the run whose state.json is to come back.")
    if args.root and not args.resume:
        raise UserError("--root goes with --resume RUN; for a new run write the folder into dataset_params.sources.")
    if args.dry_run and not args.resume:
        show_plan(args, layers)
    else:
        train(args, layers)


def train(args: Args, layers: list[tuple[str, Any]]) -> None:
    """Begin a run or take one up, and bring it to its scores."""
    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.training.start import (
        demand_machine,
        is_first_process,
        prepared_run,
        run_to_resume,
        source_run,
    )

    later_end: list[tuple[str, Any]] = []
    if args.resume:
        from stage1_pro.core.training.extension import extended, later_ends

        others = {"run": args.run, "init_from": args.init_from, "dry_run": args.dry_run}
        later_end, layers = later_ends(layers)
        run, config, cases, source = run_to_resume(args.resume, others, layers, args.root)
        if later_end:
            config = extended(run, later_end)
        demand_machine(config)
    else:
        config = merge_configs(layers)
        if config.incremental_params.dry_run:
            return show_plan(args, layers)
        demand_machine(config)
        run, cases = prepared_run(args.run, config)
        source = source_run(args.init_from, run, config) if args.init_from else None
    if is_first_process():
        console.say(f"training  {run.path}, phase {config.phase}; loading {config.model_path}")

    with cli.lasting():
        from stage1_pro.core.training.imports import import_lightly

        import_lightly()  # before Lightning comes
        from stage1_pro.core.artifacts import write_json
        from stage1_pro.core.inference.scoring import with_forward_batch
        from stage1_pro.core.records.seen import SEEN, seen_record
        from stage1_pro.core.training import fit as training
        from stage1_pro.core.training.trainer import make_trainer

    with console.resumable(run.path):
        model = config.task.part("build_model")(config, cases, run.splits, source)
        config = replace(config, backbone_license=model.spec.license)
        if not args.resume:
            config = with_forward_batch(config)
        trainer = make_trainer(run, config)
        training.record_begin(run, config, model, source, resume=bool(args.resume))
        if later_end and is_first_process():
            run.train_on(config)
        reading = training.fit(run, config, model, cases, trainer, args.restore_state)
        if is_first_process():
            write_json(run.path / SEEN, seen_record(cases.frame, run.splits), "seen")
            config.task.part("conclude")(run, config, model, cases, reading)
            console.say_next(run.path, run.policy_row.script if len(cases.class_names) == 2 else None)
    return None


def show_plan(args: Args, layers: list[tuple[str, Any]]) -> None:
    """Resolve and check everything that training would use, print it, and write nothing."""
    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.training.start import (
        demand_machine,
        demand_protected,
        prepared_run,
        preview,
        print_stages,
        source_with,
    )

    config = merge_configs(layers)
    demand_machine(config)
    if args.run:
        run, cases = prepared_run(args.run, config)
        splits = run.splits
    else:
        cases, splits = preview(config)
        demand_protected(config.model_path, splits)
    source = source_with(args.init_from, splits, args.run or "this config", config) if args.init_from else None
    stages = config.incremental_params
    if stages.enabled:
        print_stages(config, cases, splits)
    if stages.dry_run and source is None:
        return

    from stage1_pro.core.training.imports import import_lightly

    import_lightly()
    from stage1_pro.core.training import fit as training
    from stage1_pro.core.training.trainer import demand_trainer, scoring_trainer

    model = config.task.part("build_model")(config, cases, splits, source)
    demand_trainer(config)
    training.print_plan(config, model, cases)
    if stages.enabled and source is not None:
        training.first_admission(config, model, cases, splits, scoring_trainer(config))


if __name__ == "__main__":
    cli.run_with_config(main, Args, __doc__)

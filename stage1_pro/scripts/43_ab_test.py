"""43: decide whether a way of training is worth its time: the same splits, seeds and budget for several configs.

    python stage1_pro/scripts/43_ab_test.py --config configs/demo.yaml --arms configs/phase2.yaml configs/phase3.yaml \\
        --seeds 5 --out runs/ab/phases
reads   the base config, one YAML overlay an arm (named by its file, the first one is the reference), the images
writes  OUT/splits.json, OUT/runs/ARM-seedN/ (whole runs), OUT/logs/, OUT/ab.json, ab.html, figures/*.png

Every run is trained, certified once and evaluated by the scripts of the chain, as processes of their own. The same
command goes on where it stopped and repeats nothing; more seeds or arms may be added. Nothing certified counts as
no right exits. Exits with status 2 where runs failed, after comparing those that ended.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    arms: list[str] | None = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """YAML overlays on the base config, two or more; the first one is what the others are measured against."""
    seeds: int = 5
    """Training seeds for each arm, counted up from the base config's seed, 1 or more."""
    out: str | None = None
    """Folder of the test, new or one to go on with."""
    jobs: int | None = None
    """Runs trained side by side, 1 or more; speeds are then those of a share of the machine. null: 1, and with --engine
    ray as many as the cluster has CPUs, or GPUs."""
    engine: Literal["processes", "ray"] = "processes"
    """processes of this machine, or ray: on the nodes of a Ray cluster, which see the folder of the test under the same
    path. Needs the extra: pip install 'stage1-pro[ray]'."""
    address: str | None = None
    """Address of a running Ray cluster; null: the environment variable RAY_ADDRESS, else Ray is started on this machine
    for the time of the test."""


def main(args: Args, layers: list[tuple[str, Any]]) -> None:
    import shlex
    import sys
    from pathlib import Path

    from stage1_pro.core.ab.plan import make_plan, write_arms
    from stage1_pro.core.commands import spoken
    from stage1_pro.core.config.extras import demand_extra
    from stage1_pro.core.errors import UserError, counted

    if args.out is None or (args.jobs is not None and args.jobs < 1):
        raise UserError("--out names the folder of the test, and --jobs is 1 or more. See --help.")
    if args.engine == "ray":
        demand_extra("ray")
    plan = make_plan(layers, args.arms or [], args.seeds, Path(args.out))

    from stage1_pro.core.ab.on_ray import ray_children
    from stage1_pro.core.ab.outcome import stand
    from stage1_pro.core.ab.results import read_results
    from stage1_pro.core.ab.runner import run_trials
    from stage1_pro.core.ab.splits import draw_splits
    from stage1_pro.core.report.ab.page import write_test
    from stage1_pro.core.report.ab.tables import console_lines, remarks, warnings

    draw_splits(plan)
    write_arms(plan)
    if args.engine == "ray":
        with ray_children(args.address, args.jobs, len(list(plan.trials()))) as (jobs, children):
            failures = run_trials(plan, jobs, console.say, children)
    else:
        failures = run_trials(plan, jobs := args.jobs or 1, console.say)
    results, cases = read_results(plan, failures)
    test = stand(plan, results, cases, failures, jobs)
    command = spoken(f"python stage1_pro/scripts/43_ab_test.py {shlex.join(sys.argv[1:])}")
    page = write_test(test, plan.folder, command)
    for line in ("", *console_lines(test), *(f"warning: {words}" for words in warnings(test)), *remarks(test)):
        console.say(line)
    console.say(f"test {page}")
    if failures:
        raise UserError(
            f"{counted(len(failures), 'run')} failed: {', '.join(failures)}. Fix this and give the same command again."
        )


if __name__ == "__main__":
    cli.run_with_config(main, Args, __doc__)

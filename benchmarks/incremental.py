"""How many cases incremental training needs, by the way in which cases are admitted.

    python benchmarks/incremental.py                              # digits and the demo, clean and with wrong labels
    python benchmarks/incremental.py --tasks digits --seeds 1 --arms acquisition random
Digits: a pool of 1,000 of ten classes, phase 2 on pixels. Demo: a pool of 700 of two, phase 2 on the features of the
frozen backbone. An arm needs as many cases as the first stage has whose chosen weights reach 98 % of the test accuracy
that training on the whole, clean pool reaches with the same seed. With wrong labels a tenth of the pool is labelled
with another class at random; val_select is not.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from incremental_tasks import TASKS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ALONE = {"w_dice": 0, "w_uncertainty": 0, "w_diversity": 0}
ARMS: dict[str, dict[str, Any]] = {
    "acquisition": {},
    "difficulty": ALONE | {"w_dice": 1},
    "uncertainty": ALONE | {"w_uncertainty": 1},
    "diversity": ALONE | {"w_diversity": 1},
    "recipe": yaml.safe_load((ROOT / "configs" / "wrong_labels.yaml").read_text())["incremental_params"],
    "random": {"strategy": "random"},
}
"""Settings over the defaults; the recipe is the one that ships."""
REACHED, SUSPECTS = 0.98, 100
STAGES = {"initial_cases": 32, "add_cases": 16, "max_epochs_per_stage": 60, "early_stopping_patience": 6}
SETTINGS: dict[str, Any] = {
    "phase": 2,
    "model_path": "random:test_efficientnet",
    "epochs": 60,
    "early_stop_patience": 6,
    "devices": 1,
}
UNUSED = ("RunCheckpoint", "LearningRateMonitor")
"""Callbacks that a study has no use for: half the time of so small a training is theirs."""
Job = tuple[str, str, bool, int, int]
"""(task, arm, wrong labels, seed, stages at most)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=6, help="of digits; the demo takes a third of them")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--stages", type=int, default=20, help="of a run at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=Path("runs/bench-incremental.png"))
    args = parser.parse_args()
    seeds = {task: range(args.seeds if task == "digits" else -(-args.seeds // 3)) for task in args.tasks}
    jobs: list[Job] = [
        (task, arm, wrong, seed, args.stages)
        for task in args.tasks
        for wrong in (False, True)
        for arm in args.arms
        for seed in seeds[task]
    ]
    whole = [(task, seed) for task in args.tasks for seed in seeds[task]]
    with ProcessPoolExecutor(args.workers) as pool:
        full = dict(zip(whole, pool.map(full_accuracy, whole), strict=True))
        curves = dict(zip(jobs, pool.map(one_run, jobs), strict=True))
    print_table(curves, full)
    draw(curves, full, args.figure)


def print_table(curves: dict[Job, dict], full: dict[tuple[str, int], float]) -> None:
    """One row an arm of a task, as a Markdown table."""
    print("| task | labels | arm | seeds | cases needed | of random's | accuracy at the end | planted among suspects |")
    print("|---|---|---|---|---|---|---|---|")
    for task, arm, wrong in dict.fromkeys(job[:3] for job in curves):
        rows = {job: curve for job, curve in curves.items() if job[:3] == (task, arm, wrong)}
        needed = cases_needed(rows, full)
        random = cases_needed({job: curve for job, curve in curves.items() if job[:3] == (task, "random", wrong)}, full)
        missed = sum(case_count == TASKS[task].pool for case_count in needed)
        spread = f" ± {np.std(needed, ddof=1) / len(needed) ** 0.5:.0f}" if len(needed) > 1 else ""
        words = f"{np.mean(needed):.0f}{spread}" + (f" ({missed} of {len(needed)} never)" if missed else "")
        share = f"{np.mean(needed) / np.mean(random):.2f}" if random else "–"
        last = np.mean([curve["accuracy"][-1] for curve in rows.values()])
        found = f"{np.mean([curve['found'] for curve in rows.values()]):.0%}" if wrong else ""
        labels = "10 % wrong" if wrong else "clean"
        print(f"| {task} | {labels} | {arm} | {len(rows)} | {words} | {share} | {last:.4f} | {found} |")
    for task in dict.fromkeys(job[0] for job in curves):
        means = [accuracy for (name, _), accuracy in full.items() if name == task]
        print(f"{task}: test accuracy of the whole clean pool ({TASKS[task].pool} cases) {np.mean(means):.4f}")


def cases_needed(curves: dict[Job, dict], full: dict[tuple[str, int], float]) -> list[int]:
    """For each run the active cases of its first stage that is good enough; the whole pool where none is."""
    needed = []
    for (task, _, _, seed, _), curve in curves.items():
        reached = np.flatnonzero(np.array(curve["accuracy"]) >= REACHED * full[task, seed])
        needed.append(curve["cases"][reached[0]] if len(reached) else TASKS[task].pool)
    return needed


def full_accuracy(job: tuple[str, int]) -> float:
    """Test accuracy of training on the whole pool."""
    task, seed = job
    tested, state, _ = trained(task, {}, seed, wrong=False)
    return tested[int(np.nanargmin(state["val_augrc"]))]


def one_run(job: Job) -> dict[str, Any]:
    """Cases and test accuracy by stage, and the share of the planted wrong labels among the first suspects."""
    task, arm, wrong, seed, stages = job
    params = {"enabled": True, "max_stages": stages, "lr_floor_action": "end_stage", **STAGES, **ARMS[arm]}
    tested, state, planted = trained(task, {"incremental_params": params}, seed, wrong)
    scored = [stage.scored for stage in state.stages if stage.scored]
    suspects = {suspect.case_id for suspect in scored[-1].suspects[:SUSPECTS]} if scored else set()
    return {
        "cases": [stage.active_cases for stage in state.stages],
        "accuracy": [tested[stage.best_epoch] for stage in state.stages],
        "found": len(suspects & planted) / max(1, len(planted)),
    }


def trained(task: str, settings: dict[str, Any], seed: int, wrong: bool) -> tuple[list[float], Any, set[str]]:
    """(test accuracy by epoch, the machine's last state or the columns of metrics.csv, ids of wrong labels)."""
    import pandas as pd
    import torch
    from torch import nn

    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.data.cases import CaseTable
    from stage1_pro.core.data.datamodule import Stage1DataModule
    from stage1_pro.core.data.transforms import Preprocessing
    from stage1_pro.core.incremental.state import read_state
    from stage1_pro.core.models.backbone import BackboneSpec
    from stage1_pro.core.models.stage1 import Stage1Model
    from stage1_pro.core.records.run import Run
    from stage1_pro.core.records.splits import Splits
    from stage1_pro.core.training.fit import fit_on
    from stage1_pro.core.training.trainer import make_trainer

    torch.set_num_threads(1)
    config = merge_configs([("benchmark", {**SETTINGS, **TASKS[task].settings, **settings, "seed": seed})])
    drawn = TASKS[task].drawn(seed, wrong)
    names = drawn.names
    frame = pd.DataFrame({"case_id": names, "label": drawn.labels, "group": names, "content": names, "path": names})
    cases = CaseTable(frame, tuple(map(str, range(drawn.labels.max() + 1))), False, False)
    features = {"train": drawn.features[drawn.pool], "val_select": drawn.features[drawn.select]}
    splits = Splits({"train_indices": drawn.pool, "val_select_indices": drawn.select})
    torch.manual_seed(seed)
    spec = BackboneSpec("features", {}, Preprocessing(8, 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3), "own")
    width = drawn.features.shape[1]
    model = Stage1Model(nn.Identity(), spec, cases.class_names, width, config.dropout)  # pyright: ignore
    model.freeze_backbone()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        trainer = make_trainer(run, config)
        test = Tested(torch.from_numpy(drawn.features[drawn.test]), drawn.labels[drawn.test])
        kept = [callback for callback in trainer.callbacks if type(callback).__name__ not in UNUSED]
        for callback in kept:
            if type(callback).__name__ == "EpochTable":
                callback.plain_lines = False
        trainer.callbacks, trainer.loggers = [test.callback(), *kept], []
        trainer.print = lambda *_: None
        data = Stage1DataModule(cases, splits, config, spec.preprocessing, features)
        fit_on(run, config, model, data, trainer)
        done = config.incremental_params.enabled
        planted = set(names[drawn.planted])
        return test.accuracy, read_state(run.path) if done else pd.read_csv(run.metrics_path), planted


class Tested:
    """Test accuracy of the weights that each epoch's validation sees."""

    def __init__(self, inputs: Any, labels: np.ndarray):
        self.inputs, self.labels, self.accuracy = inputs, labels, []

    def callback(self) -> Any:
        import lightning.pytorch as pl

        outer = self

        class Callback(pl.Callback):
            def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                answers = pl_module.model(outer.inputs.to(pl_module.device)).logits.argmax(1).cpu().numpy()
                outer.accuracy.append(float((answers == outer.labels).mean()))

        return Callback()


def draw(curves: dict[Job, dict], full: dict[tuple[str, int], float], path: Path) -> None:
    """Test accuracy against cases in training, mean over seeds; a row a task, a column each kind of labels."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(job[0] for job in curves))
    figure = Figure(figsize=(9, 3.6 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), 2, sharey="row", squeeze=False)
    for row, task in zip(grid, tasks, strict=True):
        goal = REACHED * np.mean([accuracy for (name, _), accuracy in full.items() if name == task])
        for axes, wrong in zip(row, (False, True), strict=True):
            for arm in dict.fromkeys(job[1] for job in curves):
                own = [curve for job, curve in curves.items() if job[:3] == (task, arm, wrong)]
                length = min(len(curve["cases"]) for curve in own)
                count, mean = (
                    np.mean([curve[name][:length] for curve in own], axis=0) for name in ("cases", "accuracy")
                )
                width = 2 if arm in ("acquisition", "recipe", "random") else 1
                axes.plot(count, mean, label=arm, linewidth=width)
            axes.axhline(goal, color="grey", linestyle="--", linewidth=1, label="98 % of the whole pool")
            axes.set(title=f"{task}, {'10 % wrong' if wrong else 'clean'} labels", xlabel="cases in training")
        row[0].set_ylabel("test accuracy")
    grid[0][0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"figure {path}")


if __name__ == "__main__":
    main()

"""How many cases incremental training needs on scikit-learn's digits, by the way in which cases are admitted.

    python benchmarks/incremental.py                              # 6 seeds, all arms, clean and with wrong labels
    python benchmarks/incremental.py --seeds 1 --arms acquisition random
Pool 1,000 cases, val_select 400, test 397; ten classes, phase 2 on pixels. An arm needs as many cases as the first
stage has whose chosen weights reach 98 % of the test accuracy that training on the whole, clean pool reaches with the
same seed. With wrong labels a tenth of the pool is labelled with another class at random; val_select is not.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ARMS: dict[str, dict[str, Any]] = {
    "acquisition": {},
    "difficulty": {"w_dice": 1, "w_uncertainty": 0, "w_diversity": 0},
    "uncertainty": {"w_dice": 0, "w_uncertainty": 1, "w_diversity": 0},
    "diversity": {"w_dice": 0, "w_uncertainty": 0, "w_diversity": 1},
    "recipe": {"w_dice": 0, "w_uncertainty": 0.5, "w_diversity": 0.5, "max_difficulty": 0.9},
    "random": {"strategy": "random"},
}
POOL, SELECT, CLASSES = 1000, 400, 10
WRONG_SHARE, REACHED, SUSPECTS = 0.1, 0.98, 100
STAGES = {"initial_cases": 32, "add_cases": 16, "max_epochs_per_stage": 60, "early_stopping_patience": 6}
SETTINGS: dict[str, Any] = {
    "phase": 2,
    "model_path": "random:test_efficientnet",
    "batch_size": 32,
    "lr_head": 3e-3,
    "epochs": 60,
    "early_stop_patience": 6,
    "devices": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--stages", type=int, default=30, help="of a run at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=Path("runs/bench-incremental.png"))
    args = parser.parse_args()
    jobs = [
        (arm, wrong, seed, args.stages) for wrong in (False, True) for arm in args.arms for seed in range(args.seeds)
    ]
    with ProcessPoolExecutor(args.workers) as pool:
        full = list(pool.map(full_accuracy, range(args.seeds)))
        curves = dict(zip(jobs, pool.map(one_run, jobs), strict=True))
    print(f"whole clean pool ({POOL} cases): test accuracy {np.mean(full):.4f}")
    print_table(curves, full, args)
    draw(curves, np.mean(full), args)


def print_table(curves: dict, full: list[float], args: argparse.Namespace) -> None:
    needed = {job: cases_needed(curve, REACHED * full[job[2]]) for job, curve in curves.items()}
    print(f"{'labels':<8}{'arm':<13}{'cases needed':>13}  {'of random':>9}  {'at the end':>10}  planted among suspects")
    for wrong in (False, True):
        for arm in args.arms:
            own = [job for job in curves if job[:2] == (arm, wrong)]
            mean = np.mean([needed[job] for job in own])
            random = [needed[job] for job in curves if job[:2] == ("random", wrong)]
            share = f"{mean / np.mean(random):.2f}" if random else "–"
            spread = np.std([needed[job] for job in own], ddof=1) / len(own) ** 0.5 if len(own) > 1 else float("nan")
            last = np.mean([curves[job]["accuracy"][-1] for job in own])
            found = f"{np.mean([curves[job]['found'] for job in own]):.0%}" if wrong else ""
            print(
                f"{'wrong' if wrong else 'clean':<8}{arm:<13}{mean:>7.0f} ± {spread:<3.0f}  {share:>9}  {last:>10.4f}  "
                f"{found}"
            )


def cases_needed(curve: dict[str, Any], accuracy: float) -> int:
    """Active cases of the first stage that reaches this accuracy; the whole pool where none does."""
    reached = np.flatnonzero(np.array(curve["accuracy"]) >= accuracy)
    return curve["cases"][reached[0]] if len(reached) else POOL


def full_accuracy(seed: int) -> float:
    """Test accuracy of training on the whole pool."""
    tested, state, _ = trained(SETTINGS | {"seed": seed}, seed, wrong=False)
    return tested[int(np.nanargmin(state["val_augrc"]))]


def one_run(job: tuple[str, bool, int, int]) -> dict[str, Any]:
    """Cases and test accuracy by stage, and the share of the planted wrong labels among the first suspects."""
    arm, wrong, seed, stages = job
    params = {"enabled": True, "max_stages": stages, "lr_floor_action": "end_stage", **STAGES, **ARMS[arm]}
    tested, state, planted = trained(SETTINGS | {"seed": seed, "incremental_params": params}, seed, wrong)
    scored = [stage.scored for stage in state.stages if stage.scored]
    suspects = {suspect.case_id for suspect in scored[-1].suspects[:SUSPECTS]} if scored else set()
    return {
        "cases": [stage.active_cases for stage in state.stages],
        "accuracy": [tested[stage.best_epoch] for stage in state.stages],
        "found": len(suspects & planted) / max(1, len(planted)),
    }


def trained(settings: dict[str, Any], seed: int, wrong: bool) -> tuple[list[float], Any, set[str]]:
    """(test accuracy by epoch, the machine's last state or the columns of metrics.csv, ids of wrong labels)."""
    import pandas as pd
    import torch
    from torch import nn

    from stage1_pro.core.config import config_from_dict
    from stage1_pro.core.data.cases import CaseTable
    from stage1_pro.core.data.datamodule import Stage1DataModule
    from stage1_pro.core.data.transforms import Preprocessing
    from stage1_pro.core.incremental.state import read_state
    from stage1_pro.core.models.backbone import BackboneSpec
    from stage1_pro.core.models.stage1 import Stage1Model
    from stage1_pro.core.run import Run
    from stage1_pro.core.splits import Splits
    from stage1_pro.core.trainer import make_trainer
    from stage1_pro.core.training import fit_on

    torch.set_num_threads(1)
    config = config_from_dict(settings, "benchmark")
    pixels, labels, planted, splits, names = digits(seed, wrong)
    frame = pd.DataFrame({"case_id": names, "label": labels, "group": names, "content": names, "path": names})
    cases = CaseTable(frame, tuple(map(str, range(CLASSES))), False, False)
    features = {name: pixels[splits[f"{name}_indices"]] for name in ("train", "val_select")}
    torch.manual_seed(seed)
    spec = BackboneSpec("digits", {}, Preprocessing(8, 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3), "own")
    model = Stage1Model(nn.Identity(), spec, cases.class_names, pixels.shape[1], config.dropout)  # pyright: ignore
    model.freeze_backbone()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        trainer = make_trainer(run, config)
        for callback in trainer.callbacks:
            if type(callback).__name__ == "EpochTable":
                callback.plain_lines = False
        test = Tested(torch.from_numpy(pixels[splits["test"]]), labels[splits["test"]])
        trainer.callbacks.insert(0, test.callback())
        trainer.print = lambda *_: None
        data = Stage1DataModule(cases, Splits(splits), config, spec.preprocessing, features)
        fit_on(run, config, model, data, trainer)
        done = config.incremental_params.enabled
        return test.accuracy, read_state(run.path) if done else pd.read_csv(run.metrics_path), set(names[planted])


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


def digits(seed: int, wrong: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any], np.ndarray]:
    """(pixels (N, 64) float32 0 to 1, labels (N,), positions of wrong labels, splits, case ids)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(bunch.target))
    pool, select, test = np.split(order, [POOL, POOL + SELECT])
    labels, planted = bunch.target.copy(), np.array([], dtype=np.int64)
    if wrong:
        planted = rng.choice(pool, round(WRONG_SHARE * POOL), replace=False)
        labels[planted] = (labels[planted] + rng.integers(1, CLASSES, len(planted))) % CLASSES
    names = np.array([f"digit{index:04d}" for index in range(len(labels))], dtype=object)
    splits = {"train_indices": np.sort(pool), "val_select_indices": np.sort(select), "test": test}
    return (bunch.data / 16).astype(np.float32), labels, planted, splits, names


def draw(curves: dict, full: float, args: argparse.Namespace) -> None:
    """Test accuracy against cases in training, mean over seeds, one panel for each kind of labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, wrong in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for arm in args.arms:
            own = [curves[job] for job in curves if job[:2] == (arm, wrong)]
            length = min(len(curve["cases"]) for curve in own)
            mean = np.mean([curve["accuracy"][:length] for curve in own], axis=0)
            axes.plot(own[0]["cases"][:length], mean, label=arm)
        axes.axhline(REACHED * full, color="grey", linestyle="--", linewidth=1, label="98 % of the whole pool")
        axes.set(title="10 % wrong labels" if wrong else "clean labels", xlabel="cases in training")
    figure.axes[0].set_ylabel("test accuracy")
    figure.axes[1].legend()
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figure, dpi=150)
    print(f"figure {args.figure}")


if __name__ == "__main__":
    main()

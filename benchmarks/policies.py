"""What the exit policies are worth on real images: Fashion-MNIST, shirt and coat against the rest.

    python benchmarks/policies.py --out runs/policies --splits 1 --seeds 1 --arms frozen
reads   the four files of Fashion-MNIST (Debian: dataset-fashion-mnist), weights of EfficientNet-Lite0 (`make data`)
writes  under --out: scores of every run, results.jsonl; the table into --page

Frozen Lite0 features and a small CNN trained end to end; every split has a tenth of positives. Each policy is that
of its phase as shipped. A run that ended is not repeated, so the command can be stopped and given again.
"""

import argparse
import json
import multiprocessing
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
ARMS, POSITIVES, TARGETS = ("frozen", "cnn"), ("shirt", "coat"), (0.05, 0.1)
PHASES = (2, 3, 6)
RECIPES: dict[str, dict[str, Any]] = {
    "short": {"epochs": 10, "early_stop_patience": 5},
    "long": {"epochs": 30, "early_stop_patience": 10},
}
COMMON = {"batch_size": 256, "lr_head": 1e-3, "lr_backbone": 1e-3}


@dataclass(frozen=True, slots=True)
class Job:
    """One run. It is trained for the first target and certified for each."""

    recipe: str
    phase: int
    arm: str
    positive: str
    split: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}-p{self.phase}-{self.arm}-{self.positive}-{self.split}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        own = {"phase": self.phase, "target_fnr_exit": TARGETS[0], "seed": self.seed}
        return {**own, "freeze_backbone": self.arm == "frozen", **COMMON, **RECIPES[self.recipe]}


def main() -> None:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    args = parse()
    from policies_data import prepare
    from policies_table import write_table

    prepare(args.data, args.weights, args.out)
    found = args.out / "results.jsonl"
    done = {json.loads(line)["name"] for line in found.read_text().splitlines()} if found.exists() else set()
    jobs = [job for job in plan(args) if job.name not in done]
    with (
        multiprocessing.get_context("spawn").Pool(args.jobs, begin, (args.out,)) as pool,
        found.open("a") as file,
    ):
        for number, lines in enumerate(pool.imap_unordered(work, jobs), 1):
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            print(f"{number} of {len(jobs)}: {lines[0]['name']}", file=sys.stderr, flush=True)
    print(write_table(found, args.page or args.out / "table.md"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "demo" / "efficientnet_lite0.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/policies"))
    parser.add_argument("--page", type=Path, help="page whose table is replaced (default: table.md under --out)")
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--phases", type=int, nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["short"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    return parser.parse_args()


def plan(args: argparse.Namespace) -> list[Job]:
    order = product(args.recipes, args.phases, args.arms, POSITIVES, range(args.splits), range(args.seeds))
    return [Job(*values) for values in order]


INPUTS: dict[str, Any] = {}
"""Of this process: the folder and its arrays."""


def begin(out: Path) -> None:
    """What each worker process does first."""
    import logging
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # Lightning's hints
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    INPUTS.update({name: np.load(out / f"{name}.npy", mmap_mode="r") for name in (*ARMS, "classes")}, out=out)


def work(job: Job) -> list[dict[str, Any]]:
    """Train or read the scores of one run, and what its policies do on the test split."""
    from policies_data import labelled, read_runs_scores, split_indices, write_runs_scores
    from policies_outcomes import outcomes

    folder = INPUTS["out"] / "scores" / job.name
    if not folder.exists():
        from policies_training import train_and_score

        classes = np.asarray(INPUTS["classes"])
        splits = split_indices(classes, job.split)
        write_runs_scores(
            folder, train_and_score(job.settings, INPUTS[job.arm], labelled(classes, job.positive), splits)
        )
    scores = read_runs_scores(folder)
    return [
        {**asdict(job), "name": job.name, **line} for target in TARGETS for line in outcomes(scores, job.phase, target)
    ]


if __name__ == "__main__":
    main()

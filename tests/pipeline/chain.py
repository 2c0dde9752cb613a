"""Scripts called in this process: the same entry point, without the imports that a new process pays for every time."""

import io
import json
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.evaluation import evaluate_run, trusted_policy
from stage1_pro.core.inference.scoring import score_test
from stage1_pro.core.models.stage1 import load_model
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks.checkpoints import judged_weights
from stage1_pro.core.training.fit import build_model

SCRIPTS = Path(__file__).parents[2] / "stage1_pro" / "scripts"
TIMING = ["images_per_second", "data_wait_share", "epoch_seconds", "peak_rss_mib"]
KILLED = "killed"
CASES = 640
GATED = ["--phase", "3", "--exit_policy", "gate", "--head_ensemble", "2", "--epochs", "6", "--target_fnr_exit", "0.1"]
CONFORMAL = ["--phase", "6", "--exit_policy", "scrc", "--head_ensemble", "2", "--epochs", "6"]


def draw(folder: Path, cases: int = CASES, seed: int = 1, light: float = 1.0, cast: float = 0.0) -> None:
    """Noisy squares, a little redder or bluer, and labels.csv.

    light: factor of all pixels, below 1 for darker ones; cast: how much bluer another camera sees them.
    """
    rng = np.random.default_rng(seed)
    lines = ["path,label"]
    for index in range(cases):
        label = ("blue", "red")[index % 2]
        shift = rng.normal(42, 25) * (1 if label == "red" else -1) - cast
        pixels = (np.array([128 + shift, 100, 128 - shift]) + rng.normal(0, 40, (32, 32, 3))) * light
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


class Watched(io.StringIO):
    """Output that does something as soon as certain words are written: once for each of them."""

    def __init__(self, at: Mapping[str, Callable[[], object]]):
        super().__init__()
        self.at = dict(at)

    def write(self, text: str) -> int:
        written = super().write(text)
        for words in [words for words in self.at if words in text]:
            self.at.pop(words)()
        return written


def call(name: str, *arguments: object, at: Mapping[str, Callable[[], object]] | None = None) -> Outcome:
    """Call a script by name with its arguments; returns status, stdout and stderr.

    at: words of its output, and what is done in the moment that they are printed.
    """
    out, err = Watched(at or {}), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, sys.argv = sys.argv, [f"{name}.py", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Outcome(status, out.getvalue(), err.getvalue())


def done(name: str, *arguments: object, **options: Mapping[str, Callable[[], object]]) -> Outcome:
    """Call a script that must end well."""
    outcome = call(name, *arguments, **options)
    assert outcome.status == 0, outcome
    return outcome


def train_run(run: Path, flags: list[str], *killed_at: str) -> Path:
    """A new run, split, trained and scored.

    killed_at: words of a line of training; what a process that is killed then leaves behind is kept for `killed`.
    """
    flags = [*flags, "--run", str(run)]
    done("00_make_splits", *flags)
    done("20_train", *flags, at={words: lambda words=words: keep(run, words) for words in killed_at})
    return run


def keep(run: Path, moment: str) -> None:
    """Keep the run's files as they are in this moment, which is all that a process killed now leaves behind."""
    shutil.copytree(run, _kept(run, moment), symlinks=True)


def killed(run: Path, moment: str, to: Path) -> Path:
    """A run as it was kept in that moment."""
    return shutil.copytree(_kept(run, moment), to, symlinks=True)


def _kept(run: Path, moment: str) -> Path:
    return run.parents[1] / KILLED / run.name / moment.replace("/", "")


def copy(run: Path, runs: Path) -> Path:
    """Copy a run and the ledger beside it into this folder of runs."""
    runs.mkdir(exist_ok=True, parents=True)
    ledger = run.parent / "calibrations.csv"
    if ledger.exists():
        shutil.copy(ledger, runs)
    return shutil.copytree(run, runs / run.name, symlinks=True)


def evaluate(run: Path) -> dict[str, Any]:
    """What 40 measures, without the time that it takes to draw the report."""
    score_test(Run(run))
    return evaluate_run(Run(run), trusted_policy(Run(run)))


def resume(run: Path) -> None:
    """Bring a run to its end, from its last checkpoint on."""
    assert "epoch 1/" not in done("20_train", "--resume", run).out


def same_result(run: Path, reference: Path) -> None:
    """Both runs ended with the same weights, scores, epochs and suspect labels."""
    assert digest_file(run / "model_best.pth") == digest_file(reference / "model_best.pth")
    for split in ("val_select", "val_calib"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(run / "scores" / f"{split}.parquet"),
            pd.read_parquet(reference / "scores" / f"{split}.parquet"),
        )
    assert (run / "suspects.csv").read_bytes() == (reference / "suspects.csv").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_csv(run / "metrics.csv").drop(columns=TIMING),
        pd.read_csv(reference / "metrics.csv").drop(columns=TIMING),
    )


def demand_placed(run: Path) -> float:
    """The model that ships is the best checkpoint's judged average with b on its log-odds; returns b."""
    model, shipped = build_model(Run(run).config, ("blue", "red")).eval(), load_model(run / "model_best.pth")
    state = judged_weights(run / "checkpoints" / "best.ckpt")
    weights = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    model.load_state_dict({**model.state_dict(), **weights})
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        half = torch.tensor([-0.5, 0.5]) * shipped.answer_shift
        torch.testing.assert_close(model(images).logits + half, shipped(images).logits, rtol=1e-4, atol=1e-5)
    assert {Run(run).scores(split).answer_shift for split in ("val_select", "val_calib")} == {shipped.answer_shift}
    return shipped.answer_shift


def refused(outcome: Outcome, *fragments: str) -> None:
    """The user's mistake, told in these words and without a traceback."""
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reconfigured(run: Path, **changes: object) -> None:
    """The run's config, changed behind its back."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, **changes}))

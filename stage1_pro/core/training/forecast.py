"""Before anything is trained: what the positives at hand can certify, and how long each step takes on this machine."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import pandas as pd
import torch

from stage1_pro.core.commands import spoken
from stage1_pro.core.config.phases import POLICY_TABLE
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say, span
from stage1_pro.core.data.batches import EpochSampler, make_loader
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.datasets import finish_of, image_dataset
from stage1_pro.core.data.overview import frame_lines, smallest_sure_target, smallest_target
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.metrics.binomial import fnr_upper_bound, minimum_positives, positives_for_power
from stage1_pro.core.metrics.risk import LARGEST_TARGET
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.policies.nested_boundary import MOST_POSITIVES, uniform_boundary
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.training.fit import build_model
from stage1_pro.core.training.start import preview

SHARES = {"misses none": 0.0, "misses a tenth": 0.1, "misses a quarter": 0.25, "misses half": 0.5}
"""Shares of the target that a model may really miss."""
POWER = 0.8
Result = TypeVar("Result")
TIMED = 48
"""Images that the steps are timed on."""
STARTING = 8.0
"""Seconds before a script that needs torch has begun."""
REPORT = 10.0
"""Seconds that the figures of a report take."""
STEP_WEIGHT = 3.0
"""Passes that a training step is worth: one forward, and backward twice that."""


def print_forecast(config: Stage1ProConfig) -> None:
    """Check everything that 00 checks, and say what would come of it; nothing is written."""
    started = time.perf_counter()
    cases, splits = preview(config)
    reading = time.perf_counter() - started
    if len(splits.class_names) == 2:
        say()
        _say_evidence(cases, splits, config)
    if config.task.has_masks:
        say("how long it takes is not foretold for masks: 20_train.py --dry_run checks the rest")
        return
    say()
    _say_steps(cases, splits, config, reading)


# ---- what can be certified


def _say_evidence(cases: CaseTable, splits: Splits, config: Stage1ProConfig) -> None:
    at_hand, delta = splits.metadata["evidence"]["val_calib_positive_groups"], 1 - config.fnr_confidence
    target = config.certified_level()
    positives = cases.frame["group"][cases.frame["label"] == len(splits.class_names) - 1].nunique()
    rows = {}
    for words, share in SHARES.items():
        least = _smallest_target(share, at_hand, delta, config.exit_rule)
        needed = needed_positives(share, target, delta, config.exit_rule)
        rows[words] = {
            f"{at_hand:,} certify": "none" if least is None else _rate(least),
            f"{config.target_words()} takes": "many" if needed is None else f"{needed:,}",
            "positives in all": "many" if needed is None else f"{math.ceil(needed * positives / max(1, at_hand)):,}",
            "cases in all": "many" if needed is None else f"{math.ceil(needed * len(cases) / max(1, at_hand)):,}",
        }
    unit = "independent positives (one a group)" if splits.metadata["group_column"] else "positives"
    say(
        f"what the {unit} of val_calib can certify at confidence {config.fnr_confidence:g}, and how many it takes, by "
        "how much of the target the model really misses:"
    )
    for line in frame_lines(pd.DataFrame.from_dict(rows, orient="index")):
        say(f"  {line}")
    say(
        f"  With so many, {100 * POWER:.0f} % of attempts certify; in the first row all do, since none is missed. Only "
        "positives that exit count: where some are deferred, it takes more in proportion."
    )


def needed_positives(share: float, target: float, delta: float, exit_rule: str) -> int | None:
    """Return the positives of val_calib that certify the target by a model that misses this share of it.

    With 80 % power, or without a miss where the share is 0, if all of them exit. One-sided exits are certified by one
    test, symmetric ones by the nested boundary, which wants a little more. None where it is beyond MOST_POSITIVES.

    >>> needed_positives(0, 0.02, 0.05, "one_sided"), needed_positives(0.25, 0.02, 0.05, "one_sided")
    (149, 386)
    """
    single = minimum_positives(target, delta) if share == 0 else positives_for_power(share * target, target, delta)
    if single is None or exit_rule == "one_sided":
        return single
    # the boundary allows no more than a single test does: the answer is not below that one's
    low, high = single, 2 * single
    while not _boundary_holds(high, share * target, target, delta):
        low, high = high, 2 * high
        if high > MOST_POSITIVES:
            return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if _boundary_holds(middle, share * target, target, delta) else (middle, high)
    return high


def _smallest_target(share: float, positives: int, delta: float, exit_rule: str) -> float | None:
    """The smallest target that so many positives certify as `needed_positives` has it; None up to the largest one."""
    if exit_rule == "symmetric":
        return smallest_target(lambda target: _boundary_holds(positives, share * target, target, delta))
    if share == 0:
        least = float(fnr_upper_bound(0, positives, delta)) if positives else 1.0
        return least if least <= LARGEST_TARGET else None
    return smallest_sure_target(positives, delta, share)


@lru_cache(512)
def _boundary_holds(positives: int, true_fnr: float, target: float, delta: float) -> bool:
    """Whether the boundary over all these positives certifies them with POWER, if the misses come at the true rate."""
    from scipy.stats import binom

    allowed = int(uniform_boundary(positives, target, delta).allowed(positives))
    return allowed >= 0 and bool(binom.cdf(allowed, positives, true_fnr) >= POWER)


def _rate(target: float) -> str:
    return f"{math.ceil(target * 10_000 - 1e-9) / 10_000:g}"


# ---- what follows, and how long it takes


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds an image on this machine. load: decoded and transformed, by one process; forward: through the backbone;
    heads: a training step of the heads alone."""

    load: float
    forward: float
    heads: float

    def scoring(self, workers: int) -> float:
        """An image that is scored."""
        # workers decode while the model computes; without them one follows the other
        return max(self.load / workers, self.forward) if workers else self.load + self.forward


def _say_steps(cases: CaseTable, splits: Splits, config: Stage1ProConfig, reading: float) -> None:
    model = build_model(config, cases.class_names)
    speed = _timed(model, cases, splits, config)
    say("what follows, with times on this machine that are right to a factor of two or so:")
    named = _steps(splits, config, speed, reading, len(splits.class_names) == 2)
    steps = [(spoken(script), how_long, words) for script, how_long, words in named]  # before they are padded
    widths = [max(map(len, column)) for column in zip(*steps, strict=True)]
    for script, how_long, words in steps:
        say(f"  {script:<{widths[0]}}  {how_long:<{widths[1]}}  {words}")


def _steps(
    splits: Splits, config: Stage1ProConfig, speed: Speed, reading: float, binary: bool
) -> Iterator[tuple[str, str, str]]:
    """(script, how long, what it does) of the whole chain."""
    train, select, calib, test = (
        len(splits.indices(name)) for name in ("train", "val_select", "val_calib", "val_test")
    )
    workers, passes = config.dataset_params.num_workers, speed.scoring(config.dataset_params.num_workers)
    images = train + select + calib + test
    yield "00_make_splits.py", span(reading), f"reads and hashes {images:,} images; so does every later step"
    seconds, words = _training(train, select, config, speed)
    stages = config.incremental_params
    span_words = f"up to {_epochs(config)} epochs" + (f" in {stages.max_stages} stages" if stages.enabled else "")
    after = (2 * select + calib) * passes + (0 if config.reads_cached_features else train * passes)
    yield (
        "20_train.py",
        span(STARTING + reading + seconds + after),
        f"{words}, {span_words}, then scores {select + calib:,}",
    )
    if binary:
        yield (
            POLICY_TABLE[config.exit_policy].script,
            "seconds",
            "certifies the policy on val_calib; status 3 if it cannot",
        )
        yield (
            "40_eval_selective.py",
            span(STARTING + REPORT + reading + test * passes),
            f"scores the {test:,} test images, writes the report",
        )
        yield "50_export_bundle.py", "seconds", "writes and verifies the bundle"
        yield "60_predict.py", f"{1000 * passes:.1f} ms an image", f"decides new images, with {workers} workers"


def _epochs(config: Stage1ProConfig) -> int:
    stages = config.incremental_params
    return stages.max_stages * stages.max_epochs_per_stage if stages.enabled else config.epochs


def _training(train: int, select: int, config: Stage1ProConfig, speed: Speed) -> tuple[float, str]:
    """(seconds at most, words): cached features once and the heads every epoch, or every image every epoch."""
    workers, epochs = config.dataset_params.num_workers, _epochs(config)
    if config.reads_cached_features:
        once = (train + select) * speed.scoring(workers)
        return once + epochs * (
            STEP_WEIGHT * train + select
        ) * speed.heads, f"features of {train + select:,} images once"
    passes = 1.0 if config.freeze_backbone and not config.adapted else STEP_WEIGHT
    passes *= 2 if config.sharpness_aware else 1
    step = Speed(speed.load, passes * speed.forward + STEP_WEIGHT * speed.heads, speed.heads)
    return epochs * (train * step.scoring(workers) + select * speed.scoring(workers)), f"{train:,} images every epoch"


@torch.no_grad()
def _timed(model: Stage1Model, cases: CaseTable, splits: Splits, config: Stage1ProConfig) -> Speed:
    """Time the parts of a step on some training images."""
    frame = cases.frame.iloc[splits.indices("train")[:TIMED]]
    paths, labels, data = list(frame["path"]), frame["label"].to_numpy(), config.dataset_params
    dataset = image_dataset(paths, labels, model.spec.preprocessing, data.augmentation, config.seed)
    device = fastest_device()
    model = model.to(device).eval()
    order, finish = EpochSampler(len(paths), config.seed, shuffle=False), finish_of(dataset, device)
    loader = make_loader(dataset, order, len(paths), workers=0, finish=finish)
    load, batch = _seconds(lambda: next(iter(loader)).inputs, device)
    batch = batch.to(device)
    size = min(config.batch_size, len(batch))
    forward, features = _seconds(lambda: torch.cat([model.backbone(part) for part in batch.split(size)]), device)
    many = features.repeat(math.ceil(config.batch_size / len(features)), 1)[: config.batch_size]
    heads, _ = _seconds(lambda: model.head(many), device)
    return Speed(load / len(batch), forward / len(batch), heads / len(many))


def _seconds(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """(seconds, result) of the second of two runs; the first one warms up."""
    work()
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result

"""Streams of decisions and labels whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.monitor.audit import Audit
from stage1_pro.core.monitor.state import Settings
from stage1_pro.core.monitor.tables import DAY, Decisions, Labels

START = 20_000 * DAY
SALT = b"a salt for the tests"
DIGEST = "0" * 64


def settings(**changes: object) -> Settings:
    values = {"bundle_digest": DIGEST, "target_fnr": 0.02, "delta": 0.05, "audit_share": 1.0} | changes
    return Settings(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class World:
    """A stream: so many cases on each of these days, a rate of misses among exited positives for each day."""

    decisions: Decisions
    labels: Labels

    def until(self, day: int) -> tuple[Decisions, Labels]:
        """What is known at the end of a day: its decisions, and the labels given by then."""
        end = START + (day + 1) * DAY
        return self.decisions.take(self.decisions.time < end), self.labels.take(self.labels.time < end)


def world(
    rng: np.random.Generator,
    days: int,
    cases: int,
    miss_rate: float | np.ndarray = 0.01,
    *,
    prevalence: float = 0.3,
    exits: float = 0.8,
    share: float = 1.0,
    frames: int = 1,
    delay_days: float = 3.0,
) -> World:
    """cases: a day; frames: of each group, all of one label; labels of audited groups come after up to delay_days."""
    number = days * cases
    day = np.repeat(np.arange(days), cases)
    group_of = np.arange(number) // frames
    positive = (rng.random(number // frames + 1) < prevalence)[group_of]
    missed = rng.random(number) < np.broadcast_to(miss_rate, days)[day]
    answered = positive & ~missed
    time = START + day * DAY + np.sort(rng.integers(0, DAY, (days, cases)), axis=1).reshape(-1)
    ids = np.array([f"case-{i:07}" for i in range(number)], dtype=object)
    groups = np.array([f"track-{g:07}" for g in group_of], dtype=object) if frames > 1 else ids
    audited = Audit(share, SALT).chooses(groups)
    decisions = Decisions(
        ids,
        groups,
        time,
        answered,
        rng.random(number) < exits,
        0.5 + rng.random(number) / 2,
        audited,
        np.full(number, share),
        np.zeros(number, dtype=np.int64),
    )
    given = time + (rng.random(number) * delay_days * DAY).astype(np.int64)
    labels = Labels(ids, positive, given)
    order = np.argsort(given[audited], kind="stable")
    return World(decisions, labels.take(audited).take(order))

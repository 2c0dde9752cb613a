"""Reading decisions into a monitor: in any order, any file twice, and only audited by the hash."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

from stage1_pro.core.metrics.arrays import BoolArray, IntArray
from stage1_pro.core.metrics.hashing import HashArray, hash64, mixed
from stage1_pro.core.metrics.score_bins import answer_bins, centres
from stage1_pro.core.monitor.audit import Audit
from stage1_pro.core.monitor.intake import Taken, repeated_rows, some
from stage1_pro.core.monitor.state import Monitor, Store
from stage1_pro.core.monitor.tables import FAR, Audited, Decisions, Others, Sample, Tally, day_of

SAMPLE_A_DAY = 2000
"""Cases of a day that are watched for drift, drawn by a hash: more would not be seen sooner."""
IMPLAUSIBLE = 1e-9
"""Chance of a share of audits below which it was no hash that chose them."""
REUSED = 0.01
"""Share of ids that come again on another day above which they are no names of cases; a few are clients' retries."""


def take_decisions(monitor: Monitor, decisions: Decisions, audit: Audit | None) -> Taken:
    """Add decisions to the store. audit: the rule, where the salt is at hand; then every row is checked against it."""
    counts = Counter({"read": len(decisions)})
    key = hash64(decisions.id)
    group = key if np.array_equal(decisions.id, decisions.group) else hash64(decisions.group)
    day = day_of(decisions.time)
    late = day <= monitor.closed_through if monitor.closed_through is not None else np.zeros(len(day), dtype=bool)
    repeated = repeated_rows(key) | np.isin(key, _known(monitor.store))
    repeated |= np.isin(key, monitor.store.closed.key)
    reused = repeated & _on_another_day(monitor.store, key, day)
    counts["repeated"], counts["late"] = int((repeated & ~reused).sum()), int((late & ~repeated).sum())
    counts["reused"] = int(reused.sum())
    new = ~late & ~repeated
    counts["new"] = int(new.sum())
    problems = _reused_problems(decisions.id[reused], len(decisions))
    rows, key, group, day = decisions.take(new), key[new], group[new], day[new]
    store = monitor.store
    problems += _audit_problems(monitor, rows, group, day, audit)
    audited = rows.audited & (rows.stream >= 0)
    return Taken(
        replace(
            store,
            audited=store.audited.joined(_audited(rows.take(audited), key[audited], group[audited])),
            others=store.others.joined(Others(key, rows.time, rows.exits).take(~audited)),
            sample=_sampled(store.sample.joined(_sample(rows, key, group))),
            tally=_tallied(store.tally.joined(_tally(rows, day))),
        ),
        counts,
        problems,
    )


def _on_another_day(store: Store, key: HashArray, day: IntArray) -> BoolArray:
    """(N,) whether an id that is known was decided on another day than this row."""
    known = np.concatenate([_known(store), store.closed.key, key])
    days = np.concatenate([day_of(store.audited.time), day_of(store.others.time), store.closed.day, day])
    first, index = np.unique(known, return_index=True)
    return days[index[np.searchsorted(first, key)]] != day


def _reused_problems(ids: np.ndarray, read: int) -> list[str]:
    if ids.size <= REUSED * read:
        return []
    return [
        f"{ids.size} ids were decided before, on another day ({some(ids)}): an id names one case for good. Put the "
        "folder or the date into the ids."
    ]


def _audited(rows: Decisions, key: HashArray, group: HashArray) -> Audited:
    far = np.full(len(rows), FAR)
    ids = rows.id.astype(object)
    outcome = (rows.answered_positive, rows.exits, rows.audit_probability, rows.stream)
    return Audited(ids, key, group, rows.time, *outcome, far, far.copy())


def _sample(rows: Decisions, key: HashArray, group: HashArray) -> Sample:
    known = np.flatnonzero(np.isfinite(rows.probability))
    confidence = centres(answer_bins(rows.probability[known]))
    signed = np.where(rows.answered_positive[known], confidence, -confidence)
    return Sample(key[known], group[known], rows.time[known], confidence, signed)


def _sampled(sample: Sample) -> Sample:
    """One case of each group and day, the one whose id hashes lowest, and of these at most so many a day."""
    day = day_of(sample.time)
    order = np.lexsort((sample.key, sample.group, day))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(day[order]) != 0) | (sample.group[order][1:] != sample.group[order][:-1])
    order = order[first]  # by day, then by the hash of the group, which is the draw
    starts = np.flatnonzero(np.diff(day[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return sample.take(order[place < SAMPLE_A_DAY])


def _tally(rows: Decisions, day: IntArray) -> Tally:
    counted = [rows.exits, rows.exits & rows.answered_positive, rows.stream < 0]
    return Tally(day, np.ones(len(rows), dtype=np.int64), *(column.astype(np.int64) for column in counted))


def _tallied(tally: Tally) -> Tally:
    """One row a day."""
    days, index = np.unique(tally.day, return_inverse=True)
    sums = {name: np.bincount(index, column, days.size) for name, column in tally.columns().items() if name != "day"}
    return Tally(days, **{name: column.astype(np.int64) for name, column in sums.items()})


def _audit_problems(
    monitor: Monitor, rows: Decisions, group: HashArray, day: IntArray, audit: Audit | None
) -> list[str]:
    if len(rows) and not np.isfinite(rows.audit_probability).any():
        return [
            "no row has an audit probability: decide with --audit_share and --audit_salt, or nothing can be monitored"
        ]
    problems = [*_probability_problems(monitor, rows, day)]
    if monitor.settings.least is None:
        problems += _partly_audited(monitor.store, rows, group, day)
    unlisted = rows.exits & (rows.stream < 0)
    if unlisted.any():
        problems.append(
            f"{unlisted.sum()} exits of groups that the bundle does not list ({some(rows.id[unlisted])}): such cases "
            "defer. Were they decided by another bundle?"
        )
    if audit is not None:
        wrong = audit.chooses(rows.group, np.nan_to_num(rows.audit_probability)) != rows.audited
        if wrong.any():
            problems.append(
                f"{wrong.sum()} of {len(rows)} cases were audited by another salt than this one "
                f"({some(rows.id[wrong])}): give the salt that they were decided with, or start a new monitor where "
                "the salt changed."
            )
    else:
        problems += _implausible(rows, group)
    return problems


def _partly_audited(store: Store, rows: Decisions, group: HashArray, day: IntArray) -> list[str]:
    """A hash audits a whole group or none of it, as long as salt and share stay; they may change overnight."""
    here = mixed(group) + day.astype(np.uint64)
    known = mixed(store.audited.group) + day_of(store.audited.time).astype(np.uint64)
    torn = np.isin(here, np.concatenate([here[rows.audited], known])) & ~rows.audited
    if not torn.any():
        return []
    return [
        f"{np.unique(group[torn]).size} groups are audited in part on one day ({some(rows.group[torn])}): the salt or "
        "the share changed. Start a new monitor with the decisions since then; a share changes at midnight (UTC)."
    ]


def _probability_problems(monitor: Monitor, rows: Decisions, day: IntArray) -> list[str]:
    probability = rows.audit_probability
    unknown = rows.audited & ~((probability > 0) & (probability <= 1))
    if unknown.any():
        return [f"{unknown.sum()} audited cases without an audit probability in (0, 1] ({some(rows.id[unknown])})"]
    problems = []
    if monitor.settings.least is None:
        pairs = np.unique(np.stack([day[rows.audited].astype(float), probability[rows.audited]]), axis=1)
        # two values on one day are a share that was changed at noon; more are an audit by score
        if pairs.size and np.unique(pairs[0], return_counts=True)[1].max() > 2:
            problems.append(
                "audit probabilities differ from case to case, and this monitor counts all alike: start a new one with "
                "--audit doubtful"
            )
    else:
        low = rows.audited & rows.exits & rows.answered_positive & (probability < monitor.settings.least)
        if low.any():
            problems.append(
                f"{low.sum()} positive answers were audited with less than {monitor.settings.least:g}, the least that "
                f"this monitor was started with ({some(rows.id[low])})"
            )
    return problems


def _implausible(rows: Decisions, group: HashArray) -> list[str]:
    """Without the salt at hand: is the number of audited groups one that a hash draws?"""
    first = np.unique(group, return_index=True)[1]
    first = first[np.isfinite(rows.audit_probability[first])]
    shares = np.unique(rows.audit_probability[first])
    if first.size == 0 or shares.size != 1 or not 0 < shares[0] <= 1:
        return []
    audited = int(rows.audited[first].sum())
    if binomtest(audited, first.size, float(shares[0])).pvalue >= IMPLAUSIBLE:
        return []
    return [
        f"{audited} of {first.size} groups are audited where the share is {shares[0]:g}: no hash draws that. Audit by "
        "the hash alone; cases that 'looked odd' bias the rate."
    ]


def _known(store: Store) -> HashArray:
    return np.concatenate([store.audited.key, store.others.key])

"""A monitor fed with streams whose truth is known: what it counts, what it refuses, when it alarms."""

from dataclasses import replace

import numpy as np
import pytest
from streams import SALT, START, World, settings, world

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.hashing import hash64
from stage1_pro.core.metrics.score_bins import answer_bins, centres
from stage1_pro.core.monitor.audit import Audit
from stage1_pro.core.monitor.days import awaited, open_days
from stage1_pro.core.monitor.state import Monitor, Settings
from stage1_pro.core.monitor.tables import DAY, Decisions, Labels
from stage1_pro.core.monitor.update import update

LATER = START + 400 * DAY
NO_DECISIONS = Decisions(*(np.zeros(0, kind) for kind in (object, object, int, bool, bool, float, bool, float, int)))
NO_LABELS = Labels(*(np.zeros(0, kind) for kind in (object, bool, int)))


def started(rules: Settings | None = None) -> Monitor:
    return Monitor.start(rules or settings())


def evidence(stream: World) -> list[int]:
    """1 for a miss, 0 for a hit: of each audited group the drawn positive, if it exits, group by group."""
    label = dict(zip(stream.labels.id, stream.labels.positive, strict=True))
    cases = stream.decisions
    groups: dict[str, list[int]] = {}
    for case in np.argsort(cases.time, kind="stable").tolist():
        if cases.audited[case]:
            groups.setdefault(cases.group[case], []).append(case)
    fed = []
    for members in groups.values():
        positives = [case for case in members if label[cases.id[case]]]
        drawn = min(positives, key=lambda case: hash64([cases.id[case]])[0], default=None)
        if drawn is not None and cases.exits[drawn]:
            fed.append(int(not cases.answered_positive[drawn]))
    return fed


@pytest.mark.parametrize(("frames", "share"), [(1, 1.0), (1, 0.3), (5, 0.5)])
def test_the_wealth_is_that_of_the_drawn_positives(frames: int, share: float) -> None:
    stream = world(np.random.default_rng(frames), 20, 200, 0.03, frames=frames, share=share)
    monitor = update(started(settings(audit_share=share)), stream.decisions, stream.labels, LATER)
    fed, test = evidence(stream), settings().test
    log_wealth, _ = test.feed(test.initial(), test.bets(fed))
    assert monitor.streams[0].best == monitor.streams[0].worst == (len(fed), sum(fed))
    assert monitor.days[-1]["streams"][0]["log_wealth"] == pytest.approx(log_wealth[-1])
    assert sum(row["decisions"] for row in monitor.days) == 4000
    assert sum(row["exits"] for row in monitor.days) == stream.decisions.exits.sum()


@pytest.mark.parametrize("frames", [1, 4])
def test_read_daily_or_once_the_evidence_is_the_same(frames: int) -> None:
    """Some labels come too late, some never, some contradict each other; files overlap and are out of order."""
    rng = np.random.default_rng(7)
    stream = world(rng, 30, 120, 0.04, frames=frames, share=0.6, delay_days=7)
    kept = rng.random(len(stream.labels)) < 0.9
    wrong = stream.labels.take(np.flatnonzero(rng.random(len(stream.labels)) < 0.05))
    wrong = replace(wrong, positive=~wrong.positive, time=wrong.time + DAY)
    labels = stream.labels.take(kept).joined(wrong)
    stream = World(stream.decisions, labels.take(rng.permutation(len(labels))))
    rules = settings(audit_share=0.6, max_label_delay_days=5)
    whole = update(started(rules), stream.decisions, stream.labels, LATER)
    daily = started(rules)
    for day in range(45):
        daily = update(daily, *stream.until(day), START + (day + 1) * DAY)
    assert len(whole.days) == 30
    assert daily.days == whole.days
    assert daily.certificate == whole.certificate
    unlabelled = sum(row["unlabelled"] for row in whole.days)
    assert 0.1 < unlabelled / sum(row["audited"] for row in whole.days) < 0.5
    assert sum(row["contradicted"] for row in whole.days) > 10
    best, worst = whole.streams[0].best, whole.streams[0].worst
    assert best[0] > worst[0] - worst[1] + best[1]  # unlabelled answers 1 are hits for the alarm, nothing for the bound
    assert worst[1] > best[1]


def test_a_day_waits_for_its_labels_but_not_for_ever() -> None:
    stream = world(np.random.default_rng(0), 10, 50)
    monitor = update(started(), stream.decisions, NO_LABELS, START + 12 * DAY)
    assert monitor.closed_through is None
    assert awaited(monitor).sum() == stream.decisions.exits.sum()
    monitor = update(monitor, NO_DECISIONS, stream.labels.take(stream.labels.time < START + 4 * DAY), START + 12 * DAY)
    assert monitor.days[0]["unlabelled"] == 0
    before = len(monitor.days)
    assert 0 < before < 10
    monitor = update(monitor, NO_DECISIONS, NO_LABELS, LATER)
    assert len(monitor.days) == 10
    assert monitor.days[-1]["unlabelled"] > 0
    assert open_days(monitor) == 400 - 10


def test_a_day_that_is_not_over_stays_open() -> None:
    stream = world(np.random.default_rng(0), 3, 50, delay_days=0)
    monitor = update(started(), stream.decisions, stream.labels, START + 2 * DAY + DAY // 2)
    assert [row["day"] for row in monitor.days] == ["2024-10-04", "2024-10-05"]


def test_odd_labels_are_counted_and_do_not_count() -> None:
    stream = world(np.random.default_rng(3), 6, 100, delay_days=2)
    rules = settings(max_label_delay_days=10)
    clean = update(started(rules), stream.decisions, stream.labels, LATER)
    early, late = stream.labels.take(stream.labels.time < START + 3 * DAY), stream.labels.take(slice(0, 20))
    stray = Labels(np.array(["nobody-1", "nobody-2"], dtype=object), np.array([True, False]), np.full(2, START + DAY))
    monitor = update(started(rules), NO_DECISIONS, early.joined(stray), START + DAY // 2)
    assert monitor.readings[-1]["labels"]["unknown"] == len(early) + 2  # the decisions come afterwards
    monitor = update(monitor, stream.decisions, early.joined(early), START + DAY // 2)
    counts = monitor.readings[-1]["labels"]
    assert (counts["new"], counts["repeated"], counts["unknown"]) == (len(early), 2 * len(early), 0)
    assert counts["out_of_order"] > 0
    monitor = update(monitor, stream.decisions, stream.labels, LATER)
    assert monitor.readings[-1]["decisions"] == {"read": 600, "new": 0, "repeated": 600, "reused": 0, "late": 0}
    assert monitor.days == clean.days
    # after the days are closed: the same again, the contrary, and a label for a case that had none
    again = update(monitor, NO_DECISIONS, late, LATER)
    assert again.readings[-1]["labels"]["repeated"] == 20
    contrary = update(monitor, NO_DECISIONS, replace(late, positive=~late.positive), LATER)
    assert contrary.readings[-1]["labels"]["contradicting"] == 20
    assert contrary.days == again.days == clean.days
    without = update(started(rules), stream.decisions, stream.labels.take(slice(20, None)), LATER)
    assert update(without, NO_DECISIONS, late, LATER).readings[-1]["labels"]["late"] == 20
    # a label given after its day's deadline does not count either, although the day is open
    tardy = replace(stream.labels, time=stream.labels.time + 20 * DAY)
    assert update(started(rules), stream.decisions, tardy, START + 3 * DAY).readings[-1]["labels"]["late"] == 600


def test_labels_that_contradict_each_other_are_no_label() -> None:
    stream = world(np.random.default_rng(3), 4, 100, 0.05, delay_days=1)
    twice = stream.labels.joined(replace(stream.labels.take(slice(0, 100)), positive=~stream.labels.positive[:100]))
    monitor = update(started(), stream.decisions, twice, LATER)
    assert monitor.readings[-1]["labels"]["contradicting"] == 100
    assert sum(row["contradicted"] for row in monitor.days) == 100
    without = update(started(), stream.decisions, stream.labels.take(slice(100, None)), LATER)
    assert monitor.streams[0].best == without.streams[0].best
    assert monitor.streams[0].worst == without.streams[0].worst


def test_late_and_repeated_decisions() -> None:
    stream = world(np.random.default_rng(0), 5, 100)
    first = update(started(), stream.decisions.take(slice(0, 450)), stream.labels, LATER)
    again = update(first, stream.decisions, NO_LABELS, LATER)
    assert again.readings[-1]["decisions"] == {"read": 500, "new": 0, "repeated": 450, "reused": 0, "late": 50}
    assert again.days == first.days


def test_cases_of_a_group_beyond_its_days_are_left_out() -> None:
    stream = world(np.random.default_rng(0), 2, 400, frames=4, delay_days=0)
    moved = stream.decisions.time.copy()
    moved[3::4] += DAY  # the last frame of each track is of the next day
    stream = World(replace(stream.decisions, time=moved), stream.labels)
    monitor = update(started(), stream.decisions, stream.labels, LATER)
    assert [row["left_out"] for row in monitor.days] == [100, 100, 0]
    together = update(started(settings(group_days=1)), stream.decisions, stream.labels, LATER)
    assert sum(row["left_out"] for row in together.days) == 0
    assert sum(row["audited"] for row in together.days) == 800


# ---- what would bias is refused


def refused(monitor: Monitor, decisions: Decisions, labels: Labels, audit: Audit | None = None) -> str:
    with pytest.raises(UserError) as raised:
        update(monitor, decisions, labels, LATER, audit)
    assert raised.value.exit_status == 2
    return str(raised.value)


def test_labels_of_cases_that_were_not_audited_are_refused() -> None:
    stream = world(np.random.default_rng(0), 3, 400, share=0.2)
    unasked = stream.decisions.take(~stream.decisions.audited)
    rows = Labels(unasked.id, np.ones(len(unasked), dtype=bool), unasked.time)
    message = refused(started(), stream.decisions, stream.labels.joined(rows))
    assert f"{unasked.exits.sum()} labels are of exits that were not audited" in message
    assert unasked.id[unasked.exits][0] in message
    # stage 2 labels deferred cases, and is not asked not to
    deferred = rows.take(~unasked.exits)
    monitor = update(started(), stream.decisions, stream.labels.joined(deferred), LATER)
    assert monitor.readings[-1]["labels"]["stage_2"] == len(deferred)


def test_an_audit_that_no_hash_drew_is_refused() -> None:
    stream = world(np.random.default_rng(0), 3, 400, share=0.2)
    cases = stream.decisions
    odd = replace(cases, audited=cases.audited | ~cases.answered_positive)
    assert "no hash draws that" in refused(started(), odd, NO_LABELS)
    other = Audit(0.2, b"another salt of 28 characters")
    assert "by another salt" in refused(started(), cases, NO_LABELS, other)
    update(started(), cases, NO_LABELS, LATER, Audit(0.2, SALT))
    none = replace(cases, audited=np.zeros(1200, dtype=bool), audit_probability=np.full(1200, np.nan))
    assert "--audit_share" in refused(started(), none, NO_LABELS)
    own = replace(cases, audit_probability=np.random.default_rng(0).random(1200))
    assert "--audit doubtful" in refused(started(), own, NO_LABELS)


def test_a_group_audited_in_part_is_refused() -> None:
    stream = world(np.random.default_rng(0), 1, 400, frames=4, share=0.5)
    torn = stream.decisions.audited.copy()
    torn[np.flatnonzero(torn)[0]] = False
    message = refused(started(), replace(stream.decisions, audited=torn), NO_LABELS)
    assert "1 groups are audited in part" in message


def test_ids_that_come_again_every_day_are_refused() -> None:
    stream = world(np.random.default_rng(0), 2, 100)
    names = np.tile(stream.decisions.id[:100], 2)
    first = update(started(), replace(stream.decisions, id=names, group=names).take(slice(0, 100)), NO_LABELS, LATER)
    message = refused(first, replace(stream.decisions, id=names, group=names), NO_LABELS)
    assert "100 ids were decided before, on another day" in message


def test_all_problems_come_at_once_and_the_monitor_stands() -> None:
    stream = world(np.random.default_rng(0), 3, 400, share=0.2)
    unasked = stream.decisions.take(~stream.decisions.audited & stream.decisions.exits)
    rows = Labels(unasked.id, np.ones(len(unasked), dtype=bool), unasked.time)
    unlisted = replace(stream.decisions, stream=np.full(1200, -1))
    before = started()
    message = refused(before, unlisted, rows)
    assert "that the bundle does not list" in message
    assert "not audited" in message
    assert before.revision == 0


# ---- alarms and expiry


def test_the_alarm_freezes_and_names_the_day() -> None:
    rates = np.where(np.arange(60) < 30, 0.005, 0.15)
    stream = world(np.random.default_rng(1), 60, 100, rates, delay_days=1)
    monitor = update(started(), stream.decisions, stream.labels, LATER)
    alarm = monitor.streams[0].alarm
    assert alarm is not None
    assert START // DAY + 30 <= alarm.day <= START // DAY + 36
    assert alarm.log_wealth >= np.log(20)
    assert monitor.certificate == "alarm"
    after = [row["streams"][0] for row in monitor.days if row["day"] >= str(np.datetime64(alarm.day, "D"))]
    assert len({row["log_wealth"] for row in after}) == 1  # frozen
    assert after[-1]["exited_positives"] > after[0]["exited_positives"]  # the bounds go on
    assert after[-1]["lower"] > 0.02


def test_certificates_expire_by_date_or_by_evidence() -> None:
    stream = world(np.random.default_rng(1), 10, 100, delay_days=1)
    by_date = settings(expires_at=START + 20 * DAY)
    monitor = update(started(by_date), stream.decisions, stream.labels, START + 20 * DAY - 1)
    assert monitor.certificate == "in force"
    assert update(monitor, NO_DECISIONS, NO_LABELS, START + 20 * DAY).certificate == "expired"
    fed = monitor.fed
    for after, expected in ((fed + 1, "in force"), (fed, "expired")):
        rules = settings(expires_after=after)
        assert update(started(rules), stream.decisions, stream.labels, LATER).certificate == expected
    broken = world(np.random.default_rng(1), 10, 100, 0.5, delay_days=1)
    assert update(started(by_date), broken.decisions, broken.labels, LATER).certificate == "alarm"


def test_each_certified_group_has_its_share_of_delta() -> None:
    rules = settings(streams=("north", "south"), delta=0.1)
    assert rules.test.delta == 0.05
    quiet = world(np.random.default_rng(1), 20, 200, 0.005, delay_days=1)
    broken = world(np.random.default_rng(2), 20, 200, 0.2, delay_days=1)
    names = np.char.add("south-", broken.decisions.id.astype(str)).astype(object)
    south = replace(broken.decisions, id=names, group=names, stream=np.ones(4000, dtype=int))
    relabelled = replace(broken.labels, id=np.char.add("south-", broken.labels.id.astype(str)).astype(object))
    monitor = update(started(rules), quiet.decisions.joined(south), quiet.labels.joined(relabelled), LATER)
    assert [stream.alarm is not None for stream in monitor.streams] == [False, True]
    alone = update(started(), quiet.decisions, quiet.labels, LATER)
    assert monitor.streams[0].best == alone.streams[0].best
    assert monitor.days[-1]["streams"][0]["log_wealth"] == pytest.approx(alone.days[-1]["streams"][0]["log_wealth"])


def test_doubtful_cases_are_weighed_by_their_probability() -> None:
    """Each audited with a probability of its own: as the factors of its own test say."""
    rng = np.random.default_rng(4)
    stream = world(rng, 10, 300, 0.03)
    share = rng.choice([0.1, 0.5], 3000)
    audited = Audit(1.0, SALT).chooses(stream.decisions.id, share)
    cases = replace(stream.decisions, audited=audited, audit_probability=share)
    labels = stream.labels.take(np.isin(stream.labels.id.astype(str), cases.id[audited].astype(str)))
    rules = settings(least=0.1, audit_share=0.3)
    monitor = update(started(rules), cases, labels, LATER, Audit(1.0, SALT))
    probability = dict(zip(cases.id, share, strict=True))
    truth = dict(zip(labels.id, labels.positive, strict=True))
    order = [case for case in range(3000) if audited[case] and cases.exits[case] and truth[cases.id[case]]]
    bets = rules.test.bets(~cases.answered_positive[order], [probability[cases.id[case]] for case in order])
    log_wealth, _ = rules.test.feed(rules.test.initial(), bets)
    assert monitor.days[-1]["streams"][0]["log_wealth"] == pytest.approx(log_wealth[-1])
    message = refused(started(settings(least=0.2)), cases, NO_LABELS)
    assert "less than 0.2" in message


def test_scores_that_drift_are_noticed_and_calm_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    stream = world(rng, 40, 100, delay_days=1)
    calib = 0.5 + rng.random(2000) / 2
    positive = rng.random(2000) < 0.3
    confidence = centres(answer_bins(calib))
    reference = np.stack([confidence, np.where(positive, confidence, -confidence)], axis=1)
    calm = update(Monitor.start(settings(), reference), stream.decisions, stream.labels, LATER)
    assert calm.drift.confidence.alarm_day is None
    assert calm.days[-1]["drift"]["psi_signed"] < 2 * calm.days[-1]["drift"]["psi_noise"]
    turned = stream.decisions.probability.copy()
    turned[2000:] = np.sqrt(turned[2000:])
    drifted = update(
        Monitor.start(settings(), reference), replace(stream.decisions, probability=turned), stream.labels, LATER
    )
    assert drifted.drift.confidence.alarm_day is not None
    assert START // DAY + 20 <= drifted.drift.confidence.alarm_day < START // DAY + 30
    # a jump of prevalence alone leaves confidence as it was, and shows in the signed score
    more = stream.decisions.answered_positive.copy()
    more[2000:] |= rng.random(2000) < 0.5
    jump = update(
        Monitor.start(settings(), reference), replace(stream.decisions, answered_positive=more), NO_LABELS, LATER
    )
    assert jump.drift.confidence.alarm_day is None
    assert jump.drift.signed.alarm_day is not None

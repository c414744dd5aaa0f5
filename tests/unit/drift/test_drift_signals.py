"""The signals on long made-up streams: how often they cry wolf, how soon they find a change, what they leave alone.

A block is five minutes; streams are seeded, so the figures are the same in every run.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.drift.baseline import learn_mean
from agent.drift.mixture import WINDOW_BUCKETS, MixtureSignal
from agent.drift.signals import AgreementSignal, MeanSignal, Pace, RateSignal

BLOCK_S = 300.0
DAY = 288
LIMIT = math.log(365 * DAY)  # one false alarm a year
PACE = Pace(BLOCK_S, 1, 86400.0, 24, 7200.0, 7200.0, LIMIT)
WEEK_PACE = replace(PACE, warmup_s=7 * 86400.0)
EDGES = (1, 2, 3, 4, 5, 7, 10)


def noise(blocks: int, *, sigma: float, correlation: float, seed: int) -> NDArray[np.float64]:
    """First-order autoregression of mean 0 and standard deviation `sigma`."""
    random = np.random.default_rng(seed)
    kicks = random.normal(0, sigma * math.sqrt(1 - correlation**2), blocks).tolist()
    value, values = float(random.normal(0, sigma)), []
    for kick in kicks:
        value = correlation * value + kick
        values.append(value)
    return np.array(values)


def turns(
    signal: MeanSignal, values: Iterable[float], conditions: Iterable[int] | None = None
) -> list[tuple[int, bool]]:
    """Feeds one value a block; (block, alarm on) at each change."""
    found = []
    signal.tick(0.0)
    pairs = zip(values, conditions, strict=True) if conditions is not None else ((value, 0) for value in values)
    for block, (value, condition) in enumerate(pairs):
        signal.observe(value, condition)
        if signal.tick((block + 1) * BLOCK_S):
            found.append((block, signal.reading.active))
    return found


def test_no_alarm_in_a_stationary_year() -> None:
    quiet = turns(MeanSignal(PACE, -0.10), 0.75 * (1 + noise(365 * DAY, sigma=0.05, correlation=0.3, seed=1)))
    assert quiet == []


@pytest.mark.slow
def test_false_alarm_rate_over_twenty_stationary_years() -> None:
    alarms = 0
    for seed in range(20):
        correlation = (0.0, 0.3, 0.6, 0.8)[seed % 4]
        values = 0.75 * (1 + noise(365 * DAY, sigma=(0.03, 0.1)[seed % 2], correlation=correlation, seed=seed))
        alarms += sum(active for _, active in turns(MeanSignal(PACE, -0.10), np.maximum(values, 0.01)))
    assert alarms <= 20  # what `false_alarm_every_days: 365` promises


@pytest.mark.parametrize(("sigma", "correlation", "hours"), [(0.03, 0.0, 2.5), (0.05, 0.3, 5.0), (0.05, 0.6, 12.0)])
def test_fall_of_ten_per_cent_is_found_within_hours(sigma: float, correlation: float, hours: float) -> None:
    learned, delays = 3 * DAY, []
    for seed in range(5):
        values = 0.75 * (1 + noise(learned + 2 * DAY, sigma=sigma, correlation=correlation, seed=seed))
        values[learned:] *= 0.90
        (first, active), *_ = turns(MeanSignal(PACE, -0.10), values)
        assert active
        delays.append((first + 1 - learned) / 12)
    assert min(delays) > 0
    assert sorted(delays)[2] <= hours


def test_a_rise_of_confidence_or_a_third_of_the_fall_is_no_drift() -> None:
    for factor in (1.3, 0.97):
        values = 0.75 * (1 + noise(30 * DAY, sigma=0.03, correlation=0.3, seed=3))
        values[10 * DAY :] *= factor
        assert turns(MeanSignal(PACE, -0.10), values) == []


def test_night_is_no_drift_once_a_day_was_seen() -> None:
    blocks = 90 * DAY
    hours = (np.arange(blocks) // 12) % 24
    profile = np.where((hours < 8) | (hours >= 20), 0.8, 1.0)
    values = 0.75 * profile * (1 + noise(blocks, sigma=0.03, correlation=0.3, seed=4))
    conditions = (hours // 4).tolist()
    assert turns(MeanSignal(PACE, -0.10), values, conditions) == []
    values[60 * DAY :] *= 0.9
    (first, active), *_ = turns(MeanSignal(PACE, -0.10), values, conditions)
    assert active
    assert 0 < first - 60 * DAY < DAY


def test_an_hour_of_rain_is_forgiven_and_a_day_of_it_is_not() -> None:
    values = 0.75 * (1 + noise(20 * DAY, sigma=0.03, correlation=0.3, seed=5))
    values[10 * DAY : 10 * DAY + 12] *= 0.6
    assert turns(MeanSignal(PACE, -0.10), values) == []
    values[10 * DAY : 11 * DAY] *= 0.6
    (raised, on), (cleared, off) = turns(MeanSignal(PACE, -0.10), values)
    assert (on, off) == (True, False)
    assert raised < 11 * DAY < cleared < 11 * DAY + 12 * 12


def test_two_disturbances_with_an_empty_night_between_are_forgiven() -> None:
    def days(*bad: tuple[int, int]) -> list[bool]:
        """Of twelve hours each, in which people are seen; bad: (day, block of it)."""
        random, signal, found = np.random.default_rng(21), MeanSignal(PACE, -0.10), []
        signal.tick(0.0)
        for day, block in itertools.product(range(13), range(DAY)):
            if 96 <= block < 240:
                signal.observe(0.8 * (0.8 if (day, block) in bad else 1.0) * (1 + random.normal(0, 0.03)))
            if signal.tick((day * DAY + block + 1) * BLOCK_S):
                found.append(signal.reading.active)
        return found

    evening, morning = [(10, block) for block in range(237, 240)], [(11, block) for block in range(96, 99)]
    assert days(*evening, *morning) == []
    assert days(*((10, block) for block in range(228, 240)), *((11, block) for block in range(96, 120)))[:1] == [True]


def test_a_part_of_the_day_that_was_empty_is_learned_when_people_come() -> None:
    random, signal = np.random.default_rng(22), MeanSignal(PACE, -0.10)
    signal.tick(0.0)
    blocks = itertools.count(1)

    def day(night: float | None = None, factor: float = 1.0) -> list[bool]:
        """Three quarters of daylight, then a quarter in which somebody is seen as surely as `night`, or nobody comes."""
        found = []
        for part in range(DAY):
            dark = part >= DAY * 3 // 4
            if night is not None or not dark:
                value = night if dark and night is not None else 0.8
                signal.observe(value * factor * (1 + random.normal(0, 0.03)), int(dark))
            if signal.tick(next(blocks) * BLOCK_S):
                found.append(signal.reading.active)
        return found

    assert [day() for _ in range(5)] == [[]] * 5
    assert [day(night=0.68) for _ in range(3)] == [[]] * 3, "as sure as infrared light allows"
    state = json.loads(json.dumps(signal.state()))
    assert state["baseline"]["means"] == {"0": pytest.approx(0.8, abs=0.01), "1": pytest.approx(0.68, abs=0.01)}
    assert day(night=0.68, factor=0.85) == [True]


def test_an_empty_street_ends_no_block() -> None:
    signal = MeanSignal(replace(PACE, min_samples=100), -0.10)
    assert not any(signal.tick(block * BLOCK_S) for block in range(10 * DAY))
    assert signal.reading.blocks == 0
    for _ in range(99):
        signal.observe(0.1)
    signal.tick(11 * DAY * BLOCK_S)
    assert signal.reading.blocks == 0, "too few to judge"


def test_a_card_that_promises_less_than_was_learned_hides_no_fall() -> None:
    values = [0.95] * (3 * DAY) + [0.80] * (2 * DAY)
    signal = MeanSignal(PACE, -0.10, card=0.75)
    ((block, active),) = turns(signal, values)
    assert active
    assert 3 * DAY < block < 4 * DAY
    assert (signal.reading.basis, signal.reading.baseline) == ("local", pytest.approx(0.95))


def test_a_card_that_promises_more_replaces_the_learned_level() -> None:
    values = [0.6] * (3 * DAY)
    local, card = MeanSignal(PACE, -0.10), MeanSignal(PACE, -0.10, card=0.75)
    assert turns(local, values) == []
    ((_, active),) = turns(card, values)
    assert active
    assert card.reading.basis == "card"
    assert card.reading.baseline == 0.75
    assert card.reading.change == pytest.approx(-0.2)


def test_latency_has_a_mean_for_each_batch_size_and_ignores_a_hiccup() -> None:
    random = np.random.default_rng(6)
    items = random.integers(1, 5, 6 * DAY)
    seconds = 0.01 * items**0.5 * np.exp(random.normal(0, 0.05, len(items)))
    seconds[5 * DAY] = 3.0
    assert turns(MeanSignal(PACE, 0.2, logarithmic=True), seconds, items.tolist()) == []
    seconds[5 * DAY :] *= 1.2
    signal = MeanSignal(PACE, 0.2, logarithmic=True)
    ((block, active),) = turns(signal, seconds, items.tolist())
    assert active
    assert 0 < block - 5 * DAY < 36
    assert signal.reading.change == pytest.approx(0.2, abs=0.05)


def test_a_batch_size_that_comes_later_is_learned_then_and_not_judged_by_the_others() -> None:
    random = np.random.default_rng(12)
    signal = MeanSignal(PACE, 0.2, logarithmic=True)
    signal.tick(0.0)
    found, clock = [], itertools.count(1)

    def days(number: float, sizes: tuple[int, ...], factor: float = 1.0) -> None:
        for block, _ in zip(clock, range(int(number * DAY)), strict=False):
            for items in sizes:
                signal.observe(0.01 * items**0.8 * factor * math.exp(random.normal(0, 0.05)), items)
            if signal.tick(block * BLOCK_S):
                found.append(signal.reading.active)

    days(2, (1,))
    for _ in range(8):
        days(0.4, (1, 2))  # one more camera
        state = json.loads(json.dumps(signal.state()))
        signal = MeanSignal(PACE, 0.2, logarithmic=True)
        signal.restore(state)
        signal.tick(next(clock) * BLOCK_S)
    days(0.2, (2,))
    assert found == []
    days(1, (2,), factor=1.3)
    assert found == [True]
    assert signal.reading.change == pytest.approx(0.3, abs=0.05)


def test_baseline_widens_its_spread_for_correlated_blocks() -> None:
    def learned(correlation: float) -> float:
        values = 0.7 * (1 + noise(2000, sigma=0.05, correlation=correlation, seed=7))
        return learn_mean([{0: [1.0, value]} for value in values.tolist()], logarithmic=False).sigma

    assert learned(0.0) == pytest.approx(0.05, rel=0.1)
    assert learned(0.8) == pytest.approx(0.15, rel=0.2)


def feed_rate(signal: RateSignal, hits_per_block: Iterable[int]) -> list[tuple[int, bool]]:
    found = []
    signal.tick(0.0)
    for block, hits in enumerate(hits_per_block):
        for window in range(60):
            signal.observe(window < hits)
        if signal.tick((block + 1) * BLOCK_S):
            found.append((block, signal.reading.active))
    return found


def test_class_rate_alarms_on_five_times_as_many_and_not_on_the_usual() -> None:
    random = np.random.default_rng(8)
    hits = random.poisson(0.05, 40 * DAY)
    assert feed_rate(RateSignal(WEEK_PACE, 3.0), hits.tolist()) == []
    hits[30 * DAY :] = random.poisson(0.25, 10 * DAY)
    signal = RateSignal(WEEK_PACE, 3.0)
    ((block, active),) = feed_rate(signal, hits.tolist())
    assert active
    assert 0 < block - 30 * DAY < DAY


def test_class_rate_alarms_when_nothing_is_found_any_more() -> None:
    hits = np.random.default_rng(9).poisson(0.2, 30 * DAY)
    hits[20 * DAY :] = 0
    ((block, active),) = feed_rate(RateSignal(WEEK_PACE, 3.0), hits.tolist())
    assert active
    assert 0 < block - 20 * DAY < 2 * DAY


def quiet_place(begins: NDArray[np.int64]) -> tuple[RateSignal, bool]:
    """The signal after one window a block, of which those above 0 begin something; whether it ever alarmed."""
    signal, alarmed = RateSignal(WEEK_PACE, 3.0), False
    signal.tick(0.0)
    for block, count in enumerate(begins.tolist()):
        signal.observe(count > 0)
        if signal.tick((block + 1) * BLOCK_S):
            alarmed = True
    return signal, alarmed


def test_class_rate_where_nothing_ever_happens_does_not_alarm_because_nothing_happens() -> None:
    assert not quiet_place(np.zeros(365 * DAY, np.int64))[1]


@pytest.mark.parametrize("a_week", [1, 5])
def test_class_rate_of_a_quiet_place_does_not_alarm_for_the_luck_of_its_first_week(a_week: int) -> None:
    random = np.random.default_rng(31)
    years = [random.poisson(a_week / (7 * DAY), 365 * DAY) for _ in range(4)]
    assert not any(alarmed for _, alarmed in map(quiet_place, years))


def test_class_rate_shows_the_rate_and_not_the_latest_hour() -> None:
    begins = np.zeros(31 * DAY, np.int64)
    begins[:: DAY // 2] = 1  # two a day
    after_one, _ = quiet_place(begins[: 30 * DAY + 1])
    hours_later, _ = quiet_place(begins[: 30 * DAY + DAY // 2])
    for signal in (after_one, hours_later):
        assert signal.reading.current == pytest.approx(2 / DAY, rel=0.25)
        assert signal.reading.strength < 0.5


def test_what_is_known_of_a_rate_outlives_a_restart() -> None:
    begins = np.random.default_rng(32).poisson(5 / (7 * DAY), 8 * DAY)
    signal, _ = quiet_place(begins)
    again = RateSignal(WEEK_PACE, 3.0)
    again.restore(json.loads(json.dumps(signal.state())))
    assert again.state() == signal.state()
    older = {name: value for name, value in signal.state().items() if name != "bounds"}
    again.restore(older)  # as written before there were bounds
    assert again.reading.baseline == signal.reading.baseline


def crowd(hours: int, *, seed: int, factor_after: int | None = None) -> list[list[int]]:
    """Counts of people by hour: a slowly wandering crowd, few at night, fewer on two days a week."""
    random = np.random.default_rng(seed)
    level, found = 0.0, []
    for hour in range(hours):
        level = 0.8 * level + random.normal(0, 0.35)
        usual = (0.3 if hour % 24 < 7 else 1.0) * (0.4 if hour // 24 % 7 >= 5 else 1.0)
        more = 3.0 if factor_after is not None and hour >= factor_after else 1.0
        counts = random.poisson(1.5 * math.exp(level) * usual * more, 50)
        found.append(counts[counts > 0].tolist())
    return found


def feed_mixture(signal: MixtureSignal, hours: list[list[int]]) -> list[tuple[int, bool]]:
    found = []
    signal.tick(0.0)
    for hour, counts in enumerate(hours):
        for count in counts:
            signal.observe(count)
        if signal.tick((hour + 1) * 3600.0):
            found.append((hour, signal.reading.active))
    return found


def test_weekends_and_nights_are_no_other_crowd_but_three_times_as_many_people_are() -> None:
    week_s, pace = WINDOW_BUCKETS * 3600.0, replace(PACE, min_samples=10)
    assert feed_mixture(MixtureSignal(pace, EDGES, 0.25, week_s), crowd(26 * 168, seed=10)) == []
    changed = crowd(6 * 168, seed=10, factor_after=4 * 168)
    ((hour, active),) = feed_mixture(MixtureSignal(pace, EDGES, 0.25, week_s), changed)
    assert active
    assert 0 < hour - 4 * 168 < 168


def test_golden_answers_need_two_checks_each_way() -> None:
    signal = AgreementSignal(0.05)
    states = []
    for agreement in (1.0, 0.5, 1.0, 0.5, 0.5, 1.0, 0.96, 0.96):
        signal.observe(agreement)
        states.append((signal.tick(0.0), signal.reading.active))
    on, off, no = (True, True), (True, False), False
    assert states == [(no, False)] * 4 + [on, (no, True), off, (no, False)]


def test_signals_go_on_after_a_restart_as_if_nothing_had_been() -> None:
    values = 0.75 * (1 + noise(4 * DAY, sigma=0.05, correlation=0.3, seed=11))
    values[3 * DAY :] *= 0.9
    whole = turns(MeanSignal(PACE, -0.10), values)
    signal, found = MeanSignal(PACE, -0.10), []
    for block, value in enumerate(values.tolist()):
        if block % 100 == 0:
            state = json.loads(json.dumps(signal.state()))
            signal = MeanSignal(PACE, -0.10)
            signal.restore(state)
            signal.tick(block * BLOCK_S)
        signal.observe(value)
        if signal.tick((block + 1) * BLOCK_S):
            found.append((block, signal.reading.active))
    assert whole
    assert found == whole


def test_rates_mixtures_and_checks_can_be_stored() -> None:
    rate, mixture, checks = (
        RateSignal(WEEK_PACE, 3.0),
        MixtureSignal(PACE, EDGES, 0.25, 604800.0),
        AgreementSignal(0.05),
    )
    feed_rate(rate, [0, 1] * (5 * DAY))
    feed_mixture(mixture, crowd(400, seed=12))
    checks.observe(0.5)
    for signal, fresh in (
        (rate, RateSignal(WEEK_PACE, 3.0)),
        (mixture, MixtureSignal(PACE, EDGES, 0.25, 604800.0)),
        (checks, AgreementSignal(0.05)),
    ):
        state = json.loads(json.dumps(signal.state()))
        fresh.restore(state)
        assert json.loads(json.dumps(fresh.state())) == state
        assert fresh.reading == signal.reading


def test_a_stored_mixture_of_other_bins_is_refused() -> None:
    state = MixtureSignal(PACE, (1, 2), 0.25, 604800.0).state() | {"buckets": [[1, 2]]}
    with pytest.raises(ValueError, match="expected 7 bins, got 2"):
        MixtureSignal(PACE, EDGES, 0.25, 604800.0).restore(state)

"""The charts: evidence, time, hysteresis, and the index of mixtures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drift.charts import Alarm, Cusum, gaussian_llr, index_by_chance, poisson_llr, stability_index

COUNTS = st.lists(st.integers(0, 10_000), min_size=7, max_size=7)


def test_half_of_the_shift_is_no_evidence_either_way() -> None:
    assert gaussian_llr(0.05, shift=0.1, sigma=0.03) == 0
    assert gaussian_llr(0.1, shift=0.1, sigma=0.03) == pytest.approx(-gaussian_llr(0.0, shift=0.1, sigma=0.03))


def test_one_wild_block_counts_no_more_than_three_shifts() -> None:
    assert gaussian_llr(50.0, shift=0.1, sigma=0.03) == pytest.approx(gaussian_llr(0.3, shift=0.1, sigma=0.03))


def test_poisson_evidence_is_that_of_the_likelihoods() -> None:
    hits, expected, factor = 4, 2.0, 3.0

    def log_likelihood(rate: float) -> float:
        return hits * math.log(rate) - rate

    found = poisson_llr(hits, expected, factor, dispersion=1.0)
    assert found == pytest.approx(log_likelihood(factor * expected) - log_likelihood(expected))


def test_evidence_alone_is_not_enough_before_its_time() -> None:
    chart = Cusum(limit=5.0, hold_s=1000.0)
    assert not chart.update(100.0, 0.0, 300.0)
    assert not chart.update(100.0, 999.0, 999.0)
    assert chart.update(0.0, 1000.0, 1.0)


def test_time_in_which_nothing_was_seen_does_not_count() -> None:
    chart = Cusum(limit=5.0, hold_s=1000.0)
    chart.update(100.0, 0.0, 300.0)
    assert not chart.update(100.0, 43_200.0, 600.0), "a night later"
    assert chart.update(100.0, 43_600.0, 400.0)
    assert chart.since_s == 0.0


def test_a_short_strong_disturbance_is_forgotten_as_quickly_as_it_came() -> None:
    chart = Cusum(limit=5.0, hold_s=1000.0)
    for t_s in range(0, 900, 300):
        chart.update(1000.0, t_s, 300.0)
    assert not any(chart.update(-2.0, t_s, 300.0) for t_s in range(1200, 6000, 300))
    assert chart.total == 0


def test_alarm_is_cleared_by_as_much_evidence_as_raised_it() -> None:
    alarm = Alarm.of(limit=5.0, raise_after_s=0, clear_after_s=0)
    turns = [alarm.update(2.0, t_s, 1.0) for t_s in range(3)] + [alarm.update(-2.0, t_s, 1.0) for t_s in range(3, 6)]
    assert turns == [False, False, True, False, False, True]
    assert not alarm.active


def test_alarm_goes_on_after_a_restart_as_if_nothing_had_been() -> None:
    first = Alarm.of(limit=5.0, raise_after_s=0, clear_after_s=0)
    for t_s in range(4):
        first.update(2.0, t_s, 1.0)
    second = Alarm.of(limit=5.0, raise_after_s=0, clear_after_s=0)
    second.restore(json.loads(json.dumps(first.state())))
    assert second == first
    assert second.onset_s == 0


def test_alarm_of_a_file_that_knew_no_watched_time_goes_on() -> None:
    first, second = (Alarm.of(limit=5.0, raise_after_s=2, clear_after_s=2) for _ in range(2))
    for t_s in range(2):
        first.update(2.0, t_s, 1.0)
    state = first.state()
    second.restore(state | {"charts": [chart[:2] for chart in state["charts"]]})
    assert second.raising.held_s == 0
    assert (second.raising.total, second.raising.since_s) == (first.raising.total, first.raising.since_s)
    with pytest.raises(ValueError, match="too many values"):
        second.restore(state | {"charts": [[*chart, 0.0] for chart in state["charts"]]})


@given(COUNTS, COUNTS)
def test_stability_index_is_symmetric_and_never_negative(one: list[int], other: list[int]) -> None:
    assert stability_index(one, other) == pytest.approx(stability_index(other, one))
    assert stability_index(one, other) >= 0
    assert stability_index(one, one) == 0


def test_chance_exceeds_its_index_about_once_in_ten_thousand() -> None:
    random = np.random.default_rng(1)
    shares = [0.3, 0.25, 0.15, 0.1, 0.1, 0.06, 0.04]
    limit = index_by_chance(7, 2000, 1000)
    pairs = zip(random.multinomial(2000, shares, 5000), random.multinomial(1000, shares, 5000), strict=True)
    exceeded = sum(stability_index(one.tolist(), other.tolist()) > limit for one, other in pairs)
    assert exceeded <= 4  # 0.5 expected

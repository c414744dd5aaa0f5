"""The byte throttle: no window of time holds more than its rate allows, alarms wait for alarms alone, nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.throttle import Throttle

RATE = 1000.0
BIGGEST = 5000


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


MESSAGES = st.lists(st.tuples(st.booleans(), st.integers(1, BIGGEST), st.floats(0, 3)), max_size=60)


@given(MESSAGES)
def test_any_stretch_of_time_stays_within_the_rate(messages: list[tuple[bool, int, float]]) -> None:
    clock = Clock()
    throttle = Throttle(RATE, clock)
    sent: list[tuple[float, int]] = []
    for urgent, size, pause_s in messages:
        clock.now_s += pause_s
        clock.now_s += throttle.wait_s(urgent=urgent)
        assert throttle.wait_s(urgent=urgent) == 0
        throttle.charge(size, urgent=urgent)
        sent.append((clock.now_s, size))
    for first in range(len(sent)):
        total = 0
        for at_s, size in sent[first:]:
            total += size
            assert total <= RATE * (at_s - sent[first][0] + 4) + 2 * BIGGEST + 1e-6


@given(MESSAGES)
def test_an_alarm_does_not_wait_for_anything_but_alarms(messages: list[tuple[bool, int, float]]) -> None:
    clock = Clock()
    alone = Throttle(RATE, clock)
    together = Throttle(RATE, clock)
    for urgent, size, pause_s in messages:
        clock.now_s += pause_s
        assert together.wait_s(urgent=True) == alone.wait_s(urgent=True)
        together.charge(size, urgent=urgent)
        if urgent:
            alone.charge(size, urgent=True)


@given(MESSAGES, st.booleans())
def test_no_wait_is_longer_than_the_debt(messages: list[tuple[bool, int, float]], urgent: bool) -> None:
    clock = Clock()
    throttle = Throttle(RATE, clock)
    total = 0
    for other, size, pause_s in messages:
        clock.now_s += pause_s
        throttle.charge(size, urgent=other)
        total += size
    assert throttle.wait_s(urgent=urgent) <= total / RATE + 0.002


def test_no_rate_is_no_bound_and_a_new_rate_counts_at_once() -> None:
    clock = Clock()
    throttle = Throttle(0, clock)
    throttle.charge(10**9, urgent=False)
    assert throttle.wait_s(urgent=False) == 0
    throttle.reconfigure(RATE)
    assert throttle.wait_s(urgent=False) == 0
    throttle.charge(12_000, urgent=False)
    assert 9.9 < throttle.wait_s(urgent=False) < 10.1
    throttle.reconfigure(10 * RATE)
    assert 0.9 < throttle.wait_s(urgent=False) < 1.1
    throttle.reconfigure(0)
    assert throttle.wait_s(urgent=False) == 0

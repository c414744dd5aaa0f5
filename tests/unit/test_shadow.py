"""The thread of the candidate: what it is given, what it leaves alone, and what its errors cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from agent.daemon.shadow import Shadow
from agent.errors import FatalError, ModelError


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def test_both_answers_to_the_same_item_are_compared() -> None:
    seen: list[tuple[int, int]] = []
    shadow: Shadow[int, int] = Shadow(
        lambda items: [10 * item for item in items], lambda a, b: seen.append((a, b)), duty=1
    )
    shadow.start()
    for item in range(1, 6):
        shadow.offer([item], [-item])
        until(lambda: len(seen) == item)  # noqa: B023 - called before it changes
    assert shadow.stop()
    assert seen == [(-item, 10 * item) for item in range(1, 6)]
    assert (shadow.samples, shadow.failures) == (5, 0)


def test_offering_takes_no_time_and_the_newest_wins() -> None:
    begun, gate, seen = threading.Event(), threading.Event(), []

    def slow(items: list[int]) -> list[int]:
        begun.set()
        gate.wait(10)
        return items

    shadow: Shadow[int, int] = Shadow(slow, lambda a, b: seen.append(b), depth=2, duty=1)
    shadow.start()
    shadow.offer([0], [0])
    assert begun.wait(10)
    started_s = time.perf_counter()
    for item in range(5000):
        shadow.offer([item], [item])
    assert time.perf_counter() - started_s < 2
    gate.set()
    until(lambda: len(seen) >= 3)
    assert shadow.stop()
    assert seen == [0, 4999, 4998]


def test_every_item_of_a_batch_has_its_turn() -> None:
    seen: list[int] = []
    shadow: Shadow[int, int] = Shadow(lambda items: items, lambda a, b: seen.append(b), duty=1)
    shadow.start()
    for n in range(4):
        shadow.offer([0, 1], [0, 1])
        until(lambda: len(seen) == n + 1)  # noqa: B023 - called before it changes
    shadow.stop()
    assert sorted(seen) == [0, 0, 1, 1]


def test_sparing_it_leaves_alone_what_is_not_worth_it() -> None:
    seen: list[int] = []
    shadow: Shadow[int, int] = Shadow(
        lambda items: items, lambda a, b: seen.append(a), depth=10, duty=1, worth=lambda answer: answer > 0
    )
    shadow.offer([1], [0])
    shadow.sparing = True
    shadow.offer([2], [0])
    shadow.offer([3], [5])
    shadow.start()
    until(lambda: len(seen) == 2)
    assert shadow.stop()
    assert seen == [5, 0]


@pytest.mark.parametrize("error", [ModelError("no"), ZeroDivisionError("bug")])
def test_errors_are_counted_and_it_goes_on(error: Exception) -> None:
    def function(items: list[int]) -> list[int]:
        if items == [1]:
            raise error
        return items

    shadow: Shadow[int, int] = Shadow(function, lambda a, b: None, duty=1)
    shadow.start()
    shadow.offer([1], [1])
    until(lambda: shadow.failures == 1)
    shadow.offer([2], [2])
    until(lambda: shadow.samples == 1)
    assert shadow.stop()
    assert str(error) in shadow.last_error


def test_a_dead_device_ends_it() -> None:
    def function(items: list[int]) -> list[int]:
        raise FatalError("CUDA failure 700: an illegal memory access was encountered")

    shadow: Shadow[int, int] = Shadow(function, lambda a, b: None, duty=1)
    shadow.start()
    shadow.offer([1], [1])
    until(lambda: shadow.dead)
    shadow.offer([2], [2])
    assert shadow.stop()
    assert (shadow.failures, shadow.samples) == (1, 0)


def test_it_rests_most_of_the_time() -> None:
    def function(items: list[int]) -> list[int]:
        time.sleep(0.02)
        return items

    shadow: Shadow[int, int] = Shadow(function, lambda a, b: None, duty=0.25)
    shadow.start()
    end_s = time.perf_counter() + 1.0
    while time.perf_counter() < end_s:
        shadow.offer([0], [0])
        time.sleep(0.001)
    assert shadow.stop()
    assert 2 <= shadow.samples <= 13, "a quarter of a second at 20 ms each"


def test_it_gives_way_and_nobody_else_does() -> None:
    found: list[int] = []

    def function(items: list[int]) -> list[int]:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return items

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    shadow: Shadow[int, int] = Shadow(function, lambda a, b: None, duty=1)
    shadow.start()
    shadow.offer([0], [0])
    until(lambda: bool(found))
    assert shadow.stop()
    assert found == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_stop_ends_a_rest_and_a_wait() -> None:
    for offered in (False, True):
        shadow: Shadow[int, int] = Shadow(lambda items: (time.sleep(0.05), items)[1], lambda a, b: None, duty=0.001)
        shadow.start()
        if offered:
            shadow.offer([0], [0])
            until(lambda: shadow.samples == 1)  # noqa: B023 - called before it changes
        started_s = time.perf_counter()
        assert shadow.stop()
        assert time.perf_counter() - started_s < 2


def test_stop_before_start_is_no_error() -> None:
    shadow: Shadow[int, int] = Shadow(lambda items: items, lambda a, b: None)
    assert shadow.stop()

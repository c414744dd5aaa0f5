"""The function of an inference thread exchanged while it works, and who looks on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DataError, DeviceMemoryError
from agent.pipeline.worker import BatchWorker

Answer = tuple[int, int]
"""Which function answered, and what it was asked."""


class Numbered:
    """Answers with its own number. Knows whether it is running; can be held at a gate."""

    def __init__(self, number: int, *, seconds: float = 0.0) -> None:
        self.number = number
        self.seconds = seconds
        self.running = False
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[int]) -> list[Answer]:
        self.running = True
        self.gate.wait(5)
        time.sleep(self.seconds)
        self.sizes.append(len(items))
        self.running = False
        return [(self.number, item) for item in items]


async def test_what_waits_goes_to_the_new_function_and_what_runs_ends_with_the_old() -> None:
    old, new = Numbered(0), Numbered(1)
    worker: BatchWorker[int, Answer] = BatchWorker("test", old, max_batch=2)
    old.gate.clear()
    worker.start()
    futures = [worker.submit(item) for item in range(2)]
    while not old.running:
        await asyncio.sleep(0.001)
    futures += [worker.submit(item) for item in range(2, 7)]
    done = worker.replace(new, max_batch=4)
    await asyncio.sleep(0.02)
    assert not done.done(), "the old function still runs"
    old.gate.set()
    await asyncio.wait_for(done, 5)
    assert not old.running
    answers = await asyncio.wait_for(asyncio.gather(*futures), 5)
    assert [item for _, item in answers] == list(range(7))
    begun = sum(old.sizes)
    assert [number for number, _ in answers] == [0] * begun + [1] * (7 - begun)
    assert begun <= 2
    assert max(new.sizes) == 4, "the new limit holds"
    await worker.close()


async def test_idle_thread_takes_the_new_function_at_once() -> None:
    worker: BatchWorker[int, Answer] = BatchWorker("test", Numbered(0))
    worker.start()
    await asyncio.wait_for(worker.replace(Numbered(1), max_batch=1), 5)
    assert await worker.submit(3) == (1, 3)
    await worker.close()


async def test_last_of_several_replacements_counts_and_all_are_told() -> None:
    old = Numbered(0)
    worker: BatchWorker[int, Answer] = BatchWorker("test", old)
    worker.start()
    old.gate.clear()
    first = worker.submit(0)
    while not old.running:
        await asyncio.sleep(0.001)
    waiting = [worker.replace(Numbered(number), max_batch=1) for number in (1, 2, 3)]
    old.gate.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert (await first, await worker.submit(5)) == ((0, 0), (3, 5))
    await worker.close()


async def test_giving_up_the_wait_does_not_take_the_exchange_back() -> None:
    old = Numbered(0)
    worker: BatchWorker[int, Answer] = BatchWorker("test", old)
    worker.start()
    old.gate.clear()
    first = worker.submit(0)
    while not old.running:
        await asyncio.sleep(0.001)
    worker.replace(Numbered(1), max_batch=1).cancel()
    old.gate.set()
    assert (await first, await worker.submit(1)) == ((0, 0), (1, 1))
    await worker.close()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_without_a_thread_the_exchange_is_done_at_once(when: str) -> None:
    worker: BatchWorker[int, Answer] = BatchWorker("test", Numbered(0))
    if when == "after":
        worker.start()
        await worker.close()
    await asyncio.wait_for(worker.replace(Numbered(1), max_batch=3), 1)
    assert worker.max_batch == 3


async def test_close_ends_the_wait_of_whoever_replaces_meanwhile() -> None:
    for _ in range(50):
        worker: BatchWorker[int, Answer] = BatchWorker("test", Numbered(0))
        worker.start()
        closing = asyncio.ensure_future(worker.close())
        await asyncio.sleep(0)
        await asyncio.wait_for(worker.replace(Numbered(1), max_batch=1), 5)
        await closing


async def test_memory_limit_of_the_old_function_is_not_the_new_ones() -> None:
    def small(items: list[int]) -> list[Answer]:
        if len(items) > 1:
            raise DeviceMemoryError("too many")
        return [(0, item) for item in items]

    worker: BatchWorker[int, Answer] = BatchWorker("test", small, max_batch=4, max_wait_s=5.0, patience=1)
    worker.start()
    worker.submitters = 4
    await asyncio.gather(*(worker.submit(item) for item in range(4)))
    assert worker.max_batch < 4
    await worker.replace(Numbered(1), max_batch=3)
    for _ in range(5):
        await asyncio.gather(*(worker.submit(item) for item in range(3)))
    assert worker.max_batch == 3
    await worker.close()


@settings(max_examples=30)
@given(
    items=st.integers(1, 60),
    swaps=st.lists(st.integers(0, 59), max_size=8),
    max_batch=st.integers(1, 5),
    seconds=st.sampled_from([0.0, 0.0005]),
)
def test_no_item_is_lost_doubled_or_out_of_turn(items: int, swaps: list[int], max_batch: int, seconds: float) -> None:
    async def scenario() -> tuple[list[Answer], list[Numbered]]:
        functions = [Numbered(0, seconds=seconds)]
        worker: BatchWorker[int, Answer] = BatchWorker("test", functions[0], max_batch=max_batch)
        worker.start()
        futures, exchanges = [], []
        for item in range(items):
            futures.append(worker.submit(item))
            if item in swaps:
                functions.append(Numbered(len(functions), seconds=seconds))
                exchanges.append(worker.replace(functions[-1], max_batch=max_batch))
            if item % 7 == 0:
                await asyncio.sleep(0)
        answers = await asyncio.wait_for(asyncio.gather(*futures), 20)
        await asyncio.wait_for(asyncio.gather(*exchanges), 20)
        await worker.close()
        return answers, functions

    answers, functions = asyncio.run(scenario())
    assert [item for _, item in answers] == list(range(items))
    numbers = [number for number, _ in answers]
    assert all(one <= other for one, other in pairwise(numbers)), "an older function ran after a newer one"
    assert sum(sum(function.sizes) for function in functions) == items


def test_submitting_and_replacing_from_a_busy_loop_never_runs_two_at_once() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def make(number: int) -> Callable[[list[int]], list[Answer]]:
        def function(items: list[int]) -> list[Answer]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.0002)
            with lock:
                running -= 1
            return [(number, item) for item in items]

        return function

    async def scenario() -> None:
        worker: BatchWorker[int, Answer] = BatchWorker("test", make(0), max_batch=3)
        worker.start()

        async def camera(first: int) -> None:
            for item in range(first, first + 100):
                assert (await worker.submit(item))[1] == item

        async def update() -> None:
            for number in range(1, 60):
                await worker.replace(make(number), max_batch=3)
                assert (await worker.submit(-1))[0] == number, "the old function was still there after `done`"

        await asyncio.gather(camera(0), camera(1000), update())
        await worker.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert most == 1


# --- the tap ------------------------------------------------------------------------------------------------------------


async def test_tap_sees_what_went_in_and_came_out_on_the_thread() -> None:
    seen: list[tuple[str, Sequence[int], Sequence[Answer]]] = []
    worker: BatchWorker[int, Answer] = BatchWorker("test", Numbered(4), max_batch=3)
    worker.tap = lambda items, outputs: seen.append((threading.current_thread().name, items, outputs))
    worker.start()
    await asyncio.gather(*(worker.submit(item) for item in range(5)))
    await worker.close()
    assert {name for name, _, _ in seen} == {"infer-test"}
    assert [item for _, items, _ in seen for item in items] == list(range(5))
    assert all([(4, item) for item in items] == list(outputs) for _, items, outputs in seen)


async def test_error_in_the_tap_is_counted_and_costs_nothing() -> None:
    def broken(items: Sequence[int], outputs: Sequence[Answer]) -> None:
        raise ZeroDivisionError

    worker: BatchWorker[int, Answer] = BatchWorker("test", Numbered(0))
    worker.tap = broken
    worker.start()
    assert [await worker.submit(item) for item in range(3)] == [(0, item) for item in range(3)]
    await worker.close()
    assert worker.tap_errors == 3


async def test_tap_is_not_shown_what_failed() -> None:
    def function(items: list[int]) -> list[Answer]:
        if 1 in items:
            raise DataError("bad item")
        return [(0, item) for item in items]

    seen: list[int] = []
    worker: BatchWorker[int, Answer] = BatchWorker("test", function, max_batch=4)
    worker.tap = lambda items, outputs: seen.extend(items)
    worker.start()
    await asyncio.gather(*(worker.submit(item) for item in range(4)), return_exceptions=True)
    await worker.close()
    assert seen == [0, 2, 3]

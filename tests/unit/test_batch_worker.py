"""The inference thread: batching, order, and what an error costs."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from agent.errors import DataError, DeviceMemoryError, FatalError, ModelError
from agent.pipeline.worker import BatchWorker


class Doubler:
    """Doubles numbers; records its batches; fails on demand; can be held at a gate."""

    def __init__(self, *, capacity: int = 99) -> None:
        self.batches: list[list[int]] = []
        self.capacity = capacity
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.gate.wait(5)
        self.batches.append(list(items))
        if len(items) > self.capacity:
            raise DeviceMemoryError("too many")
        if -1 in items:
            raise DataError("bad item")
        if -2 in items:
            raise FatalError("dead device")
        if -3 in items:
            raise ZeroDivisionError("bug")
        if -6 in items:
            sys.exit("enough")
        if -5 in items:
            return None  # type: ignore[return-value]  # as a plug-in's bug may
        return [2 * item for item in items if item != -4]


async def outcome(future: asyncio.Future[int]) -> int | str:
    try:
        return await future
    except (DataError, DeviceMemoryError, FatalError, ModelError) as error:
        return type(error).__name__


async def run(function: Doubler, items: list[int], *, max_batch: int = 4, submitters: int = 1) -> list[int | str]:
    """Everything submitted while the thread is held at its first item, so that the rest is there to be batched."""
    worker = BatchWorker("test", function, max_batch=max_batch)
    worker.submitters = submitters
    function.gate.clear()
    worker.start()
    futures = [worker.submit(item) for item in items]
    function.gate.set()
    results = [await outcome(future) for future in futures]
    await worker.close()
    return results


async def test_results_come_back_to_their_submitters() -> None:
    assert await run(Doubler(), list(range(10))) == [2 * n for n in range(10)]


async def test_waiting_items_share_batches_up_to_the_limit() -> None:
    doubler = Doubler()
    await run(doubler, list(range(9)), max_batch=4)
    assert max(len(batch) for batch in doubler.batches) == 4
    assert [item for batch in doubler.batches for item in batch] == list(range(9))


async def test_bad_item_costs_only_itself() -> None:
    assert await run(Doubler(), [1, 2, -1, 3, 4]) == [2, 4, "DataError", 6, 8]


async def test_bug_in_a_plug_in_is_a_model_error() -> None:
    assert await run(Doubler(), [1, -3, 2]) == [2, "ModelError", 4]
    assert await run(Doubler(), [1, -5, 2]) == [2, "ModelError", 4]


async def test_a_plug_in_that_would_end_the_process_costs_its_item_and_not_the_thread() -> None:
    async with asyncio.timeout(5):
        assert await run(Doubler(), [1, -6, 2]) == [2, "ModelError", 4]


async def test_wrong_number_of_results_is_a_model_error() -> None:
    assert await run(Doubler(), [1, -4], max_batch=1) == [2, "ModelError"]


async def test_out_of_memory_halves_the_batch() -> None:
    doubler = Doubler(capacity=2)
    assert await run(doubler, list(range(12)), max_batch=8) == [2 * n for n in range(12)]
    sizes = [len(batch) for batch in doubler.batches]
    assert max(sizes) > 2
    small_from = sizes.index(2)
    assert max(sizes[small_from:]) <= 2


async def test_after_a_good_while_larger_batches_are_tried_again() -> None:
    """Memory is short for a moment, even for a single item."""
    doubler = Doubler(capacity=0)
    worker = BatchWorker("test", doubler, max_batch=8, max_wait_s=5.0, patience=3)
    worker.submitters = 8
    worker.start()
    assert set(await asyncio.gather(*(outcome(worker.submit(item)) for item in range(8)))) == {"DeviceMemoryError"}
    assert worker.max_batch == 1
    doubler.capacity = 8
    for _ in range(40):
        await asyncio.gather(*(worker.submit(item) for item in range(8)))
    assert worker.max_batch == 8
    assert len(doubler.batches[-1]) == 8
    await worker.close()


async def test_a_device_that_stays_too_small_is_bothered_ever_more_rarely_and_loses_nothing() -> None:
    doubler = Doubler(capacity=2)
    worker = BatchWorker("test", doubler, max_batch=4, max_wait_s=5.0, patience=3)
    worker.submitters = 4
    worker.start()
    for _ in range(300):
        assert await asyncio.gather(*(worker.submit(item) for item in range(4))) == [0, 2, 4, 6]
    await worker.close()
    failures = sum(len(batch) > 2 for batch in doubler.batches)
    assert failures < 12  # 600 batches: at 6, 18, 42, ... good ones


async def test_out_of_memory_with_a_single_item_is_reported() -> None:
    assert await run(Doubler(capacity=0), [5]) == ["DeviceMemoryError"]


async def test_dead_device_fails_the_whole_batch() -> None:
    results = await run(Doubler(), [1, 2, -2, 3])
    assert results[2] == "FatalError"


async def test_lone_submitter_never_waits_for_company() -> None:
    worker = BatchWorker("test", Doubler(), max_batch=8, max_wait_s=30.0)
    worker.start()
    assert await asyncio.wait_for(worker.submit(3), 5) == 6
    await worker.close()


async def test_submitters_wait_for_each_other() -> None:
    doubler = Doubler()
    worker = BatchWorker("test", doubler, max_batch=8, max_wait_s=30.0)
    worker.submitters = 2
    worker.start()
    first = worker.submit(1)
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(asyncio.gather(first, worker.submit(2)), 5) == [2, 4]
    assert doubler.batches == [[1, 2]]
    await worker.close()


async def test_cancelled_items_are_skipped() -> None:
    doubler = Doubler()
    worker = BatchWorker("test", doubler)
    doubler.gate.clear()
    worker.start()
    first, second, third = (worker.submit(n) for n in (1, 2, 3))
    second.cancel()
    doubler.gate.set()
    assert (await first, await third) == (2, 6)
    assert [2] not in doubler.batches
    await worker.close()


async def test_close_finishes_what_was_submitted() -> None:
    worker = BatchWorker("test", Doubler())
    worker.start()
    futures = [worker.submit(n) for n in range(5)]
    await worker.close()
    assert await asyncio.gather(*futures) == [0, 2, 4, 6, 8]
    assert not any(thread.name == "infer-test" for thread in threading.enumerate())


async def test_unstarted_worker_says_so() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        BatchWorker("test", Doubler()).submit(1)

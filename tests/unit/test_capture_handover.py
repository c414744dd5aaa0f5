"""Frames from a thread to a coroutine."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest
from fakes.video import numbered_image

from agent.capture.handover import Handover
from agent.errors import SourceError
from agent.types import Frame, FrameStamp


def frame(seq: int) -> Frame:
    image = numbered_image(seq)
    return Frame(FrameStamp("cam", seq, seq, datetime.now(UTC), image.shape[1], image.shape[0]), image)


async def taken(handover: Handover) -> list[int]:
    seqs = []
    while (item := await handover.get()) is not None:
        seqs.append(item.stamp.seq)
    return seqs


async def test_the_newest_frame_wins_and_drops_are_counted() -> None:
    handover = Handover(asyncio.get_running_loop())
    for seq in range(5):
        handover.put_newest(frame(seq))
    handover.finish()
    assert await taken(handover) == [4]
    assert handover.dropped == 4


async def test_every_frame_of_a_file_arrives_in_order() -> None:
    handover = Handover(asyncio.get_running_loop())

    def produce() -> None:
        for seq in range(500):
            assert handover.put_all(frame(seq))
        handover.finish()

    thread = threading.Thread(target=produce)
    thread.start()
    assert await taken(handover) == list(range(500))
    thread.join()


async def test_a_full_queue_makes_the_producer_wait() -> None:
    handover = Handover(asyncio.get_running_loop(), look_ahead=4)
    put: list[int] = []

    def produce() -> None:
        for seq in range(12):
            handover.put_all(frame(seq))
            put.append(seq)
        handover.finish()

    thread = threading.Thread(target=produce)
    thread.start()
    await asyncio.sleep(0.1)
    assert len(put) == 4
    assert await taken(handover) == list(range(12))
    thread.join()


async def test_a_single_slow_frame_of_a_file_does_not_wait_for_a_batch() -> None:
    handover = Handover(asyncio.get_running_loop())

    def produce() -> None:
        for seq in range(3):
            time.sleep(0.03)
            handover.put_all(frame(seq))
        time.sleep(0.03)
        handover.flush()

    thread = threading.Thread(target=produce)
    thread.start()
    for seq in range(3):
        item = await asyncio.wait_for(handover.get(), 1)
        assert item is not None
        assert item.stamp.seq == seq
    thread.join()


async def test_the_error_comes_after_the_queued_frames() -> None:
    handover = Handover(asyncio.get_running_loop())
    handover.put_all(frame(0))
    handover.finish(SourceError("gone"))
    handover.finish()  # the first word counts
    assert (await handover.get()) is not None
    with pytest.raises(SourceError, match="gone"):
        await handover.get()


async def test_a_waiting_producer_is_released_by_finish() -> None:
    handover = Handover(asyncio.get_running_loop(), look_ahead=2)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.extend(handover.put_all(frame(seq)) for seq in range(3)))
    thread.start()
    await asyncio.sleep(0.05)
    handover.finish()
    thread.join(2)
    assert results == [True, True, False]


async def test_a_cancelled_consumer_loses_no_frame() -> None:
    handover = Handover(asyncio.get_running_loop())
    waiting = asyncio.create_task(handover.get(), name="consumer")
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    handover.put_newest(frame(7))
    item = await handover.get()
    assert item is not None
    assert item.stamp.seq == 7


async def test_a_frame_put_while_the_consumer_is_being_cancelled_stays() -> None:
    handover = Handover(asyncio.get_running_loop())
    waiting = asyncio.create_task(handover.get(), name="consumer")
    await asyncio.sleep(0)
    handover.put_newest(frame(3))  # wakes it, and before it runs it is cancelled
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    item = await handover.get()
    assert item is not None
    assert item.stamp.seq == 3


async def test_a_waiting_consumer_is_woken_once_however_many_frames_come() -> None:
    loop = asyncio.get_running_loop()
    handover = Handover(loop)
    waiting = asyncio.create_task(handover.get(), name="consumer")
    await asyncio.sleep(0)
    for seq in range(100):
        handover.put_newest(frame(seq))
    item = await waiting
    assert item is not None
    assert item.stamp.seq == 99
    assert handover.dropped == 99


def test_a_closed_loop_ends_the_producer_quietly() -> None:
    loop = asyncio.new_event_loop()
    handover = Handover(loop)
    waiting = loop.create_task(handover.get(), name="consumer")
    loop.run_until_complete(asyncio.sleep(0))
    handover_waiter = handover._waiter
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiting)
    handover._waiter = handover_waiter  # as if the loop had been closed under a waiting consumer
    loop.close()
    handover.put_newest(frame(0))
    assert handover.put_all(frame(1)) is False

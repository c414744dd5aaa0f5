"""Sinks of the tests: records, a fake that implements the port, and the contract that every sink passes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import pytest

from agent.errors import RejectedError, TransientError
from agent.events.cloudevents import CONTENT_TYPE
from agent.ports import EventSink
from agent.types import Lane, OutboxRecord


def record(
    sequence: int, *, kind: str = "fight", lane: Lane = Lane.EVENT, text: str = "", attempts: int = 0
) -> OutboxRecord:
    """A committed event with what CloudEvents asks for."""
    event_id = f"01890000-0000-7000-8000-{sequence:012d}"
    envelope = {
        "specversion": "1.0", "id": event_id, "source": "/recognizer/box/cameras/door", "type": "recognizer.event.started.v1",
        "subject": f"{kind}/1", "time": "2026-11-26T12:00:00.000Z", "datacontenttype": "application/json",
        "dataschema": "urn:recognizer:schema:event:v1#/$defs/data", "sequence": f"{sequence:016d}", "partitionkey": "door",
        "data": {"kind": kind, "sequence": sequence, "text": text},
    }  # fmt: skip
    payload = json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode()
    topic = f"recognizer/box/events/door/{kind}"
    return OutboxRecord(
        sequence, lane, sequence, event_id, topic, payload, CONTENT_TYPE, False, datetime.now(UTC), attempts
    )


class MemorySink:
    """A sink in memory. problems: raised one after the other, once each; gate: deliveries wait until it is set."""

    def __init__(self, max_batch: int = 4) -> None:
        self.max_batch = max_batch
        self.taken: list[OutboxRecord] = []
        self.problems: list[Exception] = []
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0
        self.closed = 0
        self.largest = 1 << 20

    async def deliver(self, records: Sequence[OutboxRecord]) -> int:
        self.calls += 1
        await self.gate.wait()
        if self.problems:
            raise self.problems.pop(0)
        if self.down:
            raise TransientError("down")
        if len(records[0].payload) > self.largest:
            raise RejectedError("too large", 413)
        fit = next((n for n, one in enumerate(records) if len(one.payload) > self.largest), len(records))
        self.taken += records[:fit]
        return fit

    async def close(self) -> None:
        self.closed += 1


class SinkBench(Protocol):
    """One kind of sink with its other side, for the contract."""

    @property
    def sink(self) -> EventSink: ...

    async def received(self) -> list[str]:
        """Ids in the order in which the other side has them."""
        ...

    async def break_down(self) -> None:
        """From now on nothing can be delivered."""
        ...

    async def mend(self) -> None: ...

    async def stall(self) -> bool:
        """From now on the other side does not answer, until `mend`; False where that cannot be."""
        ...

    def unacceptable(self, sequence: int) -> OutboxRecord | None:
        """A record that the other side refuses for good; None where there is none."""
        ...


OpenBench = Callable[[], contextlib.AbstractAsyncContextManager[SinkBench]]


async def deliver_all(sink: EventSink, records: Sequence[OutboxRecord]) -> None:
    """As the runner does it."""
    rest = list(records)
    while rest:
        done = await sink.deliver(rest[: sink.max_batch])
        assert 1 <= done <= min(len(rest), sink.max_batch)
        del rest[:done]


def ids(records: Sequence[OutboxRecord]) -> list[str]:
    return [one.event_id for one in records]


class SinkContract:
    """Inherit, and give a fixture `open_bench`."""

    @pytest.fixture
    async def bench(self, open_bench: OpenBench) -> AsyncIterator[SinkBench]:
        async with open_bench() as bench:
            yield bench

    async def test_it_is_an_event_sink(self, bench: SinkBench) -> None:
        assert isinstance(bench.sink, EventSink)
        assert bench.sink.max_batch >= 1

    async def test_what_is_delivered_is_there_in_order(self, bench: SinkBench) -> None:
        records = [record(sequence, text="Größe\n\t\u2028\x7f" * 20) for sequence in range(1, 40)]
        await deliver_all(bench.sink, records)
        assert await bench.received() == ids(records)

    async def test_it_says_what_is_safe_and_the_rest_comes_again(self, bench: SinkBench) -> None:
        records = [record(sequence, text="x" * 50_000) for sequence in range(1, 65)]
        done = await bench.sink.deliver(records[: bench.sink.max_batch])
        assert await bench.received() == ids(records[:done])
        await deliver_all(bench.sink, records[done:])
        assert await bench.received() == ids(records)

    async def test_a_failure_is_transient_and_nothing_is_lost_by_it(self, bench: SinkBench) -> None:
        records = [record(sequence) for sequence in range(1, 8)]
        await deliver_all(bench.sink, records[:2])
        await bench.break_down()
        for _ in range(3):
            with pytest.raises(TransientError) as caught:
                await bench.sink.deliver(records[2 : 2 + bench.sink.max_batch])
            assert str(caught.value)
        await bench.mend()
        await deliver_all(bench.sink, records[2:])
        assert list(dict.fromkeys(await bench.received())) == ids(records)

    async def test_it_can_begin_broken(self, bench: SinkBench) -> None:
        await bench.break_down()
        with pytest.raises(TransientError):
            await bench.sink.deliver([record(1)])
        await bench.mend()
        await deliver_all(bench.sink, [record(1)])
        assert await bench.received() == ids([record(1)])

    async def test_a_delivery_that_is_cancelled_does_not_stand_in_the_way(self, bench: SinkBench) -> None:
        records = [record(sequence) for sequence in range(1, 6)]
        await deliver_all(bench.sink, records[:1])
        if await bench.stall():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await bench.sink.deliver(records[1:2])
            await bench.mend()
        await deliver_all(bench.sink, records[1:])
        assert list(dict.fromkeys(await bench.received())) == ids(records)

    async def test_what_will_never_be_taken_is_rejected_alone(self, bench: SinkBench) -> None:
        bad = bench.unacceptable(2)
        if bad is None:
            return
        assert await bench.sink.deliver([record(1), bad, record(3)][: bench.sink.max_batch]) == 1
        with pytest.raises(RejectedError):
            await bench.sink.deliver([bad, record(3)][: bench.sink.max_batch])
        await deliver_all(bench.sink, [record(3)])
        assert await bench.received() == ids([record(1), record(3)])

    async def test_closing_is_possible_at_any_time_and_twice(self, bench: SinkBench) -> None:
        await bench.sink.close()
        await bench.sink.close()

    async def test_closing_after_use(self, bench: SinkBench) -> None:
        await deliver_all(bench.sink, [record(1)])
        await bench.sink.close()
        await bench.sink.close()
        assert await bench.received() == ids([record(1)])

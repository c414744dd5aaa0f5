"""The process that `crash_campaign.py` and `backlog.py` put on trial: outbox, relay and MQTT client as the agent wires them.

Puts alarms, events and states at a rate and relays them. Prints `put LANE SEQUENCE NUMBER ID TOPIC` once a put has returned (SEQUENCE
is `-` for a state; NUMBER counts this process's puts on from --first), and `ready` when the store is open. With --seconds it
stops putting after that time, waits until the outbox is empty, and ends with 0.

`--break` makes it faulty on purpose, so that the campaign can show that it would notice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import uvloop

from agent.config.delivery import MqttConfig, OutboxConfig
from agent.errors import RecognizerError
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

TOPICS = Topics("recognizer", "box")
FAULTS = ("delete-before-ack", "reorder", "claim-early", "change-duplicates")
_LANES = (Lane.ALARM, *[Lane.EVENT] * 7, Lane.STATE, Lane.STATE)
_CAMERAS = 4
_TICK_S = 0.01
_LOT = 100
_LATE_S = 0.05


class FaultyLink:
    """A link with one of FAULTS between the relay and the client."""

    def __init__(self, client: MqttClient, fault: str) -> None:
        self._client = client
        self._fault = fault
        self._sent = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        """As in `Publisher`, but wrong."""
        self._sent += 1
        if self._fault == "delete-before-ack":
            task = asyncio.create_task(self._publish_late(topic, payload, options))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if self._fault == "reorder" and self._sent % 50 == 0:
            await asyncio.sleep(_LATE_S)
        if self._fault == "change-duplicates" and self._sent % 50 == 0:
            await self._client.publish(topic, payload.replace(b"x", b"y"), **options)
        await self._client.publish(topic, payload, **options)

    async def _publish_late(self, topic: str, payload: bytes, options: dict[str, Any]) -> None:
        await asyncio.sleep(_LATE_S)
        with contextlib.suppress(RecognizerError):
            await self._client.publish(topic, payload, **options)


class Producer:
    """Puts at `rate` per second in lots, as cameras do: several in one turn of the event loop."""

    def __init__(self, store: OutboxStore, first: int, filler_bytes: int, *, claim_early: bool = False) -> None:
        self._store = store
        self._number = first
        self._filler = "x" * filler_bytes
        self._claim_early = claim_early
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, rate: float, seconds: float) -> None:
        """Put for `seconds`."""
        loop = asyncio.get_running_loop()
        begin_s, done = loop.time(), 0
        while (passed_s := loop.time() - begin_s) < seconds:
            due = int(passed_s * rate) - done
            done += due
            await asyncio.gather(*(self._put() for _ in range(due)))
            await asyncio.sleep(_TICK_S)
        await asyncio.gather(*self._tasks)

    async def flood(self, count: int) -> None:
        """Put `count` alarms and events as fast as the disk takes them, without a word about each."""
        for start in range(0, count, _LOT):
            numbers = range(start, min(count, start + _LOT))
            await asyncio.gather(*(self._store.put(self._message(n, str(uuid.uuid4()))) for n in numbers))

    def _message(self, number: int, event_id: str) -> Message:
        lane = Lane.ALARM if number % len(_LANES) == 0 else Lane.EVENT
        return Message(lane, event_id, _topic(lane, number), _payload(lane, number, event_id, self._filler))

    async def _put(self) -> None:
        number, self._number = self._number, self._number + 1
        lane, event_id = _LANES[number % len(_LANES)], str(uuid.uuid4())
        topic = _topic(lane, number)
        message = Message(
            lane, event_id, topic, _payload(lane, number, event_id, self._filler), retain=lane is Lane.STATE
        )
        if self._claim_early and lane is not Lane.STATE:
            say("put", int(lane), "-", number, event_id, topic)
            task = asyncio.create_task(self._put_late(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        sequence = await self._store.put(message)
        say("put", int(lane), "-" if sequence is None else sequence, number, event_id, topic)

    async def _put_late(self, message: Message) -> None:
        await asyncio.sleep(_LATE_S)
        await self._store.put(message)


def say(*words: object) -> None:
    """One line to whoever keeps the books: in the pipe, hence safe from a kill, when this returns."""
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def _topic(lane: Lane, number: int) -> str:
    if lane is Lane.STATE:
        return TOPICS.camera_state(f"cam{number % _CAMERAS}")
    return TOPICS.event("door", "fall" if lane is Lane.ALARM else "fight")


def _payload(lane: Lane, number: int, event_id: str, filler: str) -> Callable[[int | None], bytes]:
    def payload(sequence: int | None) -> bytes:
        body = {"id": event_id, "lane": int(lane), "number": number, "sequence": sequence, "filler": filler}
        return json.dumps(body).encode()

    return payload


async def main(args: argparse.Namespace) -> None:
    """Open, relay, put, drain."""
    store = await OutboxStore.open(args.database, OutboxConfig())
    say("ready")
    config = MqttConfig.model_validate({"reconnect": {"initial_s": 0.1, "max_s": 1.0}, "spread_s": 0, **args.mqtt})
    client = MqttClient(config, TOPICS)
    link: Any = FaultyLink(client, args.fault) if args.fault else client
    tasks = [
        asyncio.create_task(client.run()),
        asyncio.create_task(Relay(store, link, max_in_flight=config.max_in_flight, backoff=config.reconnect).run()),
    ]
    producer = Producer(store, args.first, args.filler_bytes, claim_early=args.fault == "claim-early")
    if args.count:
        await producer.flood(args.count)
        say("buffered")
    else:
        await producer.run(args.rate, args.seconds)
    while any(depth.rows for depth in (await store.depth()).values()):  # noqa: ASYNC110 - the store has no event for it
        await asyncio.sleep(0.05)
    for task in reversed(tasks):
        task.cancel()
        await asyncio.wait([task])
    await store.close()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument(
        "--mqtt", type=json.loads, default={}, help="keys of the configuration's section `mqtt`, as JSON"
    )
    parser.add_argument("--rate", type=float, default=500.0, help="puts per second, all lanes together")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--count", type=int, default=0, help="put so many at once instead, say `buffered`, and drain")
    parser.add_argument("--first", type=int, default=1, help="number of the first put")
    parser.add_argument("--filler-bytes", type=int, default=200, help="of each payload, next to some 130")
    parser.add_argument("--break", dest="fault", default="", choices=("", *FAULTS))
    return parser.parse_args()


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    uvloop.run(main(arguments()))

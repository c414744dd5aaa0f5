"""A process that commits real events in both lanes and relays them, to be killed by the tests.

Usage: event_agent.py DATABASE PORT RATE_PER_S TOTAL
Prints `put <sequence> <lane> <id>` once a put has returned, stops putting at sequence TOTAL, ends when the outbox is empty.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from agent.config.delivery import MqttConfig, OutboxConfig
from agent.config.sections import BackoffConfig
from agent.events.cloudevents import CONTENT_TYPE, render
from agent.events.ids import Uuid7
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Event, EventPhase, Lane

NEW_ID = Uuid7()


def message(topics: Topics, lane: Lane, new_id: Uuid7 = NEW_ID) -> Message:
    """A fight for the alarm lane, a fall for the event lane."""
    now = datetime.now(UTC)
    kind = "fight" if lane is Lane.ALARM else "fall"
    event = Event(new_id(), new_id(), kind, EventPhase.DETECTED, "door", (1, 2), 0, now, now, 0.0, 0.9)

    def payload(sequence: int | None) -> bytes:
        return render(event, device_id=topics.device, sequence=sequence or 0, emitted_utc=datetime.now(UTC))

    return Message(lane, event.event_id, topics.event("door", kind), payload, CONTENT_TYPE, kind=kind)


async def main() -> None:
    """Open, relay, put, drain."""
    database, port, rate, total = sys.argv[1:]
    topics = Topics("recognizer", "box")
    backoff = BackoffConfig(initial_s=0.05, max_s=0.2)
    store = await OutboxStore.open(Path(database), OutboxConfig())
    client = MqttClient(MqttConfig(port=int(port), reconnect=backoff), topics)
    tasks = [asyncio.create_task(client.run()), asyncio.create_task(Relay(store, client, backoff=backoff).run())]
    last = store.report.next_sequence - 1
    while last < int(total):
        lane = Lane.ALARM if last % 5 == 0 else Lane.EVENT
        made = message(topics, lane)
        last = await store.put(made) or 0
        print("put", last, lane.name, made.event_id, flush=True)
        await asyncio.sleep(1 / float(rate))
    while any(depth.rows for depth in (await store.depth()).values()):
        await asyncio.sleep(0.02)
    for task in reversed(tasks):
        task.cancel()
        await asyncio.wait([task])
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())

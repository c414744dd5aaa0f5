"""A process that puts events at a rate and relays them, to be killed by the tests.

Usage: outbox_agent.py DATABASE PORT PROTOCOL RATE_PER_S TOTAL
Prints `put <sequence>` once a put has returned, stops putting at sequence TOTAL, ends when the outbox is empty.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path

from agent.config.delivery import MqttConfig, OutboxConfig
from agent.config.sections import BackoffConfig
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane


def event(topics: Topics) -> Message:
    """An event whose payload tells its own number and id."""
    event_id = str(uuid.uuid4())

    def payload(sequence: int | None) -> bytes:
        return json.dumps({"sequence": sequence, "id": event_id}).encode()

    return Message(Lane.EVENT, event_id, topics.event("door", "fight"), payload)


async def main() -> None:
    """Open, relay, put, drain."""
    database, port, protocol, rate, total = sys.argv[1:]
    topics = Topics("recognizer", "box")
    backoff = BackoffConfig(initial_s=0.05, max_s=0.2)
    config = MqttConfig(port=int(port), protocol=protocol, reconnect=backoff)  # type: ignore[arg-type]
    store = await OutboxStore.open(Path(database), OutboxConfig())
    client = MqttClient(config, topics)
    tasks = [asyncio.create_task(client.run()), asyncio.create_task(Relay(store, client, backoff=backoff).run())]
    last = store.report.next_sequence - 1
    while last < int(total):
        last = await store.put(event(topics)) or 0
        print("put", last, flush=True)
        await asyncio.sleep(1 / float(rate))
    while any(depth.rows for depth in (await store.depth()).values()):
        await asyncio.sleep(0.02)
    for task in reversed(tasks):
        task.cancel()
        await asyncio.wait([task])
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())

"""The whole way from a store through relay and client to a scripted broker, and the promise that is checked at its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from fakes.brokers import Mosquitto
from fakes.scripted_broker import ScriptedBroker

from agent.config.delivery import MqttConfig, OutboxConfig
from agent.config.sections import BackoffConfig
from agent.mqtt.client import MqttClient
from agent.mqtt.seal import Seal
from agent.mqtt.topics import Topics
from agent.outbox.doubts import Doubts
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message, Received
from agent.throttle import Throttle
from agent.types import Lane

TOPICS = Topics("recognizer", "box")
FAST = BackoffConfig(initial_s=0.02, max_s=0.1)
LANES = (Lane.EVENT, Lane.ALARM)
MAX_AGE_S = {Lane.EVENT: 600.0, Lane.ALARM: 900.0}


class Delivery:
    """A store, a client and a relay between them; `total` events were put, every third one an alarm."""

    def __init__(self, store: OutboxStore, client: MqttClient, relay: Relay) -> None:
        self.store, self.client, self.relay = store, client, relay
        self.total = 0

    async def put(self, count: int) -> None:
        for _ in range(count):
            number = self.total
            self.total += 1
            lane = LANES[number % 3 == 0]
            body = json.dumps({"id": f"e{number}", "lane": lane.name, "number": number}).encode()
            await self.store.put(Message(lane, f"e{number}", TOPICS.event("door", "fight"), lambda _, body=body: body))  # type: ignore[misc]

    async def drained(self, timeout_s: float = 30) -> None:
        async with asyncio.timeout(timeout_s):
            while any(depth.rows for depth in (await self.store.depth()).values()):
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def delivering(
    folder: Path,
    broker: ScriptedBroker | Mosquitto,
    *,
    doubts: Doubts | None = None,
    backoff: BackoffConfig = FAST,
    subscriptions: Mapping[str, Callable[[Received], None]] | None = None,
    **settings: object,
) -> AsyncIterator[Delivery]:
    """settings: of `MqttConfig`; backoff: of the lanes; subscriptions: handlers by filter."""
    given = {"reconnect": FAST, "publish_timeout_s": 1.0, "spread_s": 0.0} | settings
    config = MqttConfig(port=broker.port, **given)  # type: ignore[arg-type]
    store = await OutboxStore.open(folder / "events.db", OutboxConfig())
    throttle = Throttle(config.max_bytes_per_s, time.monotonic)
    client = MqttClient(config, TOPICS, throttle)
    for name, handler in (subscriptions or {}).items():
        client.subscribe(name, handler)
    relay = Relay(
        store, client, max_in_flight=config.max_in_flight, backoff=backoff, throttle=throttle, doubts=doubts,
        max_age_s=MAX_AGE_S, seal=Seal.of(config, TOPICS.device),
    )  # fmt: skip
    tasks = [asyncio.create_task(part.run()) for part in (client, relay)]
    try:
        yield Delivery(store, client, relay)
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])
        await store.close()


def duplicates(broker: ScriptedBroker, total: int) -> int:
    """Every event came, first comings in order within their lane, and whatever came again is the same; returns how many did."""
    first: dict[str, bytes] = {}
    for payload in broker.payloads():
        assert first.setdefault(json.loads(payload)["id"], payload) == payload
    bodies = [json.loads(payload) for payload in first.values()]
    for lane in LANES:
        assert [body["number"] for body in bodies if body["lane"] == lane.name] == [
            number for number in range(total) if LANES[number % 3 == 0] is lane
        ]
    assert broker.complaints == []
    return len(broker.payloads()) - total

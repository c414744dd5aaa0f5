"""A broker that stands still with a full window, and then goes on: every lane must go on as well."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.brokers import Mosquitto, Subscriber

from agent.config.delivery import MqttConfig, OutboxConfig
from agent.config.sections import BackoffConfig
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

TOPICS = Topics("recognizer", "box")
FAST = BackoffConfig(initial_s=0.05, max_s=0.2)
WINDOW = 5


def message(lane: Lane) -> Message:
    return Message(lane, str(uuid.uuid4()), TOPICS.event("door", "fight"), lambda _: b"x")


def signal_to(broker: Mosquitto, number: signal.Signals) -> None:
    assert broker._process is not None
    os.kill(broker._process.pid, number)


@pytest.mark.mosquitto
async def test_no_lane_stays_behind_when_the_window_was_full(
    make_mosquitto: Callable[..., Mosquitto], subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    """The link ends while lanes still have something to send: what they send at that moment must not wait for ever."""
    broker = make_mosquitto(f"max_inflight_messages {WINDOW}")
    subscriber = await asyncio.to_thread(subscribe, broker.port)
    store = await OutboxStore.open(tmp_path / "events.db", OutboxConfig())
    config = MqttConfig(port=broker.port, publish_timeout_s=1, reconnect=FAST, max_in_flight=WINDOW, spread_s=0)
    client = MqttClient(config, TOPICS)
    relay = Relay(store, client, max_in_flight=WINDOW, backoff=FAST)
    tasks = [asyncio.create_task(part.run()) for part in (client, relay)]
    try:
        await client.wait_connected()
        await subscriber.wait_for(lambda s: b"online" in s.payloads("/status"))
        signal_to(broker, signal.SIGSTOP)
        await asyncio.gather(*(store.put(message(Lane.EVENT)) for _ in range(WINDOW - 1)))
        await asyncio.sleep(0.3)
        # Both are fetched, and only one fits: the state waits in the relay until the link ends.
        await asyncio.gather(store.put(message(Lane.EVENT)), store.put(message(Lane.STATE)))
        await asyncio.sleep(2.5)
        signal_to(broker, signal.SIGCONT)
        async with asyncio.timeout(20):
            while any(depth.rows for depth in (await store.depth()).values()):
                await asyncio.sleep(0.05)
    finally:
        signal_to(broker, signal.SIGCONT)
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])
        await store.close()

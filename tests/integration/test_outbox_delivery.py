"""The whole way from `put` to a subscriber, through broker and agent crashes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fakes.brokers import AnyBroker, Mosquitto, Subscriber

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
AGENT = Path(__file__).parent.parent / "fakes" / "outbox_agent.py"


class Delivery:
    """A store, a client and a relay between them."""

    def __init__(self, store: OutboxStore, client: MqttClient, relay: Relay) -> None:
        self.store, self.client, self.relay = store, client, relay

    async def put(self, name: str, lane: Lane = Lane.EVENT, kind: str = "fight") -> int | None:
        def payload(sequence: int | None) -> bytes:
            return json.dumps({"sequence": sequence, "id": name}).encode()

        return await self.store.put(Message(lane, name, TOPICS.event("door", kind), payload))

    async def drained(self, timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s):
            while any(depth.rows for depth in (await self.store.depth()).values()):
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def delivering(path: Path, config: MqttConfig) -> AsyncIterator[Delivery]:
    store = await OutboxStore.open(path, OutboxConfig())
    client = MqttClient(config, TOPICS)
    relay = Relay(store, client, max_in_flight=config.max_in_flight, backoff=FAST)
    tasks = [asyncio.create_task(part.run()) for part in (client, relay)]
    try:
        yield Delivery(store, client, relay)
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])
        await store.close()


def check(subscriber: Subscriber, total: int) -> int:
    """Every sequence exactly once after removing duplicate ids, in order; returns how many duplicates there were."""
    received = [json.loads(payload) for payload in subscriber.payloads("events")]
    first: dict[str, int] = {}
    for body in received:
        assert first.setdefault(body["id"], body["sequence"]) == body["sequence"]
    assert list(first.values()) == list(range(1, total + 1))
    return len(received) - len(first)


def has(total: int) -> Callable[[Subscriber], bool]:
    return lambda subscriber: len({json.loads(p)["id"] for p in subscriber.payloads("events")}) >= total


async def test_events_arrive_once_and_in_order(
    any_broker: AnyBroker, subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    subscriber = await asyncio.to_thread(subscribe, any_broker.port)
    config = MqttConfig(port=any_broker.port, protocol=any_broker.protocol)
    async with delivering(tmp_path / "events.db", config) as delivery:
        await asyncio.gather(*(delivery.put(f"e{n}") for n in range(300)))
        await delivery.drained()
        await subscriber.wait_for(has(300))
        assert delivery.relay.stats.delivered == 300
    assert check(subscriber, 300) == 0


@pytest.mark.mosquitto
async def test_what_was_put_offline_is_delivered_when_a_broker_comes(
    tmp_path: Path, mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port)
    await asyncio.to_thread(mosquitto.save)
    mosquitto.stop()
    async with delivering(tmp_path / "events.db", MqttConfig(port=mosquitto.port, reconnect=FAST)) as delivery:
        for n in range(50):
            await delivery.put(f"e{n}")
        assert (await delivery.store.depth())[Lane.EVENT].rows == 50
        mosquitto.start()
        await delivery.drained()
        await subscriber.wait_for(has(50))
    assert check(subscriber, 50) == 0


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_killed_in_mid_stream_costs_nothing(
    make_mosquitto: Callable[..., Mosquitto], subscribe: Callable[..., Subscriber], tmp_path: Path, protocol: str
) -> None:
    """The broker itself forgets what it queued, so it is killed only when it has nothing queued for the subscriber."""
    broker = make_mosquitto("queue_qos0_messages true")
    subscriber = await asyncio.to_thread(
        subscribe, broker.port, qos=0
    )  # QoS 0: written before it is acknowledged to us
    await asyncio.to_thread(broker.save)  # the broker remembers the subscription when it comes back
    config = MqttConfig(port=broker.port, protocol=protocol, reconnect=FAST)
    async with delivering(tmp_path / "events.db", config) as delivery:
        total, stopped = 0, False

        async def produce() -> None:
            nonlocal total
            while not stopped:
                await delivery.put(f"e{total}")
                total += 1
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            for _ in range(3):
                await subscriber.wait_for(lambda s: s.connected)
                await asyncio.sleep(0.4)
                broker.kill()
                await asyncio.sleep(0.1)
                await asyncio.to_thread(broker.start)
            stopped = True
        await delivery.drained()
        await subscriber.wait_for(has(total))
        assert delivery.client.status().connects >= 3
    check(subscriber, total)


@pytest.mark.mosquitto
async def test_an_agent_killed_in_mid_stream_loses_nothing_that_was_put(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port)
    total = 500
    arguments = (str(tmp_path / "events.db"), str(mosquitto.port), "5", "300", str(total))
    last = 0
    for kills_left in (2, 1, 0):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(AGENT), *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        seen = 0
        async for line in process.stdout:
            if not line.startswith(b"put "):
                continue
            number = int(line.split()[1])
            assert number > last  # a number whose put returned is never given again
            last = number
            seen += 1
            if kills_left and seen == 120:
                process.kill()
        await process.wait()
    assert last == total
    await subscriber.wait_for(has(total))
    check(subscriber, total)


@pytest.mark.mosquitto
async def test_a_forbidden_topic_becomes_a_dead_letter_and_the_rest_arrives(
    make_mosquitto: Callable[..., Mosquitto], subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(
        "topic read #\ntopic readwrite recognizer/box/status\ntopic readwrite recognizer/box/events/door/fight\n"
    )
    broker = make_mosquitto(f"acl_file {acl}")
    subscriber = await asyncio.to_thread(subscribe, broker.port)
    async with delivering(tmp_path / "events.db", MqttConfig(port=broker.port)) as delivery:
        await delivery.put("one")
        await delivery.put("two", kind="fall")
        await delivery.put("three")
        await delivery.drained()
        (letter,) = await delivery.store.dead_letters()
        await subscriber.wait_for(has(2))
    assert (letter.event_id, letter.sequence) == ("two", 2)
    assert "0x87" in letter.reason
    assert [json.loads(payload)["sequence"] for payload in subscriber.payloads("events")] == [1, 3]


@pytest.mark.mosquitto
async def test_a_new_alarm_overtakes_a_long_drain(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port)
    config = MqttConfig(port=mosquitto.port, max_in_flight=10)
    async with delivering(tmp_path / "events.db", config) as delivery:
        await delivery.client.wait_connected()
        await asyncio.gather(*(delivery.put(f"e{n}") for n in range(2000)))
        waiting = (await delivery.store.depth())[Lane.EVENT].rows
        await delivery.put("alarm", Lane.ALARM)
        await delivery.drained()
        await subscriber.wait_for(has(2001))
    place = [json.loads(payload)["id"] for payload in subscriber.payloads("events")].index("alarm")
    assert waiting > 500
    assert place < 2001 - waiting / 2

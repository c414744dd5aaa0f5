"""After an outage: devices come back one after the other, and a metered link stays within its rate."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from fakes.delivery import FAST, delivering
from fakes.scripted_broker import Cut, Manners, ScriptedBroker

from agent.config.delivery import MqttConfig
from agent.config.sections import BackoffConfig
from agent.mqtt.client import MqttClient
from agent.mqtt.spread import share
from agent.mqtt.topics import Topics
from agent.throttle import Throttle

TINY = BackoffConfig(initial_s=0.001, max_s=0.002)


async def came_back_after(device: str, spread_s: float, *manners: Manners, connects: int = 2) -> float:
    """Seconds between the end of the first connection and the last of so many."""
    async with ScriptedBroker(*manners) as broker:
        config = MqttConfig(port=broker.port, reconnect=TINY, spread_s=spread_s)
        client = MqttClient(config, Topics("recognizer", device))
        ended_s: list[float] = []
        client.on_disconnected(lambda: ended_s.append(time.monotonic()))
        task = asyncio.create_task(client.run())
        async with asyncio.timeout(20):
            while len(broker.connects) < connects:
                await asyncio.sleep(0.001)
        took_s = time.monotonic() - ended_s[0]
        task.cancel()
        await asyncio.wait([task])
        return took_s


async def test_each_device_waits_its_own_share_after_a_loss() -> None:
    devices = [f"gate-{number}" for number in range(12)]
    lost = Manners(cut=Cut("publish"))
    waits = await asyncio.gather(*(came_back_after(device, 1.0, lost, Manners()) for device in devices))
    for device, waited_s in zip(devices, waits, strict=True):
        assert share(device) - 0.01 <= waited_s < share(device) + 0.5


async def test_a_connection_that_never_stood_has_no_share_to_wait_for() -> None:
    device = max((f"gate-{number}" for number in range(100)), key=share)
    refused = Manners(connack=0x88)  # server unavailable
    assert await came_back_after(device, 5.0, refused, refused, Manners(), connects=3) < 1


async def test_a_lost_link_costs_what_was_under_way_no_wait_of_its_lane(tmp_path: Path) -> None:
    """The connection has its own waits; those of a lane are for a broker that refuses on an open link, and may be long."""
    long = BackoffConfig(initial_s=60.0, max_s=600.0)
    lost = Manners(cut=Cut("puback"))
    async with (
        ScriptedBroker(lost, lost, lost, Manners()) as broker,
        delivering(tmp_path, broker, backoff=long) as delivery,
    ):
        await delivery.put(3)
        await delivery.drained(5)
        assert len(broker.connects) == 4
        assert (
            delivery.relay.stats.retried <= 3 * 3
        )  # once each time, and not over and over until the client has noticed


@pytest.mark.parametrize("rate", [2000.0])
async def test_retained_state_keeps_to_the_rate_as_well(rate: float) -> None:
    async with ScriptedBroker() as broker:
        config = MqttConfig(port=broker.port, reconnect=FAST)
        client = MqttClient(config, Topics("recognizer", "box"), Throttle(rate, time.monotonic))
        for number in range(20):
            client.retain(f"recognizer/box/cameras/c{number}/state", b"x" * 465)  # 500 bytes with the topic
        task = asyncio.create_task(client.run())
        await asyncio.wait_for(client.wait_connected(), 10)
        started_s = time.monotonic()
        async with asyncio.timeout(20):
            while len(broker.payloads("/state")) < 20:
                await asyncio.sleep(0.001)
        took_s = time.monotonic() - started_s
        task.cancel()
        await asyncio.wait([task])
    assert took_s >= (20 * 500 - 2 * rate - 2 * 500) / rate


async def test_the_outbox_keeps_to_the_configured_rate_on_the_wire(tmp_path: Path) -> None:
    """4,000 bytes at 1,000 a second: two seconds' worth at once, the rest takes its time; an alarm does not."""
    async with (
        ScriptedBroker() as broker,
        delivering(tmp_path, broker, max_bytes_per_s=1000.0) as delivery,
    ):
        await asyncio.wait_for(delivery.client.wait_connected(), 10)
        started_s = time.monotonic()
        await delivery.put(45)  # a third of them alarms
        while sum(b"ALARM" in payload for payload in broker.payloads()) < 15:
            await asyncio.sleep(0.001)
        alarms_s = time.monotonic() - started_s
        await delivery.drained()
        took_s = time.monotonic() - started_s
        size = sum(len(one.topic) + len(one.payload) for one in broker.published)
    assert took_s >= size / 1000 - 2.2
    assert alarms_s < 1.0 < took_s

"""Home Assistant's side of the broker: it finds the agent, again after its own start, and loses what is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import paho.mqtt.publish as mqtt_publish
import pytest
from fakes import documents
from fakes.asyncapi import Contract
from fakes.brokers import Mosquitto, Subscriber

from agent.config.delivery import MqttConfig
from agent.config.schema import AgentConfig
from agent.daemon import homeassistant
from agent.daemon.homeassistant import HomeAssistant
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics

pytestmark = pytest.mark.mosquitto

TOPIC = "homeassistant/device/recognizer-gate-1/config"
TOPICS = Topics("recognizer", "gate-1")


@contextlib.asynccontextmanager
async def running(broker: Mosquitto, config: AgentConfig) -> AsyncIterator[HomeAssistant]:
    mqtt = MqttClient(MqttConfig(port=broker.port), TOPICS)
    made = HomeAssistant(config, TOPICS, mqtt)
    task = asyncio.create_task(mqtt.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])


def told(subscriber: Subscriber) -> list[dict[str, Any]]:
    """The components of each message so far; all of them are what the contract says."""
    payloads = subscriber.payloads(TOPIC)
    for payload in payloads:
        assert Contract().check(TOPIC, payload) == ("homeAssistant", "discovery")
    return [json.loads(payload)["components"] for payload in payloads]


async def test_it_is_told_at_the_start_and_again_when_it_comes_back(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homeassistant, "SPREAD_S", 0.05)
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port, "homeassistant/#")
    async with running(mosquitto, documents.configuration("yard")):
        await subscriber.wait_for(lambda s: len(told(s)) == 1)
        for word in ("offline", "online"):
            await asyncio.to_thread(
                mqtt_publish.single, "homeassistant/status", word, 1, hostname="127.0.0.1", port=mosquitto.port
            )
        await subscriber.wait_for(lambda s: len(told(s)) == 2)
        await asyncio.sleep(0.2)
    first, second = told(subscriber)
    assert first == second
    assert first.keys() == documents.discovery("yard")["components"].keys()
    late = await asyncio.to_thread(subscribe, mosquitto.port, "homeassistant/#")
    await late.wait_for(lambda s: [retained for *_, retained in s.messages] == [True])


async def test_a_camera_that_is_taken_away_or_comes_back_in_a_reload(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port, "homeassistant/#")
    async with running(mosquitto, documents.configuration("yard", "hall")) as made:
        await subscriber.wait_for(lambda s: len(told(s)) == 1)
        made.reconfigure(documents.configuration("yard"))
        await subscriber.wait_for(lambda s: len(told(s)) == 2)
        made.reconfigure(documents.configuration("yard", "+hall"))
        await subscriber.wait_for(lambda s: len(told(s)) == 3)
        await asyncio.sleep(0.2)
    before, without, again = told(subscriber)
    gone = {name for name in before if name.startswith("hall.")}
    assert {name: without[name] for name in gone} == {name: {"platform": before[name]["platform"]} for name in gone}
    assert again["hall.fps"] == before["hall.fps"]
    assert again["hall.service.fight"] == {"platform": "binary_sensor"}


async def test_what_an_earlier_run_announced_is_taken_back(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]
) -> None:
    async with running(mosquitto, documents.configuration("old")):
        first = await asyncio.to_thread(subscribe, mosquitto.port, "homeassistant/#")
        await first.wait_for(lambda s: len(told(s)) >= 1)
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port, "homeassistant/#")
    async with running(mosquitto, documents.configuration("new")):
        await subscriber.wait_for(
            lambda s: (
                bool(told(s)) and "new.fps" in told(s)[-1] and told(s)[-1].get("old.fps") == {"platform": "sensor"}
            )
        )
        count = len(subscriber.messages)
        await asyncio.sleep(0.4)
        assert len(subscriber.messages) == count, "its own message does not set it off again"
    async with running(mosquitto, documents.configuration("new")):
        await asyncio.sleep(0.4)
    assert told(subscriber)[-1]["old.fps"] == {"platform": "sensor"}


async def test_rubbish_on_its_topics_does_no_harm(mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port, TOPIC)
    async with running(mosquitto, documents.configuration("yard")):
        await subscriber.wait_for(lambda s: len(s.messages) == 1)
        for topic in (TOPIC, "homeassistant/status"):
            for payload in (b"\xff", b"", b"[" * 10_000):
                await asyncio.to_thread(
                    mqtt_publish.single, topic, payload, 1, hostname="127.0.0.1", port=mosquitto.port
                )
        await subscriber.wait_for(lambda s: len(s.messages) == 4)

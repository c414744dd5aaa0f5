"""The examples for Mosquitto in docs/mqtt.md do what is said there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from fakes.brokers import Mosquitto
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.config.delivery import CommandsConfig, MqttConfig, OutboxConfig
from agent.daemon.commands import CommandDesk
from agent.mqtt.client import MqttClient
from agent.mqtt.commands import Command
from agent.mqtt.topics import Topics
from agent.outbox.store import OutboxStore

pytestmark = pytest.mark.mosquitto

TOPICS = Topics("recognizer", "gate-1")


def example(repo_dir: Path, first_line: str) -> list[str]:
    """The lines of the one block of the document that has `first_line`."""
    blocks = (repo_dir / "docs" / "mqtt.md").read_text(encoding="utf-8").split("\n```")[1::2]
    (found,) = [block.splitlines() for block in blocks if first_line in block.splitlines()]
    return found


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_queue_holds_more_than_the_thousand_that_mosquitto_holds_by_itself(
    repo_dir: Path, make_mosquitto: Callable[..., Mosquitto]
) -> None:
    lines = [line for line in example(repo_dir, "persistence true") if not line.startswith("persistence")]
    broker = make_mosquitto("max_queued_messages 1000", *lines)  # the later line holds
    got: list[bytes] = []

    def archive() -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, "archive", clean_session=False)
        client.on_message = lambda _c, _d, message: got.append(message.payload)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        return client

    def publish(count: int) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.max_queued_messages_set(0)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        for info in [client.publish("recognizer/gate-1/events/yard/fight", b"%d" % n, 1) for n in range(count)]:
            info.wait_for_publish(20)
        client.disconnect()
        client.loop_stop()

    client = archive()
    subscribed = asyncio.Event()
    loop = asyncio.get_running_loop()
    client.on_subscribe = lambda *_: loop.call_soon_threadsafe(subscribed.set)
    client.subscribe("recognizer/+/events/#", 1)
    await asyncio.wait_for(subscribed.wait(), 10)
    client.disconnect()
    client.loop_stop()
    await asyncio.to_thread(publish, 1500)
    client = archive()
    try:
        await until(lambda: len(got) == 1500)
    finally:
        client.disconnect()
        client.loop_stop()
    assert got == [b"%d" % n for n in range(1500)]


class ControlRoom:
    """Sends commands under the access rules, and keeps what it may hear: topic, answer, correlation data."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, dict[str, Any], bytes]] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set("control-room")
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(topic, 1) for topic in ("recognizer/+/cmd/+/result", "answers/#", "elsewhere/#")]
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", b"")
        self.heard.append((message.topic, json.loads(message.payload), correlation))

    def ask(self, command_id: str, response_topic: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = response_topic
        properties.CorrelationData = command_id.encode()
        expires = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        payload = json.dumps({"id": command_id, "expires": expires})
        self._client.publish(TOPICS.command("nod"), payload, 1, properties=properties).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(repo_dir: Path, tmp_path: Path, make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """Whoever comes is who he says; what he may is in the document."""
    rules = tmp_path / "acl"
    rules.write_text("\n".join(example(repo_dir, "# /etc/mosquitto/acl")) + "\n")
    return make_mosquitto(f"acl_file {rules}")


@pytest.fixture
def room(broker: Mosquitto) -> Iterator[ControlRoom]:
    room = ControlRoom(broker.port)
    yield room
    room.close()


@contextlib.asynccontextmanager
async def obeying(broker: Mosquitto, folder: Path) -> AsyncIterator[None]:
    """The device, which knows the command `nod` and takes it from everybody."""

    async def nod(_arguments: dict[str, Any], _command: Command) -> dict[str, Any]:
        return {}

    config = CommandsConfig.model_validate({"unsigned_role": "operator", "roles": {"operator": ["nod"]}})
    store = await OutboxStore.open(folder / "events.db", OutboxConfig(reserve_bytes=0))
    mqtt = MqttClient(MqttConfig(port=broker.port, username=TOPICS.device), TOPICS)
    desk = CommandDesk(config, topics=TOPICS, store=store, out=mqtt, handlers={"nod": nod}, clients={})
    subscribed = asyncio.Event()
    mqtt.subscribe(TOPICS.commands, desk.receive)
    mqtt.on_subscribed(subscribed.set)
    tasks = [asyncio.create_task(run()) for run in (mqtt.run, desk.run)]
    try:
        await asyncio.wait_for(subscribed.wait(), 10)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await store.close()


@pytest.mark.parametrize(
    ("wanted", "comes_to"),
    [
        ("answers/gate-1/control-room", "answers/gate-1/control-room"),
        ("answers/gate-2/control-room", "recognizer/gate-1/cmd/nod/result"),
        ("elsewhere/answers", "recognizer/gate-1/cmd/nod/result"),
    ],
)
async def test_an_answer_is_heard_under_the_access_rules_whatever_response_topic_is_named(
    broker: Mosquitto, room: ControlRoom, tmp_path: Path, wanted: str, comes_to: str
) -> None:
    async with obeying(broker, tmp_path):
        await asyncio.to_thread(room.ask, "c-1", wanted)
        await until(lambda: bool(room.heard))
    assert [(topic, answer["id"], answer["state"], correlation) for topic, answer, correlation in room.heard] == [
        (comes_to, "c-1", "done", b"c-1")
    ]

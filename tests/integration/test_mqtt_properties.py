"""What goes along with a message in MQTT 5, and what aliases save, as a broker sees it on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from fakes.brokers import Mosquitto
from fakes.delivery import MAX_AGE_S, TOPICS, delivering, duplicates
from fakes.scripted_broker import Cut, Manners, Peer, ScriptedBroker, acknowledge
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.config.delivery import MqttConfig
from agent.config.sections import BackoffConfig
from agent.events.cloudevents import CONTENT_TYPE
from agent.mqtt.client import MqttClient
from agent.mqtt.seal import is_signed, unpack
from agent.ports import Envelope, Message
from agent.types import Lane


async def test_a_broker_sees_what_a_message_is(tmp_path: Path) -> None:
    async with ScriptedBroker() as broker, delivering(tmp_path, broker) as delivery:
        body = json.dumps({"id": "one"}).encode()
        topic = TOPICS.event("door", "fight")
        await delivery.store.put(Message(Lane.EVENT, "one", topic, lambda _: body, content_type=CONTENT_TYPE))
        await delivery.drained()
        (event,) = [one for one in broker.published if one.topic == topic]
        expiry_s = event.properties.pop("message_expiry")
        assert isinstance(expiry_s, int)
        assert MAX_AGE_S[Lane.EVENT] - 10 <= expiry_s <= MAX_AGE_S[Lane.EVENT]
        assert event.properties == {
            "content_type": "application/cloudevents+json",
            "payload_format": 1,
            "user": [("id", "one"), ("lane", "event"), ("sequence", "0000000000000001")],
        }
        (status,) = [one for one in broker.published if one.topic == TOPICS.status]
        assert status.properties == {"content_type": "text/plain", "payload_format": 1}


async def test_mqtt_3_1_1_gets_the_bare_message(tmp_path: Path) -> None:
    async with ScriptedBroker() as broker, delivering(tmp_path, broker, protocol="3.1.1") as delivery:
        await delivery.put(3)
        await delivery.drained()
        for publish in broker.published:
            assert publish.properties == {}
            head = 2 + 2 + len(publish.topic) + 2  # fixed header, length of the topic, topic, packet id
            assert publish.size in (head + len(publish.payload), head + len(publish.payload) + 1)


BODY = b'{"id": "e%d", "pad": "' + b"x" * 200 + b'"}'  # long enough that the length field has two bytes either way


async def bytes_for(folder: Path, aliases: int) -> tuple[int, int]:
    """Sent for 300 events on three topics: bytes in all, and how many came without their topic."""
    folder.mkdir()
    manners = Manners(properties={"topic_alias_maximum": aliases} if aliases else {})
    async with ScriptedBroker(manners) as broker, delivering(folder, broker) as delivery:
        for number in range(300):
            topic = TOPICS.event(f"entrance-{number % 3}", "fight")
            body = BODY % number
            await delivery.store.put(Message(Lane.EVENT, f"e{number}", topic, lambda _, body=body: body))  # type: ignore[misc]
        await delivery.drained()
        events = [one for one in broker.published if "/events/" in one.topic]
        assert [one.payload for one in events] == [BODY % number for number in range(300)]
        assert [one.topic for one in events] == [TOPICS.event(f"entrance-{n % 3}", "fight") for n in range(300)]
        assert broker.complaints == []
        return sum(one.size for one in events), sum(not one.sent_topic for one in events)


async def test_aliases_save_the_topic_from_its_third_use_on(tmp_path: Path) -> None:
    topic_bytes = len(TOPICS.event("entrance-0", "fight"))
    without, bare = await bytes_for(tmp_path / "without", 0)
    assert bare == 0
    with_all, bare = await bytes_for(tmp_path / "all", 10)
    assert bare == 300 - 3 * 2
    saved = without - with_all
    assert saved == bare * topic_bytes - (bare + 3) * 3  # three bytes for each alias, also where it is set
    with_one, bare = await bytes_for(tmp_path / "one", 1)
    assert with_all < with_one < without
    assert bare >= 90


async def test_aliases_start_again_with_each_connection(tmp_path: Path) -> None:
    """The broker is strict: an alias that it was not told on this connection is the end of it."""

    async def hang_up_now_and_then(peer: Peer, publish: Any) -> None:
        await acknowledge(peer, publish)
        if "/events/" in publish.topic and len(peer.broker.payloads()) % 10 == 0:
            await peer.disconnect(0x8B)

    manners = Manners(properties={"topic_alias_maximum": 5}, on_publish=hang_up_now_and_then)
    async with ScriptedBroker(manners) as broker, delivering(tmp_path, broker, max_in_flight=3) as delivery:
        await delivery.put(45)
        await delivery.drained()
        duplicates(broker, 45)
        assert len(broker.connects) >= 4
        assert any(not publish.sent_topic for publish in broker.published)


async def test_a_refused_message_takes_its_alias_along(tmp_path: Path) -> None:
    """Nobody knows whether the broker kept the alias of what it refused."""
    refused: list[str] = []

    async def refuse_the_third(peer: Peer, publish: Any) -> None:
        if b'"e2"' in publish.payload and not refused:
            refused.append(publish.topic)
            await peer.puback(publish.packet_id, 0x97)
            return
        await acknowledge(peer, publish)

    manners = Manners(properties={"topic_alias_maximum": 5}, on_publish=refuse_the_third)
    async with ScriptedBroker(manners) as broker, delivering(tmp_path, broker, max_in_flight=1) as delivery:
        await delivery.put(6)
        await delivery.drained()
        duplicates(broker, 6)
        at = [b'"e2"' in one.payload for one in broker.published].index(True)
        assert refused
        assert [bool(one.sent_topic) for one in broker.published[at : at + 3]] == [False, True, False]


async def test_a_broker_that_loses_count_of_aliases_is_not_given_any_more(tmp_path: Path) -> None:
    async def forget(peer: Peer, publish: Any) -> None:
        if "topic_alias" in publish.properties:
            await peer.disconnect(0x94)
        await acknowledge(peer, publish)

    manners = Manners(properties={"topic_alias_maximum": 5}, on_publish=forget)
    async with ScriptedBroker(manners) as broker, delivering(tmp_path, broker) as delivery:
        await delivery.put(10)
        await delivery.drained()
        duplicates(broker, 10)
        assert len(broker.connects) == 2
        assert not any("topic_alias" in one.properties for one in broker.published if one.connection == 2)


async def test_the_size_limit_counts_the_properties_to_the_byte(tmp_path: Path) -> None:
    """The broker ends the connection at one byte too many, and the client gives up not one too few."""
    async with ScriptedBroker() as broker, delivering(tmp_path, broker) as delivery:
        await delivery.put(1)
        await delivery.drained()
        size = broker.published[-1].size
    for limit, letters in ((size, 0), (size - 1, 1)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        manners = Manners(properties={"maximum_packet_size": limit})
        async with ScriptedBroker(manners) as broker, delivering(folder, broker) as delivery:
            await delivery.put(1)
            await delivery.drained()
            assert len(await delivery.store.dead_letters()) == letters
            assert broker.complaints == []


async def test_an_id_that_no_property_can_hold_is_a_dead_letter_and_no_dead_end(tmp_path: Path) -> None:
    async with ScriptedBroker() as broker, delivering(tmp_path, broker) as delivery:
        await delivery.store.put(Message(Lane.EVENT, "nul\x00", TOPICS.event("door", "fight"), lambda _: b"{}"))
        await delivery.store.put(Message(Lane.EVENT, "top", "bad\x00topic", lambda _: b"{}"))
        await delivery.store.put(Message(Lane.EVENT, "none", "", lambda _: b"{}"))
        await delivery.store.put(Message(Lane.EVENT, "good", TOPICS.event("door", "fight"), lambda _: b"good"))
        await delivery.drained()
        assert broker.payloads() == [b"good"]
        assert {letter.event_id for letter in await delivery.store.dead_letters()} == {"nul\x00", "top", "none"}
        assert len(broker.connects) == 1


async def test_sealed_events_are_smaller_on_the_wire_and_come_again_as_the_same_bytes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    lost = Manners(cut=Cut("puback", nth=2))
    body = json.dumps({"id": "e", "frames": [{"x": n, "y": n} for n in range(200)]}).encode()
    settings = {"compression": "gzip", "signing_key_file": key}
    async with ScriptedBroker(lost, Manners()) as broker, delivering(tmp_path, broker, **settings) as delivery:  # type: ignore[arg-type]
        await delivery.store.put(Message(Lane.EVENT, "e", TOPICS.event("door", "fight"), lambda _: body))
        await delivery.drained()
        (status,) = {one.payload for one in broker.published if one.topic == TOPICS.status}
        events = [one for one in broker.published if one.topic != TOPICS.status]
    assert status == b"online"
    assert len(events) == 2
    assert events[0].payload == events[1].payload
    for event in events:
        assert event.size < len(body) / 2
        user = event.properties["user"]
        assert isinstance(user, list)
        found = dict(user)
        content = unpack(event.payload, found["content-encoding"])
        assert content == body
        assert is_signed(content, found["signature"], b"k" * 32)
        assert "payload_format" not in event.properties


@pytest.mark.mosquitto
async def test_mosquitto_hands_the_properties_on(make_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> None:
    broker = make_mosquitto()
    found: list[paho.MQTTMessage] = []
    subscriber = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    ready: list[bool] = []
    subscriber.on_connect = lambda client, *_: client.subscribe("recognizer/+/events/#", 1)
    subscriber.on_subscribe = lambda *_: ready.append(True)
    subscriber.on_message = lambda _client, _data, message: found.append(message)
    await asyncio.to_thread(subscriber.connect, "127.0.0.1", broker.port)
    subscriber.loop_start()
    config = MqttConfig(port=broker.port, reconnect=BackoffConfig(initial_s=0.1, max_s=0.5))
    client = MqttClient(config, TOPICS)
    task = asyncio.create_task(client.run())
    try:
        async with asyncio.timeout(20):
            await client.wait_connected()
            while not ready:
                await asyncio.sleep(0.01)
            envelope = Envelope(
                CONTENT_TYPE, utf8=True, expiry_s=600, response_topic="answers/here", correlation_data=b"\x00\x01",
                user_properties=(("id", "e1"), ("lane", "alarm")),
            )  # fmt: skip
            for number in range(50):  # Mosquitto has ten aliases
                await client.publish(TOPICS.event("door", "fight"), b"%d" % number, envelope=envelope)
            while len(found) < 50:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.wait([task])
        subscriber.disconnect()
        subscriber.loop_stop()
    assert [message.payload for message in found] == [b"%d" % number for number in range(50)]
    assert {message.topic for message in found} == {TOPICS.event("door", "fight")}
    properties: Any = found[-1].properties
    assert properties.ContentType == CONTENT_TYPE
    assert properties.PayloadFormatIndicator == 1
    assert 590 <= properties.MessageExpiryInterval <= 600
    assert properties.ResponseTopic == "answers/here"
    assert properties.CorrelationData == b"\x00\x01"
    assert properties.UserProperty == [("id", "e1"), ("lane", "alarm")]
    assert client.status().connects == 1

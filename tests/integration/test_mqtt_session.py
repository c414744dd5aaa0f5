"""What is sent to the agent: subscriptions, the session that outlives a connection, acknowledgements, bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from fakes.brokers import Mosquitto, Subscriber
from fakes.delivery import FAST, TOPICS, delivering, duplicates
from fakes.scripted_broker import Cut, Manners, Peer, ScriptedBroker
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.config.delivery import MqttConfig
from agent.mqtt import client as client_module
from agent.mqtt.client import MqttClient
from agent.ports import Received

COMMAND = TOPICS.command("reload")
PROTOCOLS = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class Commander:
    """Somebody who sends commands."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, payload: bytes, properties: Properties | None = None) -> None:
        self._client.publish(COMMAND, payload, 1, properties=properties).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.asynccontextmanager
async def running(config: MqttConfig, handler: Callable[[Received], None]) -> AsyncIterator[MqttClient]:
    client = MqttClient(config, TOPICS)
    client.subscribe(TOPICS.commands, handler)
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.wait([task])


# --- against Mosquitto ------------------------------------------------------------------------------------------------


@pytest.mark.mosquitto
@PROTOCOLS
async def test_commands_that_were_sent_while_the_agent_was_away_arrive_once_and_in_order(
    mosquitto: Mosquitto, protocol: str
) -> None:
    config = MqttConfig(port=mosquitto.port, protocol=protocol, reconnect=FAST)
    found: list[Received] = []
    subscribed = asyncio.Event()
    async with running(config, found.append) as client:
        client.on_subscribed(subscribed.set)
        await asyncio.wait_for(subscribed.wait(), 10)
    commander = await asyncio.to_thread(Commander, mosquitto.port)
    for number in range(5):
        await asyncio.to_thread(commander.send, b"%d" % number)
    assert found == []
    async with running(config, found.append) as client:
        await until(lambda: len(found) >= 5)
        await asyncio.to_thread(commander.send, b"5")
        await until(lambda: len(found) >= 6)
    async with running(config, found.append):  # all acknowledged: nothing comes again
        await asyncio.sleep(0.3)
    await asyncio.to_thread(commander.close)
    assert [message.payload for message in found] == [b"%d" % number for number in range(6)]
    assert {(message.topic, message.qos, message.retain) for message in found} == {(COMMAND, 1, False)}


@pytest.mark.mosquitto
async def test_a_command_brings_what_an_answer_needs(mosquitto: Mosquitto) -> None:
    found: list[Received] = []
    async with running(MqttConfig(port=mosquitto.port, reconnect=FAST), found.append) as client:
        subscribed = asyncio.Event()
        client.on_subscribed(subscribed.set)
        await asyncio.wait_for(subscribed.wait(), 10)
        commander = await asyncio.to_thread(Commander, mosquitto.port)
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = "answers/7"
        properties.CorrelationData = b"\x07"
        properties.ContentType = "application/json"
        properties.UserProperty = ("role", "operator")
        properties.MessageExpiryInterval = 60
        await asyncio.to_thread(commander.send, b"{}", properties)
        await until(lambda: bool(found))
        await asyncio.to_thread(commander.close)
    (message,) = found
    assert message == Received(
        COMMAND, b"{}", 1, retain=False, response_topic="answers/7", correlation_data=b"\x07",
        content_type="application/json", user_properties=(("role", "operator"),), expiry_s=message.expiry_s,
    )  # fmt: skip
    assert message.expiry_s in (59, 60)


@pytest.mark.mosquitto
@PROTOCOLS
async def test_a_resumed_session_doubles_no_event_and_confuses_no_acknowledgement(
    make_mosquitto: Callable[..., Mosquitto], subscribe: Callable[..., Subscriber], tmp_path: Path, protocol: str
) -> None:
    """Events flow both ways while the agent's connection is cut again and again."""
    broker = make_mosquitto()
    subscriber = await asyncio.to_thread(subscribe, broker.port)
    commander = await asyncio.to_thread(Commander, broker.port)
    found: list[Received] = []
    settings = {"protocol": protocol, "inbound_max_per_s": 1000.0, "subscriptions": {TOPICS.commands: found.append}}
    total, commands = 0, 0
    async with delivering(tmp_path, broker, **settings) as delivery:  # type: ignore[arg-type]
        for number in range(4):
            await until(lambda number=number: delivery.client.status().connects == number + 1)  # type: ignore[misc]
            for _ in range(25):
                await delivery.put(1)
                await asyncio.to_thread(commander.send, b"%d" % commands)
                total, commands = total + 1, commands + 1
            connection = delivery.client._connection
            assert connection is not None
            connection.drop("cut by the test")
        await delivery.drained()
        await until(lambda: len({message.payload for message in found}) == commands)
        await subscriber.wait_for(lambda s: len({body["id"] for body in s.events()}) == total)
        await until(lambda: delivery.client.status().connects == 5)
    await asyncio.to_thread(commander.close)
    ids: dict[str, int] = {}
    for body in subscriber.events():
        assert ids.setdefault(body["id"], body["number"]) == body["number"]
    first = [int(message.payload) for message in found]
    assert list(dict.fromkeys(first)) == list(range(commands))
    assert len(subscriber.events()) - total <= 4 * 20  # only what was unacknowledged at a cut came twice


# --- against the scripted broker --------------------------------------------------------------------------------------


@PROTOCOLS
async def test_a_session_is_asked_for_with_a_subscription_and_not_without(tmp_path: Path, protocol: str) -> None:
    for number, (subscriptions, expiry_s, clean) in enumerate(
        [({}, 600, True), ({TOPICS.commands: print}, 600, False), ({TOPICS.commands: print}, 0, True)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with (
            ScriptedBroker() as broker,
            delivering(
                folder, broker, protocol=protocol, session_expiry_s=expiry_s, subscriptions=subscriptions
            ) as one,  # type: ignore[arg-type]
        ):
            await one.put(1)
            await one.drained()
            (connect,) = broker.connects
            assert connect.clean is clean
            wanted = 600 if protocol == "5" and not clean else None
            assert connect.properties.get("session_expiry") == wanted
            assert broker.subscribed == ([(1, [TOPICS.commands])] if subscriptions else [])


SUBSCRIBE_CUTS = [
    Cut("subscribe"),
    *(Cut("suback", sent_bytes=count) for count in (0, 1, 3, 100)),
    *(Cut("publish", nth=nth) for nth in (1, 5)),
]


@PROTOCOLS
@pytest.mark.parametrize("cut", SUBSCRIBE_CUTS, ids=lambda cut: f"{cut.kind}-{cut.nth}-{cut.sent_bytes}")
async def test_subscriptions_are_renewed_on_the_next_connection(tmp_path: Path, cut: Cut, protocol: str) -> None:
    async def command(peer: Peer) -> None:
        await peer.publish(COMMAND, b"now", 1)

    found: list[Received] = []
    good = Manners(session_present=True, on_subscribed=command)
    async with (
        ScriptedBroker(Manners(cut=cut), good) as broker,
        delivering(tmp_path, broker, protocol=protocol, subscriptions={TOPICS.commands: found.append}) as delivery,
    ):
        await delivery.put(30)
        await delivery.drained()
        await until(lambda: broker.acknowledged == [(2, 1)])
        duplicates(broker, 30)
        assert broker.subscribed[-1] == (2, [TOPICS.commands])
        assert [message.payload for message in found] == [b"now"]


async def test_a_message_is_acknowledged_after_its_handler_and_in_order(tmp_path: Path) -> None:
    """The session's messages come before the subscription is answered; ids of both directions are the same numbers."""
    seen: list[tuple[bytes, int]] = []

    async def at_once(peer: Peer) -> None:
        for number in range(1, 11):
            await peer.publish(COMMAND, b"%d" % number, number, dup=True)

    manners = Manners(session_present=True, on_connected=at_once)
    async with ScriptedBroker(manners) as broker:

        def handle(message: Received) -> None:
            seen.append((message.payload, len(broker.acknowledged)))
            if message.payload == b"3":
                raise RuntimeError("handler")

        async with delivering(tmp_path, broker, subscriptions={TOPICS.commands: handle}) as delivery:
            await delivery.put(30)
            await delivery.drained()
            await until(lambda: len(broker.acknowledged) == 10)
            assert broker.acknowledged == [(1, number) for number in range(1, 11)]
            assert [payload for payload, _ in seen] == [b"%d" % number for number in range(1, 11)]
            assert duplicates(broker, 30) == 0
            assert delivery.client.status().inbox.failed == 1
            assert delivery.client.status().inbox.handled == 9


async def test_a_message_whose_handler_never_returned_is_not_acknowledged() -> None:
    """The process that died in between gets it again: checked by looking at what went out while the handler ran."""
    acknowledged_inside: list[int] = []

    async def command(peer: Peer) -> None:
        await peer.publish(COMMAND, b"x", 7)

    async with (
        ScriptedBroker(Manners(on_subscribed=command)) as broker,
        running(
            MqttConfig(port=broker.port, reconnect=FAST),
            lambda _: acknowledged_inside.append(len(broker.acknowledged)),
        ),
    ):
        await until(lambda: broker.acknowledged == [(1, 7)])
    assert acknowledged_inside == [0]


@pytest.mark.parametrize("code", [0x80, 0x87, 0x8F, 0x97, 0xA2])
async def test_a_refused_subscription_is_reported_until_it_is_granted(tmp_path: Path, code: int) -> None:
    reported: list[dict[str, str]] = []
    async with (
        ScriptedBroker(Manners(suback={TOPICS.commands: code}, cut=Cut("publish", nth=20)), Manners()) as broker,
        delivering(tmp_path, broker, subscriptions={TOPICS.commands: print, "other/#": print}) as delivery,
    ):
        delivery.client.on_subscribed(lambda: reported.append(dict(delivery.client.status().refused)))
        await until(lambda: len(reported) == 1)
        await delivery.put(30)
        await delivery.drained()  # events go on all the same
        await until(lambda: len(reported) == 2)
        duplicates(broker, 30)
    assert list(reported[0]) == [TOPICS.commands]
    assert f"0x{code:02x}" in reported[0][TOPICS.commands]
    assert reported[1] == {}


async def test_a_flood_is_bounded_and_acknowledged(tmp_path: Path) -> None:
    found: list[Received] = []

    async def flood(peer: Peer) -> None:
        for number in range(500):
            await peer.publish(COMMAND, b"%d" % number, number + 1)
        await peer.publish(COMMAND, b"x" * 5000, 501)
        await peer.publish("elsewhere", b"x", 502)

    async with (
        ScriptedBroker(Manners(on_subscribed=flood)) as broker,
        delivering(
            tmp_path,
            broker,
            inbound_max_per_s=10,
            inbound_max_bytes=4096,
            subscriptions={TOPICS.commands: found.append},
        ) as delivery,
    ):
        await delivery.put(30)
        await delivery.drained()
        await until(lambda: len(broker.acknowledged) == 502)
        inbox = delivery.client.status().inbox
        assert 10 <= len(found) <= 20
        assert inbox.handled == len(found)
        assert inbox.too_many == 500 - len(found)
        assert (inbox.too_large, inbox.unmatched) == (1, 1)
        assert duplicates(broker, 30) == 0
        assert len(broker.connects) == 1


@PROTOCOLS
async def test_the_broker_is_told_how_much_the_agent_takes(tmp_path: Path, protocol: str) -> None:
    async with ScriptedBroker() as broker, delivering(tmp_path, broker, protocol=protocol) as delivery:
        await delivery.put(1)
        await delivery.drained()
        (connect,) = broker.connects
    if protocol == "5":
        assert connect.properties == {"maximum_packet_size": 65_536 + 16_384, "receive_maximum": 32}
    else:
        assert connect.properties == {}


@PROTOCOLS
async def test_a_packet_beyond_all_bounds_ends_the_connection_and_the_session(tmp_path: Path, protocol: str) -> None:
    """A broker that kept it for the session would send it again for ever."""

    async def too_much(peer: Peer) -> None:
        await peer.send(bytes([0x32, 0xFF, 0xFF, 0xFF, 0x7F]) + b"x" * 200)  # a PUBLISH of 256 MB begins

    async with (
        ScriptedBroker(Manners(session_present=True, on_subscribed=too_much), Manners(), Manners()) as broker,
        delivering(tmp_path, broker, protocol=protocol, subscriptions={TOPICS.commands: print}) as delivery,
    ):
        await delivery.put(30)
        await delivery.drained()
        await until(lambda: len(broker.connects) == 2)
        assert [connect.clean for connect in broker.connects] == [False, True]
        assert "4194304" in json.dumps(delivery.client.status().error) or delivery.client.connected
        duplicates(broker, 30)


@PROTOCOLS
@pytest.mark.parametrize(
    ("length", "error"),
    [(b"\xff\xff\xff\x7f", "above 4194304 bytes"), (b"\x80\x80\x40", "behind a packet of 1048576 bytes")],
    ids=["beyond-all-bounds", "slow"],
)
async def test_a_packet_that_stays_costs_subscriptions_and_no_event(
    tmp_path: Path, protocol: str, length: bytes, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retained one comes with each subscription: they are left out, said to be, and tried again later."""
    monkeypatch.setattr(client_module, "_FLOOD_PAUSE_S", 4.0)

    async def too_much(peer: Peer) -> None:
        await peer.send(b"\x33" + length + b"\x00\x01x" + b"x" * 200)
        await asyncio.sleep(60)  # nothing else passes it

    async def command(peer: Peer) -> None:
        await peer.publish(COMMAND, b"now", 1)

    found: list[Received] = []
    reported: list[dict[str, str]] = []
    flood = Manners(on_subscribed=too_much)
    async with (
        ScriptedBroker(flood, flood, Manners(on_subscribed=command)) as broker,
        delivering(
            tmp_path, broker, protocol=protocol, publish_timeout_s=0.3, subscriptions={TOPICS.commands: found.append}
        ) as delivery,
    ):
        delivery.client.on_subscribed(lambda: reported.append(dict(delivery.client.status().refused)))
        await delivery.put(30)
        await delivery.drained()
        duplicates(broker, 30)
        assert [number for number, _ in broker.subscribed] == [1, 2]
        assert error in delivery.client.status().refused[TOPICS.commands]
        await until(lambda: bool(found))
        assert [number for number, _ in broker.subscribed] == [1, 2, 3]
        assert [connect.clean for connect in broker.connects] == [False, True, True]
        assert reported[-1] == {}


async def test_a_topic_that_is_not_utf_8_is_dropped(tmp_path: Path) -> None:
    found: list[Received] = []

    async def odd(peer: Peer) -> None:
        await peer.send(bytes([0x32, 10, 0, 3, 0xFF, 0xFE, 0xFD, 0, 9, 0]) + b"xy")
        await peer.publish(COMMAND, b"after", 10)

    async with (
        ScriptedBroker(Manners(on_subscribed=odd)) as broker,
        delivering(tmp_path, broker, subscriptions={"#": found.append}),
    ):
        await until(lambda: broker.acknowledged == [(1, 9), (1, 10)])
    assert [message.payload for message in found] == [b"after"]

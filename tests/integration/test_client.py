"""The subscriber's package against a real broker: each event once, what is missing, what is asked for again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

import paho.mqtt.client as paho
import pytest
from fakes import documents
from fakes.brokers import Mosquitto, Subscriber, TlsFiles
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.client import Drift, Gap, Item, MissingRange, ReceivedEvent, Restarted, Subscription, Unreadable, subscribe
from agent.client.options import OptionNames
from agent.errors import DataError, StorageError, TransientError
from agent.mqtt.packing import varint
from agent.mqtt.seal import Seal
from agent.ports import Envelope

pytestmark = pytest.mark.mosquitto

FAKES = Path(__file__).parent.parent / "fakes"
FAST = (0.05, 0.2)
GRACE_S = 0.4


class Device:
    """A plain client that says what it is told to say, as device `gate-1`."""

    def __init__(self, port: int) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="gate-1", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def say(
        self, payload: bytes, place: str = "events/yard/fight", device: str = "gate-1", retain: bool = False
    ) -> None:
        self.client.publish(f"recognizer/{device}/{place}", payload, 1, retain).wait_for_publish(5)

    def events(self, *sequences: int) -> list[bytes]:
        made = [documents.event(sequence) for sequence in sequences]
        for payload in made:
            self.say(payload)
        return made

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def device(mosquitto: Mosquitto) -> Iterator[Device]:
    made = Device(mosquitto.port)
    yield made
    made.close()


def url(broker: Mosquitto) -> str:
    return f"mqtt://127.0.0.1:{broker.port}"


async def connected(events: Subscription) -> None:
    async with asyncio.timeout(10):
        while not events.connected:
            await asyncio.sleep(0.01)


async def take(events: Subscription, count: int, timeout_s: float = 20) -> list[Item]:
    """The next `count` items, and no more for now."""
    items = []
    async with asyncio.timeout(timeout_s):
        for _ in range(count):
            items.append(await anext(events))  # noqa: PERF401 - what came so far is shown when the time is over
    return items


async def nothing_more(events: Subscription, for_s: float = 0.3) -> None:
    """The task that waits stays the one that iterates: a cancelled `anext` loses nothing."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(for_s):
            pytest.fail(f"unexpected: {await anext(events)}")


def sequences(items: list[Item]) -> list[int]:
    return [item.sequence for item in items if isinstance(item, ReceivedEvent)]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_events_of_every_kind_come_typed_and_once(mosquitto: Mosquitto, device: Device, protocol: Any) -> None:
    async with subscribe(url(mosquitto), protocol=protocol, grace_s=GRACE_S) as events:
        await connected(events)
        (first,) = device.events(1)
        device.say(first)
        device.say(documents.drift(2), "events/yard/drift")
        device.say(documents.gap((3, 5), sequence=6), "events/gap")
        device.say(first)
        fight, drift, gap = await take(events, 3)
        await nothing_more(events, 2 * GRACE_S)
    assert isinstance(fight, ReceivedEvent)
    assert (fight.device_id, fight.camera_id, fight.kind, fight.sequence) == ("gate-1", "yard", "fight", 1)
    assert isinstance(drift, Drift)
    assert (drift.signal, drift.baseline, drift.sequence) == ("person_confidence", 0.742, 2)
    assert isinstance(gap, Gap)
    assert (gap.loss.ranges, gap.loss.reason, gap.sequence) == (((3, 5),), "age", 6)


@pytest.mark.parametrize("compression", ["none", "deflate", "gzip"])
async def test_sealed_events_are_opened_and_what_is_not_signed_is_not_believed(
    mosquitto: Mosquitto, device: Device, tmp_path: Path, compression: str
) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(b"k" * 32)
    seal = Seal(compression, b"k" * 32, "gate-1")
    async with subscribe(url(mosquitto), signing_key_file=key_file, reconnect_s=FAST) as events:
        await connected(events)
        for number, maker in ((1, seal), (2, Seal(compression, b"x" * 32)), (2, Seal()), (2, seal)):
            payload, envelope = maker(documents.event(number), Envelope())
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = list(envelope.user_properties)
            device.client.publish("recognizer/gate-1/events/yard/fight", payload, 1, properties=properties)
        items = await take(events, 4)
    assert [type(item) for item in items] == [ReceivedEvent, Unreadable, Unreadable, ReceivedEvent]
    assert [item.sequence for item in items if isinstance(item, ReceivedEvent)] == [1, 2]


async def test_each_device_is_believed_by_its_own_key(mosquitto: Mosquitto, device: Device, tmp_path: Path) -> None:
    keys = {name: name.encode() * 6 for name in ("gate-1", "gate-2", "gate-3")}
    files = {name: tmp_path / f"{name}.key" for name in ("gate-1", "gate-2")}
    for name, file in files.items():
        file.write_bytes(keys[name])
    said = (
        ("gate-1", "events/yard/fight", "gate-1"),
        ("gate-2", "events/yard/fight", "gate-2"),
        ("gate-1", "events/yard/fight", "gate-2"),  # one device speaks for another
        ("gate-1", "events", "gate-2"),  # the filter takes this topic, too
        ("gate-3", "events/yard/fight", "gate-3"),
    )
    async with subscribe(url(mosquitto), signing_key_file=files, reconnect_s=FAST) as events:
        await connected(events)
        for number, (name, place, signer) in enumerate(said, 1):
            content = documents.event(number).replace(b"gate-1", name.encode())
            payload, envelope = Seal("none", keys[signer], signer)(content, Envelope())
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = list(envelope.user_properties)
            device.client.publish(f"recognizer/{name}/{place}", payload, 1, properties=properties)
        items = await take(events, 5)
    assert [item.device_id for item in items[:2] if isinstance(item, ReceivedEvent)] == ["gate-1", "gate-2"]
    assert [item.error for item in items[2:] if isinstance(item, Unreadable)] == [
        "not signed with the key of this device", "not signed with the key of this device", "no signing key is known of 'gate-3'",
    ]  # fmt: skip


async def test_a_signature_that_no_parser_gets_through_stops_nobody(
    mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(b"k" * 32)
    async with subscribe(url(mosquitto), signing_key_file=key_file, reconnect_s=FAST) as events:
        await connected(events)
        good, envelope = Seal("none", b"k" * 32, "gate-1")(documents.event(2), Envelope())
        deep = base64.urlsafe_b64encode(b"[" * 100_000).rstrip(b"=").decode()[:60_000]
        for payload, said in (
            (documents.event(1), [("signature", f"{deep}..AAAA")]),
            (good, list(envelope.user_properties)),
        ):
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = said
            device.client.publish("recognizer/gate-1/events/yard/fight", payload, 1, properties=properties)
        items = await take(events, 2)
    assert [type(item) for item in items] == [Unreadable, ReceivedEvent]


async def test_an_alarm_may_overtake_and_nothing_is_called_missing(mosquitto: Mosquitto, device: Device) -> None:
    async with subscribe(url(mosquitto), grace_s=1.5) as events:
        await connected(events)
        device.events(1, 9, 2, 3, 4, 5, 6, 7, 8)
        assert sequences(await take(events, 9)) == [1, 9, 2, 3, 4, 5, 6, 7, 8]
        await nothing_more(events, 2.0)


async def test_what_does_not_come_is_told_once_and_yielded_when_it_comes_after_all(
    mosquitto: Mosquitto, device: Device
) -> None:
    async with subscribe(url(mosquitto), grace_s=GRACE_S) as events:
        await connected(events)
        device.events(11, 12, 15)
        items = await take(events, 4)
        assert items[3] == MissingRange("gate-1", 13, 14)
        await nothing_more(events, 2 * GRACE_S)
        device.events(14)
        assert sequences(await take(events, 1)) == [14]


async def test_the_grace_stands_still_while_the_device_is_offline(mosquitto: Mosquitto, device: Device) -> None:
    device.say(b"online", "status", retain=True)
    async with subscribe(url(mosquitto), grace_s=GRACE_S) as events:
        await connected(events)
        device.events(1, 3)
        device.say(b"offline", "status", retain=True)
        assert sequences(await take(events, 2)) == [1, 3]
        await nothing_more(events, 3 * GRACE_S)
        device.say(b"online", "status", retain=True)
        assert await take(events, 1) == [MissingRange("gate-1", 2, 2)]


async def test_a_device_that_begins_again_is_told_and_heard(mosquitto: Mosquitto, device: Device) -> None:
    async with subscribe(url(mosquitto), grace_s=GRACE_S) as events:
        await connected(events)
        device.events(1, 2, 3)
        await take(events, 3)
        device.events(2, 1, 3)
        restarted, *rest = await take(events, 4)
    assert restarted == Restarted("gate-1", 2, 3)
    assert sequences(rest) == [2, 1, 3]


async def test_what_is_no_event_is_handed_over_and_stops_nothing(mosquitto: Mosquitto, device: Device) -> None:
    """A message of an unknown type counts in the sequence; one that claims to be of another device does not."""
    newer = json.loads(documents.event(2)) | {"type": "recognizer.event.started.v2"}
    async with subscribe(url(mosquitto), grace_s=GRACE_S) as events:
        await connected(events)
        device.events(1)
        device.say(b"\xff\x00 no JSON")
        device.say(documents.event(2), device="gate-2")
        device.say(json.dumps(newer).encode())
        device.events(3)
        items = await take(events, 5)
        await nothing_more(events, 2 * GRACE_S)
    strange = [item for item in items if isinstance(item, Unreadable)]
    assert [item.device_id for item in strange] == ["gate-1", "gate-2", "gate-1"]
    assert strange[0].payload == b"\xff\x00 no JSON"
    assert "v2" in strange[2].error
    assert sequences(items) == [1, 3]


async def test_what_was_not_dealt_with_comes_again_and_the_rest_does_not(
    mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    async with subscribe(url(mosquitto), state_file=state) as events:
        await connected(events)
        device.events(1, 2, 3)
        assert sequences(await take(events, 2)) == [1, 2]
    device.events(4, 5)  # while it is away
    async with subscribe(url(mosquitto), state_file=state) as events:
        assert sequences(await take(events, 3)) == [2, 3, 4]
        await events.handled()
    async with subscribe(url(mosquitto), state_file=state, grace_s=GRACE_S) as events:
        assert sequences(await take(events, 1)) == [5]
        await nothing_more(events)


async def test_a_gap_over_the_subscribers_own_absence_is_noticed(
    mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    """Its session is gone, the file is not: what came meanwhile is missing for it."""
    state = tmp_path / "state.json"
    async with subscribe(url(mosquitto), state_file=state, session_expiry_s=1) as events:
        await connected(events)
        device.events(1)
        await take(events, 1)
        await events.handled()
    await asyncio.sleep(2.5)
    device.events(2, 3)
    async with subscribe(url(mosquitto), state_file=state, grace_s=GRACE_S) as events:
        await connected(events)
        device.events(4)
        items = await take(events, 2)
    assert sequences(items) == [4]
    assert items[1] == MissingRange("gate-1", 2, 3)


async def test_what_had_come_before_the_broker_crashed_is_not_lost(
    mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    """The session comes back as it was last saved: without what the subscriber had got since, or with some of it."""
    state = tmp_path / "state.json"
    async with subscribe(url(mosquitto), state_file=state, grace_s=GRACE_S, reconnect_s=FAST) as events:
        await connected(events)
        device.events(1, 2, 3)
        assert sequences(await take(events, 1)) == [1]
        await asyncio.to_thread(mosquitto.save)
        device.events(4, 5, 6)
        async with asyncio.timeout(10):
            while len(events._came) < 5:
                await asyncio.sleep(0.01)
        for _ in range(2):  # what comes again and again is kept once
            await asyncio.to_thread(mosquitto.kill)
            async with asyncio.timeout(10):
                while events.connected:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(mosquitto.start)
            await connected(events)
            await asyncio.sleep(0.3)
            assert len(events._came) <= 6 + 3
        assert sequences(await take(events, 5)) == [2, 3, 4, 5, 6]
        await nothing_more(events, 2 * GRACE_S)
    client_id = json.loads(state.read_bytes())["client_id"]
    assert await kept_by_broker(mosquitto, client_id) == [], "what came again is acknowledged"


async def test_a_consumer_that_is_busy_is_not_told_that_what_it_has_is_missing(
    mosquitto: Mosquitto, device: Device
) -> None:
    async with subscribe(url(mosquitto), grace_s=GRACE_S) as events:
        await connected(events)
        device.events(1, 5, 6, 7, 2, 4)
        items = []
        for _ in range(6):
            items += await take(events, 1)
            await asyncio.sleep(0.6 * GRACE_S)
        assert sequences(items) == [1, 5, 6, 7, 2, 4]
        assert await take(events, 1) == [MissingRange("gate-1", 3, 3)]


async def test_what_is_dealt_with_is_on_disk_though_a_grace_has_just_passed(
    mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    async with subscribe(url(mosquitto), state_file=state, grace_s=GRACE_S) as events:
        await connected(events)
        device.events(1, 3)
        await take(events, 2)
        await asyncio.sleep(1.5 * GRACE_S)
        device.events(4)
        await asyncio.sleep(0.2)
        assert await take(events, 1) == [MissingRange("gate-1", 2, 2)]
        assert sequences(await take(events, 1)) == [4]
        await events.handled()
        assert json.loads(state.read_bytes())["devices"]["gate-1"]["highest"] == 4
    async with subscribe(url(mosquitto), state_file=state, grace_s=GRACE_S) as events:
        await connected(events)
        await nothing_more(events)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_session_that_was_begun_for_all_brings_one_device_only_when_one_is_asked_for(
    mosquitto: Mosquitto, device: Device, tmp_path: Path, protocol: Any
) -> None:
    state, here = tmp_path / "state.json", url(mosquitto)
    other = documents.event(1).replace(b'"gate-1"', b'"gate-2"')
    async with subscribe(here, state_file=state, protocol=protocol) as events:
        await connected(events)
        device.events(1)
        device.say(other, device="gate-2")
        device.say(documents.event(5).replace(b'"gate-1"', b'"gate-2"'), device="gate-2")
        await take(events, 3)
        await events.handled()
    client_id = json.loads(state.read_bytes())["client_id"]
    device.say(documents.event(6).replace(b'"gate-1"', b'"gate-2"'), device="gate-2")  # the session has it already
    narrow: dict[str, Any] = {"protocol": protocol, "device": "gate-1", "grace_s": GRACE_S}
    async with subscribe(here, state_file=state, **narrow) as events:
        await connected(events)
        device.events(2)
        assert sequences(await take(events, 1)) == [2]
        await events.handled()
        await nothing_more(events, 2 * GRACE_S)  # nor are numbers of the other one missing
    device.say(documents.event(7).replace(b'"gate-1"', b'"gate-2"'), device="gate-2")
    device.events(3)
    assert await kept_by_broker(mosquitto, client_id, protocol) == ["recognizer/gate-1/events/yard/fight"]


async def kept_by_broker(broker: Mosquitto, client_id: str, protocol: str = "5") -> list[str]:
    """Topics of what a session holds, without subscribing to anything."""
    topics: list[str] = []
    v5 = protocol == "5"
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=None if v5 else False, manual_ack=True,
        protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
    )  # fmt: skip
    client.on_message = lambda _c, _d, message: topics.append(message.topic)
    client.connect("127.0.0.1", broker.port, **({"clean_start": False} if v5 else {}))
    client.loop_start()
    await asyncio.sleep(0.5)
    client.disconnect()
    client.loop_stop()
    return topics


async def test_a_consumer_that_is_busy_holds_no_more_than_the_window(mosquitto: Mosquitto, device: Device) -> None:
    async with subscribe(url(mosquitto), client_id="slow", window=10) as events:
        await connected(events)
        device.events(*range(1, 101))
        assert sequences(await take(events, 1)) == [1]
        await asyncio.sleep(0.3)
        assert len(events._came) < 10
        assert sequences(await take(events, 99)) == list(range(2, 101))


# --- asking again -----------------------------------------------------------------------------------------------------


class Archive:
    """Answers `replay-events` from what it was given, on the response topic with the correlation data; None = not."""

    def __init__(self, device: Device, answer: Callable[[int, int], dict[str, Any] | None]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.topics: list[tuple[str, bytes]] = []
        self._answer = answer
        self._device = device
        device.client.on_message = self._on_command
        device.client.subscribe("recognizer/gate-1/cmd/+", 1)

    def _on_command(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        request = json.loads(message.payload)
        self.requests.append(request)
        where, correlation = message.properties.ResponseTopic, message.properties.CorrelationData
        self.topics.append((where, correlation))
        said = self._answer(**request["arguments"])
        if said is None:
            return
        properties = paho.Properties(paho.PacketTypes.PUBLISH)
        properties.CorrelationData = correlation
        answer = {"id": request["id"]} | said
        client.publish(where, json.dumps(answer).encode(), 1, properties=properties)


async def test_what_is_missing_is_asked_for_and_comes(mosquitto: Mosquitto, device: Device) -> None:
    def again(first: int, last: int) -> dict[str, Any]:
        for sequence in range(first, last + 1):
            device.client.publish("recognizer/gate-1/events/yard/fight", documents.event(sequence), 1)
        return {"state": "done", "detail": "", "result": {"sent": last - first + 1, "missing": []}}

    archive = Archive(device, again)
    async with subscribe(url(mosquitto), grace_s=GRACE_S, replay=True) as events:
        await connected(events)
        device.events(1, 2, 6)
        assert sequences(await take(events, 6)) == [1, 2, 6, 3, 4, 5]
        await nothing_more(events, 3 * GRACE_S)
    (request,) = archive.requests
    assert request["arguments"] == {"first": 3, "last": 5}
    (where,) = archive.topics
    assert where == ("recognizer/gate-1/cmd/replay-events/result", request["id"].encode())


async def test_a_device_that_does_not_answer_is_asked_once_more_and_for_one_thing_at_a_time(
    mosquitto: Mosquitto, device: Device
) -> None:
    """It is asked under the same id, and a second grace begins only then: what it drops is not called missing."""

    def again(first: int, last: int) -> dict[str, Any] | None:
        if len(archive.requests) == 1:
            return None
        device.client.publish("recognizer/gate-1/events/yard/fight", documents.event(last), 1)
        return {"state": "done", "detail": "", "result": {"sent": 1, "missing": []}}

    archive = Archive(device, again)
    async with subscribe(url(mosquitto), grace_s=GRACE_S, replay=True, replay_timeout_s=3 * GRACE_S) as events:
        await connected(events)
        device.events(1, 3)
        assert sequences(await take(events, 2)) == [1, 3]
        waiting = asyncio.create_task(take(events, 3))
        await asyncio.sleep(1.5 * GRACE_S)
        device.events(5)
        assert sequences(await waiting) == [5, 2, 4]
        await nothing_more(events, 3 * GRACE_S)
    first, repeated, second = archive.requests
    assert first["arguments"] == repeated["arguments"] == {"first": 2, "last": 2}
    assert first["id"] == repeated["id"] != second["id"]
    assert second["arguments"] == {"first": 4, "last": 4}


async def test_what_the_device_has_no_more_is_told_at_once(mosquitto: Mosquitto, device: Device) -> None:
    Archive(device, lambda first, last: {"state": "done", "result": {"sent": 0, "missing": [[first, last - 1]]}})
    async with subscribe(url(mosquitto), grace_s=GRACE_S, replay=True) as events:
        await connected(events)
        device.events(1, 6)
        items = await take(events, 4)
    assert items[2:] == [
        MissingRange("gate-1", 2, 4, "the device has it no more"),
        MissingRange("gate-1", 5, 5),  # promised, and did not come
    ]


async def test_a_refusal_is_told_with_its_reason(mosquitto: Mosquitto, device: Device) -> None:
    Archive(device, lambda first, last: {"state": "refused", "detail": "not your role"})
    async with subscribe(url(mosquitto), grace_s=GRACE_S, replay=True) as events:
        await connected(events)
        device.events(1, 3)
        assert (await take(events, 3))[2] == MissingRange("gate-1", 2, 2, "refused: not your role")
        answer = await events.replay("gate-1", 7, 9)
    assert (answer.state, answer.detail) == ("refused", "not your role")


async def test_without_an_answer_it_is_told_a_grace_later(mosquitto: Mosquitto, device: Device) -> None:
    async with subscribe(url(mosquitto), grace_s=GRACE_S, replay=True, replay_timeout_s=0.1) as events:
        await connected(events)
        device.events(1, 3)
        started_s = asyncio.get_running_loop().time()
        assert (await take(events, 3))[2] == MissingRange("gate-1", 2, 2)
        assert asyncio.get_running_loop().time() - started_s >= 2 * GRACE_S
        with pytest.raises(TransientError, match="no answer within"):
            await events.replay("gate-1", 2, 2)
        device.say(b"rubbish", "cmd/replay-events/result")
        device.events(4)
        assert sequences(await take(events, 1)) == [4]


# --- deaths -----------------------------------------------------------------------------------------------------------


async def run_agent(database: Path, port: int, total: int, kill_after: int, put: dict[int, str]) -> None:
    """One run of the agent, killed -9 after so many puts (0 = never)."""
    command = (str(FAKES / "event_agent.py"), str(database), str(port), "400", str(total))
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    seen = 0
    async for line in process.stdout:
        if not line.startswith(b"put ") or not line.endswith(b"\n"):
            continue
        _, number, _, event_id = line.decode().split()
        put[int(number)] = event_id
        seen += 1
        if seen == kill_after:
            process.kill()
    await process.wait()


async def test_each_event_once_and_in_order_though_agent_and_broker_die(
    make_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = make_mosquitto("autosave_interval 1", "autosave_on_changes true")
    total = 600
    put: dict[int, str] = {}
    found: dict[int, ReceivedEvent] = {}
    others: list[Item] = []
    async with subscribe(url(broker), state_file=tmp_path / "state.json", grace_s=20, reconnect_s=FAST) as events:
        await connected(events)
        raw = await asyncio.to_thread(Subscriber, broker.port, "recognizer/+/events/#")

        async def consume() -> None:
            async for item in events:
                if not isinstance(item, ReceivedEvent):
                    others.append(item)
                    continue
                assert item.sequence not in found
                found[item.sequence] = item
                if item.sequence == total:
                    return

        async def break_things() -> None:
            for kill_after in (150, 150, 0):
                running = asyncio.create_task(run_agent(tmp_path / "e.db", broker.port, total, kill_after, put))
                await asyncio.sleep(0.4)
                await asyncio.to_thread(broker.stop)
                await asyncio.sleep(0.2)
                await asyncio.to_thread(broker.start)
                await running

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(consume())
            tasks.create_task(break_things())
        duplicate = next(payload for topic, payload, _ in raw.messages if topic.endswith("/fight"))
        again = Device(broker.port)
        again.say(duplicate, "events/door/fight", device="box")
        again.close()
        while len(found) < total:
            (item,) = await take(events, 1)
            assert isinstance(item, ReceivedEvent)
            found[item.sequence] = item
        await nothing_more(events)
        await raw.wait_for(lambda one: len(one.events()) > total)
        raw.close()

    assert not others
    assert sorted(found) == list(range(1, total + 1))
    assert {sequence: found[sequence].event_id for sequence in put} == put
    for kind in ("fight", "fall"):  # one lane each
        arrived = [event.sequence for event in found.values() if event.kind == kind]
        assert arrived == sorted(arrived)
    ids = [event["id"] for event in raw.events()]
    assert len(ids) > len(set(ids)), "there were duplicates on the wire"


async def session_stands(device: Device) -> None:
    """Until the broker counts a subscriber beside the device: its session must be there before the first event."""
    count = asyncio.Event()
    loop = asyncio.get_running_loop()
    device.client.on_message = lambda _c, _d, m: loop.call_soon_threadsafe(count.set) if int(m.payload) >= 4 else None
    device.client.subscribe("$SYS/broker/subscriptions/count")
    await count.wait()
    device.client.unsubscribe("$SYS/broker/subscriptions/count")


async def test_a_subscriber_that_is_killed_repeats_only_what_it_was_dealing_with(
    make_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = make_mosquitto("sys_interval 1")
    device = Device(broker.port)
    total, printed = 400, []
    command = (str(FAKES / "subscriber_process.py"), url(broker), str(tmp_path / "state.json"))
    said = asyncio.Event()

    async def talk() -> None:
        await said.wait()
        for sequence in range(1, total + 1):
            device.client.publish("recognizer/gate-1/events/yard/fight", documents.event(sequence), 1)
            await asyncio.sleep(0.002)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(talk())
        last = saved = 0
        while last < total:
            process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
            assert process.stdout is not None
            if not said.is_set():
                await session_stands(device)
                said.set()
            lines = 0
            async for line in process.stdout:
                last = int(line.split()[0])
                assert last > saved, "what was on disk is not repeated"
                printed.append(last)
                lines += 1
                if lines == 110 or last == total:
                    process.kill()
            await process.wait()
            before, saved = saved, json.loads((tmp_path / "state.json").read_bytes())["devices"]["gate-1"]["highest"]
            assert before < saved <= last, "it is written while events come"
    device.close()
    assert sorted(set(printed)) == list(range(1, total + 1))
    new = list(dict.fromkeys(printed))
    assert new == sorted(new)


# --- connecting -------------------------------------------------------------------------------------------------------


async def test_tls_with_a_client_certificate(mosquitto_tls: Mosquitto, tls_files: TlsFiles) -> None:
    async with subscribe(
        f"mqtts://localhost:{mosquitto_tls.port}", ca_file=tls_files.ca, cert_file=tls_files.client_cert,
        key_file=tls_files.client_key,
    ) as events:  # fmt: skip
        await connected(events)


async def test_an_unknown_authority_is_named(mosquitto_tls: Mosquitto, tls_files: TlsFiles) -> None:
    async with subscribe(f"mqtts://localhost:{mosquitto_tls.port}", ca_file=tls_files.stranger_ca) as events:
        async with asyncio.timeout(10):
            while "certificate" not in events.error:
                await asyncio.sleep(0.01)
        assert not events.connected


async def test_who_forgot_tls_is_told_so_and_who_meets_no_broker_is_not(
    mosquitto_tls: Mosquitto, tls_files: TlsFiles
) -> None:
    assert "is this the TLS port? it needs mqtts://" in await refusal(url(mosquitto_tls))
    address = f"mqtts://localhost:{mosquitto_tls.port}"
    assert "hint" in await refusal(address, ca_file=tls_files.ca), "no client certificate"
    mosquitto_tls.stop()
    assert "hint" not in await refusal(address, ca_file=tls_files.ca)


async def refusal(address: str, **options: Unpack[OptionNames]) -> str:
    async with subscribe(address, **options) as events, asyncio.timeout(10):
        while not events.error:
            await asyncio.sleep(0.01)
        assert not events.connected
        return events.error


async def test_a_login_that_is_not_allowed_is_named(make_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> None:
    (tmp_path / "passwords").touch()
    closed = make_mosquitto("allow_anonymous false", f"password_file {tmp_path / 'passwords'}")
    error = await refusal(f"mqtt://me:secret@127.0.0.1:{closed.port}")
    assert "the broker refused the connection" in error
    assert "secret" not in error


async def test_a_subscription_that_is_not_allowed_is_named() -> None:
    """Mosquitto takes every subscription and checks at delivery; other brokers say so at once."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly((await reader.readexactly(2))[1])
        writer.write(bytes([0x20, 2, 0, 0]))
        _, length = await reader.readexactly(2)
        packet = await reader.readexactly(length)
        writer.write(bytes([0x90, 5, *packet[:2], 1, 0x80, 1]))  # not the events
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "the broker refused the subscription" in await refusal(f"mqtt://127.0.0.1:{port}", protocol="3.1.1")


class Choosy:
    """A broker that lets nobody read the answers to commands, says so at once, and has one event."""

    def __init__(self, event: bytes) -> None:
        self._event = event

    async def speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly((await reader.readexactly(2))[1])
        writer.write(bytes([0x20, 2, 0, 0]))
        packet = await reader.readexactly((await reader.readexactly(2))[1])
        answers, place = [], 2
        while place < len(packet):
            length = int.from_bytes(packet[place : place + 2])
            answers.append(0x80 if b"/cmd/" in packet[place + 2 : place + 2 + length] else 1)
            place += length + 3
        writer.write(bytes([0x90, 2 + len(answers), *packet[:2], *answers]))
        topic = b"recognizer/gate-1/events/yard/fight"
        body = len(topic).to_bytes(2) + topic + self._event
        writer.write(bytes([0x30]) + varint(len(body)) + body)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("replay", [False, True])
async def test_who_may_read_events_only_gets_them(replay: bool) -> None:
    """Answers to commands are another right, of those who ask for what is missing."""
    async with await asyncio.start_server(Choosy(documents.event(1)).speak, "127.0.0.1", 0) as server:
        address = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if replay:
            assert "the broker refused the subscription" in await refusal(address, protocol="3.1.1", replay=True)
            return
        async with subscribe(address, protocol="3.1.1") as events:
            assert sequences(await take(events, 1)) == [1]


async def test_it_waits_for_a_broker_that_is_not_there_yet(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    async with subscribe(url(mosquitto), reconnect_s=FAST) as events:
        async with asyncio.timeout(10):
            while not events.error:
                await asyncio.sleep(0.01)
        with pytest.raises(TransientError, match="not connected"):
            await events.replay("gate-1", 1, 2)
        await asyncio.to_thread(mosquitto.start)
        await connected(events)


async def test_iterating_alone_starts_it_and_closing_ends_the_iteration(mosquitto: Mosquitto, device: Device) -> None:
    events = subscribe(url(mosquitto))

    async def count() -> int:
        return len([item async for item in events])

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    await connected(events)
    device.events(1, 2)
    await asyncio.sleep(0.3)
    await events.aclose()
    await events.aclose()
    assert await counting == 2


async def test_a_state_file_that_cannot_be_written_ends_the_iteration(
    mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    async with subscribe(url(mosquitto), state_file=str(folder / "state.json")) as events:
        await connected(events)
        device.events(1, 2, 3)
        await take(events, 1)
        folder.rmdir()
        with pytest.raises(StorageError, match="cannot be written"):
            await take(events, 3)


async def test_a_state_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (
        "", "[]", '{"version": 9}', '{"version": 1, "client_id": "a", "devices": {"box": {}}}',
        '{"version": 1, "client_id": "a", "devices": {"box": {"highest": 1, "newest_id": "", "holes": [[5, 4, "open"]]}}}',
    ):  # fmt: skip
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(DataError, match="not the state of a subscriber"):
            subscribe("mqtt://broker.example", state_file=tmp_path / "state.json")

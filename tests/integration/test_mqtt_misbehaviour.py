"""Store, relay and client against a broker that misbehaves: nothing is lost, lanes keep their order, repeats have equal ids."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fakes import mqtt_packets as wire
from fakes.delivery import TOPICS, delivering, duplicates
from fakes.mqtt_packets import Publish
from fakes.scripted_broker import Cut, HangUpError, Manners, Peer, PublishRule, ScriptedBroker, acknowledge

from agent.config.sections import BackoffConfig
from agent.errors import TransientError
from agent.mqtt.client import LinkState
from agent.outbox.doubts import Doubts
from agent.ports import Message
from agent.types import Lane

TOTAL = 30
SLOW = BackoffConfig(initial_s=60, max_s=60)


CUTS = [
    Cut("connect"),
    *(Cut("connack", sent_bytes=count) for count in (0, 1, 3, 100)),
    *(Cut("publish", nth=nth) for nth in (1, 2, 7, TOTAL)),
    *(Cut("puback", nth=nth, sent_bytes=count) for nth in (1, 5) for count in (0, 1, 3, 100)),
]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.kind}-{cut.nth}-{cut.sent_bytes}")
async def test_a_broker_that_hangs_up_at_any_packet_costs_nothing(tmp_path: Path, cut: Cut, protocol: str) -> None:
    async with (
        ScriptedBroker(Manners(cut=cut), Manners()) as broker,
        delivering(tmp_path, broker, protocol=protocol) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) <= 2 * delivery.client.receive_maximum
        assert len(broker.connects) == 2


async def test_a_chain_of_broken_connections_costs_nothing(tmp_path: Path) -> None:
    broken = [Manners(cut=cut) for cut in CUTS]
    async with ScriptedBroker(*broken, Manners()) as broker, delivering(tmp_path, broker) as delivery:
        for _ in range(len(CUTS)):
            await delivery.put(5)
            await asyncio.sleep(0.02)
        await delivery.drained()
        duplicates(broker, delivery.total)
        assert len(broker.connects) == len(CUTS) + 1


@pytest.mark.parametrize("answer", [True, False], ids=["cut-in-the-answer", "never-answers"])
async def test_a_broker_that_fails_at_a_ping_is_left(tmp_path: Path, *, answer: bool) -> None:
    cut = Cut("pingresp", sent_bytes=1) if answer else None
    manners = Manners(properties={"server_keep_alive": 1}, cut=cut, answer_pings=answer)
    async with ScriptedBroker(manners, Manners()) as broker, delivering(tmp_path, broker) as delivery:
        async with asyncio.timeout(15):
            while len(broker.connects) < 2:
                await asyncio.sleep(0.01)
        assert (1, "pingreq") in broker.received  # the broker's keep alive counts, not the configured 30 s
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0


async def late(peer: Peer, publish: object) -> None:
    await asyncio.sleep(0.02)
    await acknowledge(peer, publish)  # type: ignore[arg-type]


async def twice(peer: Peer, publish: object) -> None:
    for _ in range(2):
        await acknowledge(peer, publish)  # type: ignore[arg-type]


def out_of_order(together: int) -> PublishRule:
    waiting: list[int] = []

    async def rule(peer: Peer, publish: object) -> None:
        waiting.append(publish.packet_id)  # type: ignore[attr-defined]
        if len(waiting) >= min(together, len(peer.unacknowledged)):
            for packet_id in reversed(waiting):
                await peer.puback(packet_id)
            waiting.clear()

    return rule


async def wrong_ids_too(peer: Peer, publish: object) -> None:
    """An acknowledgement of what was never sent, and one for an id of nothing at all, before the right one."""
    await peer.puback(60_000)
    await peer.puback(0)
    await acknowledge(peer, publish)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("rule", [late, twice, out_of_order(5), wrong_ids_too])
async def test_odd_acknowledgements_are_taken_as_they_are_meant(
    tmp_path: Path, rule: PublishRule, protocol: str
) -> None:
    async with (
        ScriptedBroker(Manners(on_publish=rule)) as broker,
        delivering(tmp_path, broker, protocol=protocol) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0
        assert len(broker.connects) == 1


def forms_of_yes() -> PublishRule:
    """Every way to write a good acknowledgement in MQTT 5, in turn."""
    count = 0
    forms = (
        b"",
        bytes([0x00]),
        bytes([0x00, 0]),
        bytes([0x10]),
        bytes([0x10, 0]),
        bytes([0x00]) + wire.properties({"reason_string": "why not"}),
        bytes([0x10]) + wire.properties({"user": [("a", "b"), ("a", "c")]}),
    )

    async def rule(peer: Peer, publish: object) -> None:
        nonlocal count
        count += 1
        packet_id = publish.packet_id  # type: ignore[attr-defined]
        peer.unacknowledged.discard(packet_id)
        await peer.send(wire.packet(wire.PUBACK, packet_id.to_bytes(2, "big") + forms[count % len(forms)]))

    return rule


async def test_every_form_of_a_good_acknowledgement_is_one(tmp_path: Path) -> None:
    async with ScriptedBroker(Manners(on_publish=forms_of_yes())) as broker, delivering(tmp_path, broker) as delivery:
        await delivery.put(69)  # and the status: ten rounds of the seven forms
        await delivery.drained()
        assert duplicates(broker, 69) == 0
        assert delivery.client.status().unheard == 30
        assert len(broker.connects) == 1


async def test_a_broker_that_does_not_read_for_a_while_gets_everything_in_the_end(tmp_path: Path) -> None:
    """More than the socket holds is queued, packet after packet, and none is torn."""
    asleep = asyncio.Event()

    async def sleep(peer: Peer, publish: object) -> None:
        if not asleep.is_set():
            asleep.set()
            await asyncio.sleep(0.5)
        await acknowledge(peer, publish)  # type: ignore[arg-type]

    async with (
        ScriptedBroker(Manners(on_publish=sleep)) as broker,
        delivering(tmp_path, broker, max_in_flight=200, publish_timeout_s=20.0) as delivery,
    ):
        topic = TOPICS.event("door", "fight")
        bodies = [b"%d " % number + b"x" * 100_000 for number in range(100)]
        for number, body in enumerate(bodies):
            await delivery.store.put(Message(Lane.EVENT, f"e{number}", topic, lambda _, body=body: body))  # type: ignore[misc]
        await delivery.drained()
        assert broker.payloads() == bodies
        assert len(broker.connects) == 1


async def never(_peer: Peer, _publish: object) -> None:
    return


async def wrong(peer: Peer, publish: object) -> None:
    await peer.puback(publish.packet_id + 30_000)  # type: ignore[attr-defined]


def every_other() -> PublishRule:
    count = 0

    async def rule(peer: Peer, publish: object) -> None:
        nonlocal count
        count += 1
        if count % 2:
            await acknowledge(peer, publish)  # type: ignore[arg-type]

    return rule


@pytest.mark.parametrize("rule", [never, wrong, every_other()], ids=["never", "wrong-id", "every-other"])
async def test_a_missing_acknowledgement_costs_the_connection_and_no_event(tmp_path: Path, rule: PublishRule) -> None:
    async with (
        ScriptedBroker(Manners(on_publish=rule), Manners()) as broker,
        delivering(tmp_path, broker, publish_timeout_s=0.3) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        duplicates(broker, TOTAL)
        assert len(broker.connects) == 2


async def test_an_acknowledgement_from_before_the_connection_deletes_nothing(tmp_path: Path) -> None:
    """A broker that resumes a session may come with acknowledgements of the last connection: no packet id is used again."""
    sent: list[int] = []

    async def remember(_peer: Peer, publish: object) -> None:
        sent.append(publish.packet_id)  # type: ignore[attr-defined]
        if len(sent) >= 10:
            raise HangUpError

    async def stale_then_never(peer: Peer, _publish: object) -> None:
        for packet_id in sent:
            await peer.puback(packet_id)

    third = Manners()
    async with (
        ScriptedBroker(Manners(on_publish=remember), Manners(on_publish=stale_then_never), third) as broker,
        delivering(tmp_path, broker, publish_timeout_s=0.3) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        duplicates(broker, TOTAL)
        arrived = [json.loads(p.payload)["id"] for p in broker.published if p.connection == 3 and "events" in p.topic]
        assert len(set(arrived)) == TOTAL  # what only stale acknowledgements met was sent again


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x93, 0x96, 0x97, 0x98, 0xA0])
async def test_a_disconnect_with_a_reason_is_named_and_costs_nothing(tmp_path: Path, code: int) -> None:
    async def send_away(peer: Peer, publish: object) -> None:
        await acknowledge(peer, publish)  # type: ignore[arg-type]
        if len(peer.broker.payloads()) >= 5:
            await peer.disconnect(code)

    errors: list[str] = []
    async with (
        ScriptedBroker(Manners(on_publish=send_away), Manners()) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        delivery.client.on_disconnected(lambda: errors.append(delivery.client.status().error))
        await delivery.put(TOTAL)
        await delivery.drained()
        duplicates(broker, TOTAL)
    assert f"0x{code:02x}" in errors[0]


@pytest.mark.parametrize(
    ("code", "state"),
    [(0x80, LinkState.WAITING), (0x86, LinkState.REFUSED), (0x87, LinkState.REFUSED), (0x88, LinkState.WAITING),
     (0x89, LinkState.WAITING), (0x8A, LinkState.REFUSED), (0x97, LinkState.WAITING), (0x9D, LinkState.REFUSED)],
)  # fmt: skip
async def test_a_refused_connection_is_tried_again(tmp_path: Path, code: int, state: LinkState) -> None:
    states: list[LinkState] = []
    async with (
        ScriptedBroker(Manners(connack=code), Manners(connack=code), Manners()) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        delivery.client.on_disconnected(lambda: states.append(delivery.client.status().state))
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0
        assert states == [state, state]


@pytest.mark.parametrize("code", [1, 3, 4, 5])
async def test_a_connection_refused_in_3_1_1_is_tried_again(tmp_path: Path, code: int) -> None:
    async with (
        ScriptedBroker(Manners(connack=code), Manners()) as broker,
        delivering(tmp_path, broker, protocol="3.1.1") as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0


async def test_the_window_that_the_broker_asks_for_is_never_exceeded(tmp_path: Path) -> None:
    most = 0

    async def count(peer: Peer, publish: object) -> None:
        nonlocal most
        most = max(most, len(peer.unacknowledged))
        await asyncio.sleep(0.001)
        await acknowledge(peer, publish)  # type: ignore[arg-type]

    manners = Manners(properties={"receive_maximum": 3}, on_publish=count)
    async with ScriptedBroker(manners) as broker, delivering(tmp_path, broker) as delivery:
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0
        assert most <= 3


async def test_a_window_of_nothing_is_a_protocol_error_and_no_dead_end(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(properties={"receive_maximum": 0}), Manners()) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0


async def test_what_is_too_large_for_the_broker_is_kept_as_a_dead_letter(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(properties={"maximum_packet_size": 400})) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(3)
        big = b'{"id": "big", "pad": "' + b"x" * 400 + b'"}'
        await delivery.store.put(Message(Lane.EVENT, "big", TOPICS.event("door", "fight"), lambda _: big))
        await delivery.put(3)
        await delivery.drained()
        assert duplicates(broker, 6) == 0
        (letter,) = await delivery.store.dead_letters()
        assert letter.event_id == "big"
        assert "0x95" in letter.reason


async def test_a_broker_without_qos_1_is_refused_by_the_client(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(properties={"maximum_qos": 0}), Manners()) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        errors: list[str] = []
        delivery.client.on_disconnected(lambda: errors.append(delivery.client.status().error))
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0
    assert "QoS 1" in errors[0]


@pytest.mark.parametrize("refused", [TOPICS.health, TOPICS.status])
async def test_a_state_that_is_refused_without_a_reason_holds_up_no_other(tmp_path: Path, refused: str) -> None:
    async def doubt(peer: Peer, publish: Publish) -> None:
        await peer.puback(publish.packet_id, 0x80 if publish.topic == refused else 0)

    def sent(topic: str) -> int:
        return sum(publish.topic == topic for publish in broker.published)

    async with ScriptedBroker(Manners(on_publish=doubt)) as broker, delivering(tmp_path, broker) as delivery:
        delivery.client.retain(TOPICS.health, b"{}")
        delivery.client.retain(TOPICS.camera_state("door"), b"streaming")
        async with asyncio.timeout(10):
            while not sent(TOPICS.camera_state("door")) or sent(refused) < 3:
                await asyncio.sleep(0.01)
        assert sent(TOPICS.camera_state("door")) == 1


async def test_a_broker_that_retains_nothing_is_sent_nothing_retained(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(properties={"retain_available": 0})) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(3)
        await delivery.drained()
        assert not any(publish.retain for publish in broker.published)
        assert [p.payload for p in broker.published if p.topic == TOPICS.status] == [b"online"]
        assert [connect.will_retain for connect in broker.connects] == [True, False]


async def test_whether_the_will_may_be_retained_is_remembered_until_the_broker_says_otherwise(tmp_path: Path) -> None:
    none = Manners(properties={"retain_available": 0}, cut=Cut("publish", nth=5))
    some = Manners(cut=Cut("publish", nth=5))
    async with ScriptedBroker(none, none, none, some, Manners()) as broker, delivering(tmp_path, broker) as delivery:
        await delivery.put(TOTAL)
        await delivery.drained()
        duplicates(broker, TOTAL)
        assert [connect.will_retain for connect in broker.connects] == [True, False, False, False, True]


async def test_a_broker_that_refuses_any_will_is_tried_again_rarely(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(connack=0x9A)) as broker,
        delivering(tmp_path, broker, reconnect=SLOW) as delivery,
    ):
        async with asyncio.timeout(10):
            while delivery.client.status().state is not LinkState.REFUSED:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert [connect.will_retain for connect in broker.connects] == [True, False]


async def test_nonsense_instead_of_packets_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async def babble(peer: Peer, publish: object) -> None:
        await acknowledge(peer, publish)  # type: ignore[arg-type]
        await peer.send(bytes([0x42, 0x00]))  # a PUBACK without a packet id

    async with (
        ScriptedBroker(Manners(on_publish=babble), Manners()) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        duplicates(broker, TOTAL)
        assert len(broker.connects) == 2


# --- reason codes of single messages ----------------------------------------------------------------------------------


def answers(codes: dict[bytes, list[int]]) -> PublishRule:
    """codes: by a part of the payload, the reason codes of its first acknowledgements; then it is taken."""

    async def rule(peer: Peer, publish: object) -> None:
        waiting = next((left for part, left in codes.items() if part in publish.payload), [])  # type: ignore[attr-defined]
        await peer.puback(publish.packet_id, waiting.pop(0) if waiting else 0)  # type: ignore[attr-defined]

    return rule


@pytest.mark.parametrize("code", [0x80, 0x83, 0x97])
async def test_a_passing_refusal_is_tried_again_and_keeps_the_order(tmp_path: Path, code: int) -> None:
    """With one message under way the order is kept; with more, those behind it were already under way."""
    rule = answers({b'"e4"': [code] * 3, b'"e9"': [code]})
    async with (
        ScriptedBroker(Manners(on_publish=rule)) as broker,
        delivering(tmp_path, broker, max_in_flight=1) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        first: dict[str, int] = {}
        for payload in broker.payloads():
            first.setdefault(json.loads(payload)["id"], len(first))
        assert len(first) == TOTAL
        assert len(broker.payloads()) == TOTAL + 4
        assert duplicates(broker, TOTAL) == 4
        assert len(broker.connects) == 1
        assert delivery.relay.stats.retried == 4


@pytest.mark.parametrize("code", [0x87, 0x90, 0x99])
async def test_a_final_refusal_makes_a_dead_letter_and_the_rest_goes_on(tmp_path: Path, code: int) -> None:
    async with (
        ScriptedBroker(Manners(on_publish=answers({b'"e4"': [code] * 99}))) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert len(broker.payloads()) == TOTAL
        (letter,) = await delivery.store.dead_letters()
        assert letter.event_id == "e4"
        assert f"0x{code:02x}" in letter.reason


async def test_a_message_that_nobody_has_subscribed_to_is_delivered_and_counted(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(on_publish=answers({b'"e4"': [0x10], b'"e5"': [0x10]}))) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert duplicates(broker, TOTAL) == 0
        assert delivery.client.status().unheard == 2
        assert await delivery.store.dead_letters() == []


async def test_a_packet_id_in_use_costs_the_connection(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(on_publish=answers({b'"e4"': [0x91]}))) as broker,
        delivering(tmp_path, broker) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        duplicates(broker, TOTAL)
        assert len(broker.connects) == 2
        assert await delivery.store.dead_letters() == []


async def test_a_poison_message_does_not_block_its_lane_for_ever(tmp_path: Path) -> None:
    async with (
        ScriptedBroker(Manners(on_publish=answers({b'"e4"': [0x80] * 10_000}))) as broker,
        delivering(tmp_path, broker, doubts=Doubts(refusals=5, over_s=0.2)) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        (letter,) = await delivery.store.dead_letters()
        assert letter.event_id == "e4"
        assert "given up" in letter.reason
        delivered = {json.loads(payload)["id"] for payload in broker.payloads()}
        assert delivered == {f"e{n}" for n in range(TOTAL)}


async def test_a_broker_that_refuses_everything_makes_no_dead_letters(tmp_path: Path) -> None:
    async def refuse(peer: Peer, publish: object) -> None:
        broken = len(peer.broker.payloads()) < 300
        await peer.puback(publish.packet_id, 0x83 if broken else 0)  # type: ignore[attr-defined]

    async with (
        ScriptedBroker(Manners(on_publish=refuse)) as broker,
        delivering(tmp_path, broker, doubts=Doubts(refusals=2, over_s=0)) as delivery,
    ):
        await delivery.put(TOTAL)
        await delivery.drained()
        assert await delivery.store.dead_letters() == []
        assert {json.loads(payload)["id"] for payload in broker.payloads()} == {f"e{n}" for n in range(TOTAL)}


async def test_a_publish_right_after_the_end_with_a_full_window_does_not_wait_for_ever(tmp_path: Path) -> None:
    manners = Manners(properties={"receive_maximum": 1}, on_publish=never)
    async with ScriptedBroker(manners) as broker, delivering(tmp_path, broker, publish_timeout_s=20.0) as delivery:
        await asyncio.wait_for(delivery.client.wait_connected(), 10)
        connection = delivery.client._connection
        assert connection is not None
        async with asyncio.timeout(5):
            while not connection.in_flight:  # `online` has the only place
                await asyncio.sleep(0.001)
            connection.drop("cut by the test")
            with pytest.raises(TransientError, match="cut by the test"):
                await connection.publish(TOPICS.event("door", "fight"), b"x")

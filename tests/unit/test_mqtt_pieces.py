"""The pure pieces of the MQTT client: aliases, properties as bytes, verdicts, the share of a device, the inbox, doubts."""

from __future__ import annotations

import math
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from fakes import mqtt_packets as wire
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt import packing
from agent.mqtt.aliases import TopicAliases
from agent.mqtt.inbox import Inbox, Subscription
from agent.mqtt.spread import share
from agent.mqtt.transport import GatheringClient
from agent.mqtt.verdicts import Verdict, verdict
from agent.outbox.doubts import Doubts
from agent.ports import Envelope, Received

# --- aliases ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([f"topic/{n}" for n in range(12)] + ["t"])), st.integers(0, 5), st.data())
def test_a_receiver_always_knows_which_topic_is_meant(topics: list[str], maximum: int, data: st.DataObject) -> None:
    """In the order of sending, whatever is forgotten in between."""
    aliases = TopicAliases(maximum)
    known: dict[int, str] = {}
    for topic in topics:
        sent, alias = aliases.choose(topic)
        if alias:
            assert 1 <= alias <= maximum
            if sent:
                known[alias] = sent
            assert known[alias] == topic
        else:
            assert sent == topic
        if data.draw(st.booleans()):
            aliases.forget(data.draw(st.sampled_from(topics)))


def test_the_topics_used_most_have_the_aliases() -> None:
    aliases = TopicAliases(2)
    for n in range(100):
        for topic in ("rare/one", *["often/a"] * 5, *["often/b"] * 5, f"once/{n}"):
            aliases.choose(topic)
    assert [aliases.choose(topic)[0] for topic in ("often/a", "often/b", "rare/one")] == ["", "", "rare/one"]


def test_the_memory_of_aliases_is_bounded() -> None:
    aliases = TopicAliases(65_535)
    for n in range(10_000):
        aliases.choose(f"topic/{n // 2}")
    assert len(aliases._uses) <= 257
    assert len(aliases._aliases) <= 64


# --- properties -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\ufeff"), max_size=30)
ENVELOPES = st.builds(
    Envelope,
    content_type=TEXT,
    utf8=st.booleans(),
    expiry_s=st.none() | st.integers(0, 2**32 - 1),
    response_topic=TEXT,
    correlation_data=st.binary(max_size=30),
    user_properties=st.lists(st.tuples(TEXT, TEXT), max_size=5).map(tuple),
)


@given(ENVELOPES, st.integers(0, 65_535))
def test_the_bytes_of_the_properties_say_what_the_envelope_says(envelope: Envelope, alias: int) -> None:
    """Read by paho and by the tests' own reader."""
    block = packing.properties(envelope, alias)
    theirs = Properties(PacketTypes.PUBLISH)
    theirs.unpack(block)
    assert getattr(theirs, "ContentType", "") == envelope.content_type
    assert getattr(theirs, "PayloadFormatIndicator", 0) == envelope.utf8
    assert getattr(theirs, "MessageExpiryInterval", None) == envelope.expiry_s
    assert getattr(theirs, "ResponseTopic", "") == envelope.response_topic
    assert getattr(theirs, "CorrelationData", b"") == envelope.correlation_data
    assert getattr(theirs, "TopicAlias", 0) == alias
    assert tuple(getattr(theirs, "UserProperty", ())) == envelope.user_properties
    reader = wire.Reader(block)
    ours = reader.properties()
    assert reader.at == len(block)
    assert ours.get("user", []) == list(envelope.user_properties)


@given(st.integers(0, 60_000), st.integers(0, 500_000), st.sampled_from([0, 1]))
def test_the_size_is_that_of_the_packet(topic_bytes: int, payload_bytes: int, qos: int) -> None:
    block = packing.properties(Envelope("application/json", utf8=True), 3)
    body = wire.text("x" * topic_bytes) + (b"\x00\x01" if qos else b"") + block + b"p" * payload_bytes
    assert packing.publish_size(topic_bytes, len(block), payload_bytes, qos) == len(wire.packet(wire.PUBLISH, body))


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(content_type="a\x00b"),
        Envelope(content_type="x" * 70_000),
        Envelope(user_properties=(("id", "\ud800"),)),
        Envelope(user_properties=(("i\x00d", "1"),)),
        Envelope(correlation_data=b"x" * 70_000),
    ],
)
def test_what_mqtt_cannot_carry_is_refused(envelope: Envelope) -> None:
    with pytest.raises(ValueError, match=r"null|bytes|utf-8"):
        packing.properties(envelope)


# --- paho -------------------------------------------------------------------------------------------------------------


def test_paho_has_the_inner_parts_that_are_used_of_it() -> None:
    """Without these two a publish takes half as long again, and nothing else would show it."""
    for name in ("_sock_send", "_handle_pubackcomp"):
        assert callable(getattr(paho.Client, name, None))
        assert getattr(GatheringClient, name) is not getattr(paho.Client, name)


# --- verdicts ---------------------------------------------------------------------------------------------------------

TABLE = {
    0x00: Verdict.DELIVERED, 0x10: Verdict.UNHEARD, 0x80: Verdict.UNEXPLAINED, 0x83: Verdict.UNEXPLAINED,
    0x87: Verdict.REJECTED, 0x90: Verdict.REJECTED, 0x91: Verdict.OUT_OF_STEP, 0x95: Verdict.REJECTED,
    0x97: Verdict.QUOTA, 0x99: Verdict.REJECTED,
}  # fmt: skip


@pytest.mark.parametrize("code", range(256))
def test_every_reason_code_has_a_verdict(code: int) -> None:
    expected = TABLE.get(code, Verdict.DELIVERED if code < 0x80 else Verdict.UNEXPLAINED)
    assert verdict(code) is expected


def test_the_documentation_has_the_same_table() -> None:
    rows = (Path(__file__).parent.parent.parent / "docs" / "mqtt.md").read_text().splitlines()
    for code in TABLE:
        assert any(row.startswith("|") and f"0x{code:02x}" in row for row in rows), hex(code)


# --- spread -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["gate-{}", "recognizer-{:04d}", "site7-cam{}-north", "{}"])
def test_a_thousand_devices_come_back_evenly(pattern: str) -> None:
    shares = [share(pattern.format(number)) for number in range(1000)]
    bins = [0] * 20
    for one in shares:
        assert 0 <= one < 1
        bins[int(one * 20)] += 1
    chi_square = sum((count - 50) ** 2 / 50 for count in bins)
    assert chi_square < 43.8  # 19 degrees of freedom: one in a thousand of even hashes is worse
    gaps = max(later - earlier for earlier, later in zip(sorted(shares), sorted(shares)[1:], strict=False))
    assert gaps < 3 * math.log(1000) / 1000


# --- inbox ------------------------------------------------------------------------------------------------------------


def message(topic: str = "a/cmd/x", payload: bytes = b"{}") -> Received:
    return Received(topic, payload, 1, retain=False)


def test_the_inbox_drops_and_counts_what_is_too_large_or_too_much() -> None:
    now_s = 0.0
    inbox = Inbox(max_bytes=10, max_per_s=2, clock_s=lambda: now_s)
    taken: list[Received] = []
    inbox.subscriptions.append(Subscription("a/cmd/+", taken.append, 1))
    inbox.subscriptions.append(Subscription("a/#", lambda _: pytest.fail("the first filter that matches has it"), 1))
    for _ in range(5):
        inbox.take(message())
    inbox.take(message(payload=b"x" * 11))
    inbox.take(message("b/cmd/x"))
    assert len(taken) == 2
    now_s = 1.0
    inbox.take(message())
    stats = inbox.stats
    assert (stats.handled, stats.too_many, stats.too_large, stats.unmatched, stats.failed) == (3, 3, 1, 1, 0)


def test_a_handler_that_raises_is_counted_and_nothing_else() -> None:
    inbox = Inbox(max_bytes=10, max_per_s=10)

    def fail(_: Received) -> None:
        raise RuntimeError("handler")

    inbox.subscriptions.append(Subscription("#", fail, 1))
    inbox.take(message())
    assert (inbox.stats.failed, inbox.stats.handled) == (1, 0)


# --- doubts -----------------------------------------------------------------------------------------------------------


def test_a_message_is_given_up_only_when_all_three_conditions_hold() -> None:
    doubts = Doubts(refusals=3, over_s=10)
    assert [doubts.give_up(1, now_s) for now_s in (0, 1, 2, 20)] == [False] * 4  # nothing else was taken
    doubts.delivered(2)
    assert doubts.give_up(1, 21)
    doubts = Doubts(refusals=3, over_s=10)
    assert not doubts.give_up(1, 0)
    doubts.delivered(2)
    assert [doubts.give_up(1, now_s) for now_s in (1, 9, 9.9)] == [False] * 3  # too soon
    assert doubts.give_up(1, 10)


def test_a_message_that_was_taken_in_the_end_starts_again_and_memory_is_bounded() -> None:
    doubts = Doubts(refusals=2, over_s=0)
    assert not doubts.give_up(1, 0)
    doubts.delivered(1)
    assert not doubts.give_up(1, 1)
    for row_id in range(10_000):
        doubts.give_up(row_id, 2)
    assert len(doubts._doubts) <= 4096

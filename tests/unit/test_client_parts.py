"""The pure parts of the subscriber's package, and what its options refuse."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import pytest
from fakes import documents
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import MQTTProtocolVersion

import agent.client
from agent.client import Drift, Gap, MissingRange, ReceivedEvent, Restarted, SinkGap, SubscribeOptions, Unreadable
from agent.client import state as state_file
from agent.client.clocks import DeviceClocks
from agent.client.items import decode, identity
from agent.client.ledger import Due, Ledger
from agent.client.options import OptionNames
from agent.client.replay import ReplayAnswer, Replays, joined, parse_answer
from agent.client.tracker import HoleState, Range, SequenceTracker
from agent.config.delivery import CommandsConfig
from agent.daemon.remote import MOST_RUNS, Remote, RemotePorts
from agent.errors import DataError
from agent.events.cloudevents import load_schema
from agent.mqtt.commands import Command, load_clients, read_command, render_answer
from agent.mqtt.topics import Topics
from agent.outbox.tables import Requeued
from agent.types import EventPhase

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def altered(payload: bytes, **changes: Any) -> bytes:
    """The message with other members; `data__x` = member x of its data."""
    document = json.loads(payload)
    for name, value in changes.items():
        place, key = (document["data"], name[6:]) if name.startswith("data__") else (document, name)
        place[key] = value
    return json.dumps(document).encode()


class Desk:
    """A ledger with a hand-set clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ledger = Ledger(lambda: SequenceTracker(grace_s=10), lambda _: self.now_s)
        self.sent: list[bytes] = []

    def receive(self, *sequences: int, series: str = documents.SERIES) -> list[Any]:
        self.sent = [documents.event(sequence, series) for sequence in sequences]
        return self.receive_again(*self.sent)

    def receive_again(self, *payloads: bytes) -> list[Any]:
        return [item for payload in payloads for item in self.ledger.receive("gate-1", payload)]


# --- items ------------------------------------------------------------------------------------------------------------


def test_messages_of_each_kind_become_their_type() -> None:
    assert type(decode(documents.event(phase=EventPhase.ACTIVE))) is ReceivedEvent
    drift = decode(documents.drift(7))
    assert isinstance(drift, Drift)
    assert (drift.slot, drift.change, drift.blocks, drift.sequence) == ("pose", -0.149596, 4102, 7)
    gap = decode(documents.gap((2, 4), sequence=9))
    assert isinstance(gap, Gap)
    assert gap.loss.ranges == ((2, 4),)
    assert gap.emitted_utc.tzinfo is UTC
    of_sink = decode(altered(documents.gap((2, 4), sequence=9), data__sink="pager"))
    assert isinstance(of_sink, SinkGap)
    assert (of_sink.loss.sink, of_sink.loss.ranges, of_sink.sequence) == ("pager", ((2, 4),), 9)


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b'{"data": 1}', b'{"data": {"kind": ["fight"]}}', altered(documents.drift(), data__change="much"),
     altered(documents.drift(), data__change=10**400), altered(documents.drift(), data__baseline=10**400),
     altered(documents.drift(), data__blocks=float("inf")),
     altered(documents.gap(), data__ranges=[[1]]), altered(documents.event(), data__phase="over")],
)  # fmt: skip
def test_what_is_no_message_is_a_data_error(payload: bytes) -> None:
    with pytest.raises(DataError):
        decode(payload)


@given(JSON, JSON)
def test_no_document_breaks_the_reader(envelope: Any, data: Any) -> None:
    document = json.loads(documents.event()) | {"data": data, "extra": envelope}
    for payload in (json.dumps(document).encode(), json.dumps(envelope).encode(), json.dumps({"data": data}).encode()):
        known = identity(payload)
        assert known is None or 1 <= known.sequence < 1 << 53
        ledger = Ledger(SequenceTracker, lambda _: 0.0)
        (item,) = ledger.receive("gate-1", payload)
        assert isinstance(item, Unreadable | ReceivedEvent)


@given(st.binary(max_size=60), JSON)
def test_no_answer_breaks_the_reader(raw: bytes, document: Any) -> None:
    for payload in (
        raw,
        json.dumps(document).encode(),
        json.dumps({"id": "x", "state": "done", "result": document}).encode(),
    ):
        try:
            request_id, answer = parse_answer(payload)
        except DataError:
            continue
        assert isinstance(request_id, str)
        assert isinstance(answer, ReplayAnswer)


def test_depth_without_end_breaks_no_reader() -> None:
    deep = b"[" * 200_000
    assert identity(deep) is None
    with pytest.raises(DataError):
        decode(deep)
    with pytest.raises(DataError):
        parse_answer(b'{"id": "x", "state": ' + deep)


@pytest.mark.parametrize("sequence", [0, -1, 1.0, True, "1", None, 1 << 53])
def test_a_sequence_that_is_none_is_not_counted(sequence: Any) -> None:
    assert identity(altered(documents.event(), data__sequence=sequence)) is None


# --- ledger -----------------------------------------------------------------------------------------------------------


def test_a_gap_is_yielded_and_what_it_announces_is_not_missing() -> None:
    desk = Desk()
    desk.receive(1, 2)
    (gap,) = desk.ledger.receive("gate-1", documents.gap((3, 4), (7, 8), sequence=10))
    assert isinstance(gap, Gap)
    desk.now_s = 11
    assert desk.ledger.look(ask=False) == Due((MissingRange("gate-1", 5, 6), MissingRange("gate-1", 9, 9)), ())
    assert [event.sequence for event in desk.receive(4)] == [4], "announced, and came all the same"
    assert desk.receive(4) != [], "another id: the device counts anew"


def test_what_one_sink_misses_is_no_gap_of_the_subscriber() -> None:
    desk = Desk()
    desk.receive(1, 2)
    (item,) = desk.receive_again(altered(documents.gap((1, 1), (3, 3), sequence=4), data__sink="pager"))
    assert isinstance(item, SinkGap)
    desk.now_s = 10
    assert desk.ledger.look(ask=False).missing == (MissingRange("gate-1", 3, 3),), "it comes here, or is missing"


def test_nonsense_in_a_gap_is_no_harm() -> None:
    desk = Desk()
    desk.receive(1)
    desk.ledger.receive("gate-1", altered(documents.gap(sequence=2), data__ranges=[[9, 3], [-5, 2], [0, 0]]))
    assert desk.ledger.trackers["gate-1"].current.holes == ()


def test_devices_are_counted_apart_and_by_their_topics() -> None:
    desk = Desk()
    mine = documents.event(3)
    assert [type(item) for item in desk.ledger.receive("gate-1", mine)] == [ReceivedEvent]
    assert desk.ledger.receive("gate-1", mine) == ()
    (claimed,) = desk.ledger.receive("gate-2", mine)
    assert isinstance(claimed, Unreadable)
    assert "gate-2" in claimed.error
    assert desk.ledger.trackers.keys() == {"gate-1"}


def test_a_device_that_counts_anew_is_announced_before_its_event() -> None:
    desk = Desk()
    desk.receive(5, 6, 7)
    restarted, event = desk.receive(6)
    assert restarted == Restarted("gate-1", 6, 7)
    assert event.sequence == 6
    assert [item.sequence for item in desk.receive(1, 2)] == [1, 2]


def test_a_replaced_device_counts_in_a_series_of_its_own_whatever_its_clock_says() -> None:
    desk = Desk()
    of_new_box = [documents.event(sequence, "b" * 12) for sequence in (1, 2, 3)]  # with older ids than all that came
    assert len(desk.receive(*range(1, 51))) == 50
    restarted, *events = desk.receive_again(*of_new_box)
    assert restarted == Restarted("gate-1", 1, 50)
    assert [event.sequence for event in events] == [1, 2, 3]
    assert desk.receive_again(*of_new_box) == []


def test_what_comes_late_of_an_earlier_series_is_counted_there() -> None:
    desk = Desk()
    desk.receive(1, 2, 5, series="a" * 12)
    of_old_box = desk.sent
    assert desk.receive(1, series="b" * 12)[0] == Restarted("gate-1", 1, 5)
    assert [item.sequence for item in desk.receive(4, series="a" * 12)] == [4]
    assert desk.receive_again(*desk.sent, *of_old_box) == []
    assert [item.sequence for item in desk.receive(3, series="b" * 12)] == [3]
    dumped = json.loads(json.dumps({name: one.dump() for name, one in desk.ledger.trackers.items()}))
    later = Desk()
    later.ledger.load(dumped)
    later.now_s = 10
    due = later.ledger.look(ask=True)
    assert due.ask == (("gate-1", ((2, 2),)),)  # nobody can send what is missing of the earlier one
    assert due.missing == (MissingRange("gate-1", 3, 3, "of the numbers before the device counted anew"),)
    assert later.receive_again(*desk.sent, *of_old_box) == []


def test_series_that_come_without_end_are_forgotten() -> None:
    desk = Desk()
    for number in range(100):
        desk.receive(1, series=f"{number:012x}")
    assert len(desk.ledger.trackers["gate-1"].former) == 3


def test_numbers_go_on_where_an_agent_begins_to_name_its_series() -> None:
    desk = Desk()
    desk.receive(1, 2, series="")
    assert [item.sequence for item in desk.receive(3)] == [3]
    assert [item.sequence for item in desk.receive(4, series="")] == [4]  # from before its update, and late


def test_ledgers_go_on_from_what_they_kept() -> None:
    desk, later = Desk(), Desk()
    events = [documents.event(sequence) for sequence in (1, 2, 6)]
    for payload in events:
        desk.ledger.receive("gate-1", payload)
    dumped = json.loads(json.dumps({name: one.dump() for name, one in desk.ledger.trackers.items()}))
    later.ledger.load(dumped)
    assert [item for payload in events for item in later.ledger.receive("gate-1", payload)] == []
    assert later.ledger.wait_s(lambda _: True) == 10
    assert later.ledger.wait_s(lambda _: False) is None
    later.now_s = 10
    assert later.ledger.look(ask=True) == Due((), (("gate-1", ((3, 5),)),))
    assert later.ledger.asked("gate-1", (3, 5), ((4, 4),), "gone") == (MissingRange("gate-1", 4, 4, "gone"),)
    assert [hole.state for hole in later.ledger.trackers["gate-1"].current.holes] == [
        HoleState.ASKED, HoleState.REPORTED, HoleState.ASKED,
    ]  # fmt: skip


def test_a_second_grace_begins_when_asking_is_done() -> None:
    desk = Desk()
    desk.receive(1, 3, 5)
    desk.now_s = 10
    for desk.now_s in (10, 15):
        assert desk.ledger.look(ask=True) == Due((), (("gate-1", ((2, 2), (4, 4))),)), "until it is asked for"
    assert desk.ledger.asked("gate-1", (2, 4), (), "") == ()
    desk.now_s = 24
    assert desk.ledger.look(ask=True) == Due((), ())
    desk.now_s = 25
    assert desk.ledger.look(ask=True).missing == (MissingRange("gate-1", 2, 2), MissingRange("gate-1", 4, 4))


def test_a_hole_that_is_longer_than_a_command_reaches_is_asked_for_once() -> None:
    desk = Desk()
    desk.receive(1, 300_000)
    desk.ledger.asked("gate-1", (200_000, 299_999), (), "")
    desk.now_s = 10
    assert desk.ledger.look(ask=True) == Due((MissingRange("gate-1", 2, 299_999),), ())


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_clock_runs_only_while_both_ends_are_connected() -> None:
    clocks = DeviceClocks()
    assert clocks.time_s("a", 100) == 0
    assert clocks.time_s("a", 105) == 0
    clocks.link(True, 110)
    assert clocks.time_s("a", 112) == 2
    clocks.device("a", False, 113)
    assert clocks.time_s("a", 120) == 3
    assert not clocks.running("a")
    clocks.link(False, 121)
    clocks.device("a", True, 122)
    assert clocks.time_s("a", 130) == 3
    clocks.link(True, 131)
    assert clocks.time_s("a", 135) == 7
    assert clocks.time_s("b", 135) == 0, "first heard of now"


@given(st.lists(st.tuples(st.sampled_from(["link", "device", "look"]), st.booleans(), st.floats(0, 5)), max_size=30))
def test_a_clock_never_goes_back(steps: list[tuple[str, bool, float]]) -> None:
    clocks, now_s, last_s = DeviceClocks(), 0.0, 0.0
    for what, on, wait_s in steps:
        now_s += wait_s
        if what == "link":
            clocks.link(on, now_s)
        elif what == "device":
            clocks.device("a", on, now_s)
        time_s = clocks.time_s("a", now_s)
        assert last_s <= time_s <= now_s
        last_s = time_s


# --- commands ---------------------------------------------------------------------------------------------------------


class Wire:
    """Keeps what is sent, and answers at once."""

    def __init__(self, replays: Replays) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self._replays = replays

    def send(self, topic: str, payload: bytes, *, answer_to: str, correlation: bytes) -> None:
        self.sent.append((topic, payload))
        assert answer_to == f"{topic}/result"
        assert self._replays.take(render_answer(correlation.decode(), "done", "", {"sent": 2, "missing": [[3, 4]]}))


@pytest.mark.parametrize("signed", [False, True])
async def test_the_agent_understands_a_request_and_its_answer_is_understood(tmp_path: Path, signed: bool) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 40 + "\n")
    key.chmod(0o600)
    options = SubscribeOptions(command_client="archive", command_key_file=key) if signed else SubscribeOptions()
    replays = Replays("recognizer", signer=options.signer())
    wire = Wire(replays)
    answer = await replays.request(wire, "gate-1", (3, 9))
    assert answer == ReplayAnswer("done", "", 2, ((3, 4),))
    assert not replays.take(render_answer("another", "done"))
    ((topic, payload),) = wire.sent
    assert topic == Topics("recognizer", "gate-1").command("replay-events")
    config = CommandsConfig.model_validate(
        {"unsigned_role": "viewer", "clients": {"archive": {"role": "operator", "key_file": str(key)}}}
    )
    command = read_command(
        payload,
        "replay-events",
        device="gate-1",
        clients=load_clients(config),
        config=config,
        now_utc=datetime.now(UTC),
    )
    assert command.arguments == {"first": 3, "last": 9}
    assert (command.client, command.role) == (("archive", "operator") if signed else ("", "viewer"))
    if not signed:
        jsonschema.Draft202012Validator(load_schema("command")).validate(json.loads(payload))


@pytest.mark.parametrize(
    ("runs", "request_"),
    [
        ([(3, 5)], (3, 5)),
        ([(3, 5), (7, 7), (100_002, 100_002)], (3, 100_002)),
        ([(3, 5), (7, 7), (100_004, 100_004)], (5, 100_004)),
        ([(3, 5), (200_000, 200_001)], (200_000, 200_001)),
        ([(1, 1 << 53)], ((1 << 53) - 99_999, 1 << 53)),
    ],
)
def test_holes_are_asked_for_together_as_far_as_one_command_reaches(runs: list[Range], request_: Range) -> None:
    assert joined(runs) == request_


def test_the_agents_answers_are_what_the_schema_says() -> None:
    check = jsonschema.Draft202012Validator(load_schema("answer"))
    for state in ("done", "refused", "expired", "failed"):
        check.validate(json.loads(render_answer("x", state, "why")))
    check.validate(json.loads(render_answer("x", "done", "", {"sent": 1})))


@pytest.mark.parametrize("runs", [0, MOST_RUNS, MOST_RUNS + 7])
async def test_the_result_of_a_replay_is_what_the_schema_says(runs: int) -> None:
    async def requeue(first: int, last: int) -> Requeued:
        return Requeued(3, tuple((number, number) for number in range(first, last, 2)), {})

    unused: Any = None
    ports = RemotePorts(**{field.name: unused for field in fields(RemotePorts)} | {"requeue": requeue})
    command = Command("x", "replay-events", {"first": 1, "last": 2 * runs + 1}, "", "admin", datetime.now(UTC))
    result = await Remote(ports).handlers()[command.name](command.arguments, command)
    document = load_schema("answer")
    jsonschema.Draft202012Validator(document["$defs"]["replay_events"]).validate(result)
    assert len(result["missing"]) + result.get("more_missing", 0) == runs


# --- options and state ------------------------------------------------------------------------------------------------


def test_the_signature_of_subscribe_has_every_option() -> None:
    options = get_type_hints(SubscribeOptions)
    assert get_type_hints(OptionNames) == {field.name: options[field.name] for field in fields(SubscribeOptions)}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"device": "a/b"}, "device"),
        ({"device": "#"}, "device"),
        ({"base_topic": "a/+"}, "base_topic"),
        ({"base_topic": "/a"}, "base_topic"),
        ({"base_topic": "a/"}, "base_topic"),
        ({"protocol": 3}, "protocol"),
        ({"protocol": "3.1"}, "protocol"),
        ({"protocol": "v5"}, "protocol"),
        ({"protocol": "3.1.1", "signing_key_file": Path("x")}, "needs protocol 5"),
        ({"cert_file": Path("x")}, "go together"),
        ({"command_client": "archive"}, "go together"),
        ({"grace_s": 0}, "grace_s"),
        ({"window": 0}, "window"),
        ({"reconnect_s": (0.0, 1.0)}, "reconnect_s"),
        ({"max_holes": 1}, "max_holes"),
    ],
)
def test_an_option_that_cannot_be_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SubscribeOptions(**changes)


@pytest.mark.parametrize(
    "address",
    ["broker.example", "http://broker.example", "mqtt://", "mqtt://a/topic", "mqtt://a:99999", "mqtt://a?x=1"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"expected mqtt|[Pp]ort"):
        SubscribeOptions().broker(address, "")


@pytest.mark.parametrize("files", [{"ca_file": "ca.crt"}, {"cert_file": Path("me.crt"), "key_file": Path("me.key")}])
def test_files_of_tls_are_refused_where_nothing_would_be_encrypted(files: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected mqtts://"):
        SubscribeOptions(**files).broker("mqtt://me:secret@broker.example", "")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ca_file": "none.crt"}, "none.crt"),
        ({"ca_file": Path(__file__)}, "test_client_parts.py"),
        ({"cert_file": "none.crt", "key_file": Path("none.key")}, "none.crt, none.key"),
        ({"signing_key_file": "none.key"}, "none.key"),
        ({"signing_key_file": {"gate-1": __file__, "gate-2": "none.key"}}, "none.key"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OSError, match=re.escape(named)):
        SubscribeOptions(**options).broker("mqtts://broker.example", "")


@pytest.mark.parametrize(
    ("protocol", "version"),
    [(5, MQTTProtocolVersion.MQTTv5), ("5", MQTTProtocolVersion.MQTTv5), ("3.1.1", MQTTProtocolVersion.MQTTv311)],
)
def test_the_protocol_is_a_number_or_text(protocol: Any, version: MQTTProtocolVersion) -> None:
    assert SubscribeOptions(protocol=protocol).broker("mqtt://a", "").protocol is version


def test_a_password_does_not_get_into_the_complaint() -> None:
    with pytest.raises(ValueError, match="expected mqtt") as caught:
        SubscribeOptions().broker("https://me:secret@broker.example", "")
    assert "secret" not in str(caught.value)


def test_addresses_say_where_and_as_whom() -> None:
    plain = SubscribeOptions().broker("mqtt://me:se%40cret@[::1]", "")
    assert (plain.host, plain.port, plain.username, plain.password) == ("::1", 1883, "me", "se@cret")
    assert plain.tls is None
    assert plain.session_expiry_s == 0
    assert plain.client_id != SubscribeOptions().broker("mqtt://a", "").client_id
    kept = SubscribeOptions(state_file=Path("x"), username="you").broker("mqtts://me@broker.example", "me-1")
    assert (kept.port, kept.username, kept.client_id, kept.session_expiry_s) == (8883, "you", "me-1", 2_592_000)
    assert kept.tls is not None
    assert SubscribeOptions(client_id="b").broker("mqtt://a:1", "me-1").client_id == "b"


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_state_file_is_replaced_as_a_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "state.json"
    assert state_file.load(path) == state_file.SubscriberState()
    state = state_file.SubscriberState("me", {"gate-1": SequenceTracker().dump()}, ["recognizer/+/status"])
    state_file.save(path, state.as_json())
    assert state_file.load(path) == state
    (tmp_path / "state.json.new").write_bytes(state.as_json()[:cut])  # a crash in mid write
    assert state_file.load(path) == state
    state.client_id = "you"
    state_file.save(path, state.as_json())
    assert state_file.load(path) == state
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_state_file_of_before_filters_were_kept_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"version": 1, "client_id": "me", "devices": {}}')
    assert state_file.load(tmp_path / "state.json") == state_file.SubscriberState("me")


def test_the_documentation_has_every_option_with_its_default_and_examples_that_compile(repo_dir: Path) -> None:
    text = (repo_dir / "docs" / "client.md").read_text(encoding="utf-8")
    documented: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`[a-z_`, ]+`) \|([^|]*)\|", text, re.MULTILINE):
        keys = re.findall(r"[a-z_]+", names)
        values = [default.strip()] if default.strip().startswith("(") else [one.strip() for one in default.split(", ")]
        documented |= dict(zip(keys, values * len(keys) if len(values) == 1 else values, strict=False))
    shown = {"": ("", None), "off": (False,), "(1, 30)": ((1.0, 30.0),)}
    for field in fields(SubscribeOptions):
        said = documented.pop(field.name)
        assert field.default in shown.get(said, ()) or str(field.default) in (said.strip("`"), f"{said}.0"), field.name
    assert not documented
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "docs/client.md", "exec")
        for name in re.findall(r"from agent.client import (.+)", block)[0].split(", "):
            assert hasattr(agent.client, name)
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", text, re.MULTILINE)) <= set(agent.client.__all__)

"""docs/asyncapi.yaml: a whole and consistent AsyncAPI 3.0 document that says what the code does."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes import documents
from fakes.asyncapi import Contract, ContractError

from agent.config.delivery import MqttConfig
from agent.events.cloudevents import CONTENT_TYPE
from agent.mqtt.commands import render_answer, sign_command
from agent.mqtt.discovery import discovery_topic
from agent.mqtt.seal import Seal
from agent.mqtt.topics import Topics
from agent.outbox.envelopes import envelope_of
from agent.types import CameraPhase, Lane, OutboxRecord

CONTRACT = Contract()
DOCUMENT = CONTRACT.document
TOPICS = Topics("recognizer", "gate-1")
TOPIC_OF = {
    "status": TOPICS.status,
    "health": TOPICS.health,
    "cameraState": TOPICS.camera_state("yard"),
    "cameraSnapshot": TOPICS.camera_snapshot("yard"),
    "cameraEvents": TOPICS.event("yard", "fight"),
    "deviceEvents": TOPICS.event("", "gap"),
    "otaState": TOPICS.ota_state,
    "commands": TOPICS.command("reload"),
    "answers": TOPICS.command_result("reload"),
    "homeAssistant": discovery_topic("homeassistant", TOPICS),
    "homeAssistantStatus": "homeassistant/status",
}


def pointer(node: dict[str, str]) -> str:
    return node["$ref"]


def test_the_document_has_the_parts_of_asyncapi_3() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert set(DOCUMENT) == {
        "asyncapi", "id", "info", "defaultContentType", "servers", "channels", "operations", "components",
    }  # fmt: skip
    assert {"title", "version"} <= set(DOCUMENT["info"])
    for server in DOCUMENT["servers"].values():
        assert set(server) <= {"host", "protocol", "description", "security", "bindings"}
        assert server["protocol"] in ("mqtt", "secure-mqtt")
    for channel in DOCUMENT["channels"].values():
        assert {"address", "title", "parameters", "messages"} <= set(channel)
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel["parameters"])
    for parameter in DOCUMENT["components"]["parameters"].values():
        assert set(parameter) <= {"enum", "default", "description", "examples", "location"}
    for message in DOCUMENT["components"]["messages"].values():
        assert set(message) <= {"contentType", "summary", "headers", "payload", "bindings", "examples"}


def test_every_reference_leads_somewhere() -> None:
    references = list(CONTRACT.references())
    assert len(references) > 30
    for node in references:
        assert CONTRACT.resolve(node)


def test_every_operation_names_a_channel_and_messages_of_that_channel() -> None:
    used = set()
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        for place in (operation, operation.get("reply", {})):
            for node in place.get("messages", []):
                assert pointer(node).startswith(f"{pointer(place['channel'])}/messages/")
        places = [operation, operation["reply"]] if "reply" in operation else [operation]
        used |= {pointer(place["channel"]).removeprefix("#/channels/") for place in places}
    assert used == set(DOCUMENT["channels"])
    assert [name for name, one in DOCUMENT["operations"].items() if one["action"] == "receive"] == [
        "hearOfHomeAssistant",
        "obey",
    ]


def test_every_component_is_used() -> None:
    targets = {pointer(node) for node in CONTRACT.references()}
    for kind, members in DOCUMENT["components"].items():
        assert {f"#/components/{kind}/{name}" for name in members} <= targets


def test_every_topic_of_the_code_is_a_channel_and_every_channel_one_of_the_code() -> None:
    assert {name: CONTRACT.channel_of(topic) for name, topic in TOPIC_OF.items()} == {name: name for name in TOPIC_OF}
    assert set(TOPIC_OF) == set(DOCUMENT["channels"])
    assert CONTRACT.channel_of(TOPICS.event("yard", "drift")) == "cameraEvents"


@pytest.mark.parametrize(
    "topic",
    [
        "recognizer/gate-1", "recognizer/gate-1/", "recognizer/gate-1/status/x", "recognizer/a/b/status",
        "recognizer/gate-1/events", "recognizer/gate-1/events/a/b/c", "recognizer/gate 1/status", "x/gate-1/status",
        "recognizer/gate-1/cameras/yard", "recognizer/gate-1/cmd", "recognizer/gate-1/cmd/reload/results",
    ],
)  # fmt: skip
def test_another_topic_is_of_no_channel(topic: str) -> None:
    with pytest.raises(ContractError, match="of no channel"):
        CONTRACT.channel_of(topic)


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["messages"].keys() - {"snapshot"}))
def test_every_message_has_an_example_and_it_is_valid(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    assert message["examples"]
    for example in message["examples"]:
        CONTRACT.validator(message).validate(example["payload"])


def test_payloads_refer_to_the_schemas_that_are_shipped() -> None:
    """One source of truth: none is repeated in the document, none is forgotten."""
    shipped = {path.name for path in (CONTRACT.file.parent.parent / "agent" / "events" / "schemas").iterdir()}
    messages = DOCUMENT["components"]["messages"]
    named = [pointer(message["payload"]) for name, message in messages.items() if name not in ("signed", "snapshot")]
    assert sorted(named) == sorted(f"../agent/events/schemas/{name}" for name in shipped)


def test_bindings_say_what_the_client_does() -> None:
    for name, operation in DOCUMENT["operations"].items():
        binding = operation["bindings"]["mqtt"]
        channel = pointer(operation["channel"]).removeprefix("#/channels/")
        assert binding["qos"] == 1
        assert binding["retain"] is (channel in ("status", "health", "cameraState", "otaState", "homeAssistant")), name
    for server in DOCUMENT["servers"].values():
        session = server["bindings"]["mqtt"]
        assert session["lastWill"] == {"topic": TOPICS.status, "qos": 1, "message": "offline", "retain": True}
        assert session["keepAlive"] == MqttConfig().keepalive_s
        assert "cleanSession" not in session  # with a subscription another one than without


def test_nothing_that_the_code_sends_is_called_reserved() -> None:
    """`channels` are those of the code."""
    assert not [name for name, one in DOCUMENT["operations"].items() if "reserved" in one.get("summary", "").lower()]


def test_the_documentation_of_topics_has_the_same_channels(repo_dir: Path) -> None:
    text = (repo_dir / "docs" / "mqtt.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\[?`.*?) \|", text.split("\n## ")[0], re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    described = {
        re.sub(r"{(\w+)}", r"<\1>", channel["address"].removeprefix("recognizer/{device}/"))
        for channel in DOCUMENT["channels"].values()
        if channel["address"].startswith("recognizer/")
    }
    assert {re.sub(r"<command>", "<name>", name) for name in described} - {
        "cmd/<name>/result",
        "events/<kind>",
        "cameras/<camera>/snapshot",
    } <= (documented)


@pytest.mark.parametrize(
    ("topic", "payload", "expected"),
    [
        (TOPIC_OF["cameraEvents"], documents.event(), ("cameraEvents", "event")),
        (TOPICS.event("yard", "drift"), documents.drift(), ("cameraEvents", "drift")),
        (TOPIC_OF["deviceEvents"], documents.gap(), ("deviceEvents", "gap")),
        (TOPIC_OF["status"], b"offline", ("status", "status")),
        (TOPIC_OF["cameraSnapshot"], b"\xff\xd8\xff\xe0 and more", ("cameraSnapshot", "snapshot")),
        (TOPIC_OF["cameraState"], json.dumps(documents.camera(phase=CameraPhase.BLIND)).encode(),
         ("cameraState", "camera")),
    ],
)  # fmt: skip
def test_produced_messages_are_told_apart(topic: str, payload: bytes, expected: tuple[str, str]) -> None:
    assert CONTRACT.check(topic, payload) == expected


def test_a_signed_command_is_told_from_a_plain_one() -> None:
    expires = datetime.now(UTC)
    token = sign_command("reload", "c-1", {}, device="gate-1", client="me", key=b"k" * 32, expires_utc=expires)
    assert CONTRACT.check(TOPIC_OF["commands"], token) == ("commands", "signed")
    plain = {"id": "c-1", "expires": expires.isoformat(), "arguments": {}}
    assert CONTRACT.check(TOPIC_OF["commands"], json.dumps(plain).encode()) == ("commands", "command")
    assert CONTRACT.check(TOPIC_OF["answers"], render_answer("c-1", "done")) == ("answers", "answer")


@pytest.mark.parametrize("compression", ["none", "deflate", "gzip"])
@pytest.mark.parametrize("key", [None, b"k" * 32])
@pytest.mark.parametrize(
    ("name", "payload"),
    [("event", documents.event()), ("drift", documents.drift()), ("gap", documents.gap())],
    ids=["event", "drift", "gap"],
)
def test_what_goes_along_with_an_event_is_in_its_headers(
    name: str, payload: bytes, key: bytes | None, compression: str
) -> None:
    record = OutboxRecord(1, Lane.ALARM, 4711, "e1", "t", payload, CONTENT_TYPE, False, documents.NOON, 0)
    sent, envelope = Seal(compression, key, "gate-1")(payload, envelope_of(record, None, documents.NOON))
    headers = CONTRACT.resolve(DOCUMENT["components"]["messages"][name]["headers"])
    found = dict(envelope.user_properties)
    jsonschema.Draft202012Validator(headers).validate(found)
    assert set(found) <= set(headers["properties"])
    assert ("signature" in found) is (key is not None)
    assert ("content-encoding" in found) is (sent != payload) is (compression != "none")


def test_no_other_message_has_headers() -> None:
    messages = DOCUMENT["components"]["messages"]
    assert {name for name, message in messages.items() if "headers" in message} == {"event", "drift", "gap"}


def altered(payload: bytes, **changes: Any) -> bytes:
    document = json.loads(payload)
    document["data"] |= changes
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (TOPIC_OF["status"], b'"online"'),
        (TOPIC_OF["status"], b""),
        (TOPIC_OF["cameraSnapshot"], b"GIF89a"),
        (TOPIC_OF["health"], b"{}"),
        (TOPIC_OF["health"], b"not JSON"),
        (TOPIC_OF["cameraEvents"], b'{"sequence": 1, "id": "x"}'),
        (TOPIC_OF["cameraEvents"], documents.gap()),
        (TOPIC_OF["cameraEvents"], altered(documents.event(), confidence=float("nan"))),
        (TOPIC_OF["cameraEvents"], altered(documents.event(), camera="door")),
        (TOPIC_OF["cameraEvents"], altered(documents.event(), device="gate-2")),
        (TOPICS.event("yard", "fall"), documents.event()),
        (TOPICS.event("", "fight"), documents.event()),
        (TOPICS.camera_state("door"), json.dumps(documents.camera()).encode()),
        ("recognizer/gate-1/news", b"{}"),
    ],
)
def test_what_is_not_in_the_contract_is_refused(topic: str, payload: bytes) -> None:
    with pytest.raises(ContractError):
        CONTRACT.check(topic, payload)

"""Commands to a running agent: what a control room can do, what it cannot, and the record of both."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import jsonschema
import numpy as np
import paho.mqtt.client as paho
import pytest
from fakes.brokers import Mosquitto
from harness import AgentProcess, wait_for
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.events.cloudevents import load_schema
from agent.mqtt.commands import sign_command
from agent.outbox.history import EventArchive

pytestmark = pytest.mark.mosquitto

KEYS = {"control": b"c" * 32, "chief": b"d" * 32}
ANSWER = jsonschema.Draft202012Validator(load_schema("answer"))


class ControlRoom:
    """Signs commands, waits for their answers, keeps everything else that it hears."""

    def __init__(self, port: int) -> None:
        self.answers: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
        self.heard: list[tuple[str, bytes]] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "control-room", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe([("control/answers", 1), ("recognizer/#", 1)])
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if message.topic == "control/answers":
            assert message.properties is not None
            self.answers.put((json.loads(message.payload), message.properties.CorrelationData))
        else:
            self.heard.append((message.topic, message.payload))

    def ask(
        self, name: str, arguments: dict[str, Any] | None = None, *, client: str = "control", command_id: str = ""
    ) -> dict[str, Any]:
        """The answer."""
        command_id = command_id or str(uuid4())
        payload = sign_command(
            name, command_id, arguments or {}, device="box", client=client, key=KEYS[client],
            expires_utc=datetime.now(UTC) + timedelta(minutes=1),
        )  # fmt: skip
        self.send(name, payload, command_id.encode())
        answer, correlation = self.answers.get(timeout=20)
        assert correlation == command_id.encode()
        assert answer["id"] == command_id
        ANSWER.validate(answer)
        return answer

    def send(self, name: str, payload: bytes, correlation: bytes = b"x") -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = "control/answers"
        properties.CorrelationData = correlation
        self._client.publish(f"recognizer/box/cmd/{name}", payload, qos=1, properties=properties)

    def events(self) -> list[int]:
        """Sequences of the events that came, repetitions included."""
        return [json.loads(payload)["data"]["sequence"] for topic, payload in list(self.heard) if "/events/" in topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def room(broker: Mosquitto) -> Iterator[ControlRoom]:
    room = ControlRoom(broker.port)
    yield room
    room.close()


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    clients = {}
    for name, role in (("control", "operator"), ("chief", "admin")):
        file = tmp_path / f"{name}.key"
        file.write_bytes(KEYS[name])
        file.chmod(0o600)
        clients[name] = {"role": role, "key_file": str(file)}
    commands = {"enabled": True, "clients": clients}
    agent = AgentProcess(tmp_path, mqtt_port=broker.port, script=[0.9, 0.9, 0.1, 0.1], commands=commands)
    agent.start()
    yield agent
    agent.kill()


def test_a_control_room_sees_slows_replays_tests_and_reloads(agent: AgentProcess, room: ControlRoom) -> None:
    wait_for(lambda: len(room.events()) >= 6, "events")

    answer = room.ask("snapshot", {"camera": "cam"})
    assert answer["state"] == "done"
    (picture,) = [payload for topic, payload in room.heard if topic == answer["result"]["topic"]]
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (240, 320, 3)

    answer = room.ask("set-level", {"degradation": 2, "for_s": 60, "log": "debug"})
    assert answer["result"] == {"degradation": 2, "for_s": 60.0, "log": "debug"}
    wait_for(lambda: agent.get("/health")["degradation_step"] == 2, "the step")
    assert "held by control" in json.dumps(agent.get("/api/v1/state")["health"])
    room.ask("set-level", {"degradation": 0})
    wait_for(lambda: agent.get("/health")["degradation_step"] == 0, "full service again")

    wait_for(lambda: room.events().count(2) == 1, "the second event")
    answer = room.ask("replay-events", {"first": 2, "last": 4})
    assert answer["result"] == {"sent": 3, "missing": []}
    wait_for(lambda: all(room.events().count(n) == 2 for n in (2, 3, 4)), "three events again")
    assert room.events().count(1) == room.events().count(5) == 1
    assert room.ask("replay-events", {"first": 900_000, "last": 900_001})["result"]["missing"] == [[900_000, 900_001]]

    answer = room.ask("self-test")
    assert answer["result"]["good"], answer
    assert {"database", "camera cam", "pose"} <= {finding["what"] for finding in answer["result"]["findings"]}

    assert room.ask("accept-view", {"camera": "cam"})["result"] == {"camera": "cam", "was_moved": False}

    agent.document["log"] = {"level": "warning"}
    agent.document["device_id"] = "other"
    agent.write_config()
    assert room.ask("reload", client="chief")["result"] == {"needs_restart": ["device_id"]}
    agent.config.write_text("{")
    answer = room.ask("reload", client="chief")
    assert answer["state"] == "failed"
    assert "agent.yaml" in answer["detail"]


def test_what_is_not_allowed_is_refused_and_everything_is_on_record(agent: AgentProcess, room: ControlRoom) -> None:
    assert "may not reload" in room.ask("reload")["detail"]
    assert room.ask("format-disk")["state"] == "refused"
    assert room.ask("snapshot", {"camera": "none"})["state"] == "refused"
    assert "no camera 'none'" in room.ask("accept-view", {"camera": "none"})["detail"]
    assert "last" in room.ask("replay-events", {"first": 2})["detail"]
    assert "extra" in room.ask("self-test", {"x": 1})["detail"].lower()
    expires = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    room.send("self-test", json.dumps({"id": "plain", "expires": expires}).encode())
    answer, _ = room.answers.get(timeout=20)
    assert (answer["id"], answer["state"]) == ("plain", "refused")
    for payload in (b"", b"\xff" * 100, b"{" * 30_000, b"x" * 100_000):
        room.send("self-test", payload)
    assert room.ask("self-test", command_id="again")["state"] == "done"
    assert agent.stop() == 0
    agent.start()
    first = room.ask("self-test", command_id="again")
    assert first["state"] == "done"
    assert agent.stop() == 0
    with EventArchive(agent.state_dir / "events.db") as archive:
        entries = archive.commands(1000)
    by_id = {entry.command_id: entry for entry in entries}
    assert (by_id["again"].client, by_id["again"].role, by_id["again"].state) == ("control", "operator", "done")
    assert json.loads(by_id["again"].answer or b"") == first
    assert sum(entry.state == "refused" for entry in entries) >= 7


def test_a_command_that_was_sent_while_the_agent_was_away_is_done_when_it_is_back(
    agent: AgentProcess, room: ControlRoom
) -> None:
    room.ask("self-test")
    agent.kill()
    payload = sign_command(
        "self-test", "waited", {}, device="box", client="control", key=KEYS["control"],
        expires_utc=datetime.now(UTC) + timedelta(minutes=5),
    )  # fmt: skip
    room.send("self-test", payload)
    time.sleep(0.5)
    agent.start()
    answer, _ = room.answers.get(timeout=20)
    assert (answer["id"], answer["state"]) == ("waited", "done")

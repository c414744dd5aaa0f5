"""The daemon as a process: real video file, real broker, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from fakes.brokers import MOSQUITTO, Mosquitto, Subscriber, free_port
from harness import AgentProcess, wait_for

from agent.events.cloudevents import load_schema
from agent.outbox.history import EventArchive, EventQuery

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs Mosquitto (Debian package mosquitto)"),
]

FIGHT_ON_AND_OFF = [0.9, 0.1]
QUIET = [0.1]
MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path / "broker", "autosave_interval 1", "autosave_on_changes true")
    mosquitto.start()
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def make_agent(tmp_path: Path, broker: Mosquitto) -> Iterator[MakeAgent]:
    made: list[AgentProcess] = []

    def make(script: list[float], **overrides: object) -> AgentProcess:
        made.append(AgentProcess(tmp_path, mqtt_port=broker.port, script=script, **overrides))
        return made[-1]

    yield make
    for agent in made:
        agent.kill()


def sequences(subscriber: Subscriber) -> list[int]:
    """Sequence numbers in order of arrival, repeated ids left out."""
    seen: dict[str, int] = {}
    for event in subscriber.events():
        seen.setdefault(event["id"], event["data"]["sequence"])
    return list(seen.values())


def test_subscriber_sees_status_health_camera_and_valid_events(broker: Mosquitto, make_agent: MakeAgent) -> None:
    subscriber = Subscriber(broker.port)
    agent = make_agent(FIGHT_ON_AND_OFF)
    agent.start()
    wait_for(lambda: len(subscriber.events()) >= 10, "ten events")
    wait_for(lambda: subscriber.payloads("/cameras/cam/state"), "the camera's state")
    assert agent.stop() == 0
    wait_for(lambda: subscriber.payloads("box/status")[-1:] == [b"offline"], "a goodbye")
    subscriber.close()

    assert subscriber.payloads("box/status")[0] == b"online"
    assert json.loads(subscriber.payloads("box/health")[0])["level"] in ("ok", "degraded")
    states = [json.loads(payload)["state"] for payload in subscriber.payloads("/cameras/cam/state")]
    assert states[0] in ("connecting", "streaming")
    assert states[-1] == "offline"
    validator = jsonschema.Draft202012Validator(load_schema())
    events = subscriber.events()
    for event in events:
        validator.validate(event)
    assert {event["type"] for event in events} >= {"recognizer.event.started.v1", "recognizer.event.ended.v1"}
    assert sequences(subscriber) == list(range(1, len(sequences(subscriber)) + 1))


def test_every_sequence_number_arrives_through_broker_and_agent_deaths(
    broker: Mosquitto, make_agent: MakeAgent
) -> None:
    subscriber = Subscriber(broker.port, topic="recognizer/box/events/#")
    agent = make_agent(FIGHT_ON_AND_OFF)
    agent.start()
    wait_for(lambda: len(sequences(subscriber)) >= 10, "events before the broker dies")
    broker.stop()
    time.sleep(1.5)
    broker.start()
    before = len(sequences(subscriber))
    wait_for(lambda: len(sequences(subscriber)) >= before + 20, "events after the broker's death")
    agent.kill()
    agent.start()
    before = len(sequences(subscriber))
    wait_for(lambda: len(sequences(subscriber)) >= before + 20, "events after the agent's death")
    broker.stop()
    agent.kill()
    time.sleep(0.5)
    broker.start()
    agent.start()
    before = len(sequences(subscriber))
    wait_for(lambda: len(sequences(subscriber)) >= before + 20, "events after both died")
    assert agent.stop() == 0
    with EventArchive(agent.state_dir / "events.db") as archive:
        committed = [row.sequence for row in archive.events(EventQuery(limit=None))]
    wait_for(lambda: len(sequences(subscriber)) >= len(committed), "the rest of the events")
    subscriber.close()

    assert sequences(subscriber) == sorted(sequences(subscriber)), "in order"
    assert sequences(subscriber) == committed, "each committed event once"


def test_incident_that_a_crash_left_open_is_closed_at_the_next_start(broker: Mosquitto, make_agent: MakeAgent) -> None:
    subscriber = Subscriber(broker.port)
    agent = make_agent([0.9])
    agent.start()
    wait_for(lambda: [e for e in subscriber.events() if e["data"]["phase"] == "active"], "an open incident")
    agent.kill()
    agent.start()
    ended = wait_for(lambda: [e for e in subscriber.events() if e["data"]["phase"] == "resolved"], "its end")
    subscriber.close()
    assert ended[0]["data"]["incident_id"] == subscriber.events()[0]["data"]["incident_id"]
    assert ended[0]["data"]["reason"] == "restart"


def test_reload_applies_thresholds_and_cameras_and_keeps_the_old_when_bad(make_agent: MakeAgent) -> None:
    agent = make_agent(FIGHT_ON_AND_OFF)
    agent.start()
    wait_for(lambda: agent.get("/api/v1/events")["events"], "events")

    agent.document["services"]["fight"]["rules"]["alert_threshold"] = 0.95
    agent.document["cameras"].append(agent.document["cameras"][0] | {"id": "second"})
    agent.document["mqtt"]["port"] = 1
    agent.write_config()
    agent.signal(signal.SIGHUP)
    wait_for(lambda: [c["camera"] for c in agent.get("/api/v1/state")["cameras"]] == ["cam", "second"], "a camera more")
    reasons = {r["reason"]: r["detail"] for r in agent.get("/health")["reasons"]}
    assert "mqtt.port" in reasons["config_reload"]
    time.sleep(0.5)
    count = len(agent.get("/api/v1/events?limit=1000")["events"])
    time.sleep(1.5)
    assert len(agent.get("/api/v1/events?limit=1000")["events"]) == count, "0.9 no longer alerts"

    agent.config.write_text("cameras: [{id: cam}]\n")
    agent.signal(signal.SIGHUP)
    wait_for(
        lambda: (
            "cameras.0.source"
            in {r["reason"]: r["detail"] for r in agent.get("/health")["reasons"]}.get("config_reload", "")
        ),
        "the refusal",
    )
    agent.config.write_text("state_dir: ~nobody-has-this-name/state\n")
    agent.signal(signal.SIGHUP)
    wait_for(
        lambda: "no home folder" in str(agent.get("/health")["reasons"]), "the refusal of what is no path on this box"
    )
    assert agent.camera_states() == {"cam": "streaming", "second": "streaming"}


def test_a_reload_that_is_asked_for_at_once_does_not_end_the_agent(make_agent: MakeAgent) -> None:
    agent = make_agent(QUIET)
    agent.start(ready=False)

    def ignores_hangups() -> bool:
        (ignored,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{agent.pid}/status").read_text(), re.MULTILINE)
        return bool(int(ignored, 16) >> (signal.SIGHUP - 1) & 1)

    wait_for(ignores_hangups, "it does not end by a hangup any more")
    agent.signal(signal.SIGHUP)
    wait_for(agent.is_ready, "agent ready")
    assert agent.stop() == 0


def test_service_manager_is_told_and_the_watchdog_fed(make_agent: MakeAgent, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(tmp_path / "notify")
        notify.bind(path)
        notify.settimeout(20)
        agent = make_agent(QUIET)
        agent.start(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"})
        told = [notify.recv(4096).decode()]
        while sum("WATCHDOG=1" in text for text in told) < 3:
            told.append(notify.recv(4096).decode())
        agent.signal(signal.SIGHUP)
        while not any("RELOADING=1" in text and "MONOTONIC_USEC=" in text for text in told):
            told.append(notify.recv(4096).decode())
        agent.signal(signal.SIGTERM)
        while not any("STOPPING=1" in text for text in told):
            told.append(notify.recv(4096).decode())
        assert agent.wait() == 0
    ready = next(n for n, text in enumerate(told) if "READY=1" in text)
    assert "EXTEND_TIMEOUT_USEC=" in told[0]  # a database of gigabytes may be checked now
    assert not any("EXTEND_TIMEOUT_USEC=" in text for text in told[ready:])
    assert not any("WATCHDOG=1" in text for text in told[:ready]) or ready < 7
    assert any("STATUS=" in text for text in told)


def test_offline_broker_and_camera_do_not_keep_the_agent_from_starting(make_agent: MakeAgent) -> None:
    agent = make_agent(QUIET)
    agent.document["mqtt"]["port"] = free_port()
    agent.document["cameras"].append({"id": "gone", "source": "rtsp://127.0.0.1:1/none", "read_timeout_s": 2})
    agent.write_config()
    agent.start()
    wait_for(
        lambda: {"mqtt_offline", "camera_offline:gone"} <= {r["reason"] for r in agent.get("/health")["reasons"]},
        "both named",
    )
    wait_for(lambda: agent.camera_states()["cam"] == "streaming", "the good camera")
    assert agent.stop() == 0


def test_port_in_use_is_named_and_costs_only_the_pages(broker: Mosquitto, make_agent: MakeAgent) -> None:
    subscriber = Subscriber(broker.port)
    agent = make_agent(FIGHT_ON_AND_OFF)
    with socket.create_server(("127.0.0.1", agent.http_port)):
        agent.start(ready=False)
        wait_for(subscriber.events, "events without pages")
        assert f"cannot listen on 127.0.0.1:{agent.http_port}" in agent.log_text()
    assert agent.stop() == 0
    subscriber.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_state_folder_is_a_clear_error(make_agent: MakeAgent) -> None:
    agent = make_agent(QUIET)
    agent.state_dir.mkdir()
    agent.state_dir.chmod(0o500)
    agent.start(ready=False)
    assert agent.wait() == 1
    assert "cannot be written" in agent.log_text()
    assert "Traceback" not in agent.log_text()


def test_state_folder_that_is_a_file_is_a_clear_error(make_agent: MakeAgent) -> None:
    agent = make_agent(QUIET)
    agent.state_dir.write_text("")
    agent.start(ready=False)
    assert agent.wait() == 1
    assert "cannot be written" in agent.log_text()
    assert "Traceback" not in agent.log_text()


def test_second_agent_on_the_same_state_is_refused(make_agent: MakeAgent) -> None:
    first = make_agent(QUIET)
    first.start()
    second = make_agent(QUIET, http={"port": free_port()})
    second.log = second.folder / "second.log"
    second.start(ready=False)
    assert second.wait() == 1
    assert "already in use by another process" in second.log_text()
    assert "Traceback" not in second.log_text()


def test_model_that_is_missing_ends_with_a_clear_error(make_agent: MakeAgent) -> None:
    agent = make_agent(QUIET)
    agent.document["services"]["fight"] = {"model": str(agent.folder / "absent")}
    agent.write_config()
    agent.start(ready=False)
    assert agent.wait() in (1, 78)
    assert "absent" in agent.log_text()
    assert "Traceback" not in agent.log_text()

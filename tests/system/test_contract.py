"""Whatever a running agent sends is in docs/asyncapi.yaml."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from fakes.asyncapi import Contract, ContractError
from fakes.brokers import MOSQUITTO, Mosquitto, Subscriber
from harness import AgentProcess, wait_for

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs Mosquitto (Debian package mosquitto)"),
]


def test_every_message_of_a_running_agent_is_valid_on_its_channel(tmp_path: Path) -> None:
    """Events, a camera that fails, one that comes and goes, a bad reload, a broker that restarts, a crash, a clean stop; all the
    time a fleet server that is not there."""
    broker = Mosquitto(tmp_path / "broker", "autosave_interval 1", "autosave_on_changes true")
    broker.start()
    subscriber = Subscriber(broker.port)
    agent = AgentProcess(tmp_path, mqtt_port=broker.port, script=[0.9, 0.9, 0.1])
    agent.document["mqtt"]["discovery"] = {"enabled": True}
    agent.document["cameras"].append({"id": "gone", "source": "rtsp://127.0.0.1:1/none", "read_timeout_s": 2})
    (tmp_path / "root.json").write_text("{}")
    nobody = {"server": "http://127.0.0.1:9", "repository": "http://127.0.0.1:9/repository"}
    agent.document["update"] = {"enabled": True, "root_file": str(tmp_path / "root.json"), **nobody}
    agent.write_config()
    try:
        agent.start()
        wait_for(lambda: len(subscriber.events()) >= 10, "ten events")
        agent.document["cameras"].append(agent.document["cameras"][0] | {"id": "second"})
        agent.write_config()
        agent.signal(signal.SIGHUP)
        wait_for(lambda: subscriber.payloads("/cameras/second/state"), "a camera more")
        agent.document["cameras"].pop()
        agent.write_config()
        agent.signal(signal.SIGHUP)
        wait_for(lambda: b"not watched any more" in subscriber.payloads("/cameras/second/state")[-1], "it is gone")
        agent.config.write_text("cameras: [{id: cam}]\n")
        agent.signal(signal.SIGHUP)
        wait_for(lambda: b"config_reload" in subscriber.payloads("/health")[-1], "the refusal")
        broker.stop()
        time.sleep(0.5)
        broker.start()
        before = len(subscriber.events())
        wait_for(lambda: len(subscriber.events()) >= before + 5, "events after the broker's restart")
        agent.kill()
        agent.write_config()
        agent.start()
        wait_for(lambda: any(e["data"].get("reason") == "normal" for e in subscriber.events()), "an end")
        assert agent.stop() == 0
        wait_for(lambda: subscriber.payloads("box/status")[-1:] == [b"offline"], "a goodbye")
    finally:
        agent.kill()
        broker.kill()
        subscriber.close()

    contract, seen, wrong = Contract(), Counter[tuple[str, str]](), []
    for topic, payload, _ in subscriber.messages:
        try:
            seen[contract.check(topic, payload)] += 1
        except ContractError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong[:5])
    assert set(seen) == {
        ("status", "status"), ("health", "health"), ("cameraState", "camera"), ("cameraEvents", "event"),
        ("homeAssistant", "discovery"), ("otaState", "ota"),
    }, seen  # fmt: skip
    assert json.loads(subscriber.payloads("/ota/state")[-1])["server"]["state"] in {"offline", "unknown"}
    entities = json.loads(subscriber.payloads("homeassistant/")[-1])["components"]
    assert entities["cam.service.fight"]["state_topic"] == "recognizer/box/events/cam/fight"
    assert entities["second.fps"] == {"platform": "sensor"}, "taken back, also by the next run"
    states = {json.loads(payload)["state"] for payload in subscriber.payloads("/cameras/")}
    assert {"streaming", "offline"} <= states

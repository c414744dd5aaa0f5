"""The drift watch in a running agent: people whose scores fall, seen by a subscriber and in the database."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import jsonschema
import numpy as np
import pytest
from fakes.brokers import MOSQUITTO, Mosquitto, Subscriber
from fakes.plugin import save_recording
from fakes.replay import walkers
from harness import SIZE, AgentProcess, wait_for

from agent.events.cloudevents import load_schema
from agent.outbox.history import EventArchive, EventQuery
from agent.types import People

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs Mosquitto (Debian package mosquitto)"),
]

SURE_FRAMES = 300
UNSURE_FRAMES = 200
QUICK = {
    "block_s": 0.5, "min_samples": 5, "warmup_h": 6 / 3600, "min_blocks": 8, "alarm_after_h": 1 / 3600,
    "clear_after_h": 1 / 3600, "false_alarm_every_days": 0.001, "latency_rise": 100,
}  # fmt: skip


def less_sure(people: People) -> People:
    """As a dirty lens would have it: every score a quarter lower."""
    return replace(people, scores=people.scores * np.float32(0.75), keypoint_scores=people.keypoint_scores.copy())


@pytest.mark.slow
def test_falling_confidence_reaches_database_subscriber_health_and_metrics(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    broker.start()
    subscriber = Subscriber(broker.port, topic="recognizer/box/events/cam/drift")
    agent = AgentProcess(tmp_path, mqtt_port=broker.port, script=[0.1], drift=QUICK)
    scene = walkers(2, SURE_FRAMES + UNSURE_FRAMES, size=(SIZE[1], SIZE[0]))
    recording = scene[:SURE_FRAMES] + [less_sure(people) for people in scene[SURE_FRAMES:]]
    save_recording(tmp_path / "poses.npz", recording)
    try:
        agent.start()
        (started, *_) = wait_for(subscriber.events, "a drift event", timeout_s=90)
        reasons = [reason["reason"] for reason in agent.get("/health")["reasons"]]
        with urlopen(f"http://127.0.0.1:{agent.http_port}/metrics", timeout=5) as response:
            metrics = response.read().decode()
        wait_for(lambda: len(subscriber.events()) > 1, "its end, when the recording starts again", timeout_s=60)
        assert agent.stop() == 0
    finally:
        agent.kill()
        broker.kill()
        subscriber.close()

    validator = jsonschema.Draft202012Validator(load_schema("drift"))
    for event in subscriber.events():
        validator.validate(event)
    assert started["type"] == "recognizer.drift.started.v1"
    assert started["data"]["signal"] == "person_confidence"
    assert started["data"]["model"] == "replay-1"
    assert started["data"]["baseline"] == pytest.approx(0.9, abs=0.02)
    assert started["data"]["change"] == pytest.approx(-0.25, abs=0.1)
    assert subscriber.events()[1]["type"] == "recognizer.drift.ended.v1"
    assert subscriber.events()[1]["data"]["incident_id"] == started["data"]["incident_id"]
    assert "model_drift:pose/person_confidence/cam" in reasons
    assert 'recognizer_model_drift{model_name="replay-1",signal="person_confidence"}' in metrics
    assert "recognizer_model_accuracy{" not in metrics, "nothing real was measured"
    with EventArchive(agent.state_dir / "events.db") as archive:
        rows = [row for row in archive.events(EventQuery(limit=None)) if row.kind == "drift"]
    assert [json.loads(row.payload)["id"] for row in rows][:2] == [event["id"] for event in subscriber.events()][:2]
    assert (agent.state_dir / "drift.json").exists()

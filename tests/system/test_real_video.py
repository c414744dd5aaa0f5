"""The whole way on real footage with a real estimator: PoseNet through its plug-in, an HTTP stream, Mosquitto."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.brokers import MOSQUITTO, Mosquitto, Subscriber, free_port
from harness import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.mosquitto,
    pytest.mark.timeout(240),
    pytest.mark.skipif(MOSQUITTO is None, reason="needs Mosquitto (Debian package mosquitto)"),
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg"),
]

MODEL = "models/posenet/posenet_mobilenet_v1_075_353_481_quant.tflite"
CLEAR_FIGHT = "data/fight/fight/fi143.mp4"


@contextlib.contextmanager
def process(*command: object, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is terminated at the end and must then end by itself."""
    running = subprocess.Popen([str(part) for part in command], env=env)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


@contextlib.contextmanager
def agent(repo: Path, shared: Path, folder: Path, document: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """`recognizer-agent run` with the shipped PoseNet configuration."""
    pytest.importorskip("recognizer_posenet_litert", reason="needs the plug-in examples/plugins/posenet_litert")
    config = folder / "agent.yaml"
    config.write_text(
        json.dumps({"device_id": "box", "state_dir": str(folder / "state"), "http": {"port": 0}} | document)
    )
    environment = os.environ | {"POSENET_MODEL": str(shared / MODEL)}
    command = (sys.executable, "-m", "agent", "run", "--config", repo / "configs/posenet.yaml", "--config", config)
    with process(*command, env=environment) as running:
        yield running


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path / "broker")
    mosquitto.start()
    yield mosquitto
    mosquitto.kill()


def test_people_in_a_car_park_are_watched_and_the_first_seconds_alarm_nobody(
    repo_dir: Path, shared_dir: Path, tmp_path: Path, broker: Mosquitto
) -> None:
    subscriber = Subscriber(broker.port)
    camera = {"id": "yard", "source": str(shared_dir / "data/video/vtest.avi"), "pace": True}
    with agent(repo_dir, shared_dir, tmp_path, {"cameras": [camera], "mqtt": {"port": broker.port}}):
        wait_for(lambda: b'"streaming"' in b"".join(subscriber.payloads("/cameras/yard/state")), "the camera", 60)
        wait_for(lambda: subscriber.payloads("box/health"), "health")
    wait_for(lambda: subscriber.payloads("box/status")[-1:] == [b"offline"], "the goodbye")
    subscriber.close()
    assert subscriber.events() == []


def test_eighty_seconds_of_a_car_park_raise_no_more_false_alarms_than_the_card_admits(
    repo_dir: Path, shared_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("recognizer_posenet_litert", reason="needs the plug-in examples/plugins/posenet_litert")
    command = (
        sys.executable, "-m", "agent", "analyze", shared_dir / "data/video/vtest.avi", "--out", tmp_path,
        "--config", repo_dir / "configs/posenet.yaml",
    )  # fmt: skip
    subprocess.run(
        [str(part) for part in command], check=True, env=os.environ | {"POSENET_MODEL": str(shared_dir / MODEL)}
    )
    events = json.loads((tmp_path / "vtest" / "summary.json").read_text())["events"]
    assert events.get("fall", 0) == 0
    assert events.get("fight", 0) <= 3  # 0.5.0 with PoseNet 353x481


def test_fight_in_an_http_stream_reaches_the_subscriber(
    repo_dir: Path, shared_dir: Path, tmp_path: Path, broker: Mosquitto
) -> None:
    subscriber = Subscriber(broker.port)
    url = f"http://127.0.0.1:{free_port()}/live.ts"
    sender = (
        "ffmpeg", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", shared_dir / CLEAR_FIGHT,
        "-c:v", "libx264", "-preset", "veryfast", "-g", "25", "-f", "mpegts", "-listen", "1", url,
    )  # fmt: skip
    document = {"cameras": [{"id": "street", "source": url}], "mqtt": {"port": broker.port}}
    with process(*sender), agent(repo_dir, shared_dir, tmp_path, document):
        wait_for(subscriber.events, "a fight event", 90)
    wait_for(lambda: subscriber.payloads("box/status")[-1:] == [b"offline"], "the goodbye")
    subscriber.close()
    first = subscriber.events()[0]
    assert first["type"] == "recognizer.event.started.v1"
    assert (first["data"]["kind"], first["data"]["camera"]) == ("fight", "street")
    assert first["data"]["confidence"] >= 0.6
    assert subscriber.events()[-1]["type"] == "recognizer.event.ended.v1"
    evidence = list((tmp_path / "state" / "evidence").glob("street/*/*/clip.mp4"))
    assert len(evidence) == 1

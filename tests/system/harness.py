"""The agent as a process, and a subscriber that keeps everything it hears."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import cv2
import numpy as np
from fakes.brokers import free_port
from fakes.plugin import install, save_recording
from fakes.replay import walkers

SIZE = (320, 240)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """The first true value of `condition`; fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"timed out after {timeout_s} s: {what}")


def make_video(path: Path, frames: int = 100, fps: float = 25.0) -> Path:
    """A moving square on noise."""
    random = np.random.default_rng(1)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, SIZE)
    assert writer.isOpened()
    for n in range(frames):
        image = random.integers(0, 60, (SIZE[1], SIZE[0], 3), np.uint8)
        cv2.rectangle(image, (2 * n % 250, 60), (2 * n % 250 + 60, 200), (200, 180, 90), -1)
        writer.write(image)
    writer.release()
    return path


class AgentProcess:
    """`recognizer-agent run` on a replayed scene: two walkers, a service `fight` with a scripted verdict per window."""

    def __init__(self, folder: Path, *, mqtt_port: int, script: list[float], **overrides: Any) -> None:
        self.folder = folder
        self.http_port = free_port()
        self.state_dir = folder / "state"
        self.log = folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._path = install(folder / "plugins")
        video = make_video(folder / "scene.mp4")
        recording = save_recording(folder / "poses.npz", walkers(2, 100, size=(SIZE[1], SIZE[0])))
        self.document: dict[str, Any] = {
            "device_id": "box",
            "state_dir": str(self.state_dir),
            "cameras": [{"id": "cam", "source": str(video), "loop": True, "pace": True, "frozen_after_s": 0}],
            "pose": {"estimator": "replay", "model": str(recording)},
            "services": {
                "fall": {"enabled": False},
                "fight": {
                    "classifier": "scripted",
                    "model": "/none",
                    "options": {"script": script},
                    "window": {"length": 4, "stride": 2, "min_track_frames": 1},
                    "rules": {
                        "alert_count": 1, "normal_count": 1, "cooldown_s": 0, "min_duration_s": 0.01, "max_duration_s": 9,
                    },
                },
            },
            "mqtt": {"port": mqtt_port, "reconnect": {"initial_s": 0.1, "max_s": 0.5}},
            "http": {"port": self.http_port},
            "health": {"probe_interval_s": 0.3, "publish_interval_s": 1, "governor": {"enabled": False}},
        }  # fmt: skip
        self.document |= overrides
        self.config = folder / "agent.yaml"
        self.write_config()

    def write_config(self) -> None:
        self.config.write_text(json.dumps(self.document))

    def start(self, *, ready: bool = True, env: dict[str, str] | None = None) -> None:
        environment = os.environ | {"PYTHONPATH": self._path} | (env or {})
        command = [sys.executable, "-m", "agent", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.folder)
        if ready:
            wait_for(self.is_ready, f"agent ready\n{self.log_text()[-3000:]}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the agent ended: {self.log_text()[-3000:]}"
        try:
            return bool(self.get("/ready")["ready"])
        except OSError:
            return False

    def get(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as response:
            return json.load(response)

    def camera_states(self) -> dict[str, str]:
        return {camera["camera"]: camera["state"] for camera in self.get("/api/v1/state")["cameras"]}

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """As a power cut would end it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

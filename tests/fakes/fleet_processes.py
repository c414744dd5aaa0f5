"""Agents as processes that are kept alive, and somebody who hears what they publish."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parent.parent.parent


class StoryError(AssertionError):
    """What does not hold."""


class Agent:
    """`recognizer-agent run`, started again when it dies, as by its service."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder = folder
        self.port: int = document["http"]["port"]
        self.deaths = 0
        self._document = document
        self._config = folder / "agent.yaml"
        self._write()
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=folder.name, daemon=True)

    def _write(self) -> None:
        self._config.write_text(yaml.safe_dump(self._document), encoding="utf-8")

    def reload(self, section: str, values: Mapping[str, Any]) -> None:
        """Other `values` in a section of its configuration, and SIGHUP. Raises StoryError when it does not say that it took them."""
        self._document = {**self._document, section: {**self._document[section], **values}}
        self._write()
        assert self._process is not None
        before = self._reloads()
        self._process.send_signal(signal.SIGHUP)
        wait_for(lambda: self._reloads() > before, f"{self.folder.name} has read its configuration again", 30)

    def _reloads(self) -> int:
        return (self.folder / "agent.log").read_text("utf-8").count('"event": "reloaded"')

    def start(self) -> None:
        self._process = self._run()
        self._keeper.start()
        wait_for(lambda: self.state().get("ready"), f"{self.folder.name} is ready", 90)

    def _run(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agent", "run", "--config", str(ROOT / "configs" / "pose-nano.yaml")]
        with (self.folder / "agent.log").open("ab") as log:
            return subprocess.Popen([*command, "--config", str(self._config)], stdout=log, stderr=log, cwd=ROOT)

    def _keep(self) -> None:
        while not self._ending.wait(0.2):
            if self._process is not None and self._process.poll() is not None:
                self.deaths += 1
                self._process = self._run()

    def state(self) -> dict[str, Any]:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/api/v1/state", timeout=5) as answer:
            return dict(json.load(answer))
        return {}

    @property
    def frames(self) -> int:
        """That have gone through since its start."""
        return sum(int(camera["frames"]) for camera in self.state().get("cameras", ()))

    @property
    def serves(self) -> str:
        return str(self.state().get("models", {}).get("pose", ""))

    def goes_on(self, serves: str, frames: int) -> None:
        """With that model, and more frames than those. Raises StoryError."""
        wait_for(lambda: self.serves == serves, f"{self.folder.name} serves {serves} again", 60)
        wait_for(lambda: self.frames > frames, f"{self.folder.name} goes on", 30)

    def end(self) -> None:
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join()
        stop(self._process)


def stop(process: subprocess.Popen[bytes] | None) -> None:
    """SIGTERM, and what comes after it when that is not heard."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def wait_for(condition: Callable[[], Any], what: str, limit_s: float) -> Any:
    """The first true value. Raises StoryError."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.2)
    raise StoryError(f"not within {limit_s:g} s: {what}")


class Watch:
    """Looks at agents again and again while it is entered. served: the models of each, as they came; longest_s: without a new frame, as
    far as looks that are `LOOK_S` apart tell."""

    LOOK_S = 0.2

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self.served: dict[str, list[str]] = {name: [] for name in agents}
        self.longest_s = dict.fromkeys(agents, 0.0)
        self._agents = agents
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        since_s = dict.fromkeys(self._agents, time.monotonic())
        frames = dict.fromkeys(self._agents, 0)
        while not self._ending.wait(self.LOOK_S):
            for name, agent in self._agents.items():
                state, now_s = agent.state(), time.monotonic()
                serves = str(state.get("models", {}).get("pose", ""))
                if serves and self.served[name][-1:] != [serves]:
                    self.served[name].append(serves)
                seen = sum(int(camera["frames"]) for camera in state.get("cameras", ()))
                self.longest_s[name] = max(self.longest_s[name], now_s - since_s[name])
                if seen != frames[name]:
                    frames[name], since_s[name] = seen, now_s


class Ear:
    """Hears everything that devices publish. longest_s: between two messages of a device; lately_s: the same since it was
    cleared last; offline: how often its last will said so."""

    def __init__(self, port: int) -> None:
        self.messages: Counter[str] = Counter()
        self.offline: Counter[str] = Counter()
        self.longest_s: dict[str, float] = {}
        self.lately_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="ear")
        self._client.on_connect = lambda client, *_: client.subscribe("recognizer/#", 1)
        self._client.on_message = lambda _client, _data, message: self._hear(message.topic, bytes(message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _hear(self, topic: str, payload: bytes) -> None:
        now_s, (_, device, kind, *_) = time.monotonic(), topic.split("/")
        self.messages[device] += 1
        self.offline[device] += kind == "status" and payload == b"offline"
        silence_s = now_s - self._last_s.get(device, now_s)
        for longest_s in (self.longest_s, self.lately_s):
            longest_s[device] = max(longest_s.get(device, 0.0), silence_s)
        self._last_s[device] = now_s

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

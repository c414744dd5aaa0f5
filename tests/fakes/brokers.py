"""Real brokers and an independent subscriber: Mosquitto as a process that may be killed, TLS files, plain paho."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
OPENSSL = shutil.which("openssl")


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """One broker process with its own folder; may be killed and started again on the same port."""

    def __init__(self, folder: Path, *settings: str) -> None:
        assert MOSQUITTO is not None
        self.host = "127.0.0.1"
        self.port = free_port()
        self.protocols = ("5", "3.1.1")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} 127.0.0.1",
            "user root",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            f"log_dest file {folder / 'mosquitto.log'}",
        ]
        if not any(line.startswith("allow_anonymous") for line in settings):
            lines.append("allow_anonymous true")
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join([*lines, *settings]) + "\n")

    def start(self) -> None:
        """Start and wait until it listens."""
        self._process = subprocess.Popen([str(MOSQUITTO), "-c", str(self._config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            assert self._process.poll() is None, (self._folder / "mosquitto.log").read_text()
            time.sleep(0.02)
        raise AssertionError("mosquitto did not start")

    def save(self) -> None:
        """Have sessions and subscriptions written to disk."""
        database = self._folder / "mosquitto.db"
        before = database.stat().st_mtime_ns if database.exists() else 0
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (not database.exists() or database.stat().st_mtime_ns == before):
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop politely."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None


class Subscriber:
    """An independent client that keeps everything it receives and comes back by itself after a broker restart."""

    _ids = itertools.count()

    def __init__(self, port: int, topic: str = "#", qos: int = 1) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self._ready = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"subscriber-{next(self._ids)}",
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=False,
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos)
        self._client.on_subscribe = lambda *_: setattr(self, "_ready", True)
        self._client.on_message = lambda _c, _d, m: self.messages.append((m.topic, m.payload, bool(m.retain)))
        self._client.connect("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        deadline = time.monotonic() + 10
        while not self._ready and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._ready, "the subscriber could not subscribe"

    @property
    def connected(self) -> bool:
        """Whether it has a connection now."""
        return self._client.is_connected()

    def payloads(self, topic_part: str = "") -> list[bytes]:
        """What arrived on topics that contain `topic_part`."""
        return [payload for topic, payload, _ in list(self.messages) if topic_part in topic]

    def events(self) -> list[dict[str, Any]]:
        """Everything under `events/`, duplicates included."""
        return [json.loads(payload) for payload in self.payloads("/events/")]

    async def wait_for(self, condition: Callable[[Subscriber], bool], timeout_s: float = 20) -> None:
        """Until `condition` holds; fails with what did arrive."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"received {len(self.messages)} messages, the last: {self.messages[-5:]}") from None

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a test authority: a server for localhost / 127.0.0.1 and a client; `stranger_ca` signed neither."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    stranger_ca: Path


@dataclass(frozen=True)
class AnyBroker:
    """Where a broker listens and what it speaks."""

    host: str
    port: int
    protocol: str

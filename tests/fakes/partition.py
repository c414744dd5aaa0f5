"""An agent process and its broker on two hosts, a cable between them, and somebody at the broker who keeps the books."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from crash_ledger import Ledger, Verdict
from fakes.brokers import MOSQUITTO
from fakes.netns import Cable
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

AGENT = Path(__file__).parent.parent.parent / "benchmarks" / "crash_agent.py"
PORT = 1883


class Trial:
    """Puts `rate` messages a second for `seconds`, over `cable`; a context manager.

    mqtt: keys of the configuration that differ from the defaults.
    """

    def __init__(
        self, cable: Cable, folder: Path, *, rate: float, seconds: float, mqtt: dict[str, Any] | None = None
    ) -> None:
        self.ledger = Ledger()
        self.arrivals_s: list[float] = []
        self._folder = folder
        socket = folder / "broker.sock"
        lines = [
            "user root", f"listener {PORT} {cable.right_address}", "allow_anonymous true", f"listener 0 {socket}",
            "allow_anonymous true", "max_queued_messages 0",
        ]  # fmt: skip
        (folder / "broker.conf").write_text("\n".join(lines) + "\n")
        self._broker = cable.popen(
            cable.right, str(MOSQUITTO), "-c", str(folder / "broker.conf"), stderr=subprocess.DEVNULL
        )
        self._listener = self._listen(socket)
        arguments = [
            str(folder / "events.db"), "--rate", str(rate), "--seconds", str(seconds),
            "--mqtt", json.dumps({"host": cable.right_address, "port": PORT, **(mqtt or {})}),
        ]  # fmt: skip
        with (folder / "agent.log").open("wb") as log:
            self._agent = cable.popen(
                cable.left, sys.executable, str(AGENT), *arguments, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.wait_for_arrivals(1, 30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._agent.kill()
        self._agent.wait()
        self._reader.join()
        assert self._agent.stdout is not None
        self._agent.stdout.close()
        self._listener.disconnect()
        self._listener.loop_stop()
        self._broker.terminate()
        self._broker.wait()
        if error is not None:
            print((self._folder / "agent.log").read_text()[-3000:])

    def wait_for_arrivals(self, more: int, timeout_s: float) -> float:
        """Until so many more messages have arrived for the first time; returns the seconds it took."""
        begin_s, want = time.monotonic(), len(self.arrivals_s) + more
        while len(self.arrivals_s) < want:
            assert time.monotonic() < begin_s + timeout_s, f"{len(self.arrivals_s)} arrived, not {want}"
            assert self._agent.poll() is None or len(self.arrivals_s) >= want, "the agent ended"
            time.sleep(0.005)
        return time.monotonic() - begin_s

    def finish(self, timeout_s: float) -> Verdict:
        """Wait until the agent has delivered all and ended; the books."""
        assert self._agent.wait(timeout_s) == 0
        self._reader.join()
        deadline_s = time.monotonic() + 10
        while self.ledger.outstanding() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(0.1)
        return self.ledger.verdict()

    def log(self) -> str:
        """What the agent had to say."""
        return (self._folder / "agent.log").read_text()

    def _listen(self, socket: Path) -> paho.Client:
        deadline_s = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < deadline_s, "the broker did not start"
            time.sleep(0.02)
        ready = threading.Event()
        client = paho.Client(
            CallbackAPIVersion.VERSION2, "listener", protocol=MQTTProtocolVersion.MQTTv311, transport="unix"
        )
        client.on_connect = lambda client, *_: client.subscribe(
            [("recognizer/+/events/#", 1), ("recognizer/+/cameras/#", 1)]
        )
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = self._on_message
        client.connect(str(socket))
        client.loop_start()
        assert ready.wait(10)
        return client

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if self.ledger.arrived(message.topic, bytes(message.payload)) is not None:
            self.arrivals_s.append(time.monotonic())

    def _read(self) -> None:
        assert self._agent.stdout is not None
        for line in self._agent.stdout:
            if line.startswith("put "):
                _, lane, sequence, number, event_id, topic = line.split()
                told = None if sequence == "-" else int(sequence)
                self.ledger.committed(int(lane), told, int(number), event_id, topic)

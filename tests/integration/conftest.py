"""Real brokers for the tests: Mosquitto as a process, amqtt inside this one, and a plain subscriber."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.mqtt.broker import EmbeddedBroker

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

    async def wait_for(self, condition: Callable[[Subscriber], bool], timeout_s: float = 20) -> None:
        """Until `condition` holds; fails with what did arrive."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self):  # noqa: ASYNC110 - messages arrive on another thread
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


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A throw-away certificate authority."""
    if OPENSSL is None:
        pytest.skip("needs the openssl program")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run([str(OPENSSL), *arguments], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2", "-subj", f"/CN={name}"
        )
    for name, names in (("server", "DNS:localhost,IP:127.0.0.1"), ("client", "DNS:client")):
        (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.crt")
    files = ("ca.crt", "server.crt", "server.key", "client.crt", "client.key", "stranger.crt")
    return TlsFiles(*(folder / name for name in files))


@pytest.fixture
def make_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start a Mosquitto with extra configuration lines."""
    if MOSQUITTO is None:
        pytest.skip("needs the Mosquitto broker")
    with contextlib.ExitStack() as stack:

        def make(*settings: str) -> Mosquitto:
            broker = Mosquitto(tmp_path / f"mosquitto-{free_port()}", *settings)
            broker.start()
            stack.callback(broker.stop)
            return broker

        yield make


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A Mosquitto without access control."""
    return make_mosquitto()


@pytest.fixture
def mosquitto_tls(make_mosquitto: Callable[..., Mosquitto], tls_files: TlsFiles) -> Mosquitto:
    """A Mosquitto that speaks TLS only and wants a client certificate."""
    return make_mosquitto(
        f"cafile {tls_files.ca}",
        f"certfile {tls_files.server_cert}",
        f"keyfile {tls_files.server_key}",
        "require_certificate true",
    )


@pytest.fixture
async def embedded_broker() -> AsyncIterator[EmbeddedBroker]:
    """amqtt in this process."""
    pytest.importorskip("amqtt")
    async with EmbeddedBroker() as broker:
        yield broker


@dataclass(frozen=True)
class AnyBroker:
    """Where a broker listens and what it speaks."""

    host: str
    port: int
    protocol: str


@pytest.fixture(
    params=[
        pytest.param(("mosquitto", "5"), id="mosquitto-5", marks=pytest.mark.mosquitto),
        pytest.param(("mosquitto", "3.1.1"), id="mosquitto-3.1.1", marks=pytest.mark.mosquitto),
        pytest.param(("embedded", "3.1.1"), id="embedded-3.1.1"),
    ]
)
async def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyBroker]:
    """Each broker with each protocol version it speaks."""
    kind, protocol = request.param
    if kind == "mosquitto":
        if MOSQUITTO is None:
            pytest.skip("needs the Mosquitto broker")
        broker = Mosquitto(tmp_path / "broker")
        broker.start()
        yield AnyBroker(broker.host, broker.port, protocol)
        broker.stop()
        return
    pytest.importorskip("amqtt")
    async with EmbeddedBroker() as embedded:
        yield AnyBroker(embedded.host, embedded.port, protocol)


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    """Start a subscriber at a port; for a broker in this process call it on a thread."""
    with contextlib.ExitStack() as stack:

        def start(port: int, topic: str = "#", qos: int = 1) -> Subscriber:
            subscriber = Subscriber(port, topic, qos)
            stack.callback(subscriber.close)
            return subscriber

        yield start

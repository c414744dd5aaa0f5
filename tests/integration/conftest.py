"""Real brokers for the tests: Mosquitto as a process, amqtt inside this one, and a plain subscriber."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import pytest
from fakes.brokers import MOSQUITTO, OPENSSL, AnyBroker, Mosquitto, Subscriber, TlsFiles, free_port

from agent.mqtt.broker import EmbeddedBroker


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """amqtt leaves connections that came in during its shutdown unclosed; they must not fail the next test.

    Once the test's loop is closed nothing holds them: they are collected here, with their warning, and nowhere else.
    """
    yield
    if item.path.name in {"test_mqtt_client.py", "test_outbox_delivery.py"}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


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

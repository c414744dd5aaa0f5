"""The client against real brokers: connect, publish, retained state, will, refusals, TLS, flow control, both versions."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fakes.brokers import AnyBroker, Mosquitto, Subscriber, TlsFiles

from agent.config.delivery import MqttConfig, TlsConfig
from agent.config.sections import BackoffConfig
from agent.errors import ConfigError, RejectedError, TransientError
from agent.mqtt.broker import EmbeddedBroker
from agent.mqtt.client import LinkState, MqttClient
from agent.mqtt.topics import Topics

TOPICS = Topics("recognizer", "box")
FAST = BackoffConfig(initial_s=0.1, max_s=0.5)


@contextlib.asynccontextmanager
async def running(config: MqttConfig, *, wait: bool = True) -> AsyncIterator[MqttClient]:
    """A client whose `run` ends with the context."""
    client = MqttClient(config, TOPICS)
    task = asyncio.create_task(client.run(), name="mqtt")
    try:
        if wait:
            async with asyncio.timeout(10):
                await client.wait_connected()
        yield client
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_publishes_reach_a_subscriber_in_order(
    any_broker: AnyBroker, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = await asyncio.to_thread(subscribe, any_broker.port, "recognizer/box/events/#")
    async with (
        running(MqttConfig(port=any_broker.port, protocol=any_broker.protocol)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for n in range(200):
            tasks.create_task(client.publish(TOPICS.event("door", "fight"), b"%d" % n))
    await subscriber.wait_for(lambda s: len(s.messages) >= 200)
    assert subscriber.payloads() == [b"%d" % n for n in range(200)]


async def test_one_device_name_under_two_base_topics_is_two_clients(mosquitto: Mosquitto) -> None:
    """Clients of one id would throw each other out for ever."""
    config = MqttConfig(port=mosquitto.port, reconnect=FAST, spread_s=0)
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for base in ("recognizer", "site-a", "site/a"):
            clients.append(MqttClient(config, Topics(base, "box")))
            task = asyncio.create_task(clients[-1].run())
            stack.callback(task.cancel)
            await asyncio.wait_for(clients[-1].wait_connected(), 10)
        for _ in range(3):
            async with asyncio.timeout(10):
                await asyncio.gather(*(client.publish(f"a/{n}", b"x") for n, client in enumerate(clients)))
        assert [client.status().connects for client in clients] == [1, 1, 1]
    assert clients[0]._target().client_id == "recognizer-box"  # installations have their session under it


async def test_status_is_online_while_connected_and_offline_after_a_clean_end(
    any_broker: AnyBroker, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = await asyncio.to_thread(subscribe, any_broker.port, TOPICS.status)
    async with running(MqttConfig(port=any_broker.port, protocol=any_broker.protocol)):
        await subscriber.wait_for(lambda s: s.payloads() == [b"online"])
    await subscriber.wait_for(lambda s: s.payloads() == [b"online", b"offline"])
    late = await asyncio.to_thread(subscribe, any_broker.port, TOPICS.status)
    await late.wait_for(lambda s: set(s.messages) == {(TOPICS.status, b"offline", True)})  # amqtt sends it twice


async def test_trying_to_connect_leaves_nothing_with_the_broker(
    any_broker: AnyBroker, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = await asyncio.to_thread(subscribe, any_broker.port, "recognizer/#")
    trial = MqttClient(MqttConfig(port=any_broker.port, protocol=any_broker.protocol), Topics("recognizer", "trial"))
    await trial.try_connecting()
    async with running(MqttConfig(port=any_broker.port, protocol=any_broker.protocol)):
        await subscriber.wait_for(lambda s: bool(s.payloads()))
    assert {topic for topic, *_ in subscriber.messages} == {TOPICS.status}


async def test_the_will_says_offline_when_the_process_is_killed(
    any_broker: AnyBroker, subscribe: Callable[..., Subscriber]
) -> None:
    script = """
        import asyncio, sys
        from agent.config.delivery import MqttConfig
        from agent.mqtt.client import MqttClient
        from agent.mqtt.topics import Topics
        config = MqttConfig(port=int(sys.argv[1]), protocol=sys.argv[2])
        asyncio.run(MqttClient(config, Topics("recognizer", "box")).run())
    """
    subscriber = await asyncio.to_thread(subscribe, any_broker.port, TOPICS.status)
    arguments = (sys.executable, "-c", textwrap.dedent(script), str(any_broker.port), any_broker.protocol)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.DEVNULL)
    await subscriber.wait_for(lambda s: s.payloads() == [b"online"])
    process.kill()
    await process.wait()
    await subscriber.wait_for(lambda s: s.payloads() == [b"online", b"offline"])


async def test_offline_the_newest_retained_state_wins(
    any_broker: AnyBroker, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = await asyncio.to_thread(subscribe, any_broker.port, "recognizer/#")
    config = MqttConfig(port=any_broker.port, protocol=any_broker.protocol)
    async with running(config, wait=False) as client:
        client.retain(TOPICS.health, b"old")
        client.retain(TOPICS.health, b"new")
        client.retain(TOPICS.camera_state("door"), b"streaming")
        await subscriber.wait_for(
            lambda s: s.payloads("health") == [b"new"] and s.payloads("cameras") == [b"streaming"]
        )
        client.retain(TOPICS.health, b"newer")
        await subscriber.wait_for(lambda s: s.payloads("health") == [b"new", b"newer"])


@pytest.mark.mosquitto
async def test_retained_state_is_sent_again_to_a_broker_that_forgot_it(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]
) -> None:
    async with running(MqttConfig(port=mosquitto.port, reconnect=FAST)) as client:
        client.retain(TOPICS.health, b"old")
        client.retain(TOPICS.camera_state("door"), b"streaming")
        mosquitto.kill()  # its retained messages were in memory only
        await until(lambda: not client.connected)
        client.retain(TOPICS.health, b"new")
        mosquitto.start()
        await until(lambda: client.connected)
        late = await asyncio.to_thread(subscribe, mosquitto.port, "recognizer/#")
        await late.wait_for(lambda s: s.payloads("health") == [b"new"] and s.payloads("cameras") == [b"streaming"])
        assert late.payloads("status") == [b"online"]


async def test_a_publish_while_offline_fails_at_once_and_is_never_sent_later(
    subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    broker = EmbeddedBroker()
    async with running(MqttConfig(port=broker.port, protocol="3.1.1", reconnect=FAST), wait=False) as client:
        with pytest.raises(TransientError, match="not connected"):
            await client.publish(TOPICS.event("door", "fight"), b"lost on purpose")
        async with broker:
            subscriber = await asyncio.to_thread(subscribe, broker.port, "recognizer/box/#")
            await until(lambda: client.connected)
            await client.publish(TOPICS.event("door", "fight"), b"sent")
            await subscriber.wait_for(lambda s: s.payloads("events") == [b"sent"])


@pytest.mark.mosquitto
async def test_in_flight_publishes_fail_when_the_broker_is_killed_and_the_client_comes_back(
    mosquitto: Mosquitto,
) -> None:
    async with running(MqttConfig(port=mosquitto.port, reconnect=FAST)) as client:
        lost = []
        client.on_disconnected(lambda: lost.append(True))
        mosquitto.kill()
        with pytest.raises(TransientError):
            await client.publish(TOPICS.event("door", "fight"), b"x")
        await until(lambda: bool(lost))
        assert not client.connected
        assert client.status().error
        mosquitto.start()
        await until(lambda: client.connected)
        await client.publish(TOPICS.event("door", "fight"), b"y")
        assert client.status().connects == 2


@pytest.mark.mosquitto
async def test_a_publish_that_the_broker_forbids_is_rejected_for_good(
    make_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite recognizer/box/status\ntopic readwrite recognizer/box/events/door/fight\n")
    broker = make_mosquitto(f"acl_file {acl}")
    async with running(MqttConfig(port=broker.port)) as client:
        await client.publish(TOPICS.event("door", "fight"), b"allowed")
        with pytest.raises(RejectedError, match="Not authorized") as caught:
            await client.publish(TOPICS.event("door", "fall"), b"forbidden")
        assert caught.value.reason_code == 0x87
        assert client.connected


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_wrong_password_is_reported_and_tried_again_rarely(
    make_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    passwords = tmp_path / "passwords"
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), "agent", "right"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    broker = make_mosquitto("allow_anonymous false", f"password_file {passwords}")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    config = MqttConfig(port=broker.port, protocol=protocol, username="agent", password_file=secret, reconnect=FAST)
    async with running(config, wait=False) as client:
        await until(lambda: client.status().state is LinkState.REFUSED)
        assert "user name or password" in client.status().error or "Not authorized" in client.status().error
        secret.write_text("right\n")  # read again at the next attempt
        await until(lambda: client.connected)


@pytest.mark.mosquitto
async def test_a_broker_that_retains_nothing_has_the_state_and_the_will_all_the_same(
    make_mosquitto: Callable[..., Mosquitto], subscribe: Callable[..., Subscriber]
) -> None:
    broker = make_mosquitto("retain_available false")
    subscriber = await asyncio.to_thread(subscribe, broker.port, TOPICS.status)
    slow = BackoffConfig(initial_s=60, max_s=60)  # the login without a retained will follows at once
    async with running(MqttConfig(port=broker.port, reconnect=slow)) as client:
        await subscriber.wait_for(lambda s: s.payloads() == [b"online"])
        connection = client._connection
        assert connection is not None
        connection.drop("cut by the test")
        await subscriber.wait_for(lambda s: s.payloads() == [b"online", b"offline"])


@pytest.mark.mosquitto
async def test_tls_with_a_client_certificate(mosquitto_tls: Mosquitto, tls_files: TlsFiles) -> None:
    tls = TlsConfig(ca_file=tls_files.ca, cert_file=tls_files.client_cert, key_file=tls_files.client_key)
    async with running(MqttConfig(port=mosquitto_tls.port, tls=tls)) as client, asyncio.TaskGroup() as tasks:
        for n in range(300):
            tasks.create_task(client.publish(TOPICS.event("door", "fight"), b"x" * 5000 + b"%d" % n))


@pytest.mark.mosquitto
async def test_tls_without_the_client_certificate_says_why(mosquitto_tls: Mosquitto, tls_files: TlsFiles) -> None:
    config = MqttConfig(port=mosquitto_tls.port, tls=TlsConfig(ca_file=tls_files.ca), reconnect=FAST)
    async with running(config, wait=False) as client:
        await until(lambda: bool(client.status().error))
        assert "certificate" in client.status().error.lower()


@pytest.mark.mosquitto
async def test_tls_with_an_unknown_authority_is_refused_by_the_client(
    mosquitto_tls: Mosquitto, tls_files: TlsFiles
) -> None:
    config = MqttConfig(port=mosquitto_tls.port, tls=TlsConfig(ca_file=tls_files.stranger_ca))
    async with running(config, wait=False) as client:
        await until(lambda: client.status().state is LinkState.REFUSED)
        assert "certificate" in client.status().error


@pytest.mark.mosquitto
async def test_the_hint_to_tls_is_given_where_a_connection_stood(mosquitto_tls: Mosquitto, tls_files: TlsFiles) -> None:
    for tls, hint in ((None, "it needs mqtt.tls"), (TlsConfig(ca_file=tls_files.ca), "a client certificate?")):
        client = MqttClient(MqttConfig(port=mosquitto_tls.port, tls=tls), TOPICS)
        with pytest.raises(TransientError, match=re.escape(hint)):
            await client.try_connecting()
    mosquitto_tls.stop()
    with pytest.raises(TransientError, match=r"refused$"):
        await client.try_connecting()


@pytest.mark.mosquitto
async def test_the_brokers_receive_maximum_bounds_the_window(make_mosquitto: Callable[..., Mosquitto]) -> None:
    broker = make_mosquitto("max_inflight_messages 3")
    async with running(MqttConfig(port=broker.port, max_in_flight=20)) as client:
        assert client.receive_maximum == 3
        most = 0
        async with asyncio.TaskGroup() as tasks:
            for n in range(300):  # more than the broker allows: it would disconnect a client that ignored its limit
                tasks.create_task(client.publish(TOPICS.event("door", "fight"), b"%d" % n))
            while client.status().in_flight or not most:
                most = max(most, client.status().in_flight)
                await asyncio.sleep(0)
        assert most <= 3
        assert client.status().connects == 1


@pytest.mark.mosquitto
async def test_cancelled_publishes_keep_their_place_in_the_window_until_acknowledged(
    make_mosquitto: Callable[..., Mosquitto],
) -> None:
    broker = make_mosquitto("max_inflight_messages 2")
    async with running(MqttConfig(port=broker.port)) as client:
        for _ in range(50):
            task = asyncio.create_task(client.publish(TOPICS.event("door", "fight"), b"x"))
            await asyncio.sleep(0)
            task.cancel()
        await client.publish(TOPICS.event("door", "fight"), b"y")
        assert client.status().connects == 1


@pytest.mark.mosquitto
async def test_a_message_larger_than_the_broker_takes_is_rejected_without_losing_the_connection(
    make_mosquitto: Callable[..., Mosquitto],
) -> None:
    broker = make_mosquitto("max_packet_size 2000")
    async with running(MqttConfig(port=broker.port)) as client:
        with pytest.raises(RejectedError):
            await client.publish(TOPICS.event("door", "fight"), b"x" * 3000)
        await client.publish(TOPICS.event("door", "fight"), b"x" * 1000)
        assert client.status().connects == 1


@pytest.mark.mosquitto
async def test_a_large_payload_waits_for_the_socket(mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port, "recognizer/box/events/#")
    payload = b"x" * 8_000_000
    async with running(MqttConfig(port=mosquitto.port)) as client:
        await client.publish(TOPICS.event("door", "fight"), payload)
    await subscriber.wait_for(lambda s: [len(p) for p in s.payloads()] == [len(payload)])


async def test_a_broker_that_never_acknowledges_costs_the_connection() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(bytes([0x20, 2, 0, 0]))  # CONNACK of 3.1.1; then silence
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        running(MqttConfig(port=port, protocol="3.1.1", publish_timeout_s=0.5, reconnect=FAST)) as client,
    ):
        with pytest.raises(TransientError, match="not acknowledged"):
            await client.publish(TOPICS.event("door", "fight"), b"x")


async def test_a_listener_that_does_not_speak_mqtt_is_no_hot_loop() -> None:
    connections = 0

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = MqttConfig(port=port, reconnect=BackoffConfig(initial_s=0.2, max_s=2))
    async with server, running(config, wait=False) as client:
        await asyncio.sleep(1.0)
        assert client.status().error
    assert 1 <= connections < 30


@pytest.mark.slow
async def test_a_hundred_reconnects_leak_no_descriptor_and_no_thread() -> None:
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read(1000)
        if connections % 2:
            writer.write(bytes([0x20, 2, 0, 0]))  # welcome, and gone
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = MqttConfig(port=port, protocol="3.1.1", reconnect=BackoffConfig(initial_s=0.001, max_s=0.002))
    async with server, running(config, wait=False):
        await until(lambda: connections > 20)
        before = descriptors()
        await until(lambda: connections > 120, 60)
        assert descriptors() <= before + 4
        assert threading.active_count() < 10


async def test_stopping_while_connecting_is_quick() -> None:
    config = MqttConfig(host="192.0.2.1")  # TEST-NET-1: nobody answers
    started = time.monotonic()
    async with running(config, wait=False):
        await asyncio.sleep(0.1)
    assert time.monotonic() - started < 2


def test_files_that_cannot_be_used_are_configuration_errors(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"mqtt\.password_file"):
        MqttClient(MqttConfig(password_file=tmp_path / "absent"), TOPICS)
    with pytest.raises(ConfigError, match=r"mqtt\.tls\.ca_file"):
        MqttClient(MqttConfig(tls=TlsConfig(ca_file=tmp_path / "absent")), TOPICS)
    with pytest.raises(ConfigError, match=r"mqtt\.tls\.cert_file"):
        MqttClient(MqttConfig(tls=TlsConfig(cert_file=nonsense, key_file=nonsense)), TOPICS)


async def test_the_embedded_broker_says_that_its_port_is_taken(embedded_broker: EmbeddedBroker) -> None:
    with pytest.raises(ConfigError, match=f"{embedded_broker.port}.*in use"):
        async with EmbeddedBroker(port=embedded_broker.port):
            pass


async def test_without_amqtt_the_embedded_broker_says_how_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(ConfigError, match=r"\./install\.sh demo"):
        async with EmbeddedBroker():
            pass

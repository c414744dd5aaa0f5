"""The Kafka sink: the contract of all sinks with a producer that behaves as the client's does, and the client's own interface."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("aiokafka", reason="needs the Kafka client aiokafka")

from agent.config.delivery import PluginSinkConfig
from agent.errors import AccessError, ConfigError, RejectedError, TransientError, UnexplainedError
from agent.types import OutboxRecord
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from fakes.sinks import OpenBench, SinkContract, record

from recognizer_kafka import create
from recognizer_kafka.cloudevent import message_of
from recognizer_kafka.options import parse_options
from recognizer_kafka.producer import make_producer
from recognizer_kafka.sink import KafkaSink

TOPIC = "events"
OPTIONS = {"bootstrap_servers": ["127.0.0.1:9"], "topic": TOPIC}


@dataclass
class Cluster:
    """Brokers in memory. log: of the topic's partitions, together, in the order of arrival."""

    up: bool = True
    silent: bool = False
    topics: tuple[str, ...] = (TOPIC,)
    largest: int = 100_000
    problems: list[kafka.KafkaError] = field(default_factory=list)
    log: list[tuple[bytes, bytes, dict[str, bytes]]] = field(default_factory=list)
    producers: list[FakeProducer] = field(default_factory=list)


class FakeProducer:
    """As AIOKafkaProducer: not usable before `start` and after `stop`; raises what that raises, when that does."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.state = "new"
        cluster.producers.append(self)

    async def start(self) -> None:
        if not self.cluster.up:
            raise kafka.KafkaConnectionError("Unable to bootstrap from [('127.0.0.1', 9)]")
        self.state = "started"

    async def stop(self) -> None:
        self.state = "stopped"

    async def send_and_wait(  # noqa: PLR0917 - theirs
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] | None = None,
    ) -> object:
        assert self.state == "started"
        assert isinstance(value, bytes)
        assert isinstance(key, bytes)
        if topic not in self.cluster.topics:
            raise kafka.UnknownTopicOrPartitionError
        if len(value) > self.cluster.largest:
            raise kafka.MessageSizeTooLargeError(f"The message is {len(value)} bytes when serialized")
        if self.cluster.silent:
            await asyncio.Event().wait()
        if not self.cluster.up:
            raise kafka.KafkaTimeoutError
        if self.cluster.problems:
            raise self.cluster.problems.pop(0)
        self.cluster.log.append((key, value, dict(headers or ())))
        return len(self.cluster.log)


@dataclass
class KafkaBench:
    sink: KafkaSink
    cluster: Cluster

    async def received(self) -> list[str]:
        return [headers["ce_id"].decode() for _, _, headers in self.cluster.log]

    async def break_down(self) -> None:
        self.cluster.up = False

    async def mend(self) -> None:
        self.cluster.up, self.cluster.silent = True, False

    async def stall(self) -> bool:
        self.cluster.silent = True
        return True

    def unacceptable(self, sequence: int) -> OutboxRecord | None:
        return record(sequence, text="x" * self.cluster.largest)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def sink_of(cluster: Cluster) -> KafkaSink:
    return KafkaSink(partial(FakeProducer, cluster), TOPIC)


class TestKafkaSink(SinkContract):
    @pytest.fixture
    def open_bench(self, cluster: Cluster) -> OpenBench:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[KafkaBench]:
            sink = sink_of(cluster)
            yield KafkaBench(sink, cluster)
            await sink.close()
            assert all(producer.state == "stopped" for producer in cluster.producers)

        return opened


def test_an_event_becomes_a_message_of_the_binary_mode() -> None:
    event = record(7, text="Größe")
    message = message_of(event.payload)
    assert message.key == b"door"
    assert json.loads(message.value) == json.loads(event.payload)["data"]
    assert "Größe".encode() in message.value
    headers = dict(message.headers)
    assert headers.pop("content-type") == b"application/json"
    assert set(headers) == {
        "ce_id", "ce_source", "ce_specversion", "ce_type", "ce_subject", "ce_time", "ce_dataschema", "ce_sequence", "ce_partitionkey",
    }  # fmt: skip
    assert headers["ce_id"] == event.event_id.encode()
    assert headers["ce_sequence"] == b"0000000000000007"
    assert all(isinstance(value, bytes) for value in headers.values())


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[]", b"{}", b'{"specversion": "2.0", "id": "1", "source": "/", "data": 1}']
)
def test_what_is_no_event_is_refused(payload: bytes) -> None:
    with pytest.raises(RejectedError):
        message_of(payload)


def test_an_event_without_a_partition_key_goes_by_its_source() -> None:
    event = json.loads(record(1).payload)
    del event["partitionkey"]
    assert message_of(json.dumps(event).encode()).key == event["source"].encode()


@pytest.mark.parametrize(
    ("problem", "error", "same_producer"),
    [
        (kafka.NotEnoughReplicasError(), TransientError, True),
        (kafka.NotLeaderForPartitionError(), TransientError, True),
        (kafka.RequestTimedOutError(), TransientError, True),
        (kafka.KafkaTimeoutError(), TransientError, True),
        (kafka.KafkaConnectionError("reset"), TransientError, True),
        (kafka.TopicAuthorizationFailedError("events"), AccessError, True),
        (kafka.InvalidTopicError(), AccessError, True),
        (kafka.CorruptRecordException(), UnexplainedError, True),
        (kafka.PolicyViolationError(), UnexplainedError, True),
        (kafka.UnknownError(), UnexplainedError, True),
        (kafka.OutOfOrderSequenceNumber(), TransientError, False),
        (kafka.UnknownProducerId(), TransientError, False),
        (kafka.ProducerClosed(), TransientError, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_each_error_has_its_meaning(
    cluster: Cluster, problem: kafka.KafkaError, error: type[Exception], same_producer: bool
) -> None:
    sink = sink_of(cluster)
    cluster.problems = [problem]
    with pytest.raises(error) as caught:
        await sink.deliver([record(1)])
    assert type(caught.value) is error
    assert str(caught.value)
    await sink.deliver([record(1)])
    assert len(cluster.producers) == (1 if same_producer else 2)
    await sink.close()


async def test_a_topic_that_is_not_there_needs_a_person(cluster: Cluster) -> None:
    sink = sink_of(cluster)
    cluster.topics = ()
    with pytest.raises(AccessError):
        await sink.deliver([record(1)])
    await sink.close()


async def test_who_never_answers_is_replaced(cluster: Cluster) -> None:
    sink = sink_of(cluster)
    cluster.silent = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await sink.deliver([record(1)])
    cluster.silent = False
    await sink.deliver([record(1)])
    await sink.close()
    assert [producer.state for producer in cluster.producers] == ["stopped", "stopped"]


# --- the client itself ------------------------------------------------------------------------------------------------


def test_the_fake_takes_what_the_client_takes() -> None:
    for name in ("start", "stop", "send_and_wait"):
        theirs = inspect.signature(getattr(AIOKafkaProducer, name))
        ours = inspect.signature(getattr(FakeProducer, name))
        assert list(ours.parameters) == list(theirs.parameters), name
        assert inspect.iscoroutinefunction(getattr(AIOKafkaProducer, name))


async def test_the_client_is_told_to_lose_and_to_double_nothing() -> None:
    producer = make_producer(parse_options(OPTIONS, "o"), "", None, 30.0)
    try:
        assert producer._txn_manager is not None, "idempotent"
        assert producer._txn_manager.transactional_id is None
        assert producer._sender._acks == -1
        assert producer._request_timeout_ms == 24_000
    finally:
        await producer.stop()


async def test_the_real_client_without_brokers_is_transient() -> None:
    config = PluginSinkConfig(type="plugin", plugin="kafka", options=OPTIONS, timeout_s=2)
    sink = create("archive", config)
    for _ in range(2):
        with pytest.raises(TransientError):
            await sink.deliver([record(1)])
    await sink.close()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, r"sinks\.a\.options\.bootstrap_servers: Field required"),
        (OPTIONS | {"topics": "x"}, r"sinks\.a\.options\.topics: kafka knows no option 'topics' \(hint: known are "),
        (OPTIONS | {"topic": "a b"}, r"sinks\.a\.options\.topic"),
        (OPTIONS | {"bootstrap_servers": ["http://x"]}, r"sinks\.a\.options\.bootstrap_servers\.0"),
        (OPTIONS | {"security": "SASL_SSL"}, "needs username and password_file"),
        (OPTIONS | {"password_file": "/nowhere"}, r"sinks\.a\.options\.password_file: cannot read"),
        (OPTIONS | {"security": "SSL", "ca_file": "/nowhere"}, r"sinks\.a\.options: certificates cannot be used"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        create("a", PluginSinkConfig(type="plugin", plugin="kafka", options=options))


async def test_a_password_is_read_and_given_to_the_client(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    raw = OPTIONS | {"security": "SASL_PLAINTEXT", "username": "box", "password_file": str(path)}
    options = parse_options(raw, "o")
    producer = make_producer(options, options.read_password("o"), None, 10.0)
    try:
        assert producer.client._sasl_plain_password == "s3cret"
        assert producer.client._sasl_mechanism == "SCRAM-SHA-512"
    finally:
        await producer.stop()

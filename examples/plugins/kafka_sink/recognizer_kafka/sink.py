"""The sink: one event after the other, each acknowledged before the next is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from agent.errors import AccessError, RejectedError, TransientError, UnexplainedError
from agent.types import OutboxRecord
from aiokafka import errors as kafka

from recognizer_kafka.cloudevent import KafkaMessage, message_of

_TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
_FOR_A_PERSON = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.ClusterAuthorizationFailedError,
    kafka.IncompatibleBrokerVersion,
    kafka.InvalidTopicError,
    kafka.SaslAuthenticationFailed,
    kafka.TopicAuthorizationFailedError,
    kafka.UnknownTopicOrPartitionError,
    kafka.UnsupportedSaslMechanismError,
)
_OF_THIS_PRODUCER = (
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.OutOfOrderSequenceNumber,
    kafka.ProducerClosed,
    kafka.ProducerFenced,
    kafka.UnknownProducerId,
)
"""The brokers no longer go on with this producer; a new one begins afresh."""


class Producer(Protocol):
    """What is used of `AIOKafkaProducer`."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def send_and_wait(
        self, topic: str, *, value: bytes, key: bytes, headers: list[tuple[str, bytes]]
    ) -> object: ...


class KafkaSink:
    """Implements `EventSink`. One at a time: a batch whose middle fails would come into the topic in another order.

    make_producer: a new one, not connected. topic: for all events.
    """

    max_batch = 1

    def __init__(self, make_producer: Callable[[], Producer], topic: str) -> None:
        self._make_producer = make_producer
        self._topic = topic
        self._producer: Producer | None = None
        self._doubtful = False  # it did not even say that it failed

    async def deliver(self, records: Sequence[OutboxRecord]) -> int:
        """As in `EventSink`."""
        message = message_of(records[0].payload)
        if self._doubtful:
            self._doubtful = False
            await self.close()
        try:
            await self._send(message)
        except asyncio.CancelledError:
            self._doubtful = True
            raise
        except _TOO_LARGE as error:
            raise RejectedError(_text(error), error.errno) from error
        except _FOR_A_PERSON as error:
            raise AccessError(_text(error)) from error
        except _OF_THIS_PRODUCER as error:
            await self.close()
            raise TransientError(_text(error)) from error
        except kafka.BrokerResponseError as error:
            if error.retriable:
                raise TransientError(_text(error)) from error
            raise UnexplainedError(_text(error), error.errno) from error
        except (kafka.KafkaError, OSError) as error:
            raise TransientError(_text(error)) from error
        return 1

    async def close(self) -> None:
        """As in `EventSink`."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(kafka.KafkaError, OSError):
                await producer.stop()

    async def _send(self, message: KafkaMessage) -> None:
        if self._producer is None:
            self._producer = await self._start()
        await self._producer.send_and_wait(
            self._topic, value=message.value, key=message.key, headers=list(message.headers)
        )

    async def _start(self) -> Producer:
        producer = self._make_producer()
        try:
            await producer.start()
        except BaseException:
            with contextlib.suppress(kafka.KafkaError, OSError):
                await producer.stop()
            raise
        return producer


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__

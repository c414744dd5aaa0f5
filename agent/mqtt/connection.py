"""One connection to the broker: a paho client that lives exactly as long as its socket.

The socket is watched by the event loop itself: no second thread, no lock, no `select` with its limit of 1,024
descriptors. Only name resolution, TCP and TLS set-up block, so these run on a thread of their own.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import RejectedError, TransientError
from agent.mqtt import packing, transport
from agent.mqtt.aliases import TopicAliases
from agent.mqtt.refusals import AliasTroubleError, FloodError, LoginRefusedError, login_refusal, refusal
from agent.mqtt.target import Target
from agent.mqtt.terms import MOST_IN_FLIGHT, Terms
from agent.mqtt.transport import CONNECT_TIMEOUT_S, Complaint, GatheringClient, named
from agent.mqtt.verdicts import PACKET_TOO_LARGE, PAYLOAD_INVALID, TOPIC_INVALID, Verdict, verdict
from agent.ports import Envelope, Received

_MOST_TIMEOUTS = 3
"""A message may wait so many times the timeout while other acknowledgements come."""
_TICK_S = 1.0
_SESSION_TAKEN_OVER = 0x8E
_ALIAS_TROUBLE = frozenset({0x82, 0x94})
"""DISCONNECT: protocol error, topic alias invalid."""
_MOST_INBOUND_BYTES = 4_194_304
"""What a broker that cannot be told a limit may send as one packet; more ends the connection."""


@dataclass(slots=True)
class _Pending:
    """A publish without its acknowledgement."""

    acknowledged: asyncio.Future[None]
    since_s: float
    topic: str


class Connection:
    """Open with `open`; ends once, by the network, by `drop` or by `disconnect`; every method on the event loop.

    terms: the broker's; more publishes than it takes unacknowledged wait their turn here. unheard: publishes that it took
    though nobody has subscribed to them. last_packet_id: the latest one given.
    """

    def __init__(self, client: GatheringClient, target: Target, on_message: Callable[[Received], None]) -> None:
        self.terms = Terms()
        self.unheard = 0
        self.last_packet_id = 0
        self._client = client
        self._target = target
        self._on_received = on_message
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[TransientError] = self._loop.create_future()
        self._pending: dict[int, _Pending] = {}
        self._acknowledged_s = 0.0
        self._subscribing: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._slots = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._queued = 0
        self._aliases = TopicAliases(0)
        self._watched_fd = -1
        self._writing = self._flushing = False
        self._tick: asyncio.TimerHandle | None = None
        self._complaint = Complaint()
        client.enable_logger(self._complaint.logger)

    @classmethod
    async def open(
        cls,
        target: Target,
        on_message: Callable[[Received], None],
        *,
        aliases: bool = True,
        last_packet_id: int = 0,
    ) -> Connection:
        """Connect and wait for the broker's welcome. Raises LoginRefusedError (also RetainRefusedError), TransientError.

        on_message: called with each message that comes in, which is acknowledged when it returns. aliases: use topic
        aliases if the broker has some. last_packet_id: of the connection before, see `transport.new_client`.
        """
        connection = cls(transport.new_client(target, last_packet_id), target, on_message)
        connection.last_packet_id = last_packet_id
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection._connect()
                await connection._connack
        except TimeoutError as error:
            connection.drop("no answer to the connect")
            raise TransientError(f"{target.host}:{target.port}: no answer within {CONNECT_TIMEOUT_S:g} s") from error
        except BaseException:
            connection.drop("not connected")
            raise
        connection._aliases = TopicAliases(connection.terms.topic_alias_maximum if aliases else 0)
        return connection

    @property
    def in_flight(self) -> int:
        """Publishes that wait for their acknowledgement."""
        return len(self._pending)

    @property
    def open_now(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.done()

    async def wait_ended(self) -> TransientError:
        """Why it ended, once it has."""
        return await asyncio.shield(self._ended)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None:
        """Send, and for QoS 1 wait for the acknowledgement. Sends at once unless the broker's window is full.

        Raises TransientError (also QuotaError, UnexplainedError), RejectedError.
        """
        if qos == 0:
            self._send(topic, payload, 0, retain, envelope)
            return
        self._raise_if_ended()  # nobody frees a slot any more
        self._queued += 1
        try:
            await self._slots.acquire()
        finally:
            self._queued -= 1
        try:
            mid = self._send(topic, payload, qos, retain, envelope)
        except BaseException:
            self._slots.release()
            raise
        pending = self._pending[mid] = _Pending(self._loop.create_future(), self._loop.time(), topic)
        await pending.acknowledged  # its slot is free when the broker says so, also if nobody waits any more

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> list[ReasonCode]:
        """Subscribe to filters with their QoS; returns the broker's answer to each. Raises TransientError."""
        self._raise_if_ended()
        try:
            result, mid = self._client.subscribe(list(filters))
        except ValueError as error:
            raise TransientError(f"cannot subscribe: {error}") from error
        if mid is None or result != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise TransientError(f"cannot subscribe: {paho.error_string(result)}")
        self.last_packet_id = mid
        self._flush_soon()
        answer: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._subscribing[mid] = answer
        try:
            return await answer
        finally:
            self._subscribing.pop(mid, None)

    def disconnect(self) -> None:
        """End politely: the broker drops the will."""
        if self.open_now:
            self._flush()
            if not self._client.waiting:  # a DISCONNECT in the middle of another packet would not be one
                self._client.gathering = False
                self._client.disconnect()
            self._end("disconnected")

    def drop(self, why: str) -> None:
        """End at once, without a word: the broker will send the will."""
        self._end(why)

    # --- set-up -------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        target = self._target
        try:
            await transport.on_thread(
                lambda: transport.connect(self._client, target), undo=lambda: transport.close_socket(self._client)
            )
        except ssl.SSLCertVerificationError as error:
            raise LoginRefusedError(f"{target.host}:{target.port}: {error.verify_message or error}") from error
        except (ssl.SSLError, ConnectionResetError) as error:
            raise TransientError(self._unanswered(f"{target.host}:{target.port}: {error}")) from error
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            raise TransientError(f"{target.host}:{target.port}: {error}") from error
        self._watch()

    def _watch(self) -> None:
        """From here on paho runs on the event loop, and only now it may call back."""
        sock = self._client.socket()
        if sock is None:
            why = self._complaint.text or "the connection was lost while it was made"
            raise TransientError(self._unanswered(why))
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: the kernel's own patience is a quarter of an hour
            patience_ms = int(self._target.dead_after_s * 1000)
            cast("socket.socket", sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = lambda _client, _data, mid, reason, _properties: self._on_publish(mid, reason)
        self._client.on_acknowledged = self._on_acknowledged
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_socket_close = self._on_socket_close
        self._client.gathering = True
        self._watched_fd = sock.fileno()
        self._loop.add_reader(self._watched_fd, self._readable)
        self._tick = self._loop.call_later(_TICK_S, self._on_tick)

    # --- events of the loop -------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Read until TLS has nothing buffered either: such bytes would not wake the event loop."""
        while self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            pending = getattr(self._client.socket(), "pending", None)
            if pending is None or not pending():
                break
        if transport.waiting_bytes(self._client) > _MOST_INBOUND_BYTES:
            self._end(f"the broker sends a packet above {_MOST_INBOUND_BYTES} bytes", FloodError)
            return
        self._flush_soon()

    def _flush_soon(self) -> None:
        """After this turn of the loop everything that was queued in it goes in one piece."""
        if self.open_now and not self._flushing and self._client.waiting:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """What the socket does not take now it asks for itself."""
        self._flushing = False
        try:
            self._client.flush()
        except OSError as error:
            self._end(f"connection lost: {error}")
        if not self.open_now:
            return
        left = self._client.waiting
        if left and not self._writing:
            self._loop.add_writer(self._watched_fd, self._flush)
        elif self._writing and not left and self._watched_fd >= 0:
            self._loop.remove_writer(self._watched_fd)
        self._writing = left

    def _on_tick(self) -> None:
        """Keep-alive, and the deadline of acknowledgements. As long as others come the line is only slow; but a broker that
        forgets one cannot be trusted with the order."""
        self._tick = self._loop.call_later(_TICK_S, self._on_tick)
        oldest, now_s, limit_s = next(iter(self._pending.values()), None), self._loop.time(), self._target.ack_timeout_s
        if oldest is not None:
            silent_s = now_s - max(oldest.since_s, self._acknowledged_s)
            if silent_s > limit_s or now_s - oldest.since_s > _MOST_TIMEOUTS * limit_s:
                why = f"a publish was not acknowledged within {min(silent_s, limit_s):g} s"
                if (coming := transport.waiting_bytes(self._client)) > self._target.max_inbound_bytes:
                    self._end(f"{why}, behind a packet of {coming} bytes", FloodError)
                self.drop(why)
                return
        self._client.loop_misc()
        self._flush_soon()

    # --- paho's callbacks, on the event loop --------------------------------------------------------------------------

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, found: Properties | None) -> None:
        if self._connack.done():
            return
        if reason.is_failure:
            self._connack.set_exception(login_refusal(reason))
            return
        self.terms = Terms.of(found, session_present=flags.session_present)
        if not self.terms.maximum_qos:
            self._connack.set_exception(LoginRefusedError("the broker has no QoS 1, and QoS 0 may lose events"))
            return
        self._slots = asyncio.Semaphore(self.terms.receive_maximum)
        self._connack.set_result(None)

    def _on_acknowledged(self, mid: int, code: int) -> None:
        """With a good reason code."""
        pending = self._pending.pop(mid, None)
        if pending is None:
            return
        self._acknowledged_s = self._loop.time()
        self._slots.release()
        if verdict(code) is Verdict.UNHEARD:
            self.unheard += 1
        if not pending.acknowledged.done():  # its caller may have been cancelled
            pending.acknowledged.set_result(None)

    def _on_publish(self, mid: int, reason: ReasonCode) -> None:
        """With any other one."""
        judged = verdict(reason.value)
        error = refusal(judged, reason)
        if error is None:
            self._on_acknowledged(mid, reason.value)
            return
        pending = self._pending.pop(mid, None)
        if pending is None:
            return
        self._slots.release()
        self._aliases.forget(pending.topic)
        if not pending.acknowledged.done():
            pending.acknowledged.set_exception(error)
        if judged is Verdict.OUT_OF_STEP:
            self.drop(str(error))

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        answer = self._subscribing.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(reasons)

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        """Acknowledged once it was handed over, and when it is not worth that."""
        try:
            received = transport.received(message)
        except UnicodeDecodeError:
            pass
        else:
            self._on_received(received)
        client.ack(message.mid, message.qos)

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server and reason.value == _SESSION_TAKEN_OVER:
            self._end("another client connected with the same client id", LoginRefusedError)
        elif flags.is_disconnect_packet_from_server:
            kind = AliasTroubleError if reason.value in _ALIAS_TROUBLE else TransientError
            self._end(f"the broker closed the connection: {named(reason)}", kind)
        else:
            why = self._complaint.text or f"connection lost: {reason}"
            self._end(why if self._connack.done() else self._unanswered(why))

    def _on_socket_close(self, *_: object) -> None:
        self._unwatch()

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _unanswered(self, why: str) -> str:
        return transport.unanswered(why, tls=self._target.tls is not None, setting="mqtt.tls")

    def _send(self, topic: str, payload: bytes, qos: int, retain: bool, envelope: Envelope | None) -> int:
        """Hand a message to paho and the socket; returns its packet id."""
        self._raise_if_ended()
        if not topic or "\x00" in topic:
            raise RejectedError(f"{topic!r} is no topic", TOPIC_INVALID)
        wire_topic, found = self._packed(topic, payload, qos, envelope)
        try:
            info = self._client.publish(wire_topic, payload, qos, retain and self.terms.retains, properties=found)
        except ValueError as error:
            self._aliases.forget(topic)
            raise RejectedError(f"{topic!r}: {error}", TOPIC_INVALID) from error
        self._raise_if_ended()
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.drop(f"publish failed: {paho.error_string(info.rc)}")
            self._raise_if_ended()
        self.last_packet_id = info.mid
        self._flush_soon()
        return info.mid

    def _packed(self, topic: str, payload: bytes, qos: int, envelope: Envelope | None) -> tuple[str, Properties | None]:
        """The topic as it is sent and the properties. Raises RejectedError for what the broker or MQTT cannot take."""
        wire_topic, block = topic, b""
        try:
            if self._target.v5:
                wire_topic, alias = self._aliases.choose(topic)
                block = packing.properties(envelope, alias)
            size = packing.publish_size(len(wire_topic.encode()), len(block), len(payload), qos)
        except ValueError as error:
            self._aliases.forget(topic)
            raise RejectedError(f"{topic!r}: a property cannot be sent: {error}", PAYLOAD_INVALID) from error
        limit = self.terms.max_packet_bytes
        if limit is not None and size > limit:
            self._aliases.forget(topic)
            raise RejectedError(f"{size} bytes are more than the broker takes ({limit})", PACKET_TOO_LARGE)
        return wire_topic, cast("Properties", packing.Packed(block)) if block else None

    def _raise_if_ended(self) -> None:
        if self._ended.done():
            raise TransientError(str(self._ended.result()))

    def _end(self, why: str, kind: type[TransientError] = TransientError) -> None:
        """Fail everything that waits, close the socket, never come back."""
        if self._ended.done():
            return
        self._ended.set_result(kind(why))
        self._unwatch()
        if self._tick is not None:
            self._tick.cancel()
        waiting: list[asyncio.Future[Any]] = [pending.acknowledged for pending in self._pending.values()]
        for answer in (*waiting, *self._subscribing.values()):
            if not answer.done():
                answer.set_exception(TransientError(why))
        self._pending.clear()
        for _ in range(self._queued):
            self._slots.release()
        if not self._connack.done():
            self._connack.set_exception(kind(why))
            self._connack.exception()  # nobody may be waiting for it any more
        transport.close_socket(self._client)

    def _unwatch(self) -> None:
        if self._watched_fd >= 0:
            self._loop.remove_reader(self._watched_fd)
            self._loop.remove_writer(self._watched_fd)
            self._watched_fd, self._writing = -1, False

"""One connection to the broker: a paho client that lives exactly as long as its socket.

The socket is watched by the event loop itself: no second thread, no lock, no `select` with its limit of 1,024
descriptors. Only name resolution, TCP and TLS set-up block, so these run on a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import RejectedError, TransientError

_CONNECT_TIMEOUT_S = 10.0
_TICK_S = 1.0
_FAILURE = 0x80
_PACKET_TOO_LARGE = 0x95
_SESSION_TAKEN_OVER = 0x8E
_PUBLISH_OVERHEAD_BYTES = 16
"""Most that a QoS 1 PUBLISH without properties adds to its topic and payload."""
_MOST_IN_FLIGHT = 65_535

_NEVER_AGAIN = frozenset({0x87, 0x90, 0x99, _PACKET_TOO_LARGE})
"""PUBACK: not authorised, topic name invalid, payload format invalid, packet too large."""
_LOGIN_REFUSED = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x95, 0x99, 0x9A, 0x9B, 0x9C, 0x9D})
"""CONNACK: what a person has to change before it can work: version, identifier, password, rights, will, server."""


class LoginRefusedError(TransientError):
    """The broker answered and does not want this client as it is configured."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and as whom to connect. will_topic: gets `will_payload`, retained, when the connection is lost."""

    host: str
    port: int
    protocol: MQTTProtocolVersion
    client_id: str
    keepalive_s: int
    username: str
    password: str
    tls: ssl.SSLContext | None
    will_topic: str
    will_payload: bytes
    ack_timeout_s: float


class Connection:
    """Open with `open`; ends once, by the network, by `drop` or by `disconnect`; every method on the event loop.

    receive_maximum: how many QoS 1 publishes the broker takes unacknowledged; more of them wait their turn here.
    """

    def __init__(self, client: paho.Client, target: Target) -> None:
        self.receive_maximum = _MOST_IN_FLIGHT
        self._client = client
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[TransientError] = self._loop.create_future()
        self._pending: dict[int, tuple[asyncio.Future[None], float]] = {}
        self._slots = asyncio.Semaphore(_MOST_IN_FLIGHT)
        self._queued = 0
        self._max_packet_bytes: int | None = None
        self._watched_fd = -1
        self._writing = False
        self._tick: asyncio.TimerHandle | None = None
        self._complaint = _Complaint()
        client.enable_logger(self._complaint.logger)

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Connect and wait for the broker's welcome. Raises LoginRefusedError, TransientError."""
        connection = cls(_new_client(target), target)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await connection._connect()
                await connection._connack
        except TimeoutError as error:
            connection.drop("no answer to the connect")
            raise TransientError(f"{target.host}:{target.port}: no answer within {_CONNECT_TIMEOUT_S:g} s") from error
        except TransientError as error:
            connection.drop("not connected")
            if target.tls is None or isinstance(error, LoginRefusedError):
                raise
            raise TransientError(
                f"{error} (hint: is this the TLS port, does the broker want a client certificate?)"
            ) from error
        except BaseException:
            connection.drop("not connected")
            raise
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

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send, and for QoS 1 wait for the acknowledgement. Sends at once unless the broker's window is full.

        Raises TransientError, RejectedError.
        """
        if qos == 0:
            self._send(topic, payload, 0, retain)
            return
        self._queued += 1
        try:
            await self._slots.acquire()
        finally:
            self._queued -= 1
        try:
            mid = self._send(topic, payload, qos, retain)
        except BaseException:
            self._slots.release()
            raise
        acknowledged = self._loop.create_future()
        self._pending[mid] = (acknowledged, self._loop.time())
        await acknowledged  # its slot is free when the broker says so, also if nobody waits any more

    def disconnect(self) -> None:
        """End politely: the broker drops the will."""
        if self.open_now:
            self._client.disconnect()
            self._end("disconnected")

    def drop(self, why: str) -> None:
        """End at once, without a word: the broker will send the will."""
        self._end(why)

    # --- set-up -------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        target = self._target
        v5 = target.protocol is MQTTProtocolVersion.MQTTv5
        clean_start: bool | Literal[3] = True if v5 else paho.MQTT_CLEAN_START_FIRST_ONLY
        try:
            await _on_thread(
                lambda: self._client.connect(target.host, target.port, target.keepalive_s, clean_start=clean_start),
                undo=lambda: _close_socket(self._client),
            )
        except ssl.SSLCertVerificationError as error:
            raise LoginRefusedError(f"{target.host}:{target.port}: {error.verify_message or error}") from error
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            raise TransientError(f"{target.host}:{target.port}: {error}") from error
        self._watch()

    def _watch(self) -> None:
        """From here on paho runs on the event loop, and only now it may call back."""
        sock = self._client.socket()
        if sock is None:
            raise TransientError(self._complaint.text or "the connection was lost while it was made")
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_socket_close = self._on_socket_close
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
        self._watch_writes()

    def _writable(self) -> None:
        self._client.loop_write()
        self._watch_writes()

    def _watch_writes(self) -> None:
        """paho writes at once; the loop is needed only for what the socket did not take."""
        wants = self.open_now and self._client.want_write()
        if wants and not self._writing:
            self._loop.add_writer(self._watched_fd, self._writable)
        elif self._writing and not wants and self._watched_fd >= 0:
            self._loop.remove_writer(self._watched_fd)
        self._writing = wants

    def _on_tick(self) -> None:
        """Keep-alive, and the deadline of acknowledgements: a broker that forgets one cannot be trusted with the order."""
        self._tick = self._loop.call_later(_TICK_S, self._on_tick)
        oldest = next(iter(self._pending.values()), None)
        if oldest is not None and self._loop.time() - oldest[1] > self._target.ack_timeout_s:
            self.drop(f"a publish was not acknowledged within {self._target.ack_timeout_s:g} s")
            return
        self._client.loop_misc()
        self._watch_writes()

    # --- paho's callbacks, on the event loop --------------------------------------------------------------------------

    def _on_connect(
        self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if self._connack.done():
            return
        if reason.is_failure:
            kind = LoginRefusedError if reason.value in _LOGIN_REFUSED else TransientError
            self._connack.set_exception(kind(f"the broker refused the connection: {_named(reason)}"))
            return
        self.receive_maximum = getattr(properties, "ReceiveMaximum", _MOST_IN_FLIGHT)
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self._slots = asyncio.Semaphore(self.receive_maximum)
        self._connack.set_result(None)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        acknowledged, _ = self._pending.pop(mid, (None, 0.0))
        if acknowledged is None:
            return
        self._slots.release()
        if acknowledged.done():  # its caller was cancelled
            return
        if reason.value < _FAILURE:
            acknowledged.set_result(None)
        elif reason.value in _NEVER_AGAIN:
            acknowledged.set_exception(RejectedError(f"the broker refused the message: {_named(reason)}", reason.value))
        else:
            acknowledged.set_exception(TransientError(f"the broker did not take the message: {_named(reason)}"))

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server and reason.value == _SESSION_TAKEN_OVER:
            self._end("another client connected with the same client id", LoginRefusedError)
        elif flags.is_disconnect_packet_from_server:
            self._end(f"the broker closed the connection: {_named(reason)}")
        else:
            self._end(self._complaint.text or f"connection lost: {reason}")

    def _on_socket_close(self, *_: object) -> None:
        self._unwatch()

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _send(self, topic: str, payload: bytes, qos: int, retain: bool) -> int:
        """Hand a message to paho and the socket; returns its packet id."""
        self._raise_if_ended()
        if self._max_packet_bytes is not None:
            size = len(topic.encode()) + len(payload) + _PUBLISH_OVERHEAD_BYTES
            if size > self._max_packet_bytes:
                text = f"{size} bytes are more than the broker takes ({self._max_packet_bytes})"
                raise RejectedError(text, _PACKET_TOO_LARGE)
        try:
            info = self._client.publish(topic, payload, qos, retain)
        except ValueError as error:
            raise RejectedError(f"{topic!r}: {error}", 0x90) from error
        self._raise_if_ended()
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.drop(f"publish failed: {paho.error_string(info.rc)}")
            self._raise_if_ended()
        self._watch_writes()
        return info.mid

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
        for acknowledged, _ in self._pending.values():
            if not acknowledged.done():
                acknowledged.set_exception(TransientError(why))
        self._pending.clear()
        for _ in range(self._queued):
            self._slots.release()
        if not self._connack.done():
            self._connack.set_exception(kind(why))
            self._connack.exception()  # nobody may be waiting for it any more
        _close_socket(self._client)

    def _unwatch(self) -> None:
        if self._watched_fd >= 0:
            self._loop.remove_reader(self._watched_fd)
            self._loop.remove_writer(self._watched_fd)
            self._watched_fd, self._writing = -1, False


class _Complaint(logging.Handler):
    """Remembers paho's latest error line: the only place where it tells what went wrong with a socket."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""
        self.logger = logging.Logger("paho", logging.ERROR)  # noqa: LOG001 - private on purpose: one per connection, not in the tree
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho then forgets it open. For `SSLContext.sslsocket_class`."""

    def do_handshake(self, block: bool = False) -> None:
        """As in SSLSocket."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _named(reason: ReasonCode) -> str:
    return f"{reason} (0x{reason.value:02x})"


def _new_client(target: Target) -> paho.Client:
    v5 = target.protocol is MQTTProtocolVersion.MQTTv5
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=target.client_id,
        clean_session=None if v5 else True,
        protocol=target.protocol,
        reconnect_on_failure=False,
    )
    client.max_inflight_messages_set(0)  # the window is kept here; paho's own would queue in memory
    client.connect_timeout = _CONNECT_TIMEOUT_S
    client.will_set(target.will_topic, target.will_payload, qos=1, retain=True)
    if target.username:
        client.username_pw_set(target.username, target.password or None)
    if target.tls is not None:
        client.tls_set_context(target.tls)
    return client


def _close_socket(client: paho.Client) -> None:
    sock = cast("socket.socket | None", client.socket())
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()


async def _on_thread(function: Callable[[], object], undo: Callable[[], object]) -> None:
    """Run `function` on a thread that nobody has to wait for at exit; when the caller gives up first, `undo` follows it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if done.done():
            undo()
        elif error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: Exception | None = None
        try:
            function()
        except Exception as problem:  # noqa: BLE001 - carried over to the caller
            error = problem
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:  # the loop has gone
            undo()

    threading.Thread(target=work, name="mqtt-connect", daemon=True).start()
    await done

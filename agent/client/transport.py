"""One connection of a subscriber: a paho client on the event loop that acknowledges a message when told to, not before."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import DataError, TransientError
from agent.mqtt.seal import ENCODING, SIGNATURE, is_signed, unpack
from agent.mqtt.target import TlsSocket
from agent.mqtt.transport import CONNECT_TIMEOUT_S, Complaint, close_socket, named, on_thread, unanswered

_TICK_S = 1.0
_MAX_PACKET_BYTES = 4_194_304
_FAILURE = 0x80
_REFUSED = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x8E, 0x9A, 0x9B, 0x9C, 0x9D})
"""CONNACK and DISCONNECT: what a person has to change: version, identifier, password, rights, server, twin."""

OnMessage = Callable[[str, bytes, str, int], None]
"""Topic, content, what is wrong with it (empty = nothing), and what to give to `acknowledge`."""


class RefusedError(TransientError):
    """The broker answered and does not want this client as it is configured."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where and as whom to subscribe. window: messages that may be unacknowledged (MQTT 5; in 3.1.1 the broker's own limit).

    session_expiry_s: how long the broker keeps what it has for an absent client; 0 = no session. signing_keys: by the device id
    that follows `base_topic`, `+` = of all others: whoever does not sign with it is not believed; None = everybody is.
    """

    host: str
    port: int
    client_id: str
    protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5
    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None
    keepalive_s: int = 30
    window: int = 100
    session_expiry_s: int = 0
    base_topic: str = "recognizer"
    signing_keys: Mapping[str, bytes] | None = field(default=None, repr=False)


class Link:
    """Made by `open`; ends once. session_present: the broker had kept a session and sends again what was not acknowledged."""

    def __init__(self, client: paho.Client, broker: Broker, on_message: OnMessage) -> None:
        self.session_present = False
        self._needed = 0
        self._filters: tuple[str, ...] = ()
        self._client = client
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._suback: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[TransientError] = self._loop.create_future()
        self._watched_fd = -1
        self._tick: asyncio.TimerHandle | None = None
        self._complaint = Complaint()
        client.enable_logger(self._complaint.logger)
        client.on_message = lambda _c, _d, message: self._take(message, on_message)

    def _take(self, message: paho.MQTTMessage, on_message: OnMessage) -> None:
        """A session that was begun with other filters still brings what they let through: nobody asked for it now."""
        if any(paho.topic_matches_sub(one, message.topic) for one in self._filters):
            on_message(message.topic, *self._content(message), message.mid)
        else:
            self.acknowledge(message.mid)

    def _content(self, message: paho.MQTTMessage) -> tuple[bytes, str]:
        """What was in the payload before it was compressed, and what is wrong with it."""
        payload = bytes(message.payload)
        said = dict(getattr(message.properties, "UserProperty", ()))
        try:
            content = unpack(payload, said.get(ENCODING, ""))
        except DataError as error:
            return payload, str(error)
        return content, self._distrust(message.topic, content, said.get(SIGNATURE, ""))

    def _distrust(self, topic: str, content: bytes, signature: str) -> str:
        """Why the device of `topic` is not believed to have sent this; empty = it is. Retained state is never signed."""
        keys = self._broker.signing_keys
        device_id, _, place = topic.removeprefix(f"{self._broker.base_topic}/").partition("/")
        if keys is None or not place.startswith("events"):
            return ""
        key = keys.get(device_id, keys.get("+"))
        if key is None:
            return f"no signing key is known of {device_id!r}"
        return "" if is_signed(content, signature, key) else "not signed with the key of this device"

    @classmethod
    async def open(
        cls,
        broker: Broker,
        filters: Sequence[str],
        on_message: OnMessage,
        optional: Sequence[str] = (),
        gone: Sequence[str] = (),
    ) -> Link:
        """Connect and subscribe with QoS 1; the broker may refuse what is `optional`. Raises RefusedError, TransientError.

        gone: filters that the session may still have, to be taken out of it.
        """
        link = cls(_new_client(broker), broker, on_message)
        link._needed, link._filters = len(filters), (*filters, *optional)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await link._connect()
                await link._connack
                link._client.subscribe([(one, 1) for one in link._filters])
                if gone:  # only now: nothing that both let through gets lost in between
                    link._client.unsubscribe(list(gone))
                link._watch_writes()
                await link._suback
        except TimeoutError as error:
            link.close()
            raise TransientError(f"{broker.host}:{broker.port}: no answer within {CONNECT_TIMEOUT_S:g} s") from error
        except BaseException:
            link.close()
            raise
        return link

    @property
    def open_now(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.done()

    async def wait_ended(self) -> TransientError:
        """Why it ended, once it has."""
        return await asyncio.shield(self._ended)

    def acknowledge(self, token: int) -> None:
        """The message is dealt with. Nothing happens once the link has ended: the broker will send it again."""
        if self.open_now and token:
            self._client.ack(token, 1)
            self._watch_writes()

    def send(self, topic: str, payload: bytes, *, answer_to: str, correlation: bytes) -> None:
        """Publish with QoS 1, without waiting. Raises TransientError when the link has ended."""
        if not self.open_now:
            raise TransientError(str(self._ended.result()))
        properties = None
        if self._broker.protocol is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic, properties.CorrelationData = answer_to, correlation
        self._client.publish(topic, payload, 1, properties=properties)
        self._watch_writes()

    def close(self) -> None:
        """Disconnect; the session stays with the broker as long as was agreed."""
        if self.open_now:
            self._client.disconnect()
            self._end(TransientError("closed"))

    # --- the socket on the event loop ---------------------------------------------------------------------------------

    async def _connect(self) -> None:
        broker = self._broker
        persistent = broker.session_expiry_s > 0
        start: dict[str, Any] = {}
        if broker.protocol is MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.ReceiveMaximum, properties.MaximumPacketSize = broker.window, _MAX_PACKET_BYTES
            if persistent:
                properties.SessionExpiryInterval = broker.session_expiry_s
            start = {"clean_start": not persistent, "properties": properties}
        try:
            await on_thread(
                lambda: self._client.connect(broker.host, broker.port, broker.keepalive_s, **start),
                undo=lambda: close_socket(self._client),
            )
        except ssl.SSLCertVerificationError as error:
            raise RefusedError(f"{broker.host}:{broker.port}: {error.verify_message or error}") from error
        except (ssl.SSLError, ConnectionResetError) as error:
            raise TransientError(self._unanswered(f"{broker.host}:{broker.port}: {error}")) from error
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            raise TransientError(f"{broker.host}:{broker.port}: {error}") from error
        sock = self._client.socket()
        if sock is None:
            why = self._complaint.text or "the connection was lost while it was made"
            raise TransientError(self._unanswered(why))
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_socket_close = lambda *_: self._unwatch()
        self._watched_fd = sock.fileno()
        self._loop.add_reader(self._watched_fd, self._readable)
        self._tick = self._loop.call_later(_TICK_S, self._on_tick)

    def _readable(self) -> None:
        """Read until TLS has nothing buffered either: such bytes would not wake the event loop."""
        while self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            pending = getattr(self._client.socket(), "pending", None)
            if pending is None or not pending():
                break
        self._watch_writes()

    def _watch_writes(self) -> None:
        """paho writes at once; the loop is needed only for what the socket did not take."""
        if self._watched_fd < 0:
            return
        if self._client.want_write():
            self._loop.add_writer(self._watched_fd, self._writable)
        else:
            self._loop.remove_writer(self._watched_fd)

    def _writable(self) -> None:
        self._client.loop_write()
        self._watch_writes()

    def _on_tick(self) -> None:
        self._tick = self._loop.call_later(_TICK_S, self._on_tick)
        self._client.loop_misc()
        self._watch_writes()

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if self._connack.done():
            return
        if reason.is_failure:
            kind = RefusedError if reason.value in _REFUSED else TransientError
            self._connack.set_exception(kind(f"the broker refused the connection: {named(reason)}"))
            return
        self.session_present = bool(flags.session_present)
        self._connack.set_result(None)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        refused = [named(reason) for reason in reasons[: self._needed] if reason.value >= _FAILURE]
        if self._suback.done():
            return
        if refused:
            self._suback.set_exception(RefusedError(f"the broker refused the subscription: {', '.join(refused)}"))
        else:
            self._suback.set_result(None)

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            kind = RefusedError if reason.value in _REFUSED else TransientError
            self._end(kind(f"the broker closed the connection: {named(reason)}"))
        else:
            why = self._complaint.text or f"connection lost: {reason}"
            self._end(TransientError(why if self._connack.done() else self._unanswered(why)))

    def _unanswered(self, why: str) -> str:
        return unanswered(why, tls=self._broker.tls is not None, setting="mqtts://")

    def _end(self, why: TransientError) -> None:
        if self._ended.done():
            return
        self._ended.set_result(why)
        self._unwatch()
        if self._tick is not None:
            self._tick.cancel()
        for waiting in (self._connack, self._suback):
            if not waiting.done():
                waiting.set_exception(why)
            if not waiting.cancelled():
                waiting.exception()  # nobody may be waiting for it any more
        close_socket(self._client)

    def _unwatch(self) -> None:
        if self._watched_fd >= 0:
            self._loop.remove_reader(self._watched_fd)
            self._loop.remove_writer(self._watched_fd)
            self._watched_fd = -1


def tls_context(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    """Checks the broker's certificate against `ca_file` (None = the system's authorities). Raises OSError (files)."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # it does not name the file itself
        raise type(error)(f"{ca_file}: {error}") from error
    context.sslsocket_class = TlsSocket
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file)
        except OSError as error:
            raise type(error)(f"{cert_file}, {key_file}: {error}") from error
    return context


def _new_client(broker: Broker) -> paho.Client:
    v5 = broker.protocol is MQTTProtocolVersion.MQTTv5
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=broker.client_id,
        clean_session=None if v5 else broker.session_expiry_s == 0,
        protocol=broker.protocol,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if broker.username:
        client.username_pw_set(broker.username, broker.password or None)
    if broker.tls is not None:
        client.tls_set_context(broker.tls)
    return client

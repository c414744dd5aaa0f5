"""How paho is set up and its socket made: the parts of a connection that know nothing of its state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Literal, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.mqtt.target import Target
from agent.ports import Received

CONNECT_TIMEOUT_S = 10.0
_INBOUND_WINDOW = 32
"""Messages to the agent that the broker may have unacknowledged; each is acknowledged as soon as it was handed over."""


class Complaint(logging.Handler):
    """Remembers paho's latest error line: the only place where it tells what went wrong with a socket."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""
        self.logger = logging.Logger("paho", logging.ERROR)  # noqa: LOG001 - private on purpose: one per connection, not in the tree
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


_GOOD_PUBACKS = frozenset({0x00, 0x10})


class GatheringClient(paho.Client):
    """paho with its two slowest steps replaced; together they cost more than the rest of the way of a message.

    What is queued in one turn of the event loop is sent in one piece, by `flush`, from when `gathering` is set; before,
    each packet goes at once. And a good acknowledgement goes to `on_acknowledged` (packet id, reason code) without the
    dozen of objects that paho makes of it; every other one goes to `on_publish`. Should paho stop calling the methods that
    are replaced here, everything goes its way again.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gathering = False
        self.on_acknowledged: Callable[[int, int], None] | None = None
        self._gathered = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether something is left to send."""
        return bool(self._gathered) or self.want_write()

    def flush(self) -> None:
        """Send as much as the socket takes. Raises OSError when the connection is gone."""
        if self.want_write():
            self.loop_write()
        sock = cast("socket.socket | None", self.socket())
        while self._gathered and sock is not None:
            try:
                sent = sock.send(self._gathered)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self._gathered[:sent]

    def _sock_send(self, buf: bytes | bytearray) -> int:
        if not self.gathering:
            return super()._sock_send(buf)
        self._gathered += buf
        return len(buf)

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        code = _good_puback(packet, self.protocol) if cmd == "PUBACK" else None
        if code is None or self.on_acknowledged is None:
            return super()._handle_pubackcomp(cmd)
        packet_id = packet[0] << 8 | packet[1]
        if self._out_messages.pop(packet_id, None) is not None:
            self._inflight_messages -= 1
            self.on_acknowledged(packet_id, code)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _good_puback(packet: bytes | bytearray, protocol: MQTTProtocolVersion) -> int | None:
    """Its reason code; None for one that is malformed, has properties, or is a refusal."""
    length = len(packet)
    if length == 2:  # MQTT 3.1.1, or success
        return 0
    if protocol is MQTTProtocolVersion.MQTTv5 and (length == 3 or (length == 4 and not packet[3])):
        return packet[2] if packet[2] in _GOOD_PUBACKS else None
    return None


def named(reason: ReasonCode) -> str:
    """A reason code with its number."""
    return f"{reason} (0x{reason.value:02x})"


def unanswered(why: str, *, tls: bool, setting: str) -> str:
    """`why` a connection that stood ended without an answer, and what may be behind it. setting: what asks for TLS."""
    if tls:
        return f"{why} (hint: is this the TLS port, does the broker want a client certificate?)"
    return f"{why} (hint: is this the TLS port? it needs {setting})"


def new_client(target: Target, last_packet_id: int) -> GatheringClient:
    """A paho client that was never connected. last_packet_id: that the client before it gave.

    It knows no message of the connection before: those are the outbox's to send. Its packet ids go on where the last ones
    ended, so that an acknowledgement from before, which a broker with a session might still come with, fits no new message.
    """
    client = GatheringClient(
        CallbackAPIVersion.VERSION2,
        client_id=target.client_id,
        clean_session=None if target.v5 else target.fresh,
        protocol=MQTTProtocolVersion.MQTTv5 if target.v5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client._last_mid = last_packet_id  # noqa: SLF001 - there is no public way; a test notices when it stops working
    client.max_inflight_messages_set(0)  # the window is kept here; paho's own would queue in memory
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.will_set(target.will_topic, target.will_payload, qos=1, retain=target.will_retained)
    if target.username:
        client.username_pw_set(target.username, target.password or None)
    if target.tls is not None:
        client.tls_set_context(target.tls)
    return client


def connect(client: paho.Client, target: Target) -> None:
    """TCP, TLS and CONNECT; blocks. Raises OSError, ValueError."""
    if not target.v5:
        client.connect(target.host, target.port, target.keepalive_s)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = target.max_inbound_bytes
    properties.ReceiveMaximum = _INBOUND_WINDOW
    if target.session_expiry_s:
        properties.SessionExpiryInterval = target.session_expiry_s
    client.connect(target.host, target.port, target.keepalive_s, clean_start=target.fresh, properties=properties)


def received(message: paho.MQTTMessage) -> Received:
    """paho's message as a value of ours. Raises UnicodeDecodeError for a topic that is not UTF-8."""
    found = message.properties
    return Received(
        topic=message.topic,
        payload=bytes(message.payload),
        qos=message.qos,
        retain=message.retain,
        response_topic=getattr(found, "ResponseTopic", ""),
        correlation_data=bytes(getattr(found, "CorrelationData", b"")),
        content_type=getattr(found, "ContentType", ""),
        user_properties=tuple(getattr(found, "UserProperty", ())),
        expiry_s=getattr(found, "MessageExpiryInterval", None),
    )


def waiting_bytes(client: paho.Client) -> int:
    """How large the packet is that has come in part, 0 = none: paho itself would gather up to 256 MB."""
    return int(client._in_packet["remaining_length"])  # noqa: SLF001 - there is no public way


def close_socket(client: paho.Client) -> None:
    """Close it under paho, which finds out by itself."""
    sock = cast("socket.socket | None", client.socket())
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()


async def on_thread(function: Callable[[], object], undo: Callable[[], object]) -> None:
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

"""An MQTT server whose manners a test scripts: what it refuses, forgets, answers late, twice or not at all, and where it hangs up.

It is strict as well: a client that sends more than it may, larger than it may, or an alias that was never set, is sent
away with the reason code of the specification, which the test finds in `complaints`.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from fakes import mqtt_packets as wire
from fakes.mqtt_packets import Connect, Properties, Publish, Reader


class HangUpError(Exception):
    """Close the connection now."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Hang up at the `nth` packet of this kind: one from the client right after it came; one to the client after `sent_bytes` of it."""

    kind: str
    nth: int = 1
    sent_bytes: int = 0


PublishRule = Callable[["Peer", Publish], Awaitable[None]]


async def acknowledge(peer: Peer, publish: Publish) -> None:
    """What a good broker does."""
    await peer.puback(publish.packet_id)


@dataclass(frozen=True, slots=True)
class Manners:
    """How the broker behaves on one connection.

    connack: its return or reason code; properties: of the CONNACK (MQTT 5); on_publish: for QoS 1; suback: reason code
    for each filter, by filter, absent = granted; on_subscribed: after the SUBACK.
    """

    connack: int = 0
    properties: Properties = field(default_factory=dict)
    session_present: bool = False
    cut: Cut | None = None
    on_connected: Callable[[Peer], Awaitable[None]] | None = None
    on_publish: PublishRule = acknowledge
    suback: dict[str, int] = field(default_factory=dict)
    on_subscribed: Callable[[Peer], Awaitable[None]] | None = None
    answer_pings: bool = True


class Peer:
    """The broker's end of one connection. number: 1 for the first one."""

    def __init__(self, broker: ScriptedBroker, writer: asyncio.StreamWriter, number: int, manners: Manners) -> None:
        self.broker, self.number, self.manners = broker, number, manners
        self.version = 5
        self.unacknowledged: set[int] = set()
        self._writer = writer
        self._aliases: dict[int, str] = {}
        self._counts: dict[str, int] = {}

    # --- what rules use -----------------------------------------------------------------------------------------------

    async def puback(self, packet_id: int, code: int = 0) -> None:
        self.unacknowledged.discard(packet_id)
        body = struct.pack("!H", packet_id)
        if self.version == 5 and code:
            body += bytes([code, 0])
        await self.send(wire.packet(wire.PUBACK, body))

    async def publish(
        self, topic: str, payload: bytes, packet_id: int = 0, *, retain: bool = False, dup: bool = False,
        properties: Properties | None = None,
    ) -> None:  # fmt: skip
        """packet_id 0: QoS 0."""
        body = wire.text(topic)
        if packet_id:
            body += struct.pack("!H", packet_id)
        if self.version == 5:
            body += wire.properties(properties or {})
        flags = (dup << 3) | (2 if packet_id else 0) | retain
        await self.send(wire.packet(wire.PUBLISH, body + payload, flags))

    async def disconnect(self, code: int) -> None:
        """DISCONNECT with a reason code (MQTT 5), and the end of the connection."""
        if self.version == 5:
            await self.send(wire.packet(wire.DISCONNECT, bytes([code, 0])))
        raise HangUpError

    async def send(self, data: bytes) -> None:
        kind = wire.NAMES[data[0] >> 4]
        if (cut := self._cut_here(kind)) is not None:
            self._writer.write(data[: cut.sent_bytes])
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            raise HangUpError
        self._writer.write(data)
        await self._writer.drain()

    # --- one packet after the other -----------------------------------------------------------------------------------

    def _cut_here(self, kind: str) -> Cut | None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        cut = self.manners.cut
        return cut if cut is not None and cut.kind == kind and cut.nth == self._counts[kind] else None

    async def handle(self, first: int, body: bytes, size: int) -> None:
        kind = first >> 4
        name = wire.NAMES.get(kind, str(kind))
        self.broker.received.append((self.number, name))
        limit = self.manners.properties.get("maximum_packet_size")
        if isinstance(limit, int) and size > limit:
            await self._complain(0x95, f"{name} of {size} bytes")
        if kind == wire.CONNECT:
            await self._on_connect(wire.read_connect(body))
        elif kind == wire.PUBLISH:
            await self._on_publish(self._read_publish(first & 0x0F, body, size))
        elif kind == wire.SUBSCRIBE:
            await self._on_subscribe(Reader(body))
        elif self._cut_here(name) is not None or kind == wire.DISCONNECT:
            raise HangUpError
        elif kind == wire.PINGREQ and self.manners.answer_pings:
            await self.send(wire.packet(wire.PINGRESP, b""))
        elif kind == wire.PUBACK:
            self.broker.acknowledged.append((self.number, struct.unpack("!H", body[:2])[0]))

    async def _complain(self, code: int, text: str) -> None:
        self.broker.complaints.append(f"0x{code:02x} {text}")
        await self.disconnect(code)

    async def _on_connect(self, connect: Connect) -> None:
        self.version = connect.version
        self.broker.connects.append(connect)
        if self._cut_here("connect") is not None:
            raise HangUpError
        code = self.manners.connack
        if connect.will_retain and not self.manners.properties.get("retain_available", 1):
            code = code or 0x9A
        body = bytes([self.manners.session_present and not code, code])
        if self.version == 5:
            body += wire.properties(self.manners.properties)
        await self.send(wire.packet(wire.CONNACK, body))
        if code:
            raise HangUpError
        if self.manners.on_connected is not None:
            await self.manners.on_connected(self)

    def _read_publish(self, flags: int, body: bytes, size: int) -> Publish:
        reader = Reader(body)
        sent_topic = topic = reader.text()
        qos = flags >> 1 & 3
        packet_id = reader.number("H") if qos else 0
        found = reader.properties() if self.version == 5 else {}
        alias = found.get("topic_alias")
        most = self.manners.properties.get("topic_alias_maximum", 0)
        if isinstance(alias, int) and isinstance(most, int):
            if not 1 <= alias <= most or not (topic or alias in self._aliases):
                topic = ""
            elif topic:
                self._aliases[alias] = topic
            else:
                topic = self._aliases[alias]
        return Publish(
            topic, reader.rest(), packet_id, qos, bool(flags & 1), bool(flags & 8), found, sent_topic, size, self.number
        )

    async def _on_publish(self, publish: Publish) -> None:
        if not publish.topic:
            await self._complain(0x94, f"topic alias {publish.properties.get('topic_alias')}")
        self.broker.published.append(publish)
        if self._cut_here("publish") is not None:
            raise HangUpError
        if not publish.qos:
            return
        if publish.packet_id in self.unacknowledged:
            await self._complain(0x82, f"packet id {publish.packet_id} is in use")
        self.unacknowledged.add(publish.packet_id)
        most = self.manners.properties.get("receive_maximum", 65_535)
        if isinstance(most, int) and len(self.unacknowledged) > most:
            await self._complain(0x93, f"{len(self.unacknowledged)} unacknowledged")
        await self.manners.on_publish(self, publish)

    async def _on_subscribe(self, reader: Reader) -> None:
        packet_id = reader.number("H")
        if self.version == 5:
            reader.properties()
        filters = []
        while reader.at < len(reader.data):
            filters.append((reader.text(), reader.number("B") & 3))
        self.broker.subscribed.append((self.number, [name for name, _ in filters]))
        if self._cut_here("subscribe") is not None:
            raise HangUpError
        codes = bytes(self.manners.suback.get(name, qos) for name, qos in filters)
        head = struct.pack("!H", packet_id) + (b"\x00" if self.version == 5 else b"")
        await self.send(wire.packet(wire.SUBACK, head + codes))
        if self.manners.on_subscribed is not None:
            await self.manners.on_subscribed(self)


class ScriptedBroker:
    """Listens on `port` of 127.0.0.1 while its context is open.

    manners: of the first, second, ... connection; the last ones stay. published: everything that came, also what was not
    acknowledged; complaints: what a strict broker does not take.
    """

    def __init__(self, *manners: Manners) -> None:
        self.manners: Sequence[Manners] = manners or (Manners(),)
        self.connects: list[Connect] = []
        self.published: list[Publish] = []
        self.subscribed: list[tuple[int, list[str]]] = []
        self.acknowledged: list[tuple[int, int]] = []
        self.received: list[tuple[int, str]] = []
        self.complaints: list[str] = []
        self.port = 0
        self._connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def payloads(self, topic: str = "/events/") -> list[bytes]:
        """What came to topics with this in their name, in order."""
        return [publish.payload for publish in self.published if topic in publish.topic]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._connections += 1
        manners = self.manners[min(self._connections, len(self.manners)) - 1]
        peer = Peer(self, writer, self._connections, manners)
        try:
            while True:
                first = (await reader.readexactly(1))[0]
                length = shift = 0
                head = 1
                while True:
                    byte = (await reader.readexactly(1))[0]
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    head += 1
                    if byte < 0x80:
                        break
                await peer.handle(first, await reader.readexactly(length), head + length)
        except (HangUpError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except ValueError as error:
            self.complaints.append(f"0x81 {error}")
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

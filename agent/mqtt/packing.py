"""The properties of a PUBLISH as bytes (MQTT 5, 3.3.2.3), and its size. Pure.

paho's own encoder takes longer for one message than the rest of its way through the agent, and does not tell the size.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from agent.ports import Envelope

_MAX_EXPIRY_S = 0xFFFF_FFFF
_NONE = b"\x00"


class Packed:
    """Stands in for `paho.mqtt.properties.Properties`, of which a publish uses `pack` alone."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def pack(self) -> bytes:
        """The property block with its length in front."""
        return self.data


def properties(envelope: Envelope | None, alias: int = 0) -> bytes:
    """The property block with its length in front. alias: 0 = none.

    Raises ValueError for text that MQTT cannot carry: longer than 65,535 bytes, with a null character, not UTF-8.
    """
    if envelope is None:
        return b"\x03\x23" + alias.to_bytes(2, "big") if alias else _NONE
    parts = [_fixed(envelope.content_type, envelope.utf8)]
    if envelope.expiry_s is not None:
        parts.append(b"\x02" + min(envelope.expiry_s, _MAX_EXPIRY_S).to_bytes(4, "big"))
    if envelope.response_topic:
        parts.append(b"\x08" + _text(envelope.response_topic))
    if envelope.correlation_data:
        parts.append(b"\x09" + _binary(envelope.correlation_data))
    if alias:
        parts.append(b"\x23" + alias.to_bytes(2, "big"))
    for name, value in envelope.user_properties:
        parts.append(_name(name))
        parts.append(_text(value))
    block = b"".join(parts)
    return varint(len(block)) + block


def varint(value: int) -> bytes:
    """A variable byte integer, 0 to 268,435,455.

    >>> varint(321).hex()
    'c102'
    """
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def publish_size(topic_bytes: int, property_bytes: int, payload_bytes: int, qos: int) -> int:
    """Bytes of the whole packet. property_bytes: of the block with its length; 0 in MQTT 3.1.1."""
    length = 2 + topic_bytes + (2 if qos else 0) + property_bytes + payload_bytes
    return 1 + len(varint(length)) + length


@lru_cache(maxsize=64)
def _fixed(content_type: str, utf8: bool) -> bytes:
    return (b"\x01\x01" if utf8 else b"") + (b"\x03" + _text(content_type) if content_type else b"")


@lru_cache(maxsize=64)
def _name(name: str) -> bytes:
    return b"\x26" + _text(name)


def _text(value: str) -> bytes:
    if "\x00" in value:
        raise ValueError("a null character")
    return _binary(value.encode())


def _binary(value: bytes) -> bytes:
    try:
        return struct.pack("!H", len(value)) + value
    except struct.error:
        raise ValueError(f"{len(value)} bytes, at most 65,535") from None

"""Compression and signature of what the outbox sends (MQTT 5; docs/mqtt.md, "Compression" and "Signature")."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from dataclasses import replace

from agent.config.delivery import MqttConfig
from agent.errors import DataError
from agent.mqtt.keys import read_key
from agent.ports import Envelope

ENCODING, SIGNATURE = "content-encoding", "signature"
_FROM_BYTES = 256
"""Shorter payloads are sent as they are: there is nothing to gain."""
_PROPERTY_BYTES = 5 + len(ENCODING)
"""What the user property adds, next to its value."""
_STATED = ("HS256", False, ["b64"])
"""alg, b64, crit of the only signature there is."""
_LEVEL = 6
_MOST_BYTES = 16_777_216
"""Far more than any message of the agent; a subscriber must not be made to hold more."""
_WINDOW_BITS = {"deflate": 15, "gzip": 31}
"""As zlib names the containers; `deflate` has that of RFC 1950, as in HTTP."""


class Seal:
    """Makes the payload and the envelope that are sent. The same message is always sealed to the same bytes.

    compression: `none`, `deflate`, `gzip`; key: for the signature, None = no signature; key_id: says whose key it is.
    """

    def __init__(self, compression: str = "none", key: bytes | None = None, key_id: str = "") -> None:
        self._encoding = compression if compression != "none" else ""
        self._window_bits = _WINDOW_BITS.get(compression, 0)
        header = json.dumps({"alg": "HS256", "b64": False, "crit": ["b64"], "kid": key_id}, separators=(",", ":"))
        self._header = _base64url(header.encode())
        self._mac = hmac.new(key, self._header + b".", hashlib.sha256) if key is not None else None

    @classmethod
    def of(cls, config: MqttConfig, device: str) -> Seal:
        """As configured. Raises ConfigError when the key cannot be used."""
        key = None
        if config.signing_key_file is not None:
            key = read_key(config.signing_key_file, "mqtt.signing_key_file")
        return cls(config.compression, key, device)

    def __call__(self, payload: bytes, envelope: Envelope) -> tuple[bytes, Envelope]:
        """Sign what is in `payload`, then compress it if that makes it smaller."""
        added: list[tuple[str, str]] = []
        if self._mac is not None:
            added.append((SIGNATURE, self._signature(self._mac, payload)))
        if self._encoding and len(payload) >= _FROM_BYTES:
            packed = zlib.compress(payload, _LEVEL, self._window_bits)
            if len(packed) + _PROPERTY_BYTES + len(self._encoding) < len(payload):
                payload = packed
                envelope = replace(envelope, utf8=False)
                added.append((ENCODING, self._encoding))
        if added:
            envelope = replace(envelope, user_properties=(*envelope.user_properties, *added))
        return payload, envelope

    def _signature(self, mac: hmac.HMAC, payload: bytes) -> str:
        """A JSON Web Signature over the plain payload, which is left out of it (RFC 7797)."""
        mac = mac.copy()
        mac.update(payload)
        return (self._header + b".." + _base64url(mac.digest())).decode("ascii")


def unpack(payload: bytes, encoding: str, max_bytes: int = _MOST_BYTES) -> bytes:
    """What was compressed; encoding: value of the user property `content-encoding`, empty = none.

    Raises DataError for another encoding, damaged bytes, and for more than `max_bytes` of content.
    """
    if not encoding:
        return payload
    if encoding not in _WINDOW_BITS:
        raise DataError(f"content-encoding {encoding!r} is not known (known: {', '.join(_WINDOW_BITS)})")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = unpacker.decompress(payload, max_bytes)
    except zlib.error as error:
        raise DataError(f"the compressed payload is damaged: {error}") from error
    if unpacker.unconsumed_tail:
        raise DataError(f"the compressed payload holds more than {max_bytes} bytes")
    if not unpacker.eof:
        raise DataError("the compressed payload is cut short")
    return content


def is_signed(content: bytes, signature: str, key: bytes) -> bool:
    """Whether `signature`, value of the user property, was made of `content` (not compressed) with `key`."""
    header, _, mac = signature.encode().partition(b"..")
    expected = hmac.digest(key, header + b"." + content, hashlib.sha256)
    if not hmac.compare_digest(_base64url(expected), mac):
        return False  # before anything of a stranger's is parsed
    try:
        stated = json.loads(base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(stated, dict) and (stated.get("alg"), stated.get("b64"), stated.get("crit")) == _STATED


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")

"""Signatures of webhooks as the Standard Webhooks specification has them (version v1, HMAC-SHA256). Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64


def parse_secret(text: str) -> bytes:
    """The key in `whsec_<base64>`. Raises ValueError, which does not repeat the text."""
    if not text.startswith(_PREFIX):
        raise ValueError(f"a secret starts with {_PREFIX!r}")
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"what follows {_PREFIX!r} is not base64") from None
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(f"expected {_MIN_BYTES} to {_MAX_BYTES} bytes in base64, got {len(key)}")
    return key


def signed_headers(keys: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of one attempt. keys: one signature each; timestamp_s: of the attempt, seconds since 1970 UTC.

    message_id: the same at every attempt; the receiver knows by it what it has already. Raises ValueError when it cannot be
    signed without doubt about where it ends.
    """
    if not message_id or not message_id.isascii() or not message_id.isprintable() or set(message_id) & {".", " "}:
        raise ValueError(f"an id is ASCII without full stops and blanks, got {message_id!r}")
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }

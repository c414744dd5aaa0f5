"""Identifiers that sort by time: UUID version 7 (RFC 9562, section 5.7).

The 12 bits of `rand_a` are a counter (section 6.2, method 1), so ids made in one millisecond still sort in the order
they were made; the 62 bits of `rand_b` are random.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

_COUNTER_MAX = 0xFFF
_SEED_BITS = 11  # the counter's top bit starts at 0: at least 2048 ids fit into a millisecond before it borrows one
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def pack(unix_ms: int, rand_a: int, rand_b: int) -> UUID:
    """The UUIDv7 of its three fields: 48 bits of Unix time in ms, 12 bits and 62 bits."""
    if not (0 <= unix_ms < 1 << 48 and 0 <= rand_a <= _COUNTER_MAX and 0 <= rand_b < 1 << 62):
        raise ValueError(f"field out of range: unix_ms={unix_ms}, rand_a={rand_a}, rand_b={rand_b}")
    return UUID(int=unix_ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


def made_at(uuid7: str) -> datetime:
    """When `uuid7` was made, UTC, to the millisecond. Raises ValueError when it is not a UUIDv7."""
    value = UUID(uuid7)
    if value.version != 7:
        raise ValueError(f"not a UUID of version 7: {uuid7}")
    return _EPOCH + timedelta(milliseconds=value.int >> 80)


class Uuid7:
    """Makes UUIDv7 strings that strictly increase per instance, whatever the wall clock does; thread-safe.

    unix_ns: the wall clock in ns; random_bits: n -> n random bits. Both are for tests to replace.
    """

    def __init__(
        self, unix_ns: Callable[[], int] = time.time_ns, random_bits: Callable[[int], int] = secrets.randbits
    ) -> None:
        self._unix_ns = unix_ns
        self._random_bits = random_bits
        self._lock = threading.Lock()
        self._last_ms = -1
        self._counter = 0

    def __call__(self) -> str:
        """A new id, greater as text than every one before it from this instance."""
        with self._lock:
            now_ms = self._unix_ns() // 1_000_000
            if now_ms > self._last_ms:
                self._start_millisecond(now_ms)
            elif self._counter < _COUNTER_MAX:  # same millisecond, or the clock went back
                self._counter += 1
            else:
                self._start_millisecond(self._last_ms + 1)
            return str(pack(self._last_ms, self._counter, self._random_bits(62)))

    def _start_millisecond(self, unix_ms: int) -> None:
        self._last_ms = unix_ms
        self._counter = self._random_bits(_SEED_BITS)

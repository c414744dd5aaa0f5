"""Times as the database keeps them: microseconds since 1970 UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KNOWN_US = range(-62_000_000_000_000_000, 253_000_000_000_000_000)
"""Years that a datetime can hold. A time beyond is damage, and must not stop the message that it belongs to."""


def from_us(t_us: int) -> datetime:
    """As UTC."""
    known = isinstance(t_us, int) and t_us in _KNOWN_US
    return EPOCH + timedelta(microseconds=t_us if known else 0)


def to_us(moment: datetime) -> int:
    """Of an aware time."""
    return (moment - EPOCH) // timedelta(microseconds=1)

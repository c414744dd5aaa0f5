"""Times as the database keeps them: microseconds since 1970 UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_us(t_us: int) -> datetime:
    """As UTC."""
    return EPOCH + timedelta(microseconds=t_us)


def to_us(moment: datetime) -> int:
    """Of an aware time."""
    return (moment - EPOCH) // timedelta(microseconds=1)

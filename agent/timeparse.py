"""Times that people type."""

from __future__ import annotations

from datetime import datetime


def parse_time(text: str | None) -> datetime | None:
    """ISO 8601 as an aware time; without an offset it is local time. None for nothing. Raises ValueError with a hint."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time; write it like 2026-11-23T08:00:00+01:00") from None

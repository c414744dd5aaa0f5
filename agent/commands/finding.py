"""What `recognizer-agent doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. state: `good`, `warn` (works, but look at it) or `bad`."""

    check: str
    state: str
    text: str

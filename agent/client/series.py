"""The sequences of one device. Each series has a tracker of its own: a device that lost its database begins a new one at 1.

What comes late of an earlier series is counted there. Without a series (an older agent) a message belongs to the current one.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.client.tracker import SequenceTracker, Verdict

_FORMER = 3
"""Earlier series that are remembered."""


class SeriesTrackers:
    """`current` is the tracker of the series that something came in last; of `former` ones nobody is asked any more."""

    def __init__(self, make: Callable[[], SequenceTracker]) -> None:
        self.current = make()
        self._make = make
        self._series = ""
        self._former: dict[str, SequenceTracker] = {}  # the one that was current last is the last

    @property
    def former(self) -> tuple[SequenceTracker, ...]:
        """Those of earlier series."""
        return tuple(self._former.values())

    def feed(self, series: str, sequence: int, event_id: str, now_s: float) -> Verdict:
        """As `SequenceTracker.feed`; RESTARTED also for the first of another series. `current` is what counted it."""
        begun = self._turn_to(series)
        verdict = self.current.feed(sequence, event_id, now_s)
        return Verdict.RESTARTED if begun else verdict

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        former = [[series, tracker.dump()] for series, tracker in self._former.items()]
        return self.current.dump() | {"series": self._series, "former": former}

    def load(self, dumped: Mapping[str, Any], now_s: float) -> None:
        """The inverse of `dump`. Raises ValueError, KeyError, TypeError."""
        self.current.load(dumped, now_s)
        self._series = str(dumped.get("series", ""))  # an older file has none
        for series, one in dumped.get("former", ()):
            tracker = self._former[str(series)] = self._make()
            tracker.load(one, now_s)

    def _turn_to(self, series: str) -> bool:
        """Make the tracker of `series` the current one; whether it had to be made while another was there."""
        if series in ("", self._series):
            return False
        left, self._series = self._series, series
        if not left:  # the agent names it from now on
            return False
        known = self._former.pop(series, None)
        self._former[left] = self.current
        while len(self._former) > _FORMER:
            del self._former[next(iter(self._former))]
        self.current = known or self._make()
        return known is None

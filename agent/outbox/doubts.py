"""When a message that the broker refuses without saying why is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MOST = 4096
"""Rows remembered at once; far more than can be in flight."""


@dataclass(slots=True)
class _Doubt:
    refusals: int
    since_s: float
    delivered_before: int


class Doubts:
    """Counts refusals without a reason, by row.

    A message is given up after `refusals` of them over at least `over_s` seconds, if the broker has taken another message
    meanwhile: one that refuses everything is broken itself, and burying the whole queue would not help. Lost connections do
    not count. The counts are of this process; after a restart they start again.
    """

    def __init__(self, refusals: int = 10, over_s: float = 300.0) -> None:
        self._refusals = refusals
        self._over_s = over_s
        self._delivered = 0
        self._doubts: dict[int, _Doubt] = {}

    def delivered(self, row_id: int) -> None:
        """The broker took `row_id`."""
        self._delivered += 1
        self._doubts.pop(row_id, None)

    def give_up(self, row_id: int, now_s: float) -> bool:
        """`row_id` was refused at `now_s` (monotonic); whether that was the last time."""
        doubt = self._doubts.get(row_id)
        if doubt is None:
            while len(self._doubts) >= _MOST:
                del self._doubts[next(iter(self._doubts))]
            doubt = self._doubts[row_id] = _Doubt(0, now_s, self._delivered)
        doubt.refusals += 1
        if doubt.refusals < self._refusals or now_s - doubt.since_s < self._over_s:
            return False
        if self._delivered == doubt.delivered_before:
            return False
        del self._doubts[row_id]
        return True

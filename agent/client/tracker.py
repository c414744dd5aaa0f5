"""What has come of a device's sequence, what is missing, what came twice. Pure: time comes in, verdicts go out.

Everything below the highest number has come, except for the holes. A number that is missing may still be on its way behind
an alarm, so a hole is told only once nothing has come into it for `grace_s`. Memory is bounded by `max_holes` and
`max_ids`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Range = tuple[int, int]
"""First and last number, both included."""


class Verdict(StrEnum):
    """NEW: hand it on. DUPLICATE: came before. RESTARTED: new, and the device counts from the beginning again."""

    NEW = "new"
    DUPLICATE = "duplicate"
    RESTARTED = "restarted"


class HoleState(StrEnum):
    """What is known of numbers that have not come."""

    BEFORE = "before"  # older than the first that came: nobody waits for them
    OPEN = "open"  # may still be on their way
    ASKED = "asked"  # the device was asked to send them again
    REPORTED = "reported"  # told to be missing
    ANNOUNCED = "announced"  # the device said that it will not send them


_WAITED_FOR = frozenset({HoleState.OPEN, HoleState.ASKED})


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers `first` to `last` have not come. since_s: when something came right before it."""

    first: int
    last: int
    state: HoleState
    since_s: float


@dataclass(frozen=True, slots=True)
class Overdue:
    """ask: to be asked for again, until `asked` says that this is done. missing: given up, told once."""

    ask: tuple[Range, ...] = ()
    missing: tuple[Range, ...] = ()


class SequenceTracker:
    """One device. A number that comes after all is NEW, in whatever state its hole was.

    grace_s: how long a hole may stay without anything coming into it. Above `max_holes` the lowest two holes become one: the
    numbers between them, should they come again, pass as new. max_ids: ids that are remembered, to notice a number which
    comes with another id.
    """

    def __init__(self, *, grace_s: float = 60.0, max_holes: int = 1000, max_ids: int = 512) -> None:
        if max_holes < 2:
            raise ValueError(f"max_holes must be 2 or more, got {max_holes}")
        self.highest = 0
        self._grace_s = grace_s
        self._max_holes = max_holes
        self._max_ids = max_ids
        self._holes: list[Hole] = []
        self._id_of: dict[int, str] = {}
        self._ids: set[str] = set()
        self._newest_id = ""
        self._forced: list[Range] = []

    @property
    def holes(self) -> Sequence[Hole]:
        """What has not come, rising."""
        return tuple(self._holes)

    @property
    def due_s(self) -> float | None:
        """When `overdue` has something to say; None = not before something comes."""
        if self._forced:
            return float("-inf")
        since_s = min((hole.since_s for hole in self._holes if hole.state in _WAITED_FOR), default=None)
        return None if since_s is None else since_s + self._grace_s

    def feed(self, sequence: int, event_id: str, now_s: float) -> Verdict:
        """A message has come. sequence: 1 or more; event_id: UUIDv7; now_s: never going back."""
        if sequence < 1:
            raise ValueError(f"sequence must be 1 or more, got {sequence}")
        if event_id in self._ids:
            return Verdict.DUPLICATE
        verdict = Verdict.NEW
        if self._has_come(sequence):
            if not self._counts_anew(sequence, event_id):
                return Verdict.DUPLICATE
            self._forget_all()
            verdict = Verdict.RESTARTED
        if sequence > self.highest:
            self._extend(sequence, HoleState.OPEN if self.highest else HoleState.BEFORE, now_s)
        else:
            self._fill(sequence, now_s)
        self._remember(sequence, event_id)
        return verdict

    def announce(self, ranges: Iterable[Range], now_s: float) -> None:
        """The device will not send these numbers. Those that have come are no matter."""
        for first, last in ranges:
            if last > self.highest:
                self._extend(last + 1, HoleState.OPEN if self.highest else HoleState.BEFORE, now_s)
                self.highest = last
            self._mark(first, last, HoleState.ANNOUNCED, frozenset(HoleState))

    def overdue(self, now_s: float, *, ask: bool = False) -> Overdue:
        """The holes whose grace is over. ask: ask for them first, and report them a grace later."""
        asked: list[Range] = []
        missing, self._forced = self._forced, []
        for index, hole in enumerate(self._holes):
            if hole.state not in _WAITED_FOR or now_s - hole.since_s < self._grace_s:
                continue
            if ask and hole.state is HoleState.OPEN:
                asked.append((hole.first, hole.last))
            else:
                missing.append((hole.first, hole.last))
                self._holes[index] = Hole(hole.first, hole.last, HoleState.REPORTED, now_s)
        return Overdue(tuple(asked), tuple(missing))

    def asked(self, run: Range, now_s: float) -> None:
        """The device was asked for these numbers: what is missing there has a grace from now. A hole counts as a whole."""
        first, last = run
        for index, hole in enumerate(self._holes):
            if hole.state is HoleState.OPEN and hole.first <= last and first <= hole.last:
                self._holes[index] = Hole(hole.first, hole.last, HoleState.ASKED, now_s)

    def give_up(self, ranges: Iterable[Range]) -> tuple[Range, ...]:
        """Do not wait for these numbers: returns those that were waited for, and counts them as reported."""
        given_up: list[Range] = []
        for first, last in ranges:
            given_up += self._mark(first, last, HoleState.REPORTED, _WAITED_FOR)
        return tuple(given_up)

    # --- kept between two runs ----------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """For JSON. What was asked for is waited for anew."""
        states = {HoleState.ASKED: HoleState.OPEN}
        holes = [[hole.first, hole.last, states.get(hole.state, hole.state).value] for hole in self._holes]
        holes += [[*run, HoleState.OPEN.value] for run in self._forced]
        return {"highest": self.highest, "newest_id": self._newest_id, "holes": sorted(holes)}

    def load(self, dumped: Mapping[str, Any], now_s: float) -> None:
        """The inverse of `dump`. Raises ValueError, KeyError, TypeError."""
        holes = [Hole(int(first), int(last), HoleState(state), now_s) for first, last, state in dumped["holes"]]
        highest = int(dumped["highest"])
        ends = [0, *(end for hole in holes for end in (hole.first, hole.last)), highest]
        if any(hole.first > hole.last for hole in holes) or sorted(ends) != ends:
            raise ValueError(f"holes out of order: {holes[:5]}")
        self._forget_all()
        self.highest, self._holes, self._newest_id = highest, holes, str(dumped["newest_id"])

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _has_come(self, sequence: int) -> bool:
        return sequence <= self.highest and self._hole_at(sequence) is None

    def _hole_at(self, sequence: int) -> int | None:
        """Index of the hole that `sequence` lies in."""
        index = bisect_right(self._holes, sequence, key=_first) - 1
        return index if index >= 0 and sequence <= self._holes[index].last else None

    def _counts_anew(self, sequence: int, event_id: str) -> bool:
        """Whether a number that has come is used for something else now: a device whose database was thrown away."""
        known = self._id_of.get(sequence)
        if known is not None:
            return known != event_id
        return _is_uuid7(event_id) and _is_uuid7(self._newest_id) and event_id > self._newest_id

    def _extend(self, sequence: int, state: HoleState, now_s: float) -> None:
        """`sequence` is the highest now; what lies between has not come."""
        if sequence > self.highest + 1:
            self._holes.append(Hole(self.highest + 1, sequence - 1, state, now_s))
            self._limit()
        self.highest = sequence

    def _fill(self, sequence: int, now_s: float) -> None:
        """`sequence` has come into its hole. What lies above it gets its grace again: the stream is moving."""
        index = self._hole_at(sequence)
        if index is None:
            return
        hole, rest = self._holes[index], []
        if hole.first < sequence:
            rest.append(Hole(hole.first, sequence - 1, hole.state, hole.since_s))
        if sequence < hole.last:
            rest.append(Hole(sequence + 1, hole.last, hole.state, now_s))
        elif index + 1 < len(self._holes) and self._holes[index + 1].first == sequence + 1:
            above = self._holes[index + 1]  # of another state, but no less the next that may come
            self._holes[index + 1] = Hole(above.first, above.last, above.state, now_s)
        self._holes[index : index + 1] = rest
        self._limit()

    def _mark(self, first: int, last: int, state: HoleState, of: frozenset[HoleState]) -> list[Range]:
        """Put what lies in `first`..`last` and is in one of the states `of` into `state`; returns the ranges it was."""
        begin = bisect_left(self._holes, first, key=_last)
        end = bisect_right(self._holes, last, key=_first)
        parts: list[Hole] = []
        marked: list[Range] = []
        for hole in self._holes[begin:end]:
            if hole.state not in of:
                parts.append(hole)
                continue
            inner = (max(first, hole.first), min(last, hole.last))
            if hole.first < inner[0]:
                parts.append(Hole(hole.first, inner[0] - 1, hole.state, hole.since_s))
            parts.append(Hole(*inner, state, hole.since_s))
            marked.append(inner)
            if inner[1] < hole.last:
                parts.append(Hole(inner[1] + 1, hole.last, hole.state, hole.since_s))
        self._holes[begin:end] = parts
        self._limit()
        return marked

    def _limit(self) -> None:
        while len(self._holes) > self._max_holes:
            low, high = self._holes[:2]
            self._forced += [(hole.first, hole.last) for hole in (low, high) if hole.state in _WAITED_FOR]
            self._holes[:2] = [Hole(low.first, high.last, HoleState.REPORTED, low.since_s)]

    def _remember(self, sequence: int, event_id: str) -> None:
        self._newest_id = max(self._newest_id, event_id)
        self._ids.discard(self._id_of.pop(sequence, ""))
        self._id_of[sequence] = event_id
        self._ids.add(event_id)
        if len(self._id_of) > self._max_ids:
            self._ids.discard(self._id_of.pop(next(iter(self._id_of))))

    def _forget_all(self) -> None:
        self.highest, self._newest_id = 0, ""
        self._holes, self._forced, self._id_of, self._ids = [], [], {}, set()


def _first(hole: Hole) -> int:
    return hole.first


def _last(hole: Hole) -> int:
    return hole.last


def _is_uuid7(event_id: str) -> bool:
    return len(event_id) == 36 and event_id[14] == "7"

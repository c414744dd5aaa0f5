"""All devices of a subscription: what a message means for its device's sequence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.client.items import Gap, Item, MissingRange, Restarted, Unreadable, decode, identity
from agent.client.series import SeriesTrackers
from agent.client.tracker import Range, SequenceTracker, Verdict
from agent.errors import DataError

_FORMER = "of the numbers before the device counted anew"


@dataclass(frozen=True, slots=True)
class Due:
    """What a look at the clock brought: missing ranges to yield, and ranges to ask devices for, rising."""

    missing: tuple[MissingRange, ...]
    ask: tuple[tuple[str, tuple[Range, ...]], ...]


class Ledger:
    """Trackers per device. The device is the topic's: what a payload claims to be from elsewhere is not counted.

    make: a new tracker. clock_s: the time by which a device's grace counts, given its id.
    """

    def __init__(self, make: Callable[[], SequenceTracker], clock_s: Callable[[str], float]) -> None:
        self.trackers: dict[str, SeriesTrackers] = {}
        self._make = make
        self._clock_s = clock_s

    def receive(self, device_id: str, payload: bytes, problem: str = "") -> tuple[Item, ...]:
        """What to yield for a message that came on an event topic of `device_id`; nothing for a duplicate.

        problem: why the message is not to be believed; then it counts for nothing.
        """
        if problem:
            return (Unreadable(device_id, payload, problem),)
        known = identity(payload)
        if known is None or known.device_id != device_id:
            return (Unreadable(device_id, payload, f"no event of {device_id!r} with an id and a sequence"),)
        item: Item
        try:
            item = decode(payload)
        except DataError as error:
            item = Unreadable(device_id, payload, str(error))
        trackers, now_s = self._trackers(device_id), self._clock_s(device_id)
        highest = trackers.current.highest
        verdict = trackers.feed(known.series, known.sequence, known.event_id, now_s)
        if verdict is Verdict.DUPLICATE:
            return ()
        if isinstance(item, Gap):
            trackers.current.announce(_plausible(item.loss.ranges), now_s)
        return (Restarted(device_id, known.sequence, highest), item) if verdict is Verdict.RESTARTED else (item,)

    def look(self, *, ask: bool) -> Due:
        """What is overdue by now. ask: ask the device before a range is reported."""
        missing: list[MissingRange] = []
        wanted: list[tuple[str, tuple[Range, ...]]] = []
        for device_id, trackers in self.trackers.items():
            now_s = self._clock_s(device_id)
            for former in trackers.former:
                missing += [MissingRange(device_id, *run, _FORMER) for run in former.overdue(now_s).missing]
            overdue = trackers.current.overdue(now_s, ask=ask)
            missing += [MissingRange(device_id, *run) for run in overdue.missing]
            if overdue.ask:
                wanted.append((device_id, overdue.ask))
        return Due(tuple(missing), tuple(wanted))

    def wait_s(self, running: Callable[[str], bool]) -> float | None:
        """Seconds until `look` has something to say, if nothing comes; None = not before. running: whether a device's clock is."""
        waits = [
            tracker.due_s - self._clock_s(device_id)
            for device_id, trackers in self.trackers.items()
            for tracker in (trackers.current, *trackers.former)
            if tracker.due_s is not None and running(device_id)
        ]
        return max(0.0, min(waits)) if waits else None

    def asked(self, device_id: str, run: Range, gone: tuple[Range, ...], detail: str) -> tuple[MissingRange, ...]:
        """The device was asked for `run`, and said that it does not have `gone`."""
        tracker = self._trackers(device_id).current
        tracker.asked(run, self._clock_s(device_id))
        return tuple(MissingRange(device_id, *one, detail) for one in tracker.give_up(gone))

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Go on from what `SequenceTracker.dump` said, by device. Raises ValueError, KeyError, TypeError."""
        for device_id, one in dumped.items():
            trackers = SeriesTrackers(self._make)
            trackers.load(one, self._clock_s(device_id))
            self.trackers[device_id] = trackers

    def _trackers(self, device_id: str) -> SeriesTrackers:
        trackers = self.trackers.get(device_id)
        if trackers is None:
            trackers = self.trackers[device_id] = SeriesTrackers(self._make)
        return trackers


def _plausible(ranges: tuple[Range, ...]) -> list[Range]:
    return [(first, last) for first, last in ranges if 1 <= first <= last]

"""Events of the demo against what its simulated scene really shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from agent.evaluate.matching import AFTER_S, BEFORE_S, Alarm, Incident, match
from agent.evaluate.scene_truth import incidents_of
from agent.events.cloudevents import ReceivedEvent
from agent.simulation.values import Interval
from agent.types import EventPhase


class SceneJudge:
    """Knows what happens in a live simulated scene and keeps the events that were received.

    intervals: what the scene shows between two times, s, asked in rising order; origin_ns: `time.monotonic_ns()` at scene
    time 0; kinds: the services that watch.
    """

    def __init__(
        self, intervals: Callable[[float, float], tuple[Interval, ...]], origin_ns: int, kinds: Sequence[str]
    ) -> None:
        self._intervals = intervals
        self._origin_ns = origin_ns
        self._origin_utc = datetime.now(UTC) - timedelta(seconds=self._now_s())
        self._kinds = tuple(kinds)
        self._alarms: dict[str, Alarm] = {}
        self._happened: set[Interval] = set()
        self._known_s = 0.0

    def look(self) -> None:
        """Take note of what happened until now: old parts of a scene are expensive to ask for again."""
        self._incidents("", self._now_s())

    def verdict(self, event: ReceivedEvent) -> str:
        """What the scene shows at an event's begin, in words; empty for the phases after it."""
        if event.phase is not EventPhase.DETECTED or event.kind not in self._kinds:
            return ""
        detected_s, onset_s = self._scene_time_s(event.captured_utc), self._scene_time_s(event.onset_utc)
        self._alarms[event.incident_id] = Alarm(event.kind, detected_s, onset_s, None, event.confidence)
        near = [
            incident
            for incident in self._incidents(event.kind, detected_s + BEFORE_S)
            if incident.start_s - BEFORE_S <= detected_s <= max(incident.end_s + AFTER_S, incident.lasts_s)
        ]
        if not near:
            return f"no {event.kind} here: a false alarm"
        late_s = detected_s - near[-1].start_s
        return f"right, a {event.kind} began {late_s:.1f} s before" if late_s >= 0 else f"right, a {event.kind} begins"

    def closing(self) -> list[str]:
        """The account, one line a service."""
        return [f"scene          {self._account(kind)}" for kind in self._kinds]

    def _account(self, kind: str) -> str:
        alarms = [alarm for alarm in self._alarms.values() if alarm.kind == kind]
        result = match(self._incidents(kind, self._now_s()), alarms)
        happened = len(result.hits) + len(result.missed)
        delays = ", ".join(f"{alarm.detected_s - incident.start_s:.1f} s" for incident, alarm in result.hits)
        going_on = sum(incident.end_s + AFTER_S > self._now_s() for incident in result.missed)
        waiting = f" ({going_on} of the others under way)" if going_on else ""
        found = f"{len(result.hits)} found{f' after {delays}' if delays else ''}"
        return f"{kind}: {happened} happened, {found}{waiting}, {len(result.false_alarms)} false alarms"

    def _incidents(self, kind: str, until_s: float) -> list[Incident]:
        if until_s > self._known_s:
            self._happened.update(self._intervals(self._known_s, until_s))
            self._known_s = until_s
        return incidents_of(kind, kind, self._happened, end_s=until_s)

    def _scene_time_s(self, utc: datetime) -> float:
        return (utc - self._origin_utc).total_seconds()

    def _now_s(self) -> float:
        return (time.monotonic_ns() - self._origin_ns) / 1e9

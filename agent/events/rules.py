"""From verdicts to events: the state machine of one camera and one service. Pure: no clock, no log, no await.

    idle ──alert_count alerts──▶ detected ──min_duration_s──▶ active ──max_duration_s──▶ sustained ─┐ reminder every
      ▲                              │                          │                          │   ▲────┘ sustained_every_s
      │                              └────────────┬─────────────┴──────────────────────────┘
      │                                           │ normal_count normals, silence_s without a verdict, or close()
      └────────── cooldown_s over ── cooldown ◀───┘ resolved

Times are those of the verdicts (`ActionScores.t_end_ns`, the camera's time line). Steps that come from time alone are
stamped with the moment they were due, not with the moment someone looked: how often `tick` is called changes when an
event is emitted, never what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from agent.config.schema import RulesConfig
from agent.types import ActionScores, Event, EventPhase


class RulesPhase(StrEnum):
    """Where the machine stands."""

    IDLE = "idle"
    DETECTED = "detected"
    ACTIVE = "active"
    SUSTAINED = "sustained"
    COOLDOWN = "cooldown"


@dataclass(frozen=True, slots=True)
class RulesState:
    """What the machine knows, for displays and tests.

    alerts, normals: length of the present run of consecutive alerting / normal verdicts.
    verdicts, unusable: scores seen so far that were a verdict / were none (NaN or outside 0-1).
    incident_id, confidence: of the open incident, else None and 0.
    """

    phase: RulesPhase
    alerts: int
    normals: int
    verdicts: int
    unusable: int
    incident_id: str | None
    confidence: float


@dataclass(slots=True)
class _Incident:
    """The open incident. Times in ns on the camera's time line."""

    incident_id: str
    onset_ns: int
    onset_utc: datetime
    detected_ns: int
    phase: EventPhase
    track_ids: tuple[int, ...]
    confidence: float
    last_step_ns: int
    reminders: int = 0


@dataclass(slots=True)
class _AlertRun:
    """The run of consecutive alerts that may open an incident."""

    length: int = 0
    onset_ns: int = 0
    peak: float = 0.0


@dataclass(frozen=True, slots=True)
class _Clock:
    """Ties the camera's time line to wall time at one known moment."""

    ns: int
    utc: datetime

    def utc_at(self, ns: int) -> datetime:
        return self.utc + timedelta(microseconds=(ns - self.ns) / 1000)


class EventRules:
    """Turns the verdicts on one camera's windows into the steps of incidents of one service.

    new_id: makes a unique id per call (`ids.Uuid7()`). At most one incident is open at a time.
    """

    def __init__(self, camera_id: str, service: str, config: RulesConfig, new_id: Callable[[], str]) -> None:
        self._camera_id = camera_id
        self._service = service
        self._config = config
        self._new_id = new_id
        self._incident: _Incident | None = None
        self._run = _AlertRun()
        self._normals = 0
        self._verdicts = 0
        self._unusable = 0
        self._now_ns: int | None = None
        self._judged_until_ns: int | None = None  # end of the latest verdict, or of the latest incident if later
        self._resolved_ns: int | None = None  # end of the latest incident

    @property
    def state(self) -> RulesState:
        """A snapshot of the machine."""
        incident = self._incident
        if incident is not None:
            phase = RulesPhase(incident.phase.value)
        elif self._now_ns is not None and self._cooling(self._now_ns):
            phase = RulesPhase.COOLDOWN
        else:
            phase = RulesPhase.IDLE
        return RulesState(
            phase=phase,
            alerts=self._run.length,
            normals=self._normals,
            verdicts=self._verdicts,
            unusable=self._unusable,
            incident_id=incident.incident_id if incident else None,
            confidence=incident.confidence if incident else 0.0,
        )

    def update_config(self, config: RulesConfig) -> None:
        """Use `config` from the next call on; an open incident and the present runs go on under it."""
        self._config = config

    def step(self, scores: ActionScores) -> list[Event]:
        """Take one verdict; the events it causes, in order.

        A probability that is NaN or outside 0-1 is no verdict: it moves time, nothing else.
        Raises ValueError for scores of another camera or service.
        """
        if (scores.camera_id, scores.service) != (self._camera_id, self._service):
            raise ValueError(
                f"rules of {self._camera_id}/{self._service} got scores of {scores.camera_id}/{scores.service}"
            )
        clock = _Clock(scores.t_end_ns, scores.t_end_utc)
        events = self._advance(clock)
        if not 0.0 <= scores.probability <= 1.0:  # False for NaN too
            self._unusable += 1
            return events
        self._verdicts += 1
        if self._incident is not None:
            events += self._judge_open(self._incident, scores, clock)
        elif scores.probability >= self._config.alert_threshold and not self._cooling(scores.t_end_ns):
            events += self._count_alert(scores, clock)
        else:
            self._run = _AlertRun()
        self._judged_until_ns = _later(self._judged_until_ns, scores.t_end_ns)
        return events + self._advance(clock)  # min_duration_s = 0: detected is active at once

    def tick(self, now_ns: int, now_utc: datetime) -> list[Event]:
        """Let time pass without a verdict: phases that are due, reminders, silence.

        now_ns: newest time known on the camera's time line (the latest frame, or the monotonic clock when a live
        camera is gone). A time before an earlier one changes nothing.
        """
        return self._advance(_Clock(now_ns, now_utc))

    def close(self, now_ns: int, now_utc: datetime) -> list[Event]:
        """The source ended or the agent stops: resolve what is open."""
        clock = _Clock(now_ns, now_utc)
        events = self._advance(clock)
        if self._incident is not None:
            events.append(self._resolve(self._incident, now_ns, clock, "closed"))
        self._run = _AlertRun()
        return events

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def _judge_open(self, incident: _Incident, scores: ActionScores, clock: _Clock) -> list[Event]:
        """A verdict while an incident is open: it goes on or is over."""
        incident.confidence = max(incident.confidence, scores.probability)
        if scores.probability >= self._config.alert_threshold:
            incident.track_ids = scores.track_ids
        self._normals = self._normals + 1 if scores.probability < self._config.normal_threshold else 0
        if self._normals < self._config.normal_count:
            return []
        return [self._resolve(incident, scores.t_end_ns, clock, "normal")]

    def _count_alert(self, scores: ActionScores, clock: _Clock) -> list[Event]:
        """An alert while nothing is open: the run grows and may open an incident.

        Onset: the first alerting window shows the action and the verdict before it did not, so it began in the part
        that is new: after the end of the window before, or at the window's own start where nothing was judged before.
        """
        run = self._run
        if run.length == 0:
            run.onset_ns = _later(self._judged_until_ns, scores.t_start_ns)
        run.length += 1
        run.peak = max(run.peak, scores.probability)
        if run.length < self._config.alert_count:
            return []
        detected_ns = max(scores.t_end_ns, run.onset_ns)
        self._run = _AlertRun()
        self._normals = 0
        self._incident = _Incident(
            incident_id=self._new_id(),
            onset_ns=run.onset_ns,
            onset_utc=clock.utc_at(run.onset_ns),
            detected_ns=detected_ns,
            phase=EventPhase.DETECTED,
            track_ids=scores.track_ids,
            confidence=run.peak,
            last_step_ns=detected_ns,
        )
        return [self._emit(self._incident, EventPhase.DETECTED, detected_ns, clock)]

    # --- time ---------------------------------------------------------------------------------------------------------

    def _advance(self, clock: _Clock) -> list[Event]:
        """Everything that is due by `clock`, in the order in which it fell due."""
        self._now_ns = _later(self._now_ns, clock.ns)
        if self._judged_until_ns is None:
            return []
        silent_ns = self._judged_until_ns + _ns(self._config.silence_s)
        events: list[Event] = []
        if self._incident is not None:
            events += self._phases_due(self._incident, min(clock.ns, silent_ns), clock)
            if silent_ns <= clock.ns:
                events.append(self._resolve(self._incident, silent_ns, clock, "silence"))
        if silent_ns <= clock.ns:
            self._run = _AlertRun()  # alerts on both sides of such a gap are not consecutive
        return events

    def _phases_due(self, incident: _Incident, until_ns: int, clock: _Clock) -> list[Event]:
        events: list[Event] = []
        active_ns = incident.detected_ns + _ns(self._config.min_duration_s)
        if incident.phase is EventPhase.DETECTED and active_ns <= until_ns:
            events.append(self._emit(incident, EventPhase.ACTIVE, active_ns, clock))
        sustained_ns = incident.detected_ns + _ns(self._config.max_duration_s)
        if incident.phase is EventPhase.ACTIVE and sustained_ns <= until_ns:
            events.append(self._emit(incident, EventPhase.SUSTAINED, sustained_ns, clock))
        if incident.phase is EventPhase.SUSTAINED:
            every_ns = max(1, _ns(self._config.sustained_every_s))
            missed = (until_ns - incident.last_step_ns) // every_ns
            if missed > 0:  # after a gap one reminder, the latest, stands for all
                incident.reminders += 1
                at_ns = incident.last_step_ns + missed * every_ns
                events.append(self._emit(incident, EventPhase.SUSTAINED, at_ns, clock))
        return events

    def _cooling(self, ns: int) -> bool:
        return self._resolved_ns is not None and ns < self._resolved_ns + _ns(self._config.cooldown_s)

    # --- output -------------------------------------------------------------------------------------------------------

    def _resolve(self, incident: _Incident, at_ns: int, clock: _Clock, reason: str) -> Event:
        event = self._emit(incident, EventPhase.RESOLVED, at_ns, clock)
        event.attributes["reason"] = reason
        self._resolved_ns = incident.last_step_ns
        self._judged_until_ns = _later(self._judged_until_ns, incident.last_step_ns)
        self._incident = None
        self._normals = 0
        return event

    def _emit(self, incident: _Incident, phase: EventPhase, at_ns: int, clock: _Clock) -> Event:
        """The incident's next step, never stamped before the one before it (the configuration may have changed)."""
        incident.phase = phase
        incident.last_step_ns = max(at_ns, incident.last_step_ns)
        return Event(
            event_id=self._new_id(),
            incident_id=incident.incident_id,
            kind=self._service,
            phase=phase,
            camera_id=self._camera_id,
            track_ids=incident.track_ids,
            t_start_ns=incident.onset_ns,
            t_utc=clock.utc_at(incident.last_step_ns),
            t_onset_utc=incident.onset_utc,
            duration_s=(incident.last_step_ns - incident.onset_ns) / 1e9,
            confidence=incident.confidence,
            attributes={"reminder": incident.reminders} if phase is EventPhase.SUSTAINED else {},
        )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _later(known_ns: int | None, ns: int) -> int:
    return ns if known_ns is None else max(known_ns, ns)

"""One simulated scene, judged: its events against its incidents, and the single verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from agent.config.schema import AgentConfig, ServiceConfig
from agent.evaluate.action import ClipResult
from agent.evaluate.matching import AFTER_S, BEFORE_S, Alarm, Incident, Matching, match
from agent.evaluate.mot import MotBoxes
from agent.evaluate.runs.playback import SEEN_SHARE, SceneWatcher
from agent.evaluate.scenarios import SceneRun
from agent.evaluate.scene_truth import incidents_of
from agent.simulation.values import ACTIONS, Interval, Script
from agent.types import ActionScores, Event, EventPhase

WINDOW_SHARE = 1 / 3
WHOLE_SHARE = 0.8
"""A window that an incident fills by the first, or that holds this much of the incident, should be called; one that the
incident only touches is not judged, nor one during which the camera saw less than `SEEN_SHARE` of the incident's people."""
_IDLE = frozenset({"stand", "walk", "talk"})


@dataclass(frozen=True, slots=True)
class Judged:
    """One scene: what people did, per service the matching, the incidents nobody can be asked to find, and the single verdicts.

    unseen: missed incidents of whose people the camera saw less than `SEEN_SHARE` on average, and those that began less
    than `AFTER_S` before the scene ended. boxes: truth, tracks, first and last frame.
    """

    run: SceneRun
    intervals: tuple[Interval, ...]
    matchings: dict[str, Matching]
    unseen: dict[str, tuple[Incident, ...]]
    windows: dict[str, list[ClipResult]]
    boxes: tuple[MotBoxes, MotBoxes, int, int]
    failures: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            **self.run.model_dump(),
            "services": {
                name: {
                    "hits": [
                        {
                            "incident": asdict(incident),
                            "detected_s": round(alarm.detected_s, 3),
                            "delay_s": round(alarm.detected_s - incident.start_s, 3),
                            "onset_error_s": round(alarm.onset_s - incident.start_s, 3),
                            "confidence": round(alarm.confidence, 4),
                        }
                        for incident, alarm in matching.hits
                    ],
                    "missed": [asdict(incident) for incident in matching.missed],
                    "unseen": [asdict(incident) for incident in self.unseen[name]],
                    "duplicates": [_alarm_json(alarm) for alarm in matching.duplicates],
                    "false_alarms": [
                        _alarm_json(alarm) | {"meanwhile": self.meanwhile(alarm)} for alarm in matching.false_alarms
                    ],
                }
                for name, matching in self.matchings.items()
            },
        }

    def meanwhile(self, alarm: Alarm) -> str:
        """What people did at the time, apart from standing, walking and talking."""
        there = {one.action for one in self.intervals if one.start_s < alarm.detected_s and one.end_s > alarm.onset_s}
        return ", ".join(sorted(there - _IDLE))


def _alarm_json(alarm: Alarm) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(alarm).items()}


def action_of(name: str, service: ServiceConfig) -> str:
    """What the scenes call the action of a service: its name, else its model's label where they know only that."""
    return service.positive if name not in ACTIONS and service.positive in ACTIONS else name


def judge(config: AgentConfig, run: SceneRun, script: Script, watcher: SceneWatcher) -> Judged:
    """`script` as the agent saw it, by what `watcher` kept."""
    intervals = script.intervals(0.0, run.seconds)
    matchings: dict[str, Matching] = {}
    unseen: dict[str, tuple[Incident, ...]] = {}
    windows: dict[str, list[ClipResult]] = {}
    for name, service in config.services.items():
        if not service.enabled:
            continue
        action = action_of(name, service)
        own = [interval for interval in intervals if interval.action == action]
        incidents = incidents_of(name, action, intervals, end_s=run.seconds)
        matching = match(incidents, _alarms(watcher.events, name))
        hidden = tuple(
            one
            for one in matching.missed
            if one.start_s > run.seconds - AFTER_S or _seen_share(one, own, watcher.seen) < SEEN_SHARE
        )
        seen = tuple(one for one in matching.missed if one not in hidden)
        matchings[name] = replace(matching, missed=seen, covered=tuple(one for one in matching.covered if one in seen))
        unseen[name] = hidden
        shown = [one for one in watcher.scores if one.service == name and 0 <= one.probability <= 1]
        seen_share = partial(_seen_share, intervals=own, seen=watcher.seen)
        windows[name] = _judge_windows(run, incidents, shown, seen_share)
    boxes = (MotBoxes.join(watcher.truth), MotBoxes.join(watcher.tracks), 1, len(watcher.truth))
    return Judged(run, intervals, matchings, unseen, windows, boxes, sorted(set(watcher.failures)))


def _alarms(events: Iterable[Event], service: str) -> list[Alarm]:
    """The incidents that the rules reported, open or closed."""
    opened: dict[str, Alarm] = {}
    for event in events:
        if event.kind != service:
            continue
        at_s = event.t_start_ns / 1e9 + event.duration_s
        if event.phase is EventPhase.DETECTED:
            opened[event.incident_id] = Alarm(service, at_s, event.t_start_ns / 1e9, None, event.confidence)
        else:
            known = opened[event.incident_id]
            ended_s = at_s if event.phase is EventPhase.RESOLVED else None
            opened[event.incident_id] = replace(known, ended_s=ended_s, confidence=event.confidence)
    return list(opened.values())


def _seen_share(
    incident: Incident, intervals: Iterable[Interval], seen: Sequence[tuple[float, dict[int, float]]]
) -> float:
    """Mean share of the bodies of an incident's people that the camera saw; of who is out of the picture it sees none."""
    actors = {
        actor
        for one in intervals
        if one.start_s < incident.end_s and one.end_s > incident.start_s
        for actor in one.actor_ids
    }
    shares = [
        frame.get(actor, 0.0) for t_s, frame in seen if incident.start_s <= t_s <= incident.end_s for actor in actors
    ]
    return float(np.mean(shares)) if shares else 0.0


def _judge_windows(
    run: SceneRun,
    incidents: Sequence[Incident],
    scores: Iterable[ActionScores],
    seen_share: Callable[[Incident], float],
) -> list[ClipResult]:
    """Each verdict of one service on a window that clearly holds the action, before the camera's eyes, or clearly does not.

    seen_share: how much of an incident's people the camera saw on average, 0-1.
    """
    results = []
    for one in scores:
        start_s, end_s = one.t_start_ns / 1e9, one.t_end_ns / 1e9
        held = [i for i in incidents if _holds(start_s, end_s, i)]
        near = any(start_s < max(i.end_s + AFTER_S, i.lasts_s) and end_s > i.start_s - BEFORE_S for i in incidents)
        if any(seen_share(_part(i, start_s, end_s)) >= SEEN_SHARE for i in held):
            label = one.service
        elif not held and not near:
            label = "other"
        else:
            continue
        file = f"{run.scenario} seed {run.seed} at {end_s:.1f} s"
        results.append(ClipResult(file, label, one.probability, run.scenario))
    return results


def _part(incident: Incident, start_s: float, end_s: float) -> Incident:
    """What of `incident` lies between two moments."""
    return replace(incident, start_s=max(start_s, incident.start_s), end_s=min(end_s, incident.end_s))


def _holds(start_s: float, end_s: float, incident: Incident) -> bool:
    """Whether enough of `incident` is between two moments for a window there to be called."""
    part = _part(incident, start_s, end_s)
    whole_s = incident.end_s - incident.start_s
    return max(0.0, part.end_s - part.start_s) >= min(WINDOW_SHARE * (end_s - start_s), WHOLE_SHARE * whole_s)

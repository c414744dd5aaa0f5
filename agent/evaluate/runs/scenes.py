"""Simulated scenes through the whole pipeline, faster than real time where the machine allows; events against truth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.causes import first_cause
from agent.config.schema import AgentConfig, ServiceConfig
from agent.drift.card import CardMeter
from agent.errors import ConfigError, ConfigProblem
from agent.evaluate.action import ClipResult, action_report, corners
from agent.evaluate.matching import AFTER_S, BEFORE_S, Alarm, Incident, Matching, event_figures, match
from agent.evaluate.mot import MotBoxes
from agent.evaluate.runs.mistakes import Mistake, kept_every, mistakes_of, save_strips, worst
from agent.evaluate.runs.playback import SEEN_SHARE, SceneStream, SceneWatcher, TruthEstimator
from agent.evaluate.scenarios import ScenePlan, SceneRun
from agent.evaluate.scene_truth import incidents_of
from agent.evaluate.sketch import SketchScene
from agent.evaluate.tracking import score_sequences
from agent.evaluate.truth_poses import NoisyTruth
from agent.recognition import Recognition, open_recognition
from agent.simulation.scene import SimulatedScene, build_scene
from agent.simulation.scripts import build_script
from agent.simulation.values import ACTIONS, Interval, Script, Truth
from agent.types import POSE_SLOT, ActionScores, Event, EventPhase

WINDOW_SHARE = 1 / 3
WHOLE_SHARE = 0.8
"""A window that an incident fills by the first, or that holds this much of the incident, should be called; one that the
incident only touches is not judged, nor one during which the camera saw less than `SEEN_SHARE` of the incident's people."""
_IDLE = frozenset({"stand", "walk", "talk"})


@dataclass(frozen=True, slots=True)
class EventsRun:
    """report: see `run_scenes`; problems: inferences that failed; strips: title -> file of the worst mistakes."""

    report: dict[str, Any]
    models: dict[str, str]
    problems: list[str]
    strips: dict[str, Path]


def check_actions(config: AgentConfig) -> None:
    """Raises ConfigError that names the services whose action no scene holds: each of their events would be a false alarm."""
    hint = f"name it, or its label `positive`, after one of {', '.join(ACTIONS)}; `enabled: false` leaves it out"
    problems = [
        ConfigProblem(f"the scenes hold no action {name!r}", path=f"services.{name}", hint=hint)
        for name, service in config.services.items()
        if service.enabled and _action_of(name, service) not in ACTIONS
    ]
    if problems:
        raise ConfigError(problems)


def _action_of(name: str, service: ServiceConfig) -> str:
    """What the scenes call the action of a service: its name, else its model's label where they know only that."""
    return service.positive if name not in ACTIONS and service.positive in ACTIONS else name


async def run_scenes(
    config: AgentConfig,
    plan: ScenePlan,
    *,
    truth_poses: bool = False,
    score_tracks: bool = True,
    examples: tuple[Path, int] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> EventsRun:
    """Run every scene of `plan` through the services of `config` and match their events with what happened.

    truth_poses: noisy truth in place of pictures and the configured pose estimator. examples: folder and number of strips
    of missed incidents and false alarms, the people that the agent followed drawn on them. score_tracks: also hold the
    tracks against the truth, which needs TrackEval. progress: called once a frame.

    The report: `services` (per service the figures of `event_figures`, `unseen` incidents, and `windows`: the single
    verdicts as `action_report` has them), `tracking` (HOTA, MOTA, IDF1, id_switches, id_consistency), `scenarios` (every
    incident and event), `hours`, `fps`, `poses`, `before_s`, `after_s`, `speed` (seconds of scene per second), `baseline`
    (`CardMeter.means`, where there is something to average; of poses only when they are an estimator's).
    Raises ConfigError, ModelError.
    """
    services = [name for name, service in config.services.items() if service.enabled]
    if not services:
        raise ConfigError([ConfigProblem("no service is enabled", path="services")])
    estimator = TruthEstimator() if truth_poses else None
    folder, count = examples or (None, 0)
    started, meter = time.perf_counter(), CardMeter()
    judged: list[_Judged] = []
    mistakes: list[Mistake] = []
    async with open_recognition(config, estimator=estimator) as recognition:
        models = recognition.models
        for run in plan.scenes():
            watcher = SceneWatcher(progress, meter, keep_every=kept_every(plan.fps) if count else 0)
            judged.append(await _run_scene(recognition, estimator, run, plan, watcher))
            found = mistakes_of(run, judged[-1].matchings, watcher, config.services, plan.fps)
            mistakes = worst([*mistakes, *found], count)  # the tracks of all other moments go with the watcher
    report: dict[str, Any] = {
        "services": {name: _service_report(name, judged, plan.hours) for name in services},
        "tracking": score_sequences([one.boxes for one in judged]) if score_tracks else {},
        "hours": plan.hours,
        "fps": plan.fps,
        "poses": models[POSE_SLOT],
        "before_s": BEFORE_S,
        "after_s": AFTER_S,
        "speed": round(plan.hours * 3600 / (time.perf_counter() - started), 2),
        "scenarios": [one.as_json() for one in judged],
    }
    means = meter.means()
    if truth_poses:  # the noise is no model's
        means.pop(POSE_SLOT, None)
    if means:
        report["baseline"] = means
    problems = [f"{one.run.scenario}, seed {one.run.seed}: {text}" for one in judged for text in one.failures]
    strips = save_strips(mistakes, partial(_build, plan=plan), folder) if folder else {}
    return EventsRun(report, models, problems, strips)


@dataclass(frozen=True, slots=True)
class _Judged:
    """One scene: per service the matching, the incidents nobody can be asked to find, and the single verdicts.

    unseen: missed incidents of whose people the camera saw less than `SEEN_SHARE` on average, and those that began less
    than `AFTER_S` before the scene ended. boxes: truth, tracks, first and last frame.
    """

    run: SceneRun
    script: Script
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
        intervals = self.script.intervals(alarm.onset_s, alarm.detected_s)
        return ", ".join(sorted({interval.action for interval in intervals} - _IDLE))


def _alarm_json(alarm: Alarm) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(alarm).items()}


async def _run_scene(
    recognition: Recognition,
    estimator: TruthEstimator | None,
    run: SceneRun,
    plan: ScenePlan,
    watcher: SceneWatcher,
) -> _Judged:
    scene = await asyncio.to_thread(_build, run, plan)
    noise = NoisyTruth(run.seed)

    def on_truth(truth: Truth) -> None:
        watcher.on_truth(truth)
        if estimator is not None:
            estimator.tell(noise.people(truth))

    stage = scene if estimator is None else SketchScene(scene.script, scene.camera)
    stream = SceneStream(stage, fps=plan.fps, seconds=run.seconds, on_truth=on_truth, off_loop=estimator is None)
    camera = recognition.camera(stream, watcher, services=None, fps=lambda: plan.fps)
    try:
        await camera.pipeline.run()
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    return _judge(recognition.config, run, scene.script, watcher)


def _build(run: SceneRun, plan: ScenePlan) -> SimulatedScene:
    script = build_script(run.scenario, seed=run.seed, people=run.people)
    return build_scene(script, seed=run.seed, width=plan.size[0], height=plan.size[1])


def _judge(config: AgentConfig, run: SceneRun, script: Script, watcher: SceneWatcher) -> _Judged:
    intervals = script.intervals(0.0, run.seconds)
    matchings: dict[str, Matching] = {}
    unseen: dict[str, tuple[Incident, ...]] = {}
    windows: dict[str, list[ClipResult]] = {}
    for name, service in config.services.items():
        if not service.enabled:
            continue
        action = _action_of(name, service)
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
    return _Judged(run, script, matchings, unseen, windows, boxes, sorted(set(watcher.failures)))


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


def _service_report(name: str, judged: Sequence[_Judged], hours: float) -> dict[str, Any]:
    figures = event_figures([one.matchings[name] for one in judged], hours)
    figures["unseen"] = sum(len(one.unseen[name]) for one in judged)
    windows = [result for one in judged for result in one.windows[name]]
    if windows:
        verdicts = action_report(windows, name)
        figures["windows"] = {key: value for key, value in verdicts.items() if key not in ("service", "clips")}
        figures["windows"]["roc"] = corners(verdicts["roc"])
        figures["windows"]["count"] = len(windows)
    return figures

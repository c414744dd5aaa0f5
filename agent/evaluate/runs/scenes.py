"""The report on simulated scenes: events, single verdicts and tracks against the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent.config.schema import AgentConfig
from agent.drift.card import CardMeter
from agent.errors import ConfigError, ConfigProblem
from agent.evaluate.action import action_report, corners
from agent.evaluate.matching import AFTER_S, BEFORE_S, event_figures
from agent.evaluate.runs.judged import Judged, action_of
from agent.evaluate.runs.mistakes import Mistake, save_strips, worst
from agent.evaluate.runs.play import Stage, build, play_apart, play_here
from agent.evaluate.scenarios import ScenePlan
from agent.evaluate.tracking import score_sequences
from agent.recognition import open_recognition
from agent.simulation.values import ACTIONS
from agent.types import POSE_SLOT


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
        if service.enabled and action_of(name, service) not in ACTIONS
    ]
    if problems:
        raise ConfigError(problems)


async def run_scenes(
    config: AgentConfig,
    plan: ScenePlan,
    *,
    truth_poses: bool = False,
    score_tracks: bool = True,
    examples: tuple[Path, int] | None = None,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> EventsRun:
    """Run every scene of `plan` through the services of `config` and match their events with what happened.

    truth_poses: noisy truth in place of pictures and the configured pose estimator. examples: folder and number of strips
    of missed incidents and false alarms, the people that the agent followed drawn on them. score_tracks: also hold the
    tracks against the truth, which needs TrackEval. jobs: so many scenes at a time, each in a process of its own; the
    cores are shared out among them. progress: told how many frames have passed since.

    The report: `services` (per service the figures of `event_figures`, `unseen` incidents, and `windows`: the single
    verdicts as `action_report` has them), `tracking` (HOTA, MOTA, IDF1, id_switches, id_consistency), `scenarios` (every
    incident and event), `hours`, `fps`, `poses`, `before_s`, `after_s`, `speed` (seconds of scene per second), `baseline`
    (`CardMeter.means`, where there is something to average; of poses only when they are an estimator's).
    Raises ConfigError, ModelError.
    """
    services = [name for name, service in config.services.items() if service.enabled]
    if not services:
        raise ConfigError([ConfigProblem("no service is enabled", path="services")])
    folder, count = examples or (None, 0)
    started, meter = time.perf_counter(), CardMeter()
    judged: list[Judged] = []
    mistakes: list[Mistake] = []
    stage = Stage(plan, truth_poses, count)
    estimator = stage.estimator()
    async with open_recognition(config, estimator=estimator) as recognition:
        models = recognition.models  # they can be loaded: before the first process is started
        outcomes = (
            play_apart(config, stage, jobs, progress)
            if jobs > 1
            else play_here(recognition, estimator, stage, progress)
        )
        async for outcome in outcomes:
            judged.append(outcome.judged)
            meter.add(outcome.meter)
            mistakes = worst([*mistakes, *outcome.mistakes], count)
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
    strips = save_strips(mistakes, partial(build, plan=plan), folder) if folder else {}
    return EventsRun(report, models, problems, strips)


def _service_report(name: str, judged: Sequence[Judged], hours: float) -> dict[str, Any]:
    figures = event_figures([one.matchings[name] for one in judged], hours)
    figures["unseen"] = sum(len(one.unseen[name]) for one in judged)
    windows = [result for one in judged for result in one.windows[name]]
    if windows:
        verdicts = action_report(windows, name)
        figures["windows"] = {key: value for key, value in verdicts.items() if key not in ("service", "clips")}
        figures["windows"]["roc"] = corners(verdicts["roc"])
        figures["windows"]["count"] = len(windows)
    return figures

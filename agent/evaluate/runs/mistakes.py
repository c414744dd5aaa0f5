"""The worst mistakes of simulated scenes as strips of frames: what happened, and what the agent saw and thought of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from agent.config.schema import ServiceConfig
from agent.evaluate.matching import Matching
from agent.evaluate.runs.playback import SceneWatcher
from agent.evaluate.scenarios import SceneRun
from agent.evaluate.strips import FRAMES, WIDTH_PX, save_strip, shrink, side_by_side
from agent.events.evidence import step_time_ns
from agent.overlay import ActionBar, draw
from agent.overlay_video import ActionTrace
from agent.simulation.values import Scene
from agent.types import Event, ImageArray, Tracks

STRIP_S = 6.0
_GRID_S = 0.4  # a third of the distance of two frames of a strip
_BEFORE_S = 0.5


def kept_every(fps: float) -> int:
    """Of so many frames the tracks of one are needed for strips."""
    return max(1, round(_GRID_S * fps))


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One frame of a strip: whom the agent followed, and what it showed of the actions."""

    tracks: Tracks
    actions: list[ActionBar]


@dataclass(frozen=True, slots=True, eq=False)
class Mistake:
    """rank: the smallest is the worst; moments: at most FRAMES, in order."""

    rank: float
    title: str
    run: SceneRun
    moments: list[Moment]


def mistakes_of(
    run: SceneRun,
    matchings: Mapping[str, Matching],
    watcher: SceneWatcher,
    services: Mapping[str, ServiceConfig],
    fps: float,
) -> Iterator[Mistake]:
    """False alarms, the surest the worst, then missed incidents of one scene, with their part of what `watcher` kept.

    The strip of a false alarm ends with it, that of an incident begins a moment before it; neither leaves the scene.
    """
    where = f"{run.scenario}, seed {run.seed}"
    grid_s = kept_every(fps) / fps
    step = max(1, round(STRIP_S / (FRAMES - 1) / grid_s))
    for name, matching in matchings.items():
        actions = _actions(watcher, name, services[name].rules.alert_threshold)
        for alarm in matching.false_alarms:
            title = f"False alarm: {name} at {alarm.detected_s:.1f} s ({where}), confidence {alarm.confidence:.2f}"
            first = math.ceil(alarm.detected_s / grid_s) - step * (FRAMES - 1)
            yield Mistake(-alarm.confidence, title, run, _moments(watcher.kept, actions, first, step))
        for incident in matching.missed:
            title = f"Missed: {name} from {incident.start_s:.1f} s ({where})"
            first = math.floor((incident.start_s - _BEFORE_S) / grid_s)
            yield Mistake(0.0, title, run, _moments(watcher.kept, actions, first, step))


def worst(mistakes: Iterable[Mistake], count: int) -> list[Mistake]:
    """The `count` worst, worst first."""
    return sorted(mistakes, key=attrgetter("rank", "title"))[:count]


def save_strips(mistakes: Sequence[Mistake], scene_of: Callable[[SceneRun], Scene], folder: Path) -> dict[str, Path]:
    """Each as a file in `folder`, its scene drawn again: title -> file."""
    files: dict[str, Path] = {}
    for number, mistake in enumerate(mistakes, start=1):
        scene = scene_of(mistake.run)
        files[mistake.title] = folder / f"mistake-{number}.jpg"
        save_strip(files[mistake.title], side_by_side([_picture(scene, moment) for moment in mistake.moments]))
    return files


def _actions(watcher: SceneWatcher, service: str, alert: float) -> list[tuple[int, ActionBar | Event]]:
    """Verdicts and events of one service, as `ActionTrace` takes them."""
    verdicts = [
        (one.t_end_ns, ActionBar(service, one.probability, alert)) for one in watcher.scores if one.service == service
    ]
    return [*verdicts, *((step_time_ns(event), event) for event in watcher.events if event.kind == service)]


def _moments(
    kept: Sequence[Tracks], actions: Iterable[tuple[int, ActionBar | Event]], first: int, step: int
) -> list[Moment]:
    """FRAMES of `kept` from `first` on, earlier ones where it ends before, fewer where it is shorter."""
    first = max(0, min(first, len(kept) - 1 - step * (FRAMES - 1)))
    trace = ActionTrace(actions)
    return [Moment(tracks, trace.at(tracks.stamp.t_mono_ns)) for tracks in kept[first::step][:FRAMES]]


def _picture(scene: Scene, moment: Moment) -> ImageArray:
    t_s = moment.tracks.stamp.t_mono_ns / 1e9
    small = shrink(scene.shot(t_s).image, WIDTH_PX)
    return draw(small, moment.tracks, actions=moment.actions, caption=f"{t_s:.1f} s")

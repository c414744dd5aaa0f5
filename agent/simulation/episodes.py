"""Episodes: one stretch of a scenario with its cast. `directors` fill them, `scripts` chains them for ever."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from agent.simulation.area import AREA_M, ROOM_M, TRIES, Room, inside, travel, wing
from agent.simulation.motion import RATE_HZ, MotionModel
from agent.simulation.performer import Performer, Track
from agent.simulation.skeleton import Array, Lengths
from agent.simulation.values import ACTIONS, Interval

EPISODE_S = 40.0
TAIL_S = 40.0
"""Nobody of an episode stays on stage longer than this after its end."""
IDS = 100
"""Actor ids of one episode: its number times this, plus 1, 2, ..."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """tracks: everybody's performance; lengths: (P, 9) for `joints_of`; intervals: in seconds of the episode."""

    tracks: tuple[Track, ...]
    actor_ids: tuple[int, ...]
    lengths: Array
    intervals: tuple[Interval, ...]


@dataclass(slots=True)
class Set:
    """What a director works with. opening: the script begins here, so people may already be in the picture."""

    rng: np.random.Generator
    model: MotionModel
    people: int
    opening: bool
    room: Room = field(default_factory=Room)
    cast: list[Performer] = field(default_factory=list)
    events: list[tuple[str, float, float, tuple[Performer, ...]]] = field(default_factory=list)

    def enter(self, *, first: int = 0, at: Array | None = None, child: bool = False) -> Performer:
        """Somebody new: beyond a border, or at `at` facing anywhere."""
        start = wing(self.rng) if at is None else at
        heading = self.rng.uniform(-np.pi, np.pi) if at is not None else float(np.arctan2(-start[1], -start[0]))
        person = Performer(self.model, self.rng, first=first, xy=start, heading=heading, child=child)
        self.cast.append(person)
        return person

    def way(self, person: Performer, goal: Array, speed: float) -> list[Array]:
        """Points on the way to `goal` that keep clear of those who were there first."""
        best: tuple[float, list[Array]] = (-1.0, [goal])
        for attempt in range(TRIES):
            middle = (person.xy + goal) / 2 + self.rng.normal(0, 0.25 + 0.15 * attempt, 2)
            middle = np.clip(middle, (AREA_M[0], AREA_M[2]), (AREA_M[1], AREA_M[3]))
            points = [goal] if attempt == 0 else [middle, goal]
            xy, _ = travel(np.array([person.xy, *points]), person.pose.heading, speed)
            clear = self.room.clearance(person.now, xy)
            if clear > best[0]:
                best = (clear, points)
            if clear > ROOM_M:
                break
        return best[1]

    def spot(self, first: int, frames: int, *, margin: float = 0.7) -> Array:
        """A place to stay at for a while, clear of the others."""
        best = (-1.0, inside(self.rng, margin))
        for _ in range(3 * TRIES):
            place = inside(self.rng, margin)
            clear = self.room.clearance(first, np.repeat(place[None], max(frames, 2), axis=0))
            if clear > best[0]:
                best = (clear, place)
            if clear > 1.6:
                break
        return best[1]

    def leave(self, person: Performer, speed: float = 1.3) -> None:
        """Off the stage, and that person's track is known to those who come later."""
        goals = [wing(self.rng) for _ in range(3)]
        goal = next((g for g in goals if np.hypot(*(g - person.xy)) > 3.0), goals[0])
        person.go(self.way(person, goal, speed), speed, end_speed=speed)
        self.settle(person)

    def settle(self, person: Performer) -> None:
        """Those who come later keep clear of this person's track: the hips, and the head, which matters when lying."""
        hips, head = person.path()
        self.room.add(person.first, hips)
        self.room.add(person.first, head)

    def event(self, action: str, start: int, end: int, *persons: Performer) -> None:
        """Something happened between two frames."""
        self.events.append((action, start / RATE_HZ, end / RATE_HZ, persons))


def finished(stage: Set, number: int) -> Iterator[Episode | None]:
    """What the director made, as the episode of that number; a step a person."""
    made = []
    for person in stage.cast:
        made.append(person.track())
        yield None
    tracks = tuple(made)
    ids = {id(person): number * IDS + k + 1 for k, person in enumerate(stage.cast)}
    intervals = [
        Interval(action, start, end, tuple(sorted(ids[id(person)] for person in persons)))
        for action, start, end, persons in stage.events
    ]
    for person, track in zip(stage.cast, tracks, strict=True):
        intervals.extend(_own_intervals(track, ids[id(person)], skip={"fight", "fall"}))
    table = Lengths([track.body for track in tracks]).table if tracks else np.zeros((0, 9))
    yield Episode(tracks, tuple(ids.values()), table, tuple(intervals))


def _own_intervals(track: Track, actor_id: int, skip: set[str]) -> list[Interval]:
    """Runs of one action of one person."""
    changes = np.flatnonzero(np.diff(track.actions)) + 1
    edges = [0, *changes.tolist(), len(track.actions)]
    runs = [(ACTIONS[track.actions[a]], a, b) for a, b in itertools.pairwise(edges)]
    return [
        Interval(action, (track.first + a) / RATE_HZ, (track.first + b) / RATE_HZ, (actor_id,))
        for action, a, b in runs
        if action not in skip
    ]

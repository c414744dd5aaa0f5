"""Scenarios: who does what when, for ever, as a pure function of the seed and the time.

A script is a chain of episodes of `EPISODE_S` seconds. Each is made from (seed, number) alone, so that any time can be
asked for in any order; its people may stay on a while into the next one. Episodes are made ahead, a little with every
call, and kept: asked in rising order, a call costs well under a millisecond.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.simulation import directors
from agent.simulation.episodes import EPISODE_S, TAIL_S, Episode
from agent.simulation.motion import RATE_HZ, MotionModel, load_motion_model
from agent.simulation.performer import Track
from agent.simulation.skeleton import Array, joints_of, unit
from agent.simulation.values import ACTIONS, ActorState, Interval
from agent.types import NUM_KEYPOINTS, FloatArray, IntArray

SCENARIOS = tuple(directors.DIRECTORS)
"""Names that `build_script` knows."""

MAX_PEOPLE = 12
KEPT = 4
"""Finished episodes that are remembered."""
STEPS_HZ, STEPS_A_CALL = 4, 3
"""Work on the next episode: an episode takes about 60 steps of 10 ms, so that it is ready half way through this one."""
PLAYED_S = 0.5
"""Moments that follow each other so closely are played, and the next episode will be wanted; whoever looks here and there wants this one."""


def build_script(scenario: str, *, seed: int, people: int) -> EpisodicScript:
    """The script of `scenario` for about `people` (1-12) people. Raises ValueError on an unknown name or number."""
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario {scenario!r} is not known: one of {', '.join(SCENARIOS)}")
    if not 1 <= people <= MAX_PEOPLE:
        raise ValueError(f"people: expected 1 to {MAX_PEOPLE}, got {people}")
    return EpisodicScript(scenario, seed=seed, people=people, model=load_motion_model())


class EpisodicScript:
    """Implements `agent.simulation.values.Script`."""

    def __init__(self, name: str, *, seed: int, people: int, model: MotionModel) -> None:
        self._name = name
        self._seed = seed
        self._people = people
        self._model = model
        self._kept: OrderedDict[int, Episode] = OrderedDict()
        self._coming: tuple[int, Iterator[Episode | None]] | None = None
        self._steps = 0
        self._last_s = -PLAYED_S

    @property
    def name(self) -> str:
        return self._name

    @property
    def length_s(self) -> float:
        """After this other choices follow."""
        return EPISODE_S

    def actors(self, t_s: float) -> tuple[ActorState, ...]:
        """Everybody in the scene at `t_s` >= 0."""
        if t_s < 0:
            raise ValueError(f"t_s: expected 0 or more, got {t_s}")
        number = int(t_s // EPISODE_S)
        found: list[ActorState] = []
        for index in self._alive(number, t_s):
            found.extend(_states(self.episode(index), (t_s - index * EPISODE_S) * RATE_HZ))
        if abs(t_s - self._last_s) < PLAYED_S:
            self._work_ahead(number + 1, t_s - number * EPISODE_S)
        self._last_s = t_s
        return tuple(found)

    def intervals(self, start_s: float, end_s: float) -> tuple[Interval, ...]:
        """What overlaps [start_s, end_s), in order of start."""
        first = max(0, int((start_s - TAIL_S) // EPISODE_S))
        found = []
        for index in range(first, int(np.ceil(max(end_s, 0) / EPISODE_S))):
            offset = index * EPISODE_S
            for interval in self.episode(index).intervals:
                start, end = interval.start_s + offset, interval.end_s + offset
                if start < end_s and end > start_s:
                    found.append(Interval(interval.action, start, end, interval.actor_ids))
        return tuple(sorted(found, key=lambda interval: (interval.start_s, interval.end_s, interval.actor_ids)))

    def _alive(self, number: int, t_s: float) -> Iterator[int]:
        """Episodes with people on stage at `t_s`, the older first."""
        back = int(np.ceil(TAIL_S / EPISODE_S))
        for index in range(max(0, number - back), number + 1):
            if index == number or t_s - index * EPISODE_S <= EPISODE_S + TAIL_S:
                yield index

    def _make(self, number: int) -> Iterator[Episode | None]:
        rng = np.random.default_rng((self._seed & 0xFFFFFFFF, number, SCENARIOS.index(self._name)))
        return directors.make(self._name, rng, self._model, number=number, people=self._people)

    def episode(self, number: int) -> Episode:
        """Episode `number`, 0, 1, 2, ...; it begins at number * `EPISODE_S`."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        work = self._coming[1] if self._coming is not None and self._coming[0] == number else self._make(number)
        episode = next(step for step in work if step is not None)
        return self._keep(number, episode)

    def _keep(self, number: int, episode: Episode) -> Episode:
        if self._coming is not None and self._coming[0] == number:
            self._coming = None
        self._kept[number] = episode
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return episode

    def _work_ahead(self, number: int, elapsed_s: float) -> None:
        """The next episode, in small steps spread over this one. What it becomes does not depend on when it is made."""
        if number in self._kept:
            return
        if self._coming is None or self._coming[0] != number:
            self._coming = (number, self._make(number))
            self._steps = 0
        for _ in range(min(STEPS_A_CALL, int(elapsed_s * STEPS_HZ) - self._steps)):
            self._steps += 1
            episode = next(self._coming[1])
            if episode is not None:
                self._keep(number, episode)
                return


def _states(episode: Episode, frame: float) -> list[ActorState]:
    """People of an episode at a (broken) frame number, poses in between interpolated."""
    low = int(frame)
    part = frame - low
    present = [k for k, track in enumerate(episode.tracks) if track.first <= low < track.end - 1]
    if not present:
        return []
    tracks = [episode.tracks[k] for k in present]
    root = np.array([_between(t.root, low - t.first, part) for t in tracks])
    bones = unit(np.array([_between(t.bones, low - t.first, part) for t in tracks]))
    joints = joints_of(episode.lengths[present], root, bones).astype(np.float32)
    return [
        ActorState(episode.actor_ids[k], joints[i], ACTIONS[tracks[i].actions[low - tracks[i].first]])
        for i, k in enumerate(present)
    ]


def _between(values: FloatArray, index: int, part: float) -> Array:
    first = values[index].astype(np.float64)
    return np.asarray(first + (values[index + 1] - first) * part)


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedJoints:
    """A stretch of a script as arrays, for training.

    joints: (T, P, 17, 3) float32, metres, NaN where a person is not on stage; actions: (T, P) names, "" there;
    actor_ids: (P,) int64, everybody who appears; intervals: what overlaps the stretch.
    """

    joints: FloatArray
    actions: NDArray[np.str_]
    actor_ids: IntArray
    intervals: tuple[Interval, ...]


def simulate_joints(
    scenario: str, seed: int, people: int, seconds: float, rate_hz: float = 30.0, *, start_s: float = 0.0
) -> SimulatedJoints:
    """`seconds` of a script from `start_s` on, `rate_hz` frames a second: what `actors` gives, thousands of frames a second."""
    script = build_script(scenario, seed=seed, people=people)
    times = start_s + np.arange(round(seconds * rate_hz)) / rate_hz
    columns: list[tuple[int, FloatArray, NDArray[np.str_]]] = []
    first = max(0, int((start_s - TAIL_S) // EPISODE_S))
    for number in range(first, int(np.ceil((start_s + seconds) / EPISODE_S))):
        episode = script.episode(number)
        frames = (times - number * EPISODE_S) * RATE_HZ
        for track, actor_id, lengths in zip(episode.tracks, episode.actor_ids, episode.lengths, strict=True):
            found = _sampled(track, lengths, frames)
            if found is not None:
                columns.append((actor_id, *found))
    count = len(columns)
    joints = (
        np.stack([column[1] for column in columns], axis=1) if count else np.zeros((len(times), 0, 17, 3), np.float32)
    )
    actions = np.stack([column[2] for column in columns], axis=1) if count else np.zeros((len(times), 0), "<U8")
    ids = np.array([column[0] for column in columns], dtype=np.int64)
    return SimulatedJoints(joints, actions, ids, script.intervals(start_s, start_s + seconds))


def _sampled(track: Track, lengths: Array, frames: Array) -> tuple[FloatArray, NDArray[np.str_]] | None:
    """Joints (T, 17, 3) and actions (T,) of one person at broken frame numbers (T,); None when never on stage."""
    low = np.floor(frames).astype(np.int64)
    on = (low >= track.first) & (low < track.end - 1)
    if not on.any():
        return None
    joints = np.full((len(frames), NUM_KEYPOINTS, 3), np.nan, dtype=np.float32)
    actions = np.full(len(frames), "", dtype="<U8")
    at, part = low[on] - track.first, (frames - low)[on]
    root = track.root[at] + (track.root[at + 1] - track.root[at]) * part[:, None]
    bones = unit(track.bones[at] + (track.bones[at + 1] - track.bones[at]) * part[:, None, None])
    joints[on] = joints_of(lengths, root, bones)
    actions[on] = np.array(ACTIONS)[track.actions[at]]
    return joints, actions

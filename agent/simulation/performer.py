"""One person's performance, put together from takes: each begins in the pose in which the one before it ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.simulation.area import travel, turn_between
from agent.simulation.curves import smooth, smoothstep
from agent.simulation.floor import above_floor
from agent.simulation.gait import Mover, Plan, Take, perform, plan_along
from agent.simulation.motion import RATE_HZ, MotionModel
from agent.simulation.skeleton import SPINE, UPPER, Array, Body, blend, mirrored, random_body, unhurried
from agent.simulation.values import ACTIONS

TURN_LIMIT_RAD = 0.25
"""A frame: 15 rad/s, about as fast as knees and elbows extend in kicks and punches."""
_ORDER = np.argsort(ACTIONS)
_SORTED = np.array(ACTIONS)[_ORDER]


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """A finished performance. first: its first frame on the episode's time line at `RATE_HZ`.

    root: (T, 3) float32; bones: (T, 13, 3) float32; actions: (T,) uint8 indices of `ACTIONS`; intervals: of this person,
    in seconds of the episode.
    """

    body: Body
    first: int
    root: NDArray[np.float32]
    bones: NDArray[np.float32]
    actions: NDArray[np.uint8]

    @property
    def end(self) -> int:
        return self.first + len(self.root)


class Performer:
    """Puts takes together. Times are frames of the episode at `RATE_HZ`."""

    def __init__(
        self,
        model: MotionModel,
        rng: np.random.Generator,
        *,
        first: int,
        xy: Array,
        heading: float,
        child: bool = False,
    ) -> None:
        style = np.clip(rng.normal(0, 0.8, len(model.walk.styles)), -1.6, 1.6)
        self.mover = Mover(random_body(rng, child=child), style, model)
        self.rng = rng
        self.first = first
        self._takes: list[Take] = []
        self._actions: list[NDArray[np.uint8]] = []
        self._length = 0
        here = plan_along(
            self.mover, np.repeat(np.asarray(xy, dtype=np.float64)[None], 2, axis=0), np.full(2, float(heading))
        )
        self.pose = perform(self.mover, here).pose(0)
        self.previous_pose = self.pose
        self.floor_xy = self.pose.root[:2].copy()
        self._speed = 0.0

    @property
    def now(self) -> int:
        """The frame after the last one performed."""
        return self.first + self._length

    @property
    def now_s(self) -> float:
        return self.now / RATE_HZ

    @property
    def xy(self) -> Array:
        return self.pose.root[:2]

    @property
    def body(self) -> Body:
        return self.mover.body

    def add(self, take: Take, action: str | NDArray[np.str_]) -> None:
        """Append a take with its action, or one action a frame; the next take begins in its last pose."""
        if len(take) == 0:
            return
        self._takes.append(take)
        names = np.broadcast_to(np.asarray(action), (len(take),))
        self._actions.append(_ORDER[np.searchsorted(_SORTED, names)].astype(np.uint8))
        self.floor_xy = take.root[-1, :2].copy()
        self._speed = 0.0
        self._length += len(take)
        self.previous_pose = take.pose(len(take) - 2) if len(take) > 1 else self.pose
        self.pose = take.pose(len(take) - 1)

    def do(self, plan: Plan, action: str | NDArray[np.str_]) -> None:
        """Perform an upright plan."""
        self.add(perform(self.mover, plan, self.pose), action)
        self.floor_xy = plan.xy[-1].copy()

    def go(self, points: list[Array], speed: float, *, end_speed: float = 0.0, action: str | None = None) -> None:
        """Walk or run from here along `points`; comes to rest unless `end_speed` is given."""
        path = np.array([self.floor_xy, *points])
        xy, heading = travel(path, self.pose.heading, speed, end_speed=end_speed, start_speed=self._speed)
        if end_speed == 0:
            still = int(0.45 * RATE_HZ)
            xy = np.concatenate([xy, np.repeat(xy[-1:], still, axis=0)])
            heading = np.concatenate([heading, np.repeat(heading[-1:], still)])
        self.do(plan_along(self.mover, xy, heading), action or ("run" if speed > 2.1 else "walk"))
        self._speed = end_speed

    def stand(
        self, seconds: float, *, facing: float | None = None, action: str = "stand", gestures: tuple[str, ...] = ()
    ) -> None:
        """Stay here, with sway, turning to `facing` first; `gestures` follow one another."""
        n = max(2, int(seconds * RATE_HZ))
        turn = 0.0 if facing is None else turn_between(self.pose.heading, facing)
        pace = smoothstep(np.arange(n) / max(1, int((0.3 + abs(turn) / 2.4) * RATE_HZ)))
        heading = self.pose.heading + turn * pace
        xy = np.repeat(self.floor_xy[None], n, axis=0) + self._sway(n)
        upper, weight = self._gesturing(n, gestures)
        self.do(plan_along(self.mover, xy, heading, upper=upper, upper_weight=weight, lean=self._idle_lean(n)), action)

    def hold(self, frames: int) -> None:
        """Stay in the last pose for a few frames, so that people start something together."""
        pose = self.pose
        self.add(Take(
            np.repeat(pose.root[None], frames, axis=0), np.repeat(pose.bones[None], frames, axis=0),
            np.repeat(pose.feet[None], frames, axis=0), np.full(frames, pose.heading),
        ), "stand")  # fmt: skip

    def _sway(self, n: int) -> Array:
        """Centre of mass of quiet standing: slow, a centimetre or two, and now and then the weight goes to the other leg."""
        time = np.arange(n)[:, None] / RATE_HZ
        rates, phases = self.rng.uniform(0.1, 0.45, (3, 2)), self.rng.uniform(0, 2 * np.pi, (3, 2))
        waves = sum(0.008 * np.sin(2 * np.pi * rates[k] * time + phases[k]) for k in range(3))
        shifts = self.rng.normal(0, 0.022, (n // (3 * RATE_HZ) + 2, 2))
        held = smooth(np.repeat(shifts, 3 * RATE_HZ, axis=0)[:n], 0.35)
        sway: Array = waves + held
        return np.asarray((sway - sway[0]) * smoothstep(np.arange(n) / (0.8 * RATE_HZ))[:, None])

    def _idle_lean(self, n: int) -> Array:
        wave = smooth(self.rng.normal(0, 1, (n, 2)), 0.6)
        return wave / max(float(np.abs(wave).max()), 1e-6) * self.rng.uniform(0.01, 0.05)

    def _gesturing(self, n: int, names: tuple[str, ...]) -> tuple[Array, Array]:
        """Upper body (n, 9, 3) and weight (n,) of gestures one after the other, left or right handed."""
        stand = self.mover.model.stand[UPPER]
        upper, weight = np.broadcast_to(stand, (n, 9, 3)).copy(), np.zeros(n)
        at = int(self.rng.uniform(0.2, 0.8) * RATE_HZ)
        for name in names:
            primitive = self.mover.model.primitives[name]
            speed = self.rng.uniform(0.8, 1.35)
            frames = min(int(primitive.duration_s / speed * RATE_HZ), n - at)
            if frames < 20:
                break
            bones = primitive.at(np.arange(frames) * speed / RATE_HZ)[0]
            if self.rng.random() < 0.5:
                bones = mirrored(bones)
            upper[at : at + frames] = blend(
                bones[:, UPPER], np.broadcast_to(stand, (frames, 9, 3)), self.rng.uniform(0, 0.35)
            )
            edge = int(0.4 * RATE_HZ)
            ramp = np.minimum(np.arange(frames), np.arange(frames)[::-1]) / edge
            weight[at : at + frames] = smoothstep(ramp)
            at += frames + int(self.rng.uniform(0.0, 1.2) * RATE_HZ)
        return upper, weight

    def track(self) -> Track:
        """Everything performed so far."""
        actions = np.concatenate(self._actions)
        bones = unhurried(np.concatenate([take.bones for take in self._takes]), TURN_LIMIT_RAD)
        root = above_floor(self.body, np.concatenate([take.root for take in self._takes]), bones)
        return Track(self.body, self.first, root.astype(np.float32), bones.astype(np.float32), actions)

    def path(self) -> tuple[Array, Array]:
        """Hips and shoulders over the floor, (T, 2) each, from frame `first` on."""
        if not self._takes:
            return self.xy[None], self.xy[None]
        hips = np.concatenate([take.root[:, :2] for take in self._takes])
        spine = np.concatenate([take.bones[:, SPINE, :2] for take in self._takes])
        return hips, hips + spine * self.body.spine

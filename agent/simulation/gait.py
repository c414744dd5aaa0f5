"""Upright movement: footsteps planned along a path, legs by inverse kinematics, everything above from the fitted gait.

Feet that rest do not move at all: steps are planned first, as places on the floor and times, and the legs reach them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.simulation.curves import envelope, smooth, smoothstep
from agent.simulation.motion import GRAVITY, RATE_HZ, Gait, MotionModel
from agent.simulation.skeleton import (
    ARM_L,
    FOREARM_L,
    HEAD_UP,
    HIP_AXIS,
    NUM_BONES,
    SHANK_L,
    SHANK_R,
    SHOULDER_AXIS,
    SPINE,
    STANDING_RATIO,
    THIGH_L,
    THIGH_R,
    UPPER,
    Array,
    Body,
    blend,
    turned,
    two_bone,
    unit,
)  # fmt: skip

WALK_MPS = 0.30  # slower movement is made of single steps
STEP_M = 0.10  # a resting foot this far from its place steps
STEP_TURN_RAD = 0.45
RUN_FROUDE = 0.78  # speed / sqrt(g leg) above which people run: about 2.2 m/s (Kram et al. 1997 have 0.7)


@dataclass(frozen=True, slots=True, eq=False)
class Mover:
    """Who moves. style: (S,) weights of the gait's styles; model: the fitted one."""

    body: Body
    style: Array
    model: MotionModel


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """A body at one moment. root: (3,) metres; bones: (13, 3); feet: (2, 3) ankles, left first; heading: radians."""

    root: Array
    bones: Array
    feet: Array
    heading: float


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """A piece of a performance at `RATE_HZ`. root: (T, 3); bones: (T, 13, 3); feet: (T, 2, 3); heading: (T,)."""

    root: Array
    bones: Array
    feet: Array
    heading: Array

    def __len__(self) -> int:
        return len(self.root)

    def pose(self, index: int) -> Pose:
        return Pose(self.root[index], self.bones[index], self.feet[index], float(self.heading[index]))

    def cut(self, end: int) -> Take:
        return Take(self.root[:end], self.bones[:end], self.feet[:end], self.heading[:end])


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What an upright body is to do, frame by frame (T frames at `RATE_HZ`).

    xy: (T, 2) path of the pelvis; heading: (T,); lift: (T,) height of the pelvis, 1 = standing; upper: (T, 9, 3) local
    bones that replace the gait's by `upper_weight` (T,); stance: (T, 2, 2) places of the feet from the pelvis, forward and
    left, metres; hands, legs: (T, 2, 3) world targets of wrists and ankles with weights (T, 2); shift: (T, 3) of the
    pelvis, local, metres; lean: (T, 2) of the trunk forward and to the left, radians; step: a resting foot steps when it
    is this many times `STEP_M` off; hurry: how much quicker than usual.
    """

    xy: Array
    heading: Array
    lift: Array
    upper: Array
    upper_weight: Array
    stance: Array
    hands: Array
    hands_weight: Array
    legs: Array
    legs_weight: Array
    shift: Array
    lean: Array
    step: float = 1.0
    hurry: float = 1.0

    def __len__(self) -> int:
        return len(self.xy)


def plan_along(mover: Mover, xy: Array, heading: Array, **changes: object) -> Plan:
    """A plan that only goes along `xy` (T, 2), facing `heading` (T,); `changes` replace fields."""
    n = len(xy)
    half = mover.body.hip_width / 2
    plan = Plan(
        xy=xy, heading=heading, lift=np.ones(n), upper=np.broadcast_to(mover.model.stand[UPPER], (n, 9, 3)), upper_weight=np.zeros(n),
        stance=np.broadcast_to(np.array([[-0.02, half * 1.15], [-0.02, -half * 1.15]]), (n, 2, 2)),
        hands=np.zeros((n, 2, 3)), hands_weight=np.zeros((n, 2)), legs=np.zeros((n, 2, 3)), legs_weight=np.zeros((n, 2)),
        shift=np.zeros((n, 3)), lean=np.zeros((n, 2)),
    )  # fmt: skip
    return replace(plan, **changes)  # type: ignore[arg-type]  # the caller's field names, checked by dataclasses


def local_to_world(xy: Array, heading: Array, offset: Array) -> Array:
    """Places (..., 2) of local offsets (..., 2) at `xy` (..., 2), facing `heading` (...)."""
    c, s = np.cos(heading), np.sin(heading)
    x = xy[..., 0] + c * offset[..., 0] - s * offset[..., 1]
    y = xy[..., 1] + s * offset[..., 0] + c * offset[..., 1]
    return np.stack([x, y], axis=-1)


@dataclass(frozen=True, slots=True)
class _Swing:
    """A step: frames from and to, where to, facing what, and how high. gait: whose foot travel; None: a plain step."""

    start: int
    end: int
    target: tuple[float, float]
    yaw: float
    gait: Gait | None
    height: float


class _Foot:
    """One foot while steps are planned: where it rests, or how it swings."""

    __slots__ = ("place", "swing", "yaw")

    def __init__(self, place: Array, yaw: float) -> None:
        self.place = (float(place[0]), float(place[1]))
        self.yaw = yaw
        self.swing: _Swing | None = None

    def at(self, now: int) -> tuple[float, float, float]:
        """x, y and height above the resting ankle."""
        swing = self.swing
        if swing is None:
            return (*self.place, 0.0)
        share = (now - swing.start) / (swing.end - swing.start)
        if share >= 1:
            self.swing, self.place, self.yaw = None, swing.target, swing.yaw
            return (*self.place, 0.0)
        if swing.gait is not None:
            progress, height = swing.gait.swing_at(share)
        else:
            progress, height = share * share * (3 - 2 * share), 4 * share * (1 - share) * (1 - 0.3 * share)
        x, y = self.place
        return x + (swing.target[0] - x) * progress, y + (swing.target[1] - y) * progress, height * swing.height


class _Stepper:
    """Decides when which foot steps where. Plain numbers: it runs frame by frame."""

    def __init__(self, body: Body, plan: Plan, feet: Array) -> None:
        self._leg = body.leg
        self._plan = plan
        self._last = len(plan) - 1
        self._wanted = local_to_world(plan.xy[:, None], plan.heading[:, None], plan.stance).tolist()
        self._yaw = plan.heading.tolist()
        self._kicks = (plan.legs_weight > 0).tolist()
        self.feet = (_Foot(feet[0], self._yaw[0]), _Foot(feet[1], self._yaw[0]))

    def first_phase(self, gait: Gait, now: int) -> float:
        """Phase with which walking begins: the foot that lags behind lifts first."""
        lag = [self._behind(side, now) + (9.0 if self.feet[side].swing else 0.0) for side in (0, 1)]
        return (gait.rest[1] + 0.5 * (lag[1] > lag[0])) % 1.0

    def _behind(self, side: int, now: int) -> float:
        """How far the foot is behind its place, metres."""
        (x, y), yaw, place = self._wanted[now][side], self._yaw[now], self.feet[side].place
        return float((x - place[0]) * math.cos(yaw) + (y - place[1]) * math.sin(yaw))

    def walk(self, gait: Gait, phase: float, rate: float, now: int) -> None:
        """Lift a foot whose rest is over, or that is left behind while the pace changes.

        It goes to its place under the body in the middle of its next rest. rate: turns a frame.
        """
        landing, lift = gait.rest
        for side, foot in enumerate(self.feet):
            own = (phase + 0.5 * side) % 1.0
            if foot.swing is not None:
                continue
            if not landing <= own < lift:
                frames = int((landing - own) % 1.0 / rate)
                middle = now + int(((landing + lift) / 2 - own) % 1.0 / rate)
            elif self._behind(side, now) > 0.5 * self._leg:
                frames = int(0.45 / rate)
                middle = now + frames + int(0.18 / rate)
            else:
                continue
            frames, middle = max(frames, 8), min(self._last, middle)
            x, y = self._not_too_far(self._wanted[min(self._last, now + frames)][side], self._wanted[middle][side])
            length = math.hypot(x - foot.place[0], y - foot.place[1])
            height = self._leg * min(1.15, max(0.35, length / (1.6 * self._leg)))
            foot.swing = _Swing(now, now + frames, (x, y), self._yaw[middle], gait, height)

    def _not_too_far(self, landing: list[float], target: list[float]) -> tuple[float, float]:
        """`target`, or the place 0.36 legs from where the body will be when the foot lands."""
        x, y = target[0] - landing[0], target[1] - landing[1]
        share = min(1.0, 0.36 * self._leg / max(math.hypot(x, y), 1e-6))
        return landing[0] + x * share, landing[1] + y * share

    def stand(self, now: int) -> None:
        """One foot at a time goes to its place when it is too far off."""
        if self.feet[0].swing or self.feet[1].swing:
            return
        frames = int(0.34 * RATE_HZ / self._plan.hurry)
        soon = min(self._last, now + frames + int(0.10 * RATE_HZ))
        off = []
        for side, foot in enumerate(self.feet):
            x, y = self._wanted[soon][side]
            far = math.hypot(x - foot.place[0], y - foot.place[1])
            busy = self._kicks[now][side] or self._kicks[soon][side]
            off.append(
                0 if busy else far / (STEP_M * self._plan.step) + abs(self._yaw[soon] - foot.yaw) / STEP_TURN_RAD
            )
        side = int(off[1] > off[0])
        if off[side] < 1.0:
            return
        foot, (x, y) = self.feet[side], self._wanted[soon][side]
        height = 0.04 + min(0.06, math.hypot(x - foot.place[0], y - foot.place[1]) * 0.12)
        foot.swing = _Swing(now, now + max(frames, 8), (x, y), self._yaw[soon], None, height)


def plan_feet(mover: Mover, plan: Plan, feet: Array) -> tuple[Array, Array]:
    """Ankles (T, 2, 3) and phase of the gait (T,), from the places of the feet (2, 3) at the start."""
    body, model, n = mover.body, mover.model, len(plan)
    speed, ahead = _speeds(plan)
    walking = ((ahead > WALK_MPS) & (ahead > 0.75 * speed)).tolist()
    froude = (speed / np.sqrt(GRAVITY * body.leg)).tolist()
    pace = speed.tolist()
    stepper = _Stepper(body, plan, feet)
    ankles, phases = np.empty((n, 2, 3)), np.empty(n)
    phase, was_walking = 0.5, False
    for i in range(n):
        if walking[i]:
            gait = model.run if froude[i] > RUN_FROUDE else model.walk
            rate = min(max(pace[i] / gait.stride_m(pace[i], body.leg), 0.55), 1.9) / RATE_HZ
            phase = ((phase if was_walking else stepper.first_phase(gait, i)) + rate) % 1.0
            stepper.walk(gait, phase, rate, i)
        else:
            stepper.stand(i)
        was_walking = walking[i]
        phases[i] = phase
        ankles[i] = stepper.feet[0].at(i), stepper.feet[1].at(i)
    ankles[..., 2] += body.ankle
    return ankles, phases


def _speeds(plan: Plan) -> tuple[Array, Array]:
    """Speed over the floor and its part straight ahead, (T,) m/s each."""
    velocity = np.gradient(plan.xy, axis=0) * RATE_HZ if len(plan) > 1 else np.zeros((len(plan), 2))
    ahead = velocity[:, 0] * np.cos(plan.heading) + velocity[:, 1] * np.sin(plan.heading)
    return np.sqrt((velocity**2).sum(axis=1)), ahead


def perform(mover: Mover, plan: Plan, start: Pose | None = None) -> Take:
    """The movement of `plan`; from `start`, whose pose is left within 0.35 s."""
    n = len(plan)
    feet = plan_start_feet(mover, plan) if start is None else start.feet
    ankles, phase = plan_feet(mover, plan, feet)
    upper, pelvis = _above_hips(mover, plan, phase)
    if start is not None:
        ease = smoothstep(np.arange(n) / (0.35 * RATE_HZ))
        first = turned(start.bones[UPPER], -start.heading)
        upper = blend(np.broadcast_to(first, upper.shape), upper, ease)
    kicks = plan.legs_weight[..., None]
    ankles = ankles * (1 - kicks) + plan.legs * kicks
    world = turned(upper, plan.heading)
    root = np.empty((n, 3))
    root[:, :2] = local_to_world(plan.xy, plan.heading, pelvis[:, :2])
    root[:, 2] = pelvis[:, 2] + mover.body.ankle
    if start is not None:
        gone = np.exp(-np.arange(n) / (0.12 * RATE_HZ))[:, None]
        root += (start.root - root[0]) * gone
    root = _within_reach(mover.body, root, world, ankles, plan.legs_weight < 0.05)
    bones = np.empty((n, NUM_BONES, 3))
    bones[:, UPPER] = world
    _put_legs(mover.body, bones, root, ankles, plan.heading)
    _put_hands(mover.body, bones, root, plan)
    return Take(root, bones, ankles, plan.heading.copy())


def plan_start_feet(mover: Mover, plan: Plan) -> Array:
    """(2, 3) ankles at their places at the first frame."""
    places = local_to_world(plan.xy[:1, None], plan.heading[:1, None], plan.stance[:1])[0]
    return np.concatenate([places, np.full((2, 1), mover.body.ankle)], axis=1)


def _above_hips(mover: Mover, plan: Plan, phase: Array) -> tuple[Array, Array]:
    """Local bones (T, 9, 3), and the pelvis: metres forward and left of the path, and above the resting ankle."""
    model, leg = mover.model, mover.body.leg
    froude = np.clip(smooth(_speeds(plan)[1], 0.12), 0, 5) / np.sqrt(GRAVITY * leg)
    walk, walk_pelvis = model.walk.pose(phase, np.clip(froude, 0.2, 0.75), mover.style)
    run, run_pelvis = model.run.pose(phase, np.clip(froude, 0.7, 1.3), mover.style * 0)
    running = smoothstep((froude - 0.68) / 0.2)
    moving = smoothstep(froude / 0.28)
    upper = blend(np.broadcast_to(model.stand[UPPER], walk.shape), walk, moving)
    upper = blend(upper, run, running)
    upper = blend(upper, plan.upper, plan.upper_weight)
    upper = leaning(upper, plan.lean)
    pelvis = walk_pelvis + (run_pelvis - walk_pelvis) * running[:, None]
    pelvis = pelvis * moving[:, None]
    pelvis[:, 2] += (1 - moving) * STANDING_RATIO
    pelvis[:, 2] = np.minimum(pelvis[:, 2], 1.0 + 0.2 * running) * plan.lift
    pelvis[:, :2] *= plan.lift[:, None]
    return upper, pelvis * leg + plan.shift


def leaning(upper: Array, lean: Array) -> Array:
    """The trunk bent forward and to the left at the hips by `lean` (T, 2) radians; head and arms go with it by halves.

    upper: (T, 9, 3) local bones; HIP_AXIS stays.
    """
    if not lean.any():
        return upper
    out = upper.copy()
    full, half = _tilted(upper, lean), _tilted(upper, lean * 0.6)
    for bone in (SPINE, SHOULDER_AXIS):
        out[:, bone] = full[:, bone]
    out[:, HEAD_UP:] = half[:, HEAD_UP:]
    return out


def _tilted(bones: Array, lean: Array) -> Array:
    """Bones turned about the left axis by lean[0] (forward) and about the forward axis by -lean[1] (to the left)."""
    c, s = np.cos(lean[:, 0, None]), np.sin(lean[:, 0, None])
    x, y, z = bones[..., 0], bones[..., 1], bones[..., 2]
    x, z = c * x + s * z, c * z - s * x
    c, s = np.cos(lean[:, 1, None]), np.sin(lean[:, 1, None])
    return np.stack([x, c * y + s * z, c * z - s * y], axis=-1)


def _within_reach(body: Body, root: Array, bones: Array, ankles: Array, standing: NDArray[np.bool_]) -> Array:
    """The pelvis lowered, smoothly, where a leg would not reach a foot on the floor; not deeper than a long lunge.

    standing: (T, 2) which feet are not held up by somebody's will.
    """
    half = bones[:, HIP_AXIS] * (body.hip_width / 2)
    limit = np.full(len(root), np.inf)
    for side, sign in enumerate((1.0, -1.0)):
        hip = root + half * sign
        flat = ((hip[:, :2] - ankles[:, side, :2]) ** 2).sum(axis=1)
        rise = np.sqrt(np.maximum((body.leg * 0.998) ** 2 - flat, (0.25 * body.leg) ** 2))
        reached = ankles[:, side, 2] + rise - half[:, 2] * sign
        limit = np.minimum(limit, np.where(standing[:, side], reached, np.inf))
    excess = np.clip(root[:, 2] - limit, 0, 0.24 * body.leg)
    if excess.any():
        excess = np.maximum(excess, envelope(excess, 0.03))
    lowered = root.copy()
    lowered[:, 2] -= excess
    return lowered


def _put_legs(body: Body, bones: Array, root: Array, ankles: Array, heading: Array) -> None:
    """Thighs and shanks that lead to the ankles; knees point ahead and a little outwards."""
    half = bones[:, HIP_AXIS] * (body.hip_width / 2)
    for sign, thigh, shank, side in ((1.0, THIGH_L, SHANK_L, 0), (-1.0, THIGH_R, SHANK_R, 1)):
        angle = heading + sign * 0.12
        pole = np.stack([np.cos(angle), np.sin(angle), np.full_like(angle, 0.15)], axis=1)
        bones[:, thigh], bones[:, shank] = two_bone(root + half * sign, ankles[:, side], pole, body.thigh, body.shank)


def _put_hands(body: Body, bones: Array, root: Array, plan: Plan) -> None:
    """Arms that lead to the targets of the hands, by their weights; elbows point down and outwards."""
    if not plan.hands_weight.any():
        return
    chest = root + bones[:, SPINE] * body.spine
    across = bones[:, SHOULDER_AXIS]
    for side, sign in ((0, 1.0), (1, -1.0)):
        weight = plan.hands_weight[:, side]
        shoulder = chest + across * (sign * body.shoulder_width / 2)
        pole = across * sign * 0.6 - bones[:, SPINE] * 0.8
        upper, lower = two_bone(shoulder, plan.hands[:, side], pole, body.upper_arm, body.forearm)
        for bone, wanted in ((ARM_L + side, upper), (FOREARM_L + side, lower)):
            bones[:, bone] = unit(bones[:, bone] + (wanted - bones[:, bone]) * weight[:, None])

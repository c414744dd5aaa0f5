"""Upright movement: footsteps planned along a path, legs by inverse kinematics, everything above from the fitted gait.

Feet that rest do not move at all: steps are planned first, as places on the floor and times, and the legs reach them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from agent.simulation.motion import GRAVITY, RATE_HZ, Gait, MotionModel
from agent.simulation.skeleton import (
    ANKLE_L, ANKLE_R, ARM_L, ARM_R, FOREARM_L, HEAD_UP, HIP_AXIS, LEGS, NUM_BONES, SHANK_L, SHANK_R, SHOULDER_AXIS, SPINE, STANDING_RATIO,
    THIGH_L, THIGH_R, UPPER, Array, Body, blend, turned, two_bone, unit,
)  # fmt: skip

WALK_MPS = 0.30  # slower movement is made of single steps
STEP_M = 0.10  # a resting foot this far from its place steps
STEP_TURN_RAD = 0.45


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
    pelvis, local; rigid: steps only when the foot is this many times `STEP_M` off.
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
    step: float = 1.0
    hurry: float = 1.0
    lean: Array = field(default_factory=lambda: np.zeros((1, 2)))

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


def smoothstep(x: Array | float) -> Array:
    """0 below 0, 1 above 1, smooth between (3 x^2 - 2 x^3)."""
    clipped = np.clip(x, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3 - 2 * clipped))


def smooth(values: Array, seconds: float) -> Array:
    """Gaussian filter of (T, ...) along time; sigma in seconds; the ends are held."""
    sigma = seconds * RATE_HZ
    reach = int(2.5 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    flat = values.reshape(len(values), -1)
    padded = np.concatenate([np.repeat(flat[:1], reach, 0), flat, np.repeat(flat[-1:], reach, 0)])
    out = np.stack([np.convolve(padded[:, k], kernel, "valid") for k in range(flat.shape[1])], axis=1)
    return out.reshape(values.shape)


def envelope(values: Array, seconds: float) -> Array:
    """A smooth curve (T,) that is nowhere below `values` (T,) by more than a hair."""
    reach = max(1, int(2.5 * seconds * RATE_HZ))
    padded = np.pad(values, reach, mode="edge")
    return smooth(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1), seconds)


def local_to_world(xy: Array, heading: Array, offset: Array) -> Array:
    """Places (..., 2) of local offsets (..., 2) at `xy` (..., 2), facing `heading` (...)."""
    c, s = np.cos(heading), np.sin(heading)
    x = xy[..., 0] + c * offset[..., 0] - s * offset[..., 1]
    y = xy[..., 1] + s * offset[..., 0] + c * offset[..., 1]
    return np.stack([x, y], axis=-1)


class _Foot:
    """One foot while steps are planned: where it rests, or how it swings."""

    __slots__ = ("end", "gait", "height", "own_yaw", "place", "start", "swinging", "target", "target_yaw")

    def __init__(self, place: Array, yaw: float) -> None:
        self.place = (float(place[0]), float(place[1]))
        self.own_yaw = self.target_yaw = yaw
        self.target = self.place
        self.swinging = False
        self.start = self.end = 0
        self.gait: Gait | None = None
        self.height = 0.0

    def lift(
        self, now: int, frames: int, target: tuple[float, float], yaw: float, gait: Gait | None, height: float
    ) -> None:
        self.swinging, self.start, self.end = True, now, now + max(frames, 8)
        self.target, self.target_yaw, self.gait, self.height = target, yaw, gait, height

    def at(self, now: int) -> tuple[float, float, float]:
        """x, y and height above the resting ankle."""
        if not self.swinging:
            return (*self.place, 0.0)
        share = (now - self.start) / (self.end - self.start)
        if share >= 1:
            self.swinging, self.place, self.own_yaw = False, self.target, self.target_yaw
            return (*self.place, 0.0)
        if self.gait is not None:
            progress, height = self.gait.swing_at(share)
        else:
            progress, height = share * share * (3 - 2 * share), 4 * share * (1 - share) * (1 - 0.3 * share)
        x0, y0 = self.place
        return x0 + (self.target[0] - x0) * progress, y0 + (self.target[1] - y0) * progress, height * self.height


def plan_feet(mover: Mover, plan: Plan, feet: Array) -> tuple[Array, Array]:
    """Ankles (T, 2, 3) and phase of the gait (T,), from the places of the feet (2, 3) at the start."""
    body, model, n = mover.body, mover.model, len(plan)
    velocity = np.gradient(plan.xy, axis=0) * RATE_HZ if n > 1 else np.zeros((n, 2))
    speed = np.sqrt((velocity**2).sum(axis=1))
    ahead = velocity[:, 0] * np.cos(plan.heading) + velocity[:, 1] * np.sin(plan.heading)
    walking = ((ahead > WALK_MPS) & (ahead > 0.75 * speed)).tolist()
    froude = (speed / np.sqrt(GRAVITY * body.leg)).tolist()
    places = local_to_world(plan.xy[:, None], plan.heading[:, None], plan.stance)
    wanted, yaw, pace = places.tolist(), plan.heading.tolist(), speed.tolist()
    pair = [_Foot(feet[0], yaw[0]), _Foot(feet[1], yaw[0])]
    ankles, phases = np.empty((n, 2, 3)), np.empty(n)
    phase, was_walking = 0.5, False
    for i in range(n):
        if walking[i]:
            gait = model.run if froude[i] > 0.78 else model.walk
            rate = min(max(pace[i] / gait.stride_m(pace[i], body.leg), 0.55), 1.9) / RATE_HZ
            if not was_walking:
                behind = _behind(pair, wanted[i], yaw[i])
                phase = (gait.rest[1] + 0.5 * behind) % 1.0
            phase = (phase + rate) % 1.0
            _walk_step(pair, gait, phase, rate, i, wanted, yaw, body)
            _rescue_step(pair, gait, rate, i, wanted, yaw, body)
        else:
            _single_step(pair, i, wanted, yaw, plan)
        was_walking = walking[i]
        phases[i] = phase
        ankles[i, 0], ankles[i, 1] = pair[0].at(i), pair[1].at(i)
    ankles[..., 2] += body.ankle
    return ankles, phases


def _behind(pair: list[_Foot], wanted: list[list[float]], yaw: float) -> int:
    """The foot that lags more behind its place."""
    lag = [
        (w[0] - foot.place[0]) * np.cos(yaw) + (w[1] - foot.place[1]) * np.sin(yaw) + (9 if foot.swinging else 0)
        for foot, w in zip(pair, wanted, strict=True)
    ]
    return int(lag[1] > lag[0])


def _walk_step(
    pair: list[_Foot],
    gait: Gait,
    phase: float,
    rate: float,
    now: int,
    wanted: list[list[list[float]]],
    yaw: list[float],
    body: Body,
) -> None:
    """Lift the foot whose rest is over towards the place under the body in the middle of its next rest."""
    last = len(wanted) - 1
    landing, lift = gait.rest
    for side, foot in enumerate(pair):
        own = (phase + 0.5 * side) % 1.0
        if foot.swinging or landing <= own < lift:
            continue
        until_landing = (landing - own) % 1.0
        frames = int(until_landing / rate)
        middle = min(last, now + int(((landing + lift) / 2 - own) % 1.0 / rate))
        x, y = _not_too_far(wanted[min(last, now + frames)][side], wanted[middle][side], 0.36 * body.leg)
        length = float(np.hypot(x - foot.place[0], y - foot.place[1]))
        height = body.leg * min(1.15, max(0.35, length / (1.6 * body.leg)))
        foot.lift(now, frames, (x, y), yaw[middle], gait, height)


def _rescue_step(
    pair: list[_Foot], gait: Gait, rate: float, now: int, wanted: list[list[list[float]]], yaw: list[float], body: Body
) -> None:
    """While the pace changes a foot may be left behind before its rest is over: it lifts at once."""
    last = len(wanted) - 1
    for side, foot in enumerate(pair):
        x, y = wanted[now][side]
        behind = (x - foot.place[0]) * np.cos(yaw[now]) + (y - foot.place[1]) * np.sin(yaw[now])
        if foot.swinging or behind < 0.50 * body.leg:
            continue
        frames = int(0.45 / rate)
        middle = min(last, now + frames + int(0.18 / rate))
        target = _not_too_far(wanted[min(last, now + frames)][side], wanted[middle][side], 0.36 * body.leg)
        foot.lift(now, frames, target, yaw[middle], gait, body.leg)


def _not_too_far(body_at: list[float], target: list[float], limit: float) -> tuple[float, float]:
    """`target`, or the place `limit` metres ahead of where the body will be when the foot lands."""
    x, y = target[0] - body_at[0], target[1] - body_at[1]
    share = min(1.0, limit / max(float(np.hypot(x, y)), 1e-6))
    return body_at[0] + x * share, body_at[1] + y * share


def _single_step(pair: list[_Foot], now: int, wanted: list[list[list[float]]], yaw: list[float], plan: Plan) -> None:
    """One foot at a time goes to its place when it is too far off."""
    if pair[0].swinging or pair[1].swinging:
        return
    frames = int(0.34 * RATE_HZ / plan.hurry)
    soon = min(len(wanted) - 1, now + frames + int(0.10 * RATE_HZ))
    errors = []
    for side, foot in enumerate(pair):
        off = float(np.hypot(wanted[soon][side][0] - foot.place[0], wanted[soon][side][1] - foot.place[1]))
        errors.append(off / (STEP_M * plan.step) + abs(yaw[soon] - foot.own_yaw) / STEP_TURN_RAD)
    side = int(errors[1] > errors[0])
    if errors[side] < 1.0 or plan.legs_weight[now : soon + 1].any():
        return
    far = float(np.hypot(wanted[soon][side][0] - pair[side].place[0], wanted[soon][side][1] - pair[side].place[1]))
    pair[side].lift(now, frames, tuple(wanted[soon][side]), yaw[soon], None, 0.04 + min(0.06, far * 0.12))  # type: ignore[arg-type]  # x, y


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
    root = _within_reach(mover.body, root, world, ankles)
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
    n = len(plan)
    velocity = np.gradient(plan.xy, axis=0) * RATE_HZ if n > 1 else np.zeros((n, 2))
    ahead = velocity[:, 0] * np.cos(plan.heading) + velocity[:, 1] * np.sin(plan.heading)
    froude = np.clip(smooth(ahead, 0.12), 0, 5) / np.sqrt(GRAVITY * leg)
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


def _within_reach(body: Body, root: Array, bones: Array, ankles: Array) -> Array:
    """The pelvis lowered, smoothly, where a leg would not reach its foot."""
    half = bones[:, HIP_AXIS] * (body.hip_width / 2)
    limit = np.full(len(root), np.inf)
    for side, sign in enumerate((1.0, -1.0)):
        hip = root + half * sign
        flat = ((hip[:, :2] - ankles[:, side, :2]) ** 2).sum(axis=1)
        rise = np.sqrt(np.maximum((body.leg * 0.998) ** 2 - flat, (0.25 * body.leg) ** 2))
        limit = np.minimum(limit, ankles[:, side, 2] + rise - half[:, 2] * sign)
    excess = np.maximum(root[:, 2] - limit, 0)
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

"""A body that falls: particles with distance constraints, floor with friction, muscle tone that fades.

Position based dynamics with small steps and one relaxation each (Macklin et al., Small Steps in Physics Simulation, 2019):
stiff enough for bones, cheap, and never unstable. The trunk is five particles, head and limbs hang on it; knees and elbows
bend one way only. Muscle tone pulls limbs towards wanted places in the frame of the trunk, and legs act as struts until
they give way: a fall begins as a standing body that loses its balance, not as a puppet whose strings are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agent.simulation.curves import smooth
from agent.simulation.gait import Pose, Take
from agent.simulation.motion import GRAVITY, RATE_HZ
from agent.simulation.skeleton import (
    ANKLE_L,
    ANKLE_R,
    EAR_L,
    EAR_R,
    ELBOW_L,
    ELBOW_R,
    FACE,
    HIP_L,
    HIP_R,
    KNEE_L,
    KNEE_R,
    SHOULDER_L,
    SHOULDER_R,
    WRIST_L,
    WRIST_R,
    Array,
    Body,
    Lengths,
    cross,
    joints_of,
    unit,
)  # fmt: skip

SUBSTEPS = 6
STEP_S = 1 / (RATE_HZ * SUBSTEPS)
TOP_SPEED_MPS = 9.0  # of any part: falls from standing height stay below it, solver mishaps do not
MUSCLE_HZ = 7.0  # a limb covers its way to where it is wanted in about a seventh of a second
P_HIP_L, P_HIP_R, P_SHOULDER_L, P_SHOULDER_R, P_HEAD, P_ELBOW_L, P_ELBOW_R, P_WRIST_L, P_WRIST_R = range(9)
P_KNEE_L, P_KNEE_R, P_ANKLE_L, P_ANKLE_R, P_BELLY = range(9, 14)
COUNT = 14
TRUNK_ROWS = np.array([P_HIP_L, P_HIP_R, P_SHOULDER_L, P_SHOULDER_R, P_BELLY])
LIMB_ROWS = np.array([P_HEAD, P_ELBOW_L, P_ELBOW_R, P_WRIST_L, P_WRIST_R, P_KNEE_L, P_KNEE_R, P_ANKLE_L, P_ANKLE_R])
HIPS, ANKLES = np.array([P_HIP_L, P_HIP_R]), np.array([P_ANKLE_L, P_ANKLE_R])
HINGE_START = np.array([P_HIP_L, P_HIP_R, P_SHOULDER_L, P_SHOULDER_R])
HINGE_MIDDLE = np.array([P_KNEE_L, P_KNEE_R, P_ELBOW_L, P_ELBOW_R])
HINGE_END = np.array([P_ANKLE_L, P_ANKLE_R, P_WRIST_L, P_WRIST_R])
HINGE_LEFT = np.array([P_HIP_L, P_HIP_L, P_SHOULDER_L, P_SHOULDER_L])
HINGE_RIGHT = np.array([P_HIP_R, P_HIP_R, P_SHOULDER_R, P_SHOULDER_R])
HINGE_SIGN = np.array([1.0, 1.0, -1.0, -1.0])
# Shares of the mass (Winter 2009, table 4.1, segments divided among their ends) and radii of the flesh, per metre of height.
_MASS = np.array([0.11, 0.11, 0.09, 0.09, 0.085, 0.022, 0.022, 0.014, 0.014, 0.06, 0.06, 0.036, 0.036, 0.25])
_RADIUS = np.array([0.060, 0.060, 0.052, 0.052, 0.058, 0.027, 0.027, 0.022, 0.022, 0.034, 0.034, 0.0, 0.0, 0.030])


@dataclass(frozen=True, slots=True, eq=False)
class Tone:
    """What the muscles do at one moment.

    strut: 0-1, how well the legs carry; targets: (9, 3) wanted places of `LIMB_ROWS` in the frame of the trunk (forward, left,
    up from its middle, metres); pull: (9,) 0-1 a frame; grip: friction of the two feet on the floor.
    """

    strut: float
    targets: Array
    pull: Array
    grip: float = 0.9


Schedule = Callable[[float], Tone]
"""Muscle tone over the seconds since the fall began."""


@dataclass(slots=True)
class Ragdoll:
    """The state of the physics. position: (14, 3); velocity: (14, 3) m/s; face: out of the face, in the trunk's frame."""

    body: Body
    position: Array
    velocity: Array
    face: Array
    _pairs: NDArray[np.intp] = field(init=False)
    _rest: Array = field(init=False)
    _least: NDArray[np.bool_] = field(init=False)
    _spread: Array = field(init=False)
    _radius: Array = field(init=False)

    def __post_init__(self) -> None:
        bones, limits = _constraints(self.body, self.position)
        constraints = [*bones, *limits]
        self._pairs = np.array([pair for pair, _ in constraints]).T
        self._rest = np.array([rest for _, rest in constraints])
        self._least = np.arange(len(constraints)) >= len(bones)
        busy = np.bincount(self._pairs[:, : len(bones)].ravel(), minlength=COUNT)
        # Jacobi with over-relaxation. One factor for both ends of a pair, or momentum would not be kept.
        share = 1.5 / np.maximum(busy[self._pairs[0]], busy[self._pairs[1]])
        weight = 1 / _MASS
        share = share / (weight[self._pairs[0]] + weight[self._pairs[1]])
        self._spread = np.zeros((COUNT, len(constraints)))
        columns = np.arange(len(constraints))
        self._spread[self._pairs[0], columns] = weight[self._pairs[0]] * share
        self._spread[self._pairs[1], columns] = -weight[self._pairs[1]] * share
        self._radius = _RADIUS * self.body.height
        self._radius[[P_ANKLE_L, P_ANKLE_R]] = self.body.ankle * 0.98

    def frame(self, tone: Tone) -> None:
        """One frame (1 / RATE_HZ s) further."""
        self._flex(tone)
        sink = 2.0 * (1 - tone.strut) ** 2 / max(tone.strut, 1e-3)  # m/s at which a leg gives way under the body
        hold = 1 / (1 + sink / (GRAVITY * STEP_S))
        rough = np.full(COUNT, 0.6)
        rough[[P_ANKLE_L, P_ANKLE_R]] = tone.grip
        for _ in range(SUBSTEPS):
            before = self.position
            self.velocity[:, 2] -= GRAVITY * STEP_S
            self.position = before + self.velocity * STEP_S
            self._relax()
            if hold > 0.01:
                self._carry(before, hold)
            self._relax()
            self._hinges()
            lying = self._floor(before, rough)
            self.velocity = (self.position - before) / STEP_S
            common = _MASS @ self.velocity
            self.velocity += (common * (1 - 3.0 * lying * STEP_S) - self.velocity) * ((0.8 + 5.0 * lying) * STEP_S)
        speed = np.sqrt((self.velocity**2).sum(axis=1, keepdims=True))
        self.velocity *= np.minimum(1, TOP_SPEED_MPS / np.maximum(speed, 1e-6))

    def trunk_frame(self) -> tuple[Array, Array]:
        """Middle of the trunk (3,), and its axes (3, 3): rows forward, left, up."""
        p = self.position
        hips, shoulders = (p[P_HIP_L] + p[P_HIP_R]) / 2, (p[P_SHOULDER_L] + p[P_SHOULDER_R]) / 2
        up = unit(shoulders - hips)
        left = p[P_HIP_L] - p[P_HIP_R] + p[P_SHOULDER_L] - p[P_SHOULDER_R]
        left = unit(left - up * (left @ up))
        return (hips + shoulders) / 2, np.stack([cross(left, up), left, up])

    def _flex(self, tone: Tone) -> None:
        """Muscles: limbs speed up towards their places; the trunk takes the recoil, linear and angular."""
        if not tone.pull.any():
            return
        middle, axes = self.trunk_frame()
        mass = _MASS[LIMB_ROWS][:, None]
        gap = middle + tone.targets @ axes - self.position[LIMB_ROWS]
        core = _MASS[TRUNK_ROWS][:, None]
        weight = float(core.sum())
        drift = (core * self.velocity[TRUNK_ROWS]).sum(axis=0) / weight
        wanted = gap * MUSCLE_HZ + drift
        change = (wanted - self.velocity[LIMB_ROWS]) * tone.pull[:, None]
        self.velocity[LIMB_ROWS] += change
        arm = self.position[TRUNK_ROWS] - middle
        spin = cross(self.position[LIMB_ROWS] - middle, change * mass).sum(axis=0)
        inertia = (core * (arm * arm).sum(axis=1, keepdims=True)).sum() * np.eye(3) - (core * arm).T @ arm
        turn = np.linalg.solve(inertia + 0.004 * np.eye(3), -spin)
        self.velocity[TRUNK_ROWS] += cross(np.broadcast_to(turn, arm.shape), arm) - (change * mass).sum(axis=0) / weight

    def _relax(self) -> None:
        first, second = self._pairs
        gap = self.position[first] - self.position[second]
        length = np.sqrt((gap * gap).sum(axis=1))
        wrong = 1 - self._rest / np.maximum(length, 1e-6)
        wrong[self._least & (wrong > 0)] = 0
        self.position -= self._spread @ (gap * wrong[:, None])

    def _carry(self, before: Array, hold: float) -> None:
        """Legs resist getting shorter, as dampers: they carry and give way, but never push the body up."""
        gap = self.position[HIPS] - self.position[ANKLES]
        length = np.sqrt((gap * gap).sum(axis=1))
        old = before[HIPS] - before[ANKLES]
        shorter = np.maximum(np.sqrt((old * old).sum(axis=1)) - length, 0) * hold
        move = gap * (shorter / length)[:, None]
        self.position[HIPS] += move * 0.25
        self.position[ANKLES] -= move * 0.75

    def _hinges(self) -> None:
        """Shanks swing back from the thigh only, forearms forward from the upper arm only."""
        p = self.position
        across = p[HINGE_LEFT] - p[HINGE_RIGHT]
        front = cross(p[HINGE_MIDDLE] - p[HINGE_START], across)
        # A limb along the axis has no front: the limit fades out there instead of flipping over.
        least = 0.018 * self.body.height**2
        front /= np.maximum(np.sqrt((front * front).sum(axis=1, keepdims=True)), least)
        reach = ((p[HINGE_END] - p[HINGE_MIDDLE]) * front).sum(axis=1)
        wrong = np.clip(reach * HINGE_SIGN - 0.01, 0, 0.012) * HINGE_SIGN
        move = front * wrong[:, None]
        p[HINGE_END] -= move * 0.6
        p[HINGE_MIDDLE] += move * 0.4

    def _floor(self, before: Array, rough: Array) -> float:
        """Nothing below the floor; friction stops what is pressed on it. Returns the share of the trunk that lies, 0-1."""
        depth = self._radius - self.position[:, 2]
        hit = depth > 0
        if not hit.any():
            return 0.0
        self.position[:, 2] += np.maximum(depth, 0)
        slip = self.position[:, :2] - before[:, :2]
        size = np.sqrt((slip * slip).sum(axis=1))
        # A few relaxations leave only part of the load in the depth: feet carry more than their own weight.
        load = np.maximum(depth, 0) * 4 + GRAVITY * STEP_S**2 * 2
        held = np.minimum(1, rough * load / np.maximum(size, 1e-9)) * hit
        self.position[:, :2] -= slip * held[:, None]
        return float(hit[TRUNK_ROWS].mean())

    def energy(self) -> float:
        """Mean square speed, m^2/s^2, by mass."""
        return float((_MASS * (self.velocity**2).sum(axis=1)).sum())

    def pose(self) -> tuple[Array, Array]:
        """Root (3,) and bones (13, 3) of the particles as they are."""
        p = self.position
        hips, shoulders = (p[P_HIP_L] + p[P_HIP_R]) / 2, (p[P_SHOULDER_L] + p[P_SHOULDER_R]) / 2
        _, axes = self.trunk_frame()
        # The neck bends 60 degrees at most: beyond, the particle of the head is followed half way only.
        head_up = unit(unit(p[P_HEAD] - shoulders) + axes[2] * 0.6)
        ahead = self.face @ axes
        face = unit(ahead - head_up * (ahead @ head_up))
        rows = [
            p[P_HIP_L] - p[P_HIP_R], shoulders - hips, p[P_SHOULDER_L] - p[P_SHOULDER_R], head_up, face,
            p[P_ELBOW_L] - p[P_SHOULDER_L], p[P_ELBOW_R] - p[P_SHOULDER_R], p[P_WRIST_L] - p[P_ELBOW_L], p[P_WRIST_R] - p[P_ELBOW_R],
            p[P_KNEE_L] - p[P_HIP_L], p[P_KNEE_R] - p[P_HIP_R], p[P_ANKLE_L] - p[P_KNEE_L], p[P_ANKLE_R] - p[P_KNEE_R],
        ]  # fmt: skip
        return hips, unit(np.stack(rows))


def _constraints(
    body: Body, at: Array
) -> tuple[list[tuple[tuple[int, int], float]], list[tuple[tuple[int, int], float]]]:
    """Bones with their lengths, and pairs that come no nearer than a least distance."""
    links = [
        (P_HIP_L, P_HIP_R), (P_SHOULDER_L, P_SHOULDER_R), (P_HIP_L, P_SHOULDER_L), (P_HIP_R, P_SHOULDER_R), (P_HIP_L, P_SHOULDER_R),
        (P_HIP_R, P_SHOULDER_L), (P_BELLY, P_HIP_L), (P_BELLY, P_HIP_R), (P_BELLY, P_SHOULDER_L), (P_BELLY, P_SHOULDER_R),
        (P_HEAD, P_SHOULDER_L), (P_HEAD, P_SHOULDER_R), (P_SHOULDER_L, P_ELBOW_L), (P_SHOULDER_R, P_ELBOW_R), (P_ELBOW_L, P_WRIST_L),
        (P_ELBOW_R, P_WRIST_R), (P_HIP_L, P_KNEE_L), (P_HIP_R, P_KNEE_R), (P_KNEE_L, P_ANKLE_L), (P_KNEE_R, P_ANKLE_R),
    ]  # fmt: skip
    bones = [((a, b), float(np.linalg.norm(at[a] - at[b]))) for a, b in links]
    h, leg, arm = body.height, body.leg, body.arm
    limits = [
        ((P_KNEE_L, P_KNEE_R), 0.07 * h), ((P_ANKLE_L, P_ANKLE_R), 0.06 * h), ((P_HIP_L, P_ANKLE_L), 0.40 * leg),
        ((P_HIP_R, P_ANKLE_R), 0.40 * leg), ((P_SHOULDER_L, P_WRIST_L), 0.40 * arm), ((P_SHOULDER_R, P_WRIST_R), 0.40 * arm),
        ((P_SHOULDER_L, P_KNEE_L), 0.20 * h), ((P_SHOULDER_R, P_KNEE_R), 0.20 * h), ((P_HEAD, P_KNEE_L), 0.18 * h),
        ((P_HEAD, P_KNEE_R), 0.18 * h), ((P_ELBOW_L, P_HIP_L), 0.09 * h), ((P_ELBOW_R, P_HIP_R), 0.09 * h),
        ((P_ELBOW_L, P_SHOULDER_R), 0.16 * h), ((P_ELBOW_R, P_SHOULDER_L), 0.16 * h), ((P_WRIST_L, P_BELLY), 0.08 * h),
        ((P_WRIST_R, P_BELLY), 0.08 * h), ((P_HEAD, P_BELLY), 0.24 * h), ((P_HEAD, P_HIP_L), 0.34 * h), ((P_HEAD, P_HIP_R), 0.34 * h),
        ((P_WRIST_L, P_HEAD), 0.07 * h), ((P_WRIST_R, P_HEAD), 0.07 * h), ((P_KNEE_L, P_SHOULDER_R), 0.2 * h),
        ((P_KNEE_R, P_SHOULDER_L), 0.2 * h),
    ]  # fmt: skip
    # A pose that is nearer than a limit at the start is allowed to be so, or the limit would throw it apart.
    return bones, [((a, b), min(least, 0.97 * float(np.linalg.norm(at[a] - at[b])))) for (a, b), least in limits]


_FROM_JOINTS = [
    HIP_L, HIP_R, SHOULDER_L, SHOULDER_R, EAR_L, ELBOW_L, ELBOW_R, WRIST_L, WRIST_R, KNEE_L, KNEE_R, ANKLE_L, ANKLE_R,
]  # fmt: skip


def particles(body: Body, root: Array, bones: Array) -> Array:
    """(14, 3) particles of a pose."""
    joints = joints_of(Lengths([body]).table[0], root, bones)
    out = np.empty((COUNT, 3))
    out[:13] = joints[_FROM_JOINTS]
    out[P_HEAD] = (joints[EAR_L] + joints[EAR_R]) / 2
    hips, shoulders = (out[P_HIP_L] + out[P_HIP_R]) / 2, (out[P_SHOULDER_L] + out[P_SHOULDER_R]) / 2
    left = unit(out[P_SHOULDER_L] - out[P_SHOULDER_R])
    out[P_BELLY] = hips * 0.5 + shoulders * 0.5 + cross(left, unit(shoulders - hips)) * (0.06 * body.height)
    return out


def start(body: Body, last: Pose, before: Pose) -> Ragdoll:
    """A ragdoll in the pose `last`, with the velocity it has since `before`, one frame earlier."""
    now, then = particles(body, last.root, last.bones), particles(body, before.root, before.bones)
    doll = Ragdoll(body, now.copy(), (now - then) * RATE_HZ, np.zeros(3))
    _, axes = doll.trunk_frame()
    doll.face = axes @ last.bones[FACE]
    return doll


def fall(doll: Ragdoll, schedule: Schedule, seconds: float, *, least_s: float = 1.0) -> Iterator[Take | None]:
    """Let it fall until it lies still, at most `seconds`; yields None after each few frames, then the take."""
    roots, bones = [], []
    frames = int(seconds * RATE_HZ)
    for k in range(frames):
        doll.frame(schedule(k / RATE_HZ))
        root, pose = doll.pose()
        roots.append(root)
        bones.append(pose)
        if k % 6 == 5:
            yield None
        if k / RATE_HZ > least_s and doll.energy() < 0.004:
            break
    yield _as_take(np.array(roots), np.array(bones), doll.body)


def _as_take(root: Array, bones: Array, body: Body) -> Take:
    first = bones[:1]
    bones = unit(smooth(bones, 0.022))  # the eye sees no jolts shorter than a frame of video
    bones[:1] = first
    joints = joints_of(Lengths([body]).table[0][None], root, bones)
    feet = joints[:, [ANKLE_L, ANKLE_R]]
    across = joints[:, HIP_L, :2] - joints[:, HIP_R, :2]
    heading = np.unwrap(np.arctan2(-across[:, 0], across[:, 1]))
    return Take(root, bones, feet, heading)

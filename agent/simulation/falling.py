"""Falls: how balance is lost, how the body tries to save itself, lying, and getting up again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from agent.simulation import ragdoll
from agent.simulation.curves import smooth, smoothstep
from agent.simulation.gait import Pose, Take
from agent.simulation.motion import RATE_HZ
from agent.simulation.performer import Performer
from agent.simulation.ragdoll import (
    LIMB_ROWS,
    P_ANKLE_L,
    P_ANKLE_R,
    P_BELLY,
    P_HEAD,
    P_HIP_L,
    P_HIP_R,
    P_KNEE_L,
    P_KNEE_R,
    P_SHOULDER_L,
    P_SHOULDER_R,
    Ragdoll,
    Tone,
)  # fmt: skip
from agent.simulation.skeleton import FACE, HEAD_UP, SPINE, Array, Lengths, blend, joints_of, turned, unit

KINDS = ("trip", "slip", "side", "faint", "back")
"""Over something while walking; feet gone from under one; pushed or dizzy sideways; knees give way; backwards from standing."""


@dataclass(frozen=True, slots=True)
class Fall:
    """How somebody falls.

    kind: one of `KINDS`; push_mps: at the trunk, local (forward, left); feet_mps: forward, at the feet; legs_hold_s: until
    the legs give way; legs_fade_s: how long that takes; save: 0-1, how much the arms try to break the fall.
    """

    kind: str
    push_mps: tuple[float, float]
    feet_mps: float
    legs_hold_s: float
    legs_fade_s: float
    save: float
    grip: float


def random_fall(
    rng: np.random.Generator, kind: str | None = None, *, push_mps: tuple[float, float] | None = None
) -> Fall:
    """A fall of the kind, or of any; pushed as given (forward, left), or as it comes."""
    kind = str(rng.choice(KINDS)) if kind is None else kind
    drawn = _draw(rng, kind)
    return drawn if push_mps is None else replace(drawn, push_mps=push_mps)


def _draw(rng: np.random.Generator, kind: str) -> Fall:
    """Ranges tried until pelvis and head hit the floor as fast as in filmed and laboratory falls (see the model card)."""
    sign = float(rng.choice((-1.0, 1.0)))
    low, high = {
        #        push forward, push left, feet forward, legs hold, legs fade
        "trip": ((0.6, -0.15, -0.6, 0.25, 0.15), (1.0, 0.15, 0.0, 0.50, 0.40)),
        "slip": ((-1.3, -0.2, 1.4, 0.45, 0.15), (-0.7, 0.2, 2.4, 0.80, 0.30)),
        "side": ((-0.2, 0.75, 0.0, 0.30, 0.20), (0.2, 1.1, 0.0, 0.60, 0.50)),
        "back": ((-1.2, -0.2, 0.0, 0.25, 0.15), (-0.75, 0.2, 0.0, 0.50, 0.40)),
        "faint": ((-0.25, -0.4, 0.0, 0.0, 0.20), (0.5, 0.4, 0.0, 0.10, 0.45)),
    }[kind]
    ahead, left, feet, hold, fade = rng.uniform(low, high).tolist()
    grip = {"trip": 1.2, "slip": 0.05, "side": 1.0}.get(kind, 0.9)
    save = 0.0 if kind == "faint" else float(rng.uniform(0.4, 1.0))
    return Fall(kind, (ahead, left * sign), feet, hold, fade, save, grip)


def _arms(body_height: float, forward: float, side: float, up: float, bend: float) -> Array:
    """(4, 3) wanted places of elbows and wrists, in the frame of the trunk."""
    h = body_height
    half = 0.11 * h
    elbow = np.array([forward * 0.16 * h, half + 0.04 * h + side * 0.10 * h, 0.144 * h + (up - 0.3) * 0.14 * h])
    wrist = np.array([forward * (0.32 - 0.08 * bend) * h, half + side * 0.17 * h, 0.144 * h + up * 0.26 * h])
    flip = np.array([1.0, -1.0, 1.0])
    return np.stack([elbow, elbow * flip, wrist, wrist * flip])


def schedule_of(fall: Fall, doll: Ragdoll, rng: np.random.Generator) -> ragdoll.Schedule:
    """Muscle tone over the time of the fall."""
    h = doll.body.height
    middle, axes = doll.trunk_frame()
    start = (doll.position[LIMB_ROWS] - middle) @ axes.T
    saving = start.copy()
    # LIMB_ROWS: head, elbows, wrists, knees, ankles
    reach = {"trip": (1.0, 0.25, 0.15), "slip": (-0.55, 0.7, -0.35), "back": (-0.5, 0.7, -0.3), "side": (0.3, 0.9, 0.0)}
    forward, side, up = reach.get(fall.kind, (0.1, 0.3, -0.6))
    saving[1:5] = _arms(h, forward, side, up, float(rng.uniform(0.2, 1.0)))
    tuck = {"slip": 0.09, "back": 0.10, "trip": -0.03}.get(fall.kind, 0.03)
    saving[0] = (tuck * h, rng.normal(0, 0.01), 0.25 * h)
    bent = rng.uniform(0.15, 0.7, 2)
    for knee, ankle, share, sign in ((5, 7, bent[0], 1.0), (6, 8, bent[1], -1.0)):
        angle = share * 1.2
        saving[knee] = np.array([np.sin(angle) * 0.245 * h, sign * 0.06 * h, -0.144 * h - np.cos(angle) * 0.245 * h])
        saving[ankle] = saving[knee] + np.array(
            [-np.sin(angle * 0.7) * 0.24 * h, sign * 0.01 * h, -np.cos(angle * 0.7) * 0.24 * h]
        )
    delay = rng.uniform(0.12, 0.25)

    def tone(t: float) -> Tone:
        strut = float(1 - smoothstep((t - fall.legs_hold_s) / max(fall.legs_fade_s, 0.05)))
        ready = float(smoothstep((t - delay) / 0.25))
        limp = float(1 - smoothstep((t - 0.9) / 0.6))
        targets = start + (saving - start) * ready
        pull = np.empty(9)
        pull[0] = 0.16 * (0.35 + 0.65 * fall.save) * (0.4 + 0.6 * limp)
        pull[1:5] = (0.05 + 0.17 * fall.save * ready) * limp
        pull[5:] = (0.03 + 0.06 * fall.save) * limp * (1 - 0.6 * strut)
        return Tone(strut, targets, pull, fall.grip)

    return tone


def lose_balance(doll: Ragdoll, fall: Fall, heading: float) -> None:
    """The push that begins the fall."""
    ahead = np.array([np.cos(heading), np.sin(heading), 0.0])
    left = np.array([-ahead[1], ahead[0], 0.0])
    push = ahead * fall.push_mps[0] + left * fall.push_mps[1]
    if fall.kind == "trip":  # the feet are held, the rest goes on
        doll.velocity[[P_ANKLE_L, P_ANKLE_R]] *= 0.2
        doll.velocity[[P_KNEE_L, P_KNEE_R]] *= 0.55
    for particle, share in (
        (P_SHOULDER_L, 1.0),
        (P_SHOULDER_R, 1.0),
        (P_HEAD, 1.1),
        (P_BELLY, 0.8),
        (P_HIP_L, 0.6),
        (P_HIP_R, 0.6),
    ):
        doll.velocity[particle] += push * share
    for particle in (P_ANKLE_L, P_ANKLE_R):
        doll.velocity[particle] += ahead * fall.feet_mps
    for particle in (P_KNEE_L, P_KNEE_R):
        doll.velocity[particle] += ahead * fall.feet_mps * 0.5


def fall_down(person: Performer, fall: Fall) -> Iterator[None]:
    """From the pose and velocity of this moment to the floor. Steps of work."""
    doll = ragdoll.start(person.body, person.pose, person.previous_pose)
    lose_balance(doll, fall, person.pose.heading)
    for take in ragdoll.fall(doll, schedule_of(fall, doll, person.rng), 3.2):
        if take is None:
            yield
        else:
            person.add(take, "fall")


def lie(person: Performer, seconds: float) -> None:
    """Lies there: breathes, moves the head, now and then an arm or a leg a little."""
    n = max(2, int(seconds * RATE_HZ))
    rng, pose = person.rng, person.pose
    bones = np.repeat(pose.bones[None], n, axis=0)
    noise = smooth(rng.normal(0, 1, (n, 13, 3)), 0.5) * 1.2
    amount = np.full(13, 0.035)
    amount[[SPINE, 0, 2]] = 0.006
    amount[[HEAD_UP, FACE]] = 0.06
    alive = float(rng.uniform(0.3, 1.6))
    onset = smoothstep(np.arange(n) / (1.0 * RATE_HZ))[:, None, None]
    bones = unit(bones + noise * amount[:, None] * alive * onset)
    root = np.repeat(pose.root[None], n, axis=0)
    root[:, 2] += 0.004 * np.sin(2 * np.pi * 0.27 * np.arange(n) / RATE_HZ) * onset[:, 0, 0]
    take = Take(root, bones, np.repeat(pose.feet[None], n, axis=0), np.full(n, pose.heading))
    person.add(take, "lie")


def get_up(person: Performer, *, speed: float = 1.0) -> None:
    """From lying to standing: gathers the limbs, then as captured, over hands and knees or over the seat."""
    name = "rise_prone" if _faces_down(person.pose) else "rise_supine"
    duration = person.mover.model.primitives[name].duration_s
    gather = int(RATE_HZ * 1.1 / speed)
    n = gather + int(duration / speed * RATE_HZ)
    time = np.clip((np.arange(n) - gather * 0.75) / RATE_HZ * speed, 0, duration)
    person.add(get_up_take(person, name, time, smoothstep(np.arange(n) / gather)), "rise")


def get_up_take(person: Performer, name: str, time: Array, ease: Array, *, backwards: bool = False) -> Take:
    """The captured rise at the moments `time` (T,), coming from the pose of now by `ease` (T,) 0-1.

    Lying, the direction of the trunk is kept; standing (`backwards`), the heading.
    """
    primitive, pose, leg = person.mover.model.primitives[name], person.pose, person.body.leg
    bones, pelvis, turn = primitive.at(time)
    first, first_pelvis, first_turn = primitive.at(time[:1])
    if backwards:
        heading = pose.heading - float(first_turn[0])
    else:
        spine, captured = pose.bones[SPINE], first[0, SPINE]
        heading = float(np.arctan2(spine[1], spine[0]) - np.arctan2(captured[1], captured[0]))
    stand = smoothstep((time - (primitive.duration_s - 0.5)) / 0.5)
    local = blend(bones, np.broadcast_to(person.mover.model.stand, bones.shape), stand)
    world = turned(local, heading + turn)
    bones = blend(np.broadcast_to(pose.bones, world.shape), world, ease)
    path = turned((pelvis - first_pelvis)[:, None] * (1, 1, 0), np.full(len(time), heading))[:, 0] * leg
    root = np.empty((len(time), 3))
    root[:, :2] = pose.root[:2] + path[:, :2] * ease[:, None]
    height = pelvis[:, 2] * leg + person.body.ankle
    height += (leg * 0.99 + person.body.ankle - height) * stand
    root[:, 2] = pose.root[2] + (height - pose.root[2]) * ease
    joints = joints_of(Lengths([person.body]).table[0][None], root, bones)
    return _on_floor(person, Take(root, bones, joints[:, [15, 16]], heading + turn), ease)


def _on_floor(person: Performer, take: Take, ease: Array) -> Take:
    """The lowest joint rests on the floor, once the captured movement has taken over."""
    joints = joints_of(Lengths([person.body]).table[0][None], take.root, take.bones)
    floor = np.full(17, 0.03)
    floor[[15, 16]] = person.body.ankle
    floor[[11, 12]] = 0.05 * person.body.height
    gap = (joints[..., 2] - floor).min(axis=1)
    root = take.root.copy()
    root[:, 2] -= smooth(gap, 0.05) * ease
    joints = joints_of(Lengths([person.body]).table[0][None], root, take.bones)
    return replace(take, root=root, feet=joints[:, [15, 16]])


def _faces_down(pose: Pose) -> bool:
    left = unit(pose.bones[0] + pose.bones[2])
    up = pose.bones[SPINE]
    chest_z = left[0] * up[1] - left[1] * up[0]
    return bool(chest_z < 0)

"""What one person does without harm: sits, bends, picks up, ties a shoe, exercises, kneels, lies down on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agent.simulation.curves import smooth, smoothstep
from agent.simulation.falling import get_up_take, lie
from agent.simulation.gait import Plan, plan_along
from agent.simulation.motion import RATE_HZ
from agent.simulation.performer import Performer
from agent.simulation.skeleton import (
    ARM_L,
    ARM_R,
    FACE,
    FOREARM_L,
    FOREARM_R,
    STANDING_RATIO,
    UPPER,
    Array,
    blend,
    mirrored,
    unit,
)  # fmt: skip

STOOP = ("scoop", "bend", "bend_again")
REACH = ("reach_up", "wipe")
EXERCISES = ("jacks", "squats", "side_bends", "shadow_boxing", "arm_swings")
SEAT_M = 0.47
"""Height of a seat over the floor for a body of 1.72 m; it scales with the body."""


def still(person: Performer, frames: int) -> Plan:
    """A plan of standing here for `frames`, upper body free."""
    xy = np.repeat(person.floor_xy[None], frames, axis=0)
    return plan_along(person.mover, xy, np.full(frames, person.pose.heading))


def arms(upper: Array, left: tuple[float, float, float], left_fore: tuple[float, float, float]) -> Array:
    """(T, 9, 3) with both arms set symmetrically; directions of the left ones, local."""
    out = upper.copy()
    flip = np.array([1.0, -1.0, 1.0])
    for arm, forearm, sign in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, flip)):
        out[:, arm] = unit(np.array(left)) * sign
        out[:, forearm] = unit(np.array(left_fore)) * sign
    return out


def sit(person: Performer, seconds: float, *, down_s: float = 1.6, up_s: float = 1.8) -> None:
    """Down on a seat behind, stays there for `seconds`, up again. Quick is half a second, careful two."""
    down, up = int(down_s * RATE_HZ), int(up_s * RATE_HZ)
    n = down + int(seconds * RATE_HZ) + up
    index = np.arange(n)
    seated = smoothstep(index / down) * smoothstep((n - index) / up)
    # Falls into the seat at the end when quick, lowers itself evenly when careful.
    body = person.body
    height = (SEAT_M + 0.05) * body.height / 1.72
    low = (height - body.ankle) / (body.leg * STANDING_RATIO)
    plan = still(person, n)
    shift = np.zeros((n, 3))
    shift[:, 0] = -0.92 * body.thigh * smoothstep(index / down * 1.15) * smoothstep((n - index) / up * 1.15)
    moving = np.sin(np.pi * np.clip(index / down, 0, 1)) + np.sin(np.pi * np.clip((n - index) / up, 0, 1))
    rng = person.rng
    back = rng.uniform(-0.18, 0.22)
    lean = np.zeros((n, 2))
    lean[:, 0] = moving * rng.uniform(0.5, 0.75) + back * seated
    lean += smooth(rng.normal(0, 1, (n, 2)), 0.8) * 0.25 * seated[:, None]
    stand = plan.upper
    lap = arms(stand, (0.35, 0.12, -0.95), (0.93, -0.15, 0.05 + rng.uniform(-0.2, 0.1)))
    noise = smooth(rng.normal(0, 1, (n, 9, 3)), 0.5) * 0.35 * seated[:, None, None]
    upper = unit(blend(stand, lap, seated) + noise)
    actions = np.where(index < n - up, "sit", "rise")
    person.do(
        replace(
            plan,
            upper=upper,
            upper_weight=np.maximum(seated, 0.02),
            shift=shift,
            lean=lean,
            lift=1 - (1 - low) * seated,
        ),
        actions,
    )


def mimic(
    person: Performer, name: str, action: str, *, speed: float = 1.0, pause_s: float = 0.0, flip: bool = False
) -> None:
    """A captured movement on the spot: trunk, arms and the height of the hips; the feet stay where they are."""
    primitive = person.mover.model.primitives[name]
    frames = int((primitive.duration_s / speed + pause_s) * RATE_HZ)
    edge = int(0.35 * RATE_HZ)
    n = frames + 2 * edge
    time = (np.arange(n) - edge) / RATE_HZ * speed
    if pause_s:  # held in the lowest place
        lowest = (
            float(np.argmin(primitive.at(np.linspace(0, primitive.duration_s, 60))[1][:, 2]))
            / 59
            * primitive.duration_s
        )
        time = np.where(time < lowest, time, np.maximum(lowest, time - pause_s * speed))
    bones, pelvis, _ = primitive.at(time)
    if flip:
        bones, pelvis = mirrored(bones), pelvis * (1, -1, 1)
    index = np.arange(n)
    weight = smoothstep(index / edge) * smoothstep((n - 1 - index) / edge)
    stood = float(pelvis[0, 2])
    shift = (pelvis - pelvis[0]) * (1, 1, 0) * person.body.leg * weight[:, None]
    lift = 1 + (np.clip(pelvis[:, 2] / stood, 0.3, 1.0) - 1) * weight
    person.do(replace(still(person, n), upper=bones[:, UPPER], upper_weight=weight, shift=shift, lift=lift), action)


def tie_shoe(person: Performer, seconds: float) -> None:
    """Down on the heels, both hands at one shoe."""
    rng = person.rng
    n = int((seconds + 2.0) * RATE_HZ)
    index = np.arange(n)
    down = smoothstep(index / (0.9 * RATE_HZ)) * smoothstep((n - index) / (0.9 * RATE_HZ))
    plan = still(person, n)
    side = int(rng.integers(2))
    foot = person.pose.feet[side]
    wiggle = smooth(rng.normal(0, 1, (n, 2, 3)), 0.07) * 0.06
    ahead = np.array([np.cos(person.pose.heading), np.sin(person.pose.heading), 0.0])
    hands = np.broadcast_to(foot + ahead * 0.12 + (0, 0, 0.03), (n, 2, 3)) + wiggle
    lean = np.zeros((n, 2))
    lean[:, 0] = down * rng.uniform(0.95, 1.2)
    lean[:, 1] = down * (0.12 if side == 0 else -0.12)
    shift = np.zeros((n, 3))
    shift[:, 0] = -0.10 * down
    person.do(
        replace(
            plan, lift=1 - down * rng.uniform(0.42, 0.6), lean=lean, hands=hands, hands_weight=np.repeat((down**3)[:, None], 2, axis=1),
            shift=shift,
        ),
        "bend",
    )  # fmt: skip


def exercise(person: Performer, kind: str, seconds: float) -> None:
    """One of `EXERCISES`, repeated."""
    rng = person.rng
    n = int(seconds * RATE_HZ)
    period = {"jacks": 1.05, "squats": 2.2, "side_bends": 2.6, "arm_swings": 1.4}.get(kind, 1.0)
    phase = np.arange(n) / RATE_HZ / (period * rng.uniform(0.85, 1.2))
    index = np.arange(n)
    amount = smoothstep(index / (0.5 * RATE_HZ)) * smoothstep((n - 1 - index) / (0.5 * RATE_HZ))
    wave = (1 - np.cos(2 * np.pi * phase)) / 2 * amount
    plan = still(person, n)
    makers = {
        "jacks": _jacks, "squats": _squats, "side_bends": _side_bends, "arm_swings": _arm_swings, "shadow_boxing": _boxing,
    }  # fmt: skip
    person.do(makers[kind](_Beat(person, plan, phase, wave, amount)), "exercise")


@dataclass(frozen=True, slots=True, eq=False)
class _Beat:
    """An exercise to be filled in. phase: (T,) turns; wave: (T,) 0-1 once a turn; amount: (T,) 0 at both ends."""

    person: Performer
    plan: Plan
    phase: Array
    wave: Array
    amount: Array


def _fan(upper: Array, angle: Array, bend: Array) -> Array:
    """Both arms in the plane of the shoulders, `angle` (T,) radians up from hanging, elbows bent by `bend` (T,)."""
    out = upper.copy()
    for arm, forearm, sign in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, -1.0)):
        for bone, a in ((arm, angle), (forearm, angle + bend)):
            out[:, bone] = np.stack([np.full_like(a, 0.08), sign * np.sin(a), -np.cos(a)], axis=1)
    return np.asarray(unit(out))


def _jacks(beat: _Beat) -> Plan:
    """Feet out, arms over the head, a hop in each half."""
    hop = np.abs(np.sin(2 * np.pi * beat.phase)) ** 1.2 * 0.055 * beat.amount
    half = beat.person.body.hip_width / 2
    legs = np.empty_like(beat.plan.legs)
    for side, sign in ((0, 1.0), (1, -1.0)):
        across = sign * (half * 1.15 + beat.wave * 0.30 * beat.person.body.leg)
        legs[:, side, 0] = beat.plan.xy[:, 0] - np.sin(beat.plan.heading) * across
        legs[:, side, 1] = beat.plan.xy[:, 1] + np.cos(beat.plan.heading) * across
        legs[:, side, 2] = beat.person.body.ankle + hop
    shift = np.zeros((len(beat.plan), 3))
    shift[:, 2] = hop
    return replace(
        beat.plan, legs=legs, legs_weight=np.repeat(beat.amount[:, None], 2, axis=1), shift=shift, lift=1 - 0.02 * beat.amount,
        upper=_fan(beat.plan.upper, 0.12 + beat.wave * 2.75, 0.15 + 0.2 * beat.wave), upper_weight=beat.amount,
    )  # fmt: skip


def _squats(beat: _Beat) -> Plan:
    """Knees bent, arms ahead."""
    deep = beat.person.rng.uniform(0.3, 0.5)
    shift, lean = np.zeros((len(beat.plan), 3)), np.zeros((len(beat.plan), 2))
    shift[:, 0] = -0.22 * beat.wave * beat.person.body.leg
    lean[:, 0] = 0.62 * beat.wave
    ahead = arms(beat.plan.upper, (0.99, 0.1, 0.0), (0.99, 0.05, 0.05))
    return replace(
        beat.plan,
        lift=1 - deep * beat.wave,
        shift=shift,
        lean=lean,
        upper=blend(beat.plan.upper, ahead, beat.wave),
        upper_weight=np.maximum(beat.wave, beat.amount * 0.3),
    )


def _side_bends(beat: _Beat) -> Plan:
    """Trunk to the left and right, arms on the hips or up."""
    lean = np.zeros((len(beat.plan), 2))
    lean[:, 1] = np.sin(np.pi * beat.phase) * 0.5 * beat.amount
    if beat.person.rng.random() < 0.5:
        upper = _fan(beat.plan.upper, np.full(len(beat.plan), 2.9), np.full(len(beat.plan), 0.1))
    else:
        upper = arms(beat.plan.upper, (-0.25, 0.7, -0.7), (0.35, -0.7, -0.6))
    return replace(beat.plan, lean=lean, upper=upper, upper_weight=beat.amount)


def _arm_swings(beat: _Beat) -> Plan:
    """Arms round and round."""
    upper = beat.plan.upper.copy()
    angle = 2 * np.pi * beat.phase
    for arm, forearm, sign in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, -1.0)):
        upper[:, arm] = np.stack([np.sin(angle), np.full_like(angle, 0.25 * sign), -np.cos(angle)], axis=1)
        upper[:, forearm] = np.stack(
            [np.sin(angle + 0.15), np.full_like(angle, 0.2 * sign), -np.cos(angle + 0.15)], axis=1
        )
    return replace(beat.plan, upper=unit(upper), upper_weight=beat.amount)


def _boxing(beat: _Beat) -> Plan:
    """Punches into the air: looks like a fight, but nobody is there."""
    rng, n = beat.person.rng, len(beat.plan)
    guard = beat.person.mover.model.primitives["kick_front"].at(np.zeros(1))[0][0, UPPER].copy()
    guard[FACE] = (0.99, 0.0, -0.1)
    upper = np.broadcast_to(guard, (n, 9, 3)) + smooth(rng.normal(0, 1, (n, 9, 3)), 0.16) * 0.25
    upper = unit(upper)
    at = int(0.9 * RATE_HZ)
    while at < n - int(0.9 * RATE_HZ):
        primitive = beat.person.mover.model.primitives[
            str(rng.choice(("punch_high", "punch_straight", "punch_body", "punch_up")))
        ]
        time = (np.arange(n) - at) / RATE_HZ
        near = np.abs(time) < 0.4
        bones = primitive.at(np.clip(primitive.contact_s + time[near] * 2.2, 0, primitive.duration_s))[0]
        bones = mirrored(bones) if rng.random() < 0.5 else bones
        upper[near] = blend(upper[near], bones[:, UPPER], smoothstep((0.4 - np.abs(time[near])) / 0.2))
        at += int(rng.uniform(0.35, 1.1) * RATE_HZ)
    bounce = np.abs(np.sin(2 * np.pi * np.arange(n) / RATE_HZ * 1.6)) * 0.02 * beat.amount
    return replace(beat.plan, upper=upper, upper_weight=beat.amount, lift=1 - 0.03 * beat.amount - bounce)


def lie_down(person: Performer, seconds: float, *, speed: float = 0.55) -> None:
    """Lies down on purpose, the captured way of getting up played backwards and slowly; stays, moves a little."""
    name = "rise_prone" if person.rng.random() < 0.6 else "rise_supine"
    primitive = person.mover.model.primitives[name]
    n = int(primitive.duration_s / speed * RATE_HZ)
    time = primitive.duration_s - np.arange(n) / RATE_HZ * speed
    take = get_up_take(person, name, time, smoothstep(np.arange(n) / (0.5 * RATE_HZ)), backwards=True)
    upright = int(np.argmax(take.root[:, 2] < 0.45 * person.body.height))
    actions = np.where(np.arange(n) < upright, "bend", "lie")
    person.add(take, actions)
    lie(person, seconds)


def kneel(person: Performer, seconds: float) -> None:
    """On one knee for a while: looks under something, talks to a child."""
    rng = person.rng
    n = int((seconds + 2.4) * RATE_HZ)
    index = np.arange(n)
    down = smoothstep(index / (1.1 * RATE_HZ)) * smoothstep((n - index) / (1.1 * RATE_HZ))
    plan = still(person, n)
    body = person.body
    back = int(rng.integers(2))
    ahead = np.array([np.cos(person.pose.heading), np.sin(person.pose.heading), 0.0])
    legs = np.broadcast_to(person.pose.feet, (n, 2, 3)).copy()
    legs[:, back] += ahead * (-0.95 * body.shank) + (0, 0, 0.04)
    weight = np.zeros((n, 2))
    weight[:, back] = smoothstep(index / (0.7 * RATE_HZ)) * smoothstep((n - index) / (0.7 * RATE_HZ))
    low = (body.thigh * 0.97 + 0.05 - body.ankle) / (body.leg * STANDING_RATIO)
    lean = np.zeros((n, 2))
    lean[:, 0] = down * rng.uniform(0.1, 0.6)
    upper = blend(plan.upper, arms(plan.upper, (0.7, 0.2, -0.6), (0.8, -0.2, -0.2)), down)
    shift = np.zeros((n, 3))
    shift[:, 0] = -0.10 * down
    person.do(
        replace(
            plan,
            lift=1 - (1 - low) * down,
            legs=legs,
            legs_weight=weight,
            lean=lean,
            upper=upper,
            upper_weight=down,
            shift=shift,
        ),
        "bend",
    )

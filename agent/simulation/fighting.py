"""Fights: who strikes whom when, how the bodies move about each other, and what a blow does to the other.

Four passes. The blows are drawn; the fighters' places follow from springs, lunges and the push of every blow that lands;
then the trunks are made, and last the hands and feet that meet them, since a fist has to know where the head is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.simulation.area import AREA_M, turn_between
from agent.simulation.gait import Plan, Take, perform, plan_along, smooth, smoothstep
from agent.simulation.motion import RATE_HZ
from agent.simulation.performer import Performer
from agent.simulation.skeleton import (
    ARM_L, ARM_R, EAR_L, EAR_R, FACE, FOREARM_L, FOREARM_R, HEAD_UP, HIP_L, HIP_R, KNEE_L, KNEE_R, SHOULDER_L, SHOULDER_R, UPPER, Array,
    Lengths, blend, joints_of, mirrored, unit,
)  # fmt: skip

PUNCHES = ("punch_lunge", "punch_high", "punch_up", "punch_straight", "punch_body")
GUARD_M = 1.25  # between the hips of two who wait for an opening


@dataclass(frozen=True, slots=True)
class Blow:
    """One attack. kind: punch, kick, shove or grapple; at: frame of contact; force: 0-1; hand: 0 left, 1 right."""

    kind: str
    attacker: int
    victim: int
    at: int
    until: int
    force: float
    lands: bool
    hand: int
    how: str = ""


@dataclass(frozen=True, slots=True)
class Temper:
    """How a fight goes. gap_s: from, to between blows; shares of kicks, shoves and grapples; force: from, to."""

    gap_s: tuple[float, float]
    kicks: float
    shoves: float
    grapples: float
    force: tuple[float, float]


def random_temper(rng: np.random.Generator) -> Temper:
    """Brawl, boxing, shoving match or wrestling, fast or slow."""
    quick = rng.uniform(0.35, 0.9)
    gap = (quick, quick * rng.uniform(1.3, 2.4))
    style = rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))
    shares = ((0.18, 0.15, 0.10), (0.05, 0.05, 0.03), (0.05, 0.55, 0.15), (0.05, 0.15, 0.45))[style]
    return Temper(gap, *shares, force=(0.3, float(rng.uniform(0.6, 1.0))))


def draw_blows(rng: np.random.Generator, temper: Temper, foes: list[int], frames: int) -> list[Blow]:
    """Blows over `frames` frames, the last half a second before the end; foes[i] is whom fighter i attacks."""
    blows: list[Blow] = []
    at, last = int(rng.uniform(0.35, 0.8) * RATE_HZ), frames - int(0.5 * RATE_HZ)
    initiative = int(rng.integers(len(foes)))
    while at < last - int(0.3 * RATE_HZ):
        if rng.random() < 0.45:
            initiative = int(rng.integers(len(foes)))
        blow = _draw_blow(rng, temper, initiative, foes[initiative], at, last)
        blows.append(blow)
        at = blow.until + int(rng.uniform(*temper.gap_s) * RATE_HZ)
    if not blows or blows[-1].until < last - int(0.3 * RATE_HZ):
        blows.append(
            replace(_draw_blow(rng, temper, initiative, foes[initiative], last, last), kind="punch", until=last)
        )
    return blows


def _draw_blow(rng: np.random.Generator, temper: Temper, attacker: int, victim: int, at: int, last: int) -> Blow:
    others = temper.kicks + temper.shoves + temper.grapples
    kinds, shares = ("kick", "shove", "grapple", "punch"), (temper.kicks, temper.shoves, temper.grapples, 1 - others)
    kind = str(rng.choice(kinds, p=shares))
    until = at + int(rng.uniform(1.2, 2.6) * RATE_HZ) if kind == "grapple" else at
    lands = kind == "grapple" or rng.random() < 0.72
    return Blow(
        kind, attacker, victim, at, max(at, min(until, last)), float(rng.uniform(*temper.force)), bool(lands),
        int(rng.random() < 0.62), str(rng.choice(PUNCHES)),
    )  # fmt: skip


def places(
    rng: np.random.Generator, start: Array, foes: list[int], blows: list[Blow], frames: int, reach: Array
) -> Array:
    """Hips over the floor (F, T, 2) of F fighters: springs towards the distance that the moment asks for, pushes of blows.

    start: (F, 2); reach: (F,) length of the arm.
    """
    count = len(foes)
    wanted, stiff = _distances(rng, foes, blows, frames, reach)
    turning = smooth(np.repeat(rng.normal(0, 0.6, (frames // 50 + 2, count)), 50, axis=0)[:frames], 0.3)
    jostle = smooth(rng.normal(0, 1, (frames, count, 2)), 0.18) * 9.0
    pushes = [b for b in blows if b.lands and b.kind != "grapple"]
    by_frame: dict[int, list[Blow]] = {}
    for blow in pushes:
        by_frame.setdefault(blow.at, []).append(blow)
    position, velocity = start.copy(), np.zeros((count, 2))
    out = np.empty((count, frames, 2))
    others = np.array(foes)
    centre = np.array([(AREA_M[0] + AREA_M[1]) / 2, (AREA_M[2] + AREA_M[3]) / 2])
    half = np.array([AREA_M[1] - AREA_M[0], AREA_M[3] - AREA_M[2]]) / 2 - 0.7
    dt = 1 / RATE_HZ
    for t in range(frames):
        gap = position - position[others]
        distance = np.sqrt((gap**2).sum(axis=1, keepdims=True)) + 1e-6
        away = gap / distance
        around = np.stack([-away[:, 1], away[:, 0]], axis=1)
        goal = position[others] + away * wanted[t][:, None] + around * (turning[t] * 0.4)[:, None]
        force = (goal - position) * stiff[t][:, None] - velocity * 2.4 * np.sqrt(stiff[t])[:, None] * 0.7 + jostle[t]
        force += _elbow_room(position, others)
        force -= np.sign(position - centre) * np.maximum(np.abs(position - centre) - half, 0) * 25
        size = np.sqrt((force**2).sum(axis=1, keepdims=True))
        velocity += force * np.minimum(1, 16 / np.maximum(size, 1e-6)) * dt
        for blow in by_frame.get(t, ()):
            strength = {"punch": 0.9, "kick": 1.3, "shove": 2.2}[blow.kind] * (0.4 + blow.force)
            velocity[blow.victim] -= away[blow.attacker] * strength
        speed = np.sqrt((velocity**2).sum(axis=1, keepdims=True))
        velocity *= np.minimum(1, 2.6 / np.maximum(speed, 1e-6))
        position = position + velocity * dt
        out[:, t] = position
    return np.stack([smooth(track, 0.035) for track in out])


def _elbow_room(position: Array, others: Array) -> Array:
    """People who do not face each other keep half a metre apart."""
    gap = position[:, None] - position[None]
    distance = np.sqrt((gap**2).sum(axis=2)) + np.eye(len(position)) * 9
    distance[np.arange(len(others)), others] = 9
    near = np.maximum(0.75 - distance, 0)
    push: Array = (gap / np.maximum(distance, 0.05)[..., None] * near[..., None]).sum(axis=1)
    return push * 40


def _distances(
    rng: np.random.Generator, foes: list[int], blows: list[Blow], frames: int, reach: Array
) -> tuple[Array, Array]:
    """(T, F) wanted distance to the foe and how stiffly it is kept."""
    count = len(foes)
    slow = smooth(np.repeat(rng.normal(0, 0.16, (frames // 45 + 2, count)), 45, axis=0)[:frames], 0.25)
    wanted = GUARD_M * (reach / 0.56) + slow
    stiff = np.full((frames, count), 14.0)
    for blow in blows:
        close = {"punch": 1.30, "shove": 1.12, "kick": 1.68, "grapple": 0.98}[blow.kind] * reach[blow.attacker]
        begin = max(0, blow.at - int(0.38 * RATE_HZ))
        end = min(frames, max(blow.until, blow.at) + int(0.06 * RATE_HZ))
        wanted[begin:end, blow.attacker] = close
        stiff[begin:end, blow.attacker] = 75.0
        wanted[begin:end, blow.victim] = np.minimum(wanted[begin:end, blow.victim], close + 0.15)
        if blow.kind == "grapple":
            wanted[blow.at : end, blow.victim] = close
            stiff[blow.at : end, blow.victim] = 60.0
    return wanted, stiff


def fight(
    stage_rng: np.random.Generator, fighters: list[Performer], foes: list[int], temper: Temper, seconds: float
) -> Iterator[list[Blow] | None]:
    """Everybody in `fighters` fights for `seconds` from the frame of the latest; yields None in between, then the blows.

    Their takes are appended. Frames of the blows are counted from the start of the fight.
    """
    rng = stage_rng
    frames = int(seconds * RATE_HZ)
    blows = draw_blows(rng, temper, foes, frames)
    yield from perform_fight(rng, fighters, foes, blows, frames)
    yield blows


def perform_fight(
    rng: np.random.Generator, fighters: list[Performer], foes: list[int], blows: list[Blow], frames: int
) -> Iterator[None]:
    """The takes of a fight with these blows."""
    start = np.array([person.xy for person in fighters])
    reach = np.array([person.body.arm for person in fighters])
    tracks = places(rng, start, foes, blows, frames, reach)
    yield
    plans = []
    for k, person in enumerate(fighters):
        plans.append(
            _plan(rng, person, tracks[k], tracks[foes[k]], [b for b in blows if k in (b.attacker, b.victim)], k)
        )
        yield
    joints = []
    for person, plan in zip(fighters, plans, strict=True):
        take = perform(person.mover, plan, person.pose)
        joints.append(joints_of(Lengths([person.body]).table[0][None], take.root, take.bones))
        yield
    actions = fight_actions(blows, frames, len(fighters))
    for k, (person, plan) in enumerate(zip(fighters, plans, strict=True)):
        aimed = _aim(person, plan, joints, [b for b in blows if b.attacker == k], k)
        aimed = _grip(aimed, joints, [b for b in blows if b.kind == "grapple" and b.victim == k])
        person.add(perform(person.mover, aimed, person.pose), actions[k])
        yield


def fight_actions(blows: list[Blow], frames: int, count: int) -> NDArray[np.str_]:
    """(F, T) names: `fight` from a fighter's first blow, given or taken, to the last; `stand` around it."""
    out = np.full((count, frames), "stand")
    for k in range(count):
        own = [b for b in blows if k in (b.attacker, b.victim)]
        if own:
            out[k, min(b.at for b in own) : max(b.until for b in own) + 1] = "fight"
    return out


def _plan(rng: np.random.Generator, person: Performer, xy: Array, foe: Array, blows: list[Blow], index: int) -> Plan:
    """Stance, guard, wind-up and recoil of one fighter; no hand has a target yet."""
    n = len(xy)
    aim = np.unwrap(np.arctan2(foe[:, 1] - xy[:, 1], foe[:, 0] - xy[:, 0]))
    aim += person.pose.heading + turn_between(person.pose.heading, float(aim[0])) - aim[0]
    ease = smoothstep(np.arange(n) / (0.4 * RATE_HZ))
    heading = smooth(person.pose.heading + (aim - person.pose.heading) * ease, 0.08)
    skill = rng.uniform(0.35, 1.0)
    upper = _guard(person, n, skill, rng)
    lean = smooth(rng.normal(0, 1, (n, 2)), 0.25) * (0.35, 0.35)
    lean[:, 0] += rng.uniform(0.03, 0.14)
    lift = 1 - rng.uniform(0.02, 0.06) - 0.05 * np.abs(smooth(rng.normal(0, 1, n), 0.2))
    for blow in blows:
        if blow.attacker == index:
            _strike(person, blow, upper, lean, lift)
        if blow.victim == index and blow.lands:
            _recoil(rng, blow, upper, lean, lift)
        elif blow.victim == index:
            _cover(rng, blow, upper, lean)
    half = person.body.hip_width / 2
    lead = rng.uniform(0.08, 0.17) * (1 if rng.random() < 0.75 else -1)
    stance = np.array([[lead, half + 0.06], [-lead, -half - 0.06]])
    return plan_along(
        person.mover, xy, heading, upper=unit(upper), upper_weight=0.9 * ease, lean=lean, lift=smooth(lift, 0.05),
        stance=np.broadcast_to(stance, (n, 2, 2)), step=1.3, hurry=1.5,
    )  # fmt: skip


def _guard(person: Performer, n: int, skill: float, rng: np.random.Generator) -> Array:
    """(n, 9, 3) fists up, more or less, never quite still."""
    model = person.mover.model
    guard = model.primitives["kick_front"].at(np.zeros(1))[0][0, UPPER].copy()
    if rng.random() < 0.25:
        guard = mirrored(np.concatenate([guard, model.stand[9:]])[None])[0, UPPER]
    guard[FACE] = (0.99, 0.0, -0.1)
    guard = blend(model.stand[None, UPPER], guard[None], skill)[0]
    noise = smooth(rng.normal(0, 1, (n, 9, 3)), 0.16)
    noise[:, :ARM_L] *= 0.3
    return np.asarray(unit(guard + noise * 0.42))


def _window(blow: Blow, n: int, before_s: float, after_s: float) -> tuple[int, int]:
    return max(0, blow.at - int(before_s * RATE_HZ)), min(n, max(blow.at, blow.until) + int(after_s * RATE_HZ))


def _strike(person: Performer, blow: Blow, upper: Array, lean: Array, lift: Array) -> None:
    """The attacker's trunk and arms, from the captured blow, its contact at the blow's frame."""
    first, last = _window(blow, len(upper), 0.34, 0.42)
    time = (np.arange(first, last) - blow.at) / RATE_HZ
    rise = smoothstep((time + 0.34) / 0.16) * smoothstep((0.42 - (time - (blow.until - blow.at) / RATE_HZ)) / 0.26)
    if blow.kind == "punch":
        primitive = person.mover.model.primitives[blow.how]
        rate = 1.6 + 1.2 * blow.force
        bones = primitive.at(np.clip(primitive.contact_s + time * rate, 0, primitive.duration_s))[0]
        if blow.hand == 0:
            bones = mirrored(bones)
        captured = bones[:, UPPER].copy()
        captured[:, FACE] = (0.99, 0.0, -0.1)
        upper[first:last] = blend(upper[first:last], captured, rise * 0.95)
        lean[first:last, 0] += rise * (0.04 + 0.10 * blow.force)
    elif blow.kind == "kick":
        side = 1.0 if blow.hand == 0 else -1.0
        lean[first:last, 0] -= rise * 0.22
        lean[first:last, 1] -= rise * 0.12 * side
        lift[first:last] -= 0.03 * rise
    else:
        lean[first:last, 0] += rise * (0.22 + 0.12 * blow.force)
        lift[first:last] -= 0.06 * rise
        upper[first:last] = blend(upper[first:last], _arms_forward(upper[first:last]), rise * 0.8)


def _arms_forward(upper: Array) -> Array:
    out = upper.copy()
    for arm, forearm, side in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, -1.0)):
        out[:, arm] = unit(np.array([0.8, 0.25 * side, -0.3]))
        out[:, forearm] = unit(np.array([0.95, -0.15 * side, 0.25]))
    return out


def _recoil(rng: np.random.Generator, blow: Blow, upper: Array, lean: Array, lift: Array) -> None:
    """What a blow does to who takes it: head and trunk thrown back, arms flying, knees soft; a damped swing."""
    first, last = blow.at, min(len(upper), max(blow.until, blow.at) + int(1.0 * RATE_HZ))
    time = (np.arange(first, last) - first) / RATE_HZ
    if blow.kind == "grapple":
        held = smoothstep(time / 0.3) * smoothstep((last - np.arange(first, last)) / (0.8 * RATE_HZ))
        lean[first:last, 0] += held * 0.24
        lift[first:last] -= held * 0.05
        return
    swing = np.exp(-time / 0.26) * np.sin(2 * np.pi * 1.15 * time) * 1.45
    jolt = np.exp(-time / 0.13) * np.minimum(time / 0.035, 1)
    side = (1.0 if blow.hand == 0 else -1.0) * rng.uniform(0.1, 0.7)
    size = 0.22 + 0.42 * blow.force
    folds = blow.kind == "kick" or blow.how == "punch_body"
    lean[first:last, 0] += swing * size * (0.75 if folds else -0.8)
    lean[first:last, 1] -= swing * size * side
    lift[first:last] -= 0.10 * blow.force * np.abs(swing)
    if not folds and blow.kind == "punch":
        head = np.array([-0.75, -0.5 * side, 0.1]) * (size * 1.4)
        upper[first:last, HEAD_UP] += head * jolt[:, None]
        upper[first:last, FACE] += np.array([0.0, -1.1 * side, 0.35]) * (size * jolt)[:, None]
    flail = upper[first:last].copy()
    for arm, forearm, sign in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, -1.0)):
        flail[:, arm] = unit(np.array([0.45 if folds else -0.15, 0.7 * sign, rng.uniform(-0.6, 0.1)]))
        flail[:, forearm] = unit(np.array([0.6, (-0.5 if folds else 0.4) * sign, rng.uniform(-0.1, 0.6)]))
    amount = np.exp(-time / 0.35) * smoothstep(time / 0.12) * (0.25 + 0.65 * blow.force)
    upper[first:last] = blend(upper[first:last], flail, amount)


def _cover(rng: np.random.Generator, blow: Blow, upper: Array, lean: Array) -> None:
    """A blow that is blocked or dodged."""
    first, last = _window(blow, len(upper), 0.2, 0.45)
    time = (np.arange(first, last) - blow.at) / RATE_HZ
    amount = smoothstep((time + 0.2) / 0.15) * smoothstep((0.45 - time) / 0.25)
    cover = upper[first:last].copy()
    for arm, forearm, sign in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, -1.0)):
        cover[:, arm] = unit(np.array([0.75, 0.35 * sign, -0.35]))
        cover[:, forearm] = unit(np.array([0.25, -0.35 * sign, 0.9]))
    upper[first:last] = blend(upper[first:last], cover, amount * rng.uniform(0.5, 0.95))
    lean[first:last, 0] -= amount * rng.uniform(0.0, 0.2)
    lean[first:last, 1] += amount * rng.uniform(-0.25, 0.25)


def _aim(person: Performer, plan: Plan, joints: list[Array], blows: list[Blow], index: int) -> Plan:
    """Hands and feet that meet the other's body."""
    hands, hands_weight = plan.hands.copy(), plan.hands_weight.copy()
    legs, legs_weight = plan.legs.copy(), plan.legs_weight.copy()
    n = len(plan)
    for blow in blows:
        other = joints[blow.victim]
        chest = other[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1) * 0.7 + other[:, [HIP_L, HIP_R]].mean(axis=1) * 0.3
        head = other[:, [EAR_L, EAR_R]].mean(axis=1)
        own = joints[index][:, [SHOULDER_L, SHOULDER_R]].mean(axis=1)
        back = unit((own - chest) * (1, 1, 0.3)) * 0.09
        if blow.kind == "punch":
            goal = (chest if blow.how == "punch_body" else head) + back
            if not blow.lands:
                goal = goal + np.array([0.0, 0.0, 0.14]) + back * 1.5
            first, last = _window(blow, n, 0.15, 0.20)
            _meet(hands, hands_weight, blow.hand, goal, first, blow.at, last, 0.96)
        elif blow.kind == "kick":
            target = (
                other[:, [KNEE_L, KNEE_R]].mean(axis=1) * (1 - blow.force)
                + other[:, [HIP_L, HIP_R]].mean(axis=1) * blow.force
            )
            first, last = _window(blow, n, 0.30, 0.36)
            _meet(legs, legs_weight, blow.hand, target + back * 1.3, first, blow.at, last, 1.0)
        elif blow.kind == "shove":
            first, last = _window(blow, n, 0.22, 0.30)
            for hand, shoulder in ((0, SHOULDER_R), (1, SHOULDER_L)):
                goal = other[:, shoulder] * 0.65 + chest * 0.35 + back * 0.8
                _meet(hands, hands_weight, hand, goal, first, blow.at, last, 1.0)
        else:
            _hold(hands, hands_weight, other, back, blow)
    return replace(plan, hands=hands, hands_weight=hands_weight, legs=legs, legs_weight=legs_weight)


def _grip(plan: Plan, joints: list[Array], grapples: list[Blow]) -> Plan:
    """The other side of a grapple."""
    if not grapples:
        return plan
    hands, weight = plan.hands.copy(), plan.hands_weight.copy()
    for blow in grapples:
        _hold(hands, weight, joints[blow.attacker], np.zeros((len(plan), 3)), blow)
    return replace(plan, hands=hands, hands_weight=weight)


def _hold(hands: Array, weight: Array, other: Array, back: Array, blow: Blow) -> None:
    """Both hands on the other's shoulders and upper arms."""
    first, last = _window(blow, len(hands), 0.25, 0.25)
    index = np.arange(first, last)
    amount = smoothstep((index - first) / (0.28 * RATE_HZ)) * smoothstep((last - index) / (0.25 * RATE_HZ))
    for hand, (shoulder, elbow) in ((0, (SHOULDER_R, 8)), (1, (SHOULDER_L, 7))):
        share = 0.15 + 0.35 * ((hand + blow.attacker) % 2)
        goal = other[:, shoulder] * (1 - share) + other[:, elbow] * share + back * 0.3
        _overlay(hands, weight, hand, goal, first, last, amount)


def _meet(places_: Array, weights: Array, side: int, goal: Array, first: int, at: int, last: int, peak: float) -> None:
    """One hand or foot goes to where `goal` (T, 3) is at frame `at`, quickly, and comes back more slowly."""
    index = np.arange(first, last)
    out = smoothstep((index - first) / max(1, at - first))
    back = smoothstep((last - index) / max(1, last - at))
    amount = np.where(index <= at, out, back) * peak
    # After the contact the hand stays where it hit: the other is thrown back.
    held = goal[np.minimum(np.arange(len(goal)), at)]
    _overlay(places_, weights, side, held, first, last, amount)


def _overlay(places_: Array, weights: Array, side: int, goal: Array, first: int, last: int, amount: Array) -> None:
    stronger = amount > weights[first:last, side]
    places_[first:last, side][stronger] = goal[first:last][stronger]
    weights[first:last, side] = np.maximum(weights[first:last, side], amount)

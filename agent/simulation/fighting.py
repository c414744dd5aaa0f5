"""Fights: who strikes whom when, how the bodies move about each other, and what a blow does to the other.

Four passes. The blows are drawn; the fighters' places follow from springs, lunges and the push of every blow that lands;
then the trunks are made, and last the hands and feet that meet them, since a fist has to know where the head is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agent.simulation.aiming import aimed, window
from agent.simulation.area import turn_between
from agent.simulation.blows import Blow, Temper, draw_blows, places
from agent.simulation.curves import smooth, smoothstep
from agent.simulation.gait import Plan, perform, plan_along
from agent.simulation.motion import RATE_HZ
from agent.simulation.performer import Performer
from agent.simulation.skeleton import (
    ARM_L,
    ARM_R,
    FACE,
    FOREARM_L,
    FOREARM_R,
    HEAD_UP,
    UPPER,
    Array,
    Lengths,
    blend,
    joints_of,
    mirrored,
    unit,
)  # fmt: skip


def fight(
    rng: np.random.Generator, fighters: list[Performer], foes: list[int], *, temper: Temper, seconds: float
) -> Iterator[list[Blow] | None]:
    """Everybody in `fighters` fights for `seconds` from now on; foes[i] is whom fighter i attacks.

    All of them must be at the same frame. Yields None in between, then the blows; their frames count from the start.
    """
    frames = int(seconds * RATE_HZ)
    blows = draw_blows(rng, temper, foes, frames)
    start = np.array([person.floor_xy for person in fighters])
    reach = np.array([person.body.arm for person in fighters])
    tracks = yield from places(rng, start, foes, blows, frames=frames, reach=reach)
    plans = []
    for k, person in enumerate(fighters):
        own = [(blow, blow.attacker == k) for blow in blows if k in (blow.attacker, blow.victim)]
        plans.append(_plan(rng, person, tracks[k], tracks[foes[k]], own))
        yield None
    joints = []
    for person, plan in zip(fighters, plans, strict=True):
        take = perform(person.mover, plan, person.pose)
        joints.append(joints_of(Lengths([person.body]).table[0][None], take.root, take.bones))
        yield None
    actions = fight_actions(blows, frames, len(fighters))
    for k, (person, plan) in enumerate(zip(fighters, plans, strict=True)):
        person.do(aimed(plan, joints, blows, k), actions[k])
        yield None
    yield blows


def fight_actions(blows: list[Blow], frames: int, count: int) -> NDArray[np.str_]:
    """(F, T) names: `fight` from a fighter's first blow, given or taken, to the last; `stand` around it."""
    out = np.full((count, frames), "stand")
    for k in range(count):
        own = [b for b in blows if k in (b.attacker, b.victim)]
        if own:
            out[k, min(b.at for b in own) : max(b.until for b in own) + 1] = "fight"
    return out


def _plan(rng: np.random.Generator, person: Performer, xy: Array, foe: Array, blows: list[tuple[Blow, bool]]) -> Plan:
    """Stance, guard, wind-up and recoil of one fighter; no hand has a target yet. blows: given (True) or taken."""
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
    for blow, given in blows:
        if given:
            _strike(person, blow, upper, lean, lift)
        elif blow.lands:
            _recoil(rng, blow, upper, lean, lift)
        else:
            _cover(rng, blow, upper, lean)
    half = person.body.hip_width / 2
    lead = rng.uniform(0.08, 0.17) * (1 if rng.random() < 0.75 else -1)
    stance = np.array([[lead, half + 0.06], [-lead, -half - 0.06]])
    return plan_along(
        person.mover, xy, heading, upper=unit(upper), upper_weight=0.9 * ease, lean=lean, lift=smooth(lift, 0.05),
        stance=np.broadcast_to(stance, (n, 2, 2)), step=1.2, hurry=1.8,
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


def _strike(person: Performer, blow: Blow, upper: Array, lean: Array, lift: Array) -> None:
    """The attacker's trunk and arms, from the captured blow, its contact at the blow's frame."""
    first, last = window(blow, len(upper), 0.34, 0.42)
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
    first, last = window(blow, len(upper), 0.2, 0.45)
    time = (np.arange(first, last) - blow.at) / RATE_HZ
    amount = smoothstep((time + 0.2) / 0.15) * smoothstep((0.45 - time) / 0.25)
    cover = upper[first:last].copy()
    for arm, forearm, sign in ((ARM_L, FOREARM_L, 1.0), (ARM_R, FOREARM_R, -1.0)):
        cover[:, arm] = unit(np.array([0.75, 0.35 * sign, -0.35]))
        cover[:, forearm] = unit(np.array([0.25, -0.35 * sign, 0.9]))
    upper[first:last] = blend(upper[first:last], cover, amount * rng.uniform(0.5, 0.95))
    lean[first:last, 0] -= amount * rng.uniform(0.0, 0.2)
    lean[first:last, 1] += amount * rng.uniform(-0.25, 0.25)

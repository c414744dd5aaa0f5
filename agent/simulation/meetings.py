"""What two people do together without harm: hug, shake hands, clap hands, talk, dance, lay an arm around a shoulder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agent.simulation.activities import arms
from agent.simulation.area import towards, turn_between
from agent.simulation.curves import smooth, smoothstep
from agent.simulation.gait import Plan, perform, plan_along
from agent.simulation.motion import RATE_HZ
from agent.simulation.performer import Performer
from agent.simulation.skeleton import HIP_L, HIP_R, SHOULDER_L, SHOULDER_R, UPPER, Array, Lengths, blend, joints_of

MEETINGS = ("hug", "handshake", "high_five", "dance", "pat")
"""What `meet` knows."""
_SECONDS = {
    "hug": (3.0, 5.5),
    "handshake": (1.8, 3.0),
    "high_five": (1.4, 1.8),
    "dance": (6.0, 11.0),
    "pat": (2.5, 4.5),
}
_APART = {"hug": 0.30, "handshake": 0.78, "high_five": 0.72, "dance": 0.42, "pat": 0.5}  # hips to hips, metres


def meet(pair: tuple[Performer, Performer], kind: str, rng: np.random.Generator) -> None:
    """Both stand facing each other at the same frame, a metre or so apart; they step in, do it, and step back."""
    n = int(rng.uniform(*_SECONDS[kind]) * RATE_HZ)
    index = np.arange(n)
    ramp = 0.45 if kind == "high_five" else 0.8
    near = smoothstep(index / (ramp * RATE_HZ)) * smoothstep((n - 1 - index) / (ramp * RATE_HZ))
    plans = _approach(pair, kind, n, near, rng)
    joints = [
        joints_of(Lengths([person.body]).table[0][None], take.root, take.bones)
        for person, take in zip(
            pair, (perform(p.mover, plan, p.pose) for p, plan in zip(pair, plans, strict=True)), strict=True
        )
    ]
    shake = smooth(rng.normal(0, 1, (n, 3)), 0.25) * 0.10
    for k, (person, plan) in enumerate(zip(pair, plans, strict=True)):
        hands, weight = _HANDS[kind](_Side(plan, joints[k], joints[1 - k], near, k, shake))
        person.do(replace(plan, hands=hands, hands_weight=weight), "hug" if kind in {"hug", "dance", "pat"} else "talk")


def _approach(
    pair: tuple[Performer, Performer], kind: str, n: int, near: Array, rng: np.random.Generator
) -> list[Plan]:
    """Both step towards the middle by `near` (T,), perhaps turn about it, and back."""
    first, second = (person.floor_xy for person in pair)
    middle, gap = (first + second) / 2, second - first
    distance = float(np.hypot(*gap))
    axis = float(np.arctan2(gap[1], gap[0]))
    turn = np.zeros(n)
    if kind == "dance":
        turn = rng.choice((-1, 1)) * rng.uniform(0.35, 0.8) * np.cumsum(near**2) / RATE_HZ
    elif kind == "hug":
        turn = 0.25 * np.sin(2 * np.pi * 0.35 * np.arange(n) / RATE_HZ) * near * rng.uniform(0, 1)
    half = (distance + (_APART[kind] * _scale(pair) - distance) * near) / 2
    plans = []
    for k, person in enumerate(pair):
        angle = axis + turn + (0 if k else np.pi)
        xy = middle + half[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        facing = towards(person.floor_xy, middle)
        heading = person.pose.heading + turn_between(person.pose.heading, facing) * smoothstep(np.arange(n) / 20) + turn
        lean = smooth(rng.normal(0, 1, (n, 2)), 0.5) * 0.22
        lean[:, 0] += near * {"hug": 0.10, "handshake": 0.10, "pat": 0.05}.get(kind, 0.02)
        if kind == "hug":  # heads side by side
            lean[:, 1] += near * 0.10
        if kind == "dance":
            lean[:, 1] += 0.07 * np.sin(2 * np.pi * 0.55 * np.arange(n) / RATE_HZ + np.pi * k) * near
        plans.append(
            plan_along(person.mover, xy, heading, lean=lean, upper_weight=near, upper=_calm(person, n, kind), step=0.8)
        )
    return plans


def _scale(pair: tuple[Performer, Performer]) -> float:
    return (pair[0].body.height + pair[1].body.height) / 2 / 1.72


def _calm(person: Performer, n: int, kind: str) -> Array:
    stand = np.broadcast_to(person.mover.model.stand[UPPER], (n, 9, 3))
    if kind in {"hug", "dance"}:
        return blend(stand, arms(stand, (0.6, 0.5, -0.5), (0.75, -0.3, 0.3)), 0.7)
    return stand


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """What one of the two knows when reaching out.

    own, other: (T, 17, 3) joints before any hand has moved; near: (T,) 0-1, how close they are; index: 0 or 1; shake: (T, 3) m.
    """

    plan: Plan
    own: Array
    other: Array
    near: Array
    index: int
    shake: Array


def _hug(side: _Side) -> tuple[Array, Array]:
    """Both arms around the other's back, one over the shoulder, one under the arm; pats now and then."""
    shoulders = side.other[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1)
    hips = side.other[:, [HIP_L, HIP_R]].mean(axis=1)
    away = np.stack([np.cos(side.plan.heading), np.sin(side.plan.heading), np.zeros(len(side.plan))], axis=1)
    left = np.stack([-away[:, 1], away[:, 0], away[:, 2]], axis=1)
    pat = np.maximum(np.sin(2 * np.pi * 2.2 * np.arange(len(side.plan)) / RATE_HZ), 0)[:, None] * 0.04 * side.index
    hands = np.stack([
        shoulders * 0.92 + hips * 0.08 + away * (0.13 + pat) - left * 0.06 + side.shake,
        shoulders * 0.45 + hips * 0.55 + away * 0.14 + left * 0.05 + side.shake,
    ], axis=1)  # fmt: skip
    return hands, np.repeat(side.near[:, None] ** 2, 2, axis=1)


def _handshake(side: _Side) -> tuple[Array, Array]:
    """Right hands meet between the two and go up and down."""
    middle = (side.own[:, [HIP_L, HIP_R]].mean(axis=1) + side.other[:, [HIP_L, HIP_R]].mean(axis=1)) / 2
    middle[:, 2] += 0.14 + 0.05 * np.sin(2 * np.pi * 2.1 * np.arange(len(side.plan)) / RATE_HZ) * side.near**4
    hands = np.repeat((middle + side.shake * 0.3)[:, None], 2, axis=1)
    weight = np.stack([np.zeros_like(side.near), side.near**2], axis=1)
    return hands, weight


def _high_five(side: _Side) -> tuple[Array, Array]:
    """Right hands clap above the heads: as quick as a blow."""
    n = len(side.plan)
    middle = (
        side.own[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1) + side.other[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1)
    ) / 2
    middle[:, 2] += 0.24
    time = (np.arange(n) - n * 0.5) / RATE_HZ
    swing = smoothstep((time + 0.30) / 0.28) * smoothstep((0.45 - time) / 0.38)
    hands = np.repeat(middle[:, None], 2, axis=1)
    return hands, np.stack([np.zeros(n), swing * side.near], axis=1)


def _dance(side: _Side) -> tuple[Array, Array]:
    """One pair of hands joined at the side, the other hands on shoulder and back."""
    away = np.stack([np.cos(side.plan.heading), np.sin(side.plan.heading), np.zeros(len(side.plan))], axis=1)
    left = np.stack([-away[:, 1], away[:, 0], away[:, 2]], axis=1)
    sideways = left if side.index == 0 else -left
    middle = (
        side.own[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1) + side.other[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1)
    ) / 2
    joined = middle + sideways * 0.42 + side.shake * 0.5
    joined[:, 2] -= 0.02
    if side.index == 0:
        back = side.other[:, SHOULDER_L] * 0.55 + side.other[:, HIP_L] * 0.45 + away * 0.12
        hands = np.stack([joined, back], axis=1)
    else:
        hands = np.stack([side.other[:, SHOULDER_R] + (0, 0, 0.03), joined], axis=1)
    return hands, np.repeat(side.near[:, None] ** 2, 2, axis=1)


def _pat(side: _Side) -> tuple[Array, Array]:
    """One lays a hand on the other's shoulder and pats it."""
    pat = np.maximum(np.sin(2 * np.pi * 1.8 * np.arange(len(side.plan)) / RATE_HZ), 0)[:, None] * (0.0, 0.0, 0.07)
    hands = np.repeat((side.other[:, SHOULDER_L] + (0, 0, 0.04) + pat + side.shake * 0.3)[:, None], 2, axis=1)
    weight = np.stack([np.zeros_like(side.near), side.near**2 * (1 - side.index)], axis=1)
    return hands, weight


_HANDS = {"hug": _hug, "handshake": _handshake, "high_five": _high_five, "dance": _dance, "pat": _pat}


def talk(group: list[Performer], seconds: float, rng: np.random.Generator, gestures: tuple[str, ...]) -> None:
    """People stand together, face one another, gesticulate in turns, lively or not."""
    lively = rng.uniform(0.3, 1.0)
    centre = np.mean([person.floor_xy for person in group], axis=0)
    for person in group:
        count = max(1, int(seconds / 2.5 * lively))
        chosen = tuple(str(name) for name in rng.choice(gestures, count))
        person.stand(seconds, facing=towards(person.floor_xy, centre), action="talk", gestures=chosen)

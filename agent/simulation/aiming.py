"""Fists, feet and grips that meet the other's body: targets for the hands and feet of a fighter's plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.simulation.blows import Blow
from agent.simulation.curves import smoothstep
from agent.simulation.gait import Plan
from agent.simulation.motion import RATE_HZ
from agent.simulation.skeleton import (
    EAR_L,
    EAR_R,
    ELBOW_L,
    ELBOW_R,
    HIP_L,
    HIP_R,
    KNEE_L,
    KNEE_R,
    SHOULDER_L,
    SHOULDER_R,
    Array,
    unit,
)  # fmt: skip


def window(blow: Blow, frames: int, before_s: float, after_s: float) -> tuple[int, int]:
    """Frames from `before_s` before the contact to `after_s` after its end."""
    first = max(0, blow.at - int(before_s * RATE_HZ))
    return first, min(frames, max(blow.at, blow.until) + int(after_s * RATE_HZ))


@dataclass(frozen=True, slots=True, eq=False)
class _Targets:
    """Of both hands or both feet. points: (T, 2, 3) world; weights: (T, 2)."""

    points: Array
    weights: Array

    def meet(self, side: int, goal: Array, blow: Blow, *, before_s: float, after_s: float) -> None:
        """Goes to where `goal` (T, 3) is at the contact, quickly, and comes back more slowly."""
        first, last = window(replace(blow, until=blow.at), len(goal), before_s, after_s)
        index = np.arange(first, last, dtype=np.int64)
        out = smoothstep((index - first) / max(1, blow.at - first))
        back = smoothstep((last - index) / max(1, last - blow.at))
        # After the contact the fist stays where it hit: the other is thrown back.
        held = goal[np.minimum(index, blow.at)]
        self._overlay(side, held, index, np.where(index <= blow.at, out, back))

    def hold(self, side: int, goal: Array, blow: Blow) -> None:
        """Stays on `goal` (T, 3) from the contact to the end of the blow."""
        first, last = window(blow, len(goal), 0.25, 0.25)
        index = np.arange(first, last, dtype=np.int64)
        amount = smoothstep((index - first) / (0.28 * RATE_HZ)) * smoothstep((last - index) / (0.25 * RATE_HZ))
        self._overlay(side, goal[index], index, amount)

    def _overlay(self, side: int, goal: Array, index: NDArray[np.int64], amount: Array) -> None:
        stronger = amount > self.weights[index, side]
        self.points[index[stronger], side] = goal[stronger]
        self.weights[index, side] = np.maximum(self.weights[index, side], amount)


def aimed(plan: Plan, joints: list[Array], blows: list[Blow], index: int) -> Plan:
    """The plan of fighter `index` with its hands and feet on the others.

    joints: (T, 17, 3) of every fighter, made without any aim.
    """
    hands = _Targets(plan.hands.copy(), plan.hands_weight.copy())
    feet = _Targets(plan.legs.copy(), plan.legs_weight.copy())
    for blow in blows:
        if blow.attacker == index:
            _attack(hands, feet, joints[index], joints[blow.victim], blow)
        elif blow.victim == index and blow.kind == "grapple":
            _grip(hands, joints[blow.attacker], blow)
    return replace(plan, hands=hands.points, hands_weight=hands.weights, legs=feet.points, legs_weight=feet.weights)


def _attack(hands: _Targets, feet: _Targets, own: Array, other: Array, blow: Blow) -> None:
    shoulders, hips = other[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1), other[:, [HIP_L, HIP_R]].mean(axis=1)
    chest = shoulders * 0.7 + hips * 0.3
    # The surface that is met lies a hand's breadth in front of the joints.
    back = unit((own[:, [SHOULDER_L, SHOULDER_R]].mean(axis=1) - chest) * (1, 1, 0.3)) * 0.09
    if blow.kind == "punch":
        goal = (chest if blow.how == "punch_body" else other[:, [EAR_L, EAR_R]].mean(axis=1)) + back
        if not blow.lands:
            goal = goal + np.array([0.0, 0.0, 0.14]) + back * 1.5
        hands.meet(blow.hand, goal, blow, before_s=0.15, after_s=0.20)
    elif blow.kind == "kick":
        target = other[:, [KNEE_L, KNEE_R]].mean(axis=1) * (1 - blow.force) + hips * blow.force
        feet.meet(blow.hand, target + back * 1.3, blow, before_s=0.30, after_s=0.36)
    elif blow.kind == "shove":
        for hand, shoulder in ((0, SHOULDER_R), (1, SHOULDER_L)):
            goal = other[:, shoulder] * 0.65 + chest * 0.35 + back * 0.8
            hands.meet(hand, goal, blow, before_s=0.22, after_s=0.30)
    else:
        _grip(hands, other + back[:, None] * 0.3, blow)


def _grip(hands: _Targets, other: Array, blow: Blow) -> None:
    """Both hands on the other's shoulders and upper arms."""
    for hand, shoulder, elbow in ((0, SHOULDER_R, ELBOW_R), (1, SHOULDER_L, ELBOW_L)):
        share = 0.15 + 0.35 * ((hand + blow.attacker) % 2)
        hands.hold(hand, other[:, shoulder] * (1 - share) + other[:, elbow] * share, blow)

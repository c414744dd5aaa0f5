"""People without a motion model: a mannequin, and a script of mannequins that stand or swing their limbs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.simulation.values import ActorState, Interval
from agent.types import FloatArray


def mannequin(x: float = 0.0, y: float = 0.0, *, turn: float = 0.0, swing: float = 0.0) -> FloatArray:
    """(17, 3) joints of somebody 1.75 m tall at (x, y), m. turn: rad, 0 = facing x; swing: rad, limbs apart."""
    joints = np.zeros((17, 3))
    joints[:5] = (
        (0.115, 0, 1.60), (0.09, 0.032, 1.635), (0.09, -0.032, 1.635), (0, 0.075, 1.62), (0, -0.075, 1.62),
    )  # fmt: skip
    for side, sign in ((0, 1), (1, -1)):
        angle = swing * sign
        joints[5 + side] = 0, 0.18 * sign, 1.42
        joints[7 + side] = joints[5 + side] + 0.29 * np.array([-np.sin(angle), 0.1 * sign, -np.cos(angle)])
        joints[9 + side] = joints[7 + side] + 0.26 * np.array([-np.sin(angle) + 0.3, 0, -0.95])
        joints[11 + side] = 0, 0.1 * sign, 0.93
        joints[13 + side] = joints[11 + side] + 0.43 * np.array([np.sin(angle), 0, -np.cos(angle)])
        joints[15 + side] = joints[13 + side] + 0.42 * np.array([np.sin(angle), 0, -np.cos(angle)])
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = joints @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]) + (x, y, 0)
    return turned.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Mannequins:
    """A `Script`: one mannequin per place (x, y, turn), ids from 1. pace: rad/s of their limbs, 0 = still."""

    places: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, -1.57),)
    pace: float = 0.0
    name: str = "mannequins"
    length_s: float = 2.0

    def actors(self, t_s: float) -> tuple[ActorState, ...]:
        """See `values.Script`."""
        swing = 0.4 * float(np.sin(self.pace * t_s))
        return tuple(
            ActorState(number, mannequin(x, y, turn=turn, swing=swing), "walk" if self.pace else "stand")
            for number, (x, y, turn) in enumerate(self.places, start=1)
        )

    def intervals(self, start_s: float, end_s: float) -> tuple[Interval, ...]:
        """See `values.Script`."""
        everybody = tuple(range(1, len(self.places) + 1))
        return (Interval("stand", start_s, end_s, everybody),) if everybody else ()

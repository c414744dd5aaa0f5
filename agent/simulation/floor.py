"""Nothing of a body is below the floor."""

from __future__ import annotations

import numpy as np

from agent.simulation.curves import envelope
from agent.simulation.skeleton import Array, Body, Lengths, joints_of

FLESH_M = np.array([
    0.02, 0.03, 0.03, 0.04, 0.04, 0.06, 0.06, 0.02, 0.02, 0.02, 0.02, 0.07, 0.07, 0.04, 0.04, 0.03, 0.03,
])  # fmt: skip
"""Least height of each key point over the floor: what lies between bone and floor."""


def above_floor(body: Body, root: Array, bones: Array) -> Array:
    """`root` (T, 3), raised smoothly where a key point of the pose `bones` (T, 13, 3) would be in the floor."""
    joints = joints_of(Lengths([body]).table[0][None], root, bones)
    lift = np.maximum((FLESH_M - joints[..., 2]).max(axis=1), 0)
    if not lift.any():
        return root
    raised = root.copy()
    raised[:, 2] += np.maximum(lift, envelope(lift, 0.04))
    return raised

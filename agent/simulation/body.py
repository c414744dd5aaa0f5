"""From joints to a body: which solids make a person, and where they are at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.simulation.camera import Array
from agent.simulation.raster import Solids, cross, unit_rows
from agent.types import FloatArray, IntArray

SHOULDERS, HIPS, NECK, HEAD, WAIST, KNEES = range(17, 23)
"""Points beyond the 17 joints: middles of the shoulders and hips, base of the neck, centre of the head, waist, middle of
the knees."""
CHEST, PELVIS, SKULL, LEFT_FOOT, RIGHT_FOOT, LEFT_ARM, RIGHT_ARM = range(7)
"""Frames (rows left, front, up) that offsets and flat solids are given in."""
LEG_M = 0.86
"""Thigh and shin of the person that all measures are given for (about 1.75 m tall)."""


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """K solids of a person of standard size, measures in m.

    start, end: (K,) int64 indices of joints or points; start_offset, end_offset: (K, 3) from there, in the frame
    `frame` (K,) int64. capsule: (K,) bool. radii: (K, 3) along left, front, up; taper: (K,).
    span: (K, 2) shares of half the distance between the shoulders and between the hips that widen the left radius.
    """

    start: IntArray
    start_offset: FloatArray
    end: IntArray
    end_offset: FloatArray
    frame: IntArray
    radii: FloatArray
    taper: FloatArray
    span: FloatArray

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def join(cls, parts: list[Anatomy]) -> Anatomy:
        """All of them in one, in order; at least one."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


def pose(body: Anatomy, owner: IntArray, joints: FloatArray, drift: FloatArray) -> Solids:
    """The solids of A people.

    body: of all of them in order, K solids; owner: (K,) int64 rows of `joints`, rising; joints: (A, 17, 3) m, world;
    drift: (A, 17, 3) m, how far they move during the exposure.
    """
    count = len(joints)
    points, frames, size = _landmarks(np.concatenate([joints, joints + drift]))
    flat_points, flat_frames = points[:count].reshape(-1, 3), frames[:count].reshape(-1, 3, 3)
    moved = points[count:].reshape(-1, 3) - flat_points
    per_person, scale = points.shape[1], size.take(owner)
    axes = flat_frames[owner * frames.shape[1] + body.frame]
    start_index, end_index = owner * per_person + body.start, owner * per_person + body.end
    start = flat_points[start_index] + np.einsum("ki,kij->kj", body.start_offset * scale[:, None], axes)
    end = flat_points[end_index] + np.einsum("ki,kij->kj", body.end_offset * scale[:, None], axes)
    radii = body.radii * scale[:, None]
    radii[:, 0] += np.einsum("ki,ki->k", body.span, _half_widths(joints)[owner])
    capsule = np.any(start != end, axis=1)
    return Solids(
        start=start,
        end=end,
        axes=np.where(capsule[:, None, None], _along(axes, end - start), axes).astype(np.float32),
        radii=radii.astype(np.float32),
        taper=body.taper,
        drift_start=moved[start_index],
        drift_end=moved[end_index],
        owner=owner,
    )


def _half_widths(joints: Array) -> Array:
    """(A, 2) half distances between the shoulders and between the hips, m."""
    shoulders = np.linalg.norm(joints[:, 5] - joints[:, 6], axis=1) / 2
    hips = np.linalg.norm(joints[:, 11] - joints[:, 12], axis=1) / 2
    return np.stack([shoulders, hips], axis=1)


def _landmarks(joints: Array) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(A, 23, 3) points, (A, 7, 3, 3) frames, (A,) size relative to the standard person."""
    legs = joints[:, [11, 12, 13, 14]] - joints[:, [13, 14, 15, 16]]
    size = np.clip(np.sqrt(np.sum(legs * legs, axis=2)).sum(axis=1) / (2 * LEG_M), 0.5, 1.3).astype(np.float32)
    shoulders, hips = (joints[:, 5] + joints[:, 6]) / 2, (joints[:, 11] + joints[:, 12]) / 2
    spine = unit_rows(shoulders - hips)
    chest = _frame(spine, joints[:, 5] - joints[:, 6])
    pelvis = _frame(spine, joints[:, 11] - joints[:, 12])
    ears = (joints[:, 3] + joints[:, 4]) / 2
    eyes = (joints[:, 1] + joints[:, 2]) / 2
    face = (joints[:, 0] + eyes) / 2 - ears
    left = joints[:, 3] - joints[:, 4]
    skull = _frame(cross(face, left), left)
    head = ears + (skull[:, 1] * 0.012 + skull[:, 2] * 0.012) * size[:, None]
    neck = shoulders + spine * 0.02 * size[:, None]
    waist = hips + (shoulders - hips) * 0.36
    knees = (joints[:, 13] + joints[:, 14]) / 2
    points = np.concatenate([joints, np.stack([shoulders, hips, neck, head, waist, knees], axis=1)], axis=1)
    frames = np.stack([
        chest, pelvis, skull,
        _foot(joints[:, 13], joints[:, 15], pelvis), _foot(joints[:, 14], joints[:, 16], pelvis),
        _frame(joints[:, 7] - joints[:, 9], chest[:, 1]), _frame(joints[:, 8] - joints[:, 10], chest[:, 1]),
    ], axis=1)  # fmt: skip
    return points.astype(np.float32), frames.astype(np.float32), size


def _foot(knee: Array, ankle: Array, pelvis: Array) -> Array:
    """Up along the shin, toes as far to the front of the pelvis as that allows."""
    up = unit_rows(knee - ankle)
    front = pelvis[:, 1] + 0.25 * up  # a shin that points to the front has its toes up
    return _frame(up, cross(up, front))


def _frame(up: Array, left: Array) -> Array:
    """(A, 3) up and roughly left -> (A, 3, 3) orthonormal rows left, front, up."""
    up = unit_rows(up)
    left = unit_rows(left - np.einsum("ai,ai->a", left, up)[:, None] * up)
    return np.stack([left, cross(left, up), up], axis=1)


def _along(axes: Array, direction: Array) -> Array:
    """Frames turned so that `up` is `direction` and left stays as near as it can."""
    up = unit_rows(direction)
    left = axes[:, 0] - np.einsum("ai,ai->a", axes[:, 0], up)[:, None] * up
    weak = np.einsum("ai,ai->a", left, left)[:, None] < 0.04
    front = axes[:, 1] - np.einsum("ai,ai->a", axes[:, 1], up)[:, None] * up
    left = unit_rows(np.where(weak, cross(up, front), left))
    return np.stack([left, cross(left, up), up], axis=1)

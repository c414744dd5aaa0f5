"""The body as unit directions of its bones: any pose fits any body, and bone lengths are exact by construction.

A pose is the middle of the hips (metres) and `NUM_BONES` unit vectors. Blending two poses means blending the vectors and
making them unit again; joints come out by walking along the bones with the lengths of the body at hand.

Local frame of a person: x forward, y to the left, z up; the world frame is that of `agent.simulation.values`.
All functions take any leading shape and return float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.types import NUM_KEYPOINTS

Array = NDArray[np.float64]

(
    HIP_AXIS,
    SPINE,
    SHOULDER_AXIS,
    HEAD_UP,
    FACE,
    ARM_L,
    ARM_R,
    FOREARM_L,
    FOREARM_R,
    THIGH_L,
    THIGH_R,
    SHANK_L,
    SHANK_R,
) = range(13)
NUM_BONES = 13
"""Rows of a pose. The axes point from right to left, FACE out of the face, the limbs away from the trunk."""

UPPER = slice(0, 9)
"""The bones above the hips."""
LEGS = slice(9, 13)
MIRROR = np.array(
    [
        HIP_AXIS,
        SPINE,
        SHOULDER_AXIS,
        HEAD_UP,
        FACE,
        ARM_R,
        ARM_L,
        FOREARM_R,
        FOREARM_L,
        THIGH_R,
        THIGH_L,
        SHANK_R,
        SHANK_L,
    ]
)

NOSE, EYE_L, EYE_R, EAR_L, EAR_R, SHOULDER_L, SHOULDER_R, ELBOW_L, ELBOW_R, WRIST_L, WRIST_R = range(11)
HIP_L, HIP_R, KNEE_L, KNEE_R, ANKLE_L, ANKLE_R = range(11, 17)

STANDING_RATIO = 0.996
"""Hip to ankle of somebody who stands, over the length of the leg: knees are never locked."""


@dataclass(frozen=True, slots=True)
class Body:
    """Proportions of one person, metres.

    ankle: height of the ankle joint above the sole; neck: middle of the shoulders to middle of the ears.
    """

    height: float
    hip_width: float
    spine: float
    shoulder_width: float
    neck: float
    upper_arm: float
    forearm: float
    thigh: float
    shank: float
    ankle: float

    @property
    def leg(self) -> float:
        """Hip to ankle with the knee straight."""
        return self.thigh + self.shank

    @property
    def arm(self) -> float:
        """Shoulder to wrist with the elbow straight."""
        return self.upper_arm + self.forearm

    @property
    def hip_height(self) -> float:
        """Of the hip joints above the floor when standing."""
        return self.leg * STANDING_RATIO + self.ankle


# Shares of the standing height: Winter, Biomechanics and Motor Control of Human Movement (2009), figure 4.1, with hip and
# shoulder breadths between joint centres as the captured skeletons have them.
_SHARES = {
    "hip_width": 0.105, "spine": 0.288, "shoulder_width": 0.215, "neck": 0.115, "upper_arm": 0.176, "forearm": 0.150,
    "thigh": 0.245, "shank": 0.246, "ankle": 0.045,
}  # fmt: skip


def average_body(height: float = 1.72) -> Body:
    """The body with every share at its mean."""
    return Body(height=height, **{name: share * height for name, share in _SHARES.items()})


def random_body(rng: np.random.Generator, *, child: bool = False) -> Body:
    """An adult of 1.50-1.95 m, or a child of 1.05-1.40 m; limbs vary by 4 % each, breadths by 8 %."""
    height = rng.uniform(1.05, 1.40) if child else float(np.clip(rng.normal(1.71, 0.10), 1.50, 1.95))
    shares = {}
    for name, share in _SHARES.items():
        spread = 0.08 if name.endswith("width") else 0.04
        shares[name] = height * share * float(np.clip(rng.normal(1, spread / 2), 1 - spread, 1 + spread))
    if child:  # the head is larger, the legs are shorter
        shares["neck"] *= 1.25
        shares["thigh"] *= 0.95
        shares["shank"] *= 0.95
    return Body(height=height, **shares)


def unit(vectors: Array) -> Array:
    """Vectors of length 1 along the last axis; (0, 0, 0) stays what it is."""
    return np.asarray(vectors / np.maximum(np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True)), 1e-9))


def blend(first: Array, second: Array, weight: Array | float) -> Array:
    """Poses between `first` (weight 0) and `second` (weight 1). poses: (..., N, 3); weight: (...) or a number."""
    share = np.asarray(weight, dtype=np.float64)[..., None, None]
    return unit(first + (second - first) * share)


def mirrored(bones: Array) -> Array:
    """The same pose with left and right exchanged, in the local frame. bones: (..., NUM_BONES, 3)."""
    flipped: Array = bones[..., MIRROR, :] * (1.0, -1.0, 1.0)
    flipped[..., (HIP_AXIS, SHOULDER_AXIS), :] *= -1.0
    return flipped


def turned(vectors: Array, angle: Array | float) -> Array:
    """Vectors turned about z. vectors: (..., N, 3); angle: (...) radians, anticlockwise from above."""
    angle = np.asarray(angle, dtype=np.float64)[..., None]
    c, s = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([c * x - s * y, s * x + c * y, np.broadcast_to(vectors[..., 2], (c * x).shape)], axis=-1)


class Lengths:
    """Bone lengths of P bodies, ready for `joints_of`. scale: (P, 10) metres."""

    __slots__ = ("table",)

    def __init__(self, bodies: list[Body]) -> None:
        self.table: Array = np.array([
            [b.hip_width / 2, b.spine, b.shoulder_width / 2, b.neck, b.height * 0.056, b.upper_arm, b.forearm, b.thigh, b.shank]
            for b in bodies
        ], dtype=np.float64)  # fmt: skip


def joints_of(lengths: Array, root: Array, bones: Array) -> Array:
    """COCO key points. lengths: (..., 9) rows of `Lengths.table`; root: (..., 3) middle of the hips; bones: (..., 13, 3).

    Returns (..., 17, 3) metres. The face is a rigid mask on the head: nose, eyes, ears.
    """
    out = np.empty((*root.shape[:-1], NUM_KEYPOINTS, 3))
    size = lengths[..., None]
    half_hip = bones[..., HIP_AXIS, :] * size[..., 0, :]
    out[..., HIP_L, :] = root + half_hip
    out[..., HIP_R, :] = root - half_hip
    chest = root + bones[..., SPINE, :] * size[..., 1, :]
    half_shoulder = bones[..., SHOULDER_AXIS, :] * size[..., 2, :]
    out[..., SHOULDER_L, :] = chest + half_shoulder
    out[..., SHOULDER_R, :] = chest - half_shoulder
    arms = bones[..., ARM_L : ARM_R + 1, :] * lengths[..., None, 5:6]
    out[..., ELBOW_L : ELBOW_R + 1, :] = out[..., SHOULDER_L : SHOULDER_R + 1, :] + arms
    out[..., WRIST_L : WRIST_R + 1, :] = (
        out[..., ELBOW_L : ELBOW_R + 1, :] + bones[..., FOREARM_L : FOREARM_R + 1, :] * lengths[..., None, 6:7]
    )
    out[..., KNEE_L : KNEE_R + 1, :] = (
        out[..., HIP_L : HIP_R + 1, :] + bones[..., THIGH_L : THIGH_R + 1, :] * lengths[..., None, 7:8]
    )
    out[..., ANKLE_L : ANKLE_R + 1, :] = (
        out[..., KNEE_L : KNEE_R + 1, :] + bones[..., SHANK_L : SHANK_R + 1, :] * lengths[..., None, 8:9]
    )
    _put_face(out, chest, size, bones)
    return out


def _put_face(out: Array, chest: Array, size: Array, bones: Array) -> None:
    """Nose, eyes and ears: shares of the ear-to-nose distance from anthropometric means."""
    upwards = bones[..., HEAD_UP, :]
    middle = chest + upwards * size[..., 3, :]
    depth = size[..., 4, :]
    forward = bones[..., FACE, :]
    forward = unit(forward - upwards * (forward * upwards).sum(axis=-1, keepdims=True) * 0.999)
    left = cross(upwards, forward)
    out[..., NOSE, :] = middle + forward * depth * 1.15 - upwards * depth * 0.10
    eyes = middle + forward * depth * 0.88 + upwards * depth * 0.28
    out[..., EYE_L, :] = eyes + left * depth * 0.34
    out[..., EYE_R, :] = eyes - left * depth * 0.34
    out[..., EAR_L, :] = middle + left * depth * 0.78
    out[..., EAR_R, :] = middle - left * depth * 0.78


def cross(a: Array, b: Array) -> Array:
    """Cross product along the last axis; several times as fast as `np.cross` on small arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def two_bone(start: Array, target: Array, pole: Array, upper: float, lower: float) -> tuple[Array, Array]:
    """Directions of two bones that lead from `start` towards `target`, bent towards `pole` (law of cosines).

    start, target: (..., 3) points; pole: (..., 3) direction in which the middle joint goes; a target out of reach is
    pointed at. Returns the unit directions of the upper and the lower bone.
    """
    reach = target - start
    distance = np.sqrt((reach * reach).sum(axis=-1, keepdims=True))
    axis = reach / np.maximum(distance, 1e-9)
    distance = np.clip(distance, abs(upper - lower) * 1.02 + 1e-6, (upper + lower) * 0.9995)
    side = unit(pole - axis * (pole * axis).sum(axis=-1, keepdims=True))
    cosine = np.clip((upper**2 + distance**2 - lower**2) / (2 * upper * distance), -1.0, 1.0)
    first = axis * cosine + side * np.sqrt(1.0 - cosine**2)
    return first, unit(axis * distance - first * upper)


def unhurried(bones: Array, limit_rad: float) -> Array:
    """(T, N, 3) bones of which none turns by more than `limit_rad` from one frame to the next: quicker ones lag behind.

    Blends between nearly opposite directions would flip within a frame; joints have no such speed.
    """
    cosine = np.cos(limit_rad)
    quick = (bones[1:] * bones[:-1]).sum(axis=-1) < cosine
    if not quick.any():
        return bones
    out = bones.copy()
    for bone in np.flatnonzero(quick.any(axis=0)):
        track = out[:, bone]
        starts = np.flatnonzero(quick[:, bone]) + 1
        done = 0
        for start in starts:
            now = max(int(start), done)
            while now < len(track) and float(track[now - 1] @ track[now]) < cosine:
                track[now] = _turned_by(track[now - 1], track[now], limit_rad)
                now += 1
            done = now
    return out


def _turned_by(first: Array, goal: Array, angle: float) -> Array:
    """`first` turned towards `goal` by `angle`; both (3,) unit vectors."""
    side = goal - first * float(first @ goal)
    size = float(np.sqrt(side @ side))
    if size < 1e-4:  # opposite: any way round is right
        side = np.array([-first[1], first[0], 0.0]) if abs(first[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
        side = side - first * float(first @ side)
        size = float(np.sqrt(side @ side))
    return np.asarray(first * np.cos(angle) + side / size * np.sin(angle))


def bones_of(joints: Array) -> tuple[Array, Array]:
    """The inverse of `joints_of`, for any body: (root (..., 3), bones (..., 13, 3)) of COCO key points (..., 17, 3)."""
    root = (joints[..., HIP_L, :] + joints[..., HIP_R, :]) / 2
    chest = (joints[..., SHOULDER_L, :] + joints[..., SHOULDER_R, :]) / 2
    ears = (joints[..., EAR_L, :] + joints[..., EAR_R, :]) / 2
    rows = [
        joints[..., HIP_L, :] - joints[..., HIP_R, :], chest - root,
        joints[..., SHOULDER_L, :] - joints[..., SHOULDER_R, :], ears - chest,
        cross(joints[..., EAR_L, :] - joints[..., EAR_R, :], ears - chest),
        joints[..., ELBOW_L, :] - joints[..., SHOULDER_L, :], joints[..., ELBOW_R, :] - joints[..., SHOULDER_R, :],
        joints[..., WRIST_L, :] - joints[..., ELBOW_L, :], joints[..., WRIST_R, :] - joints[..., ELBOW_R, :],
        joints[..., KNEE_L, :] - joints[..., HIP_L, :], joints[..., KNEE_R, :] - joints[..., HIP_R, :],
        joints[..., ANKLE_L, :] - joints[..., KNEE_L, :], joints[..., ANKLE_R, :] - joints[..., KNEE_R, :],
    ]  # fmt: skip
    return root, unit(np.stack(rows, axis=-2))

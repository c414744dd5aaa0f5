"""Soft shadows that people cast on the floor."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.simulation.camera import Camera
from agent.types import FloatArray, ImageArray

_SHRINK = 4
"""Shadows are soft: they are drawn this many times smaller."""
_LIMBS = (
    (5, 7, 0.05), (7, 9, 0.045), (6, 8, 0.05), (8, 10, 0.045), (11, 13, 0.075), (13, 15, 0.06), (12, 14, 0.075),
    (14, 16, 0.06), (3, 4, 0.11), (5, 6, 0.08), (11, 12, 0.11), (5, 11, 0.10), (6, 12, 0.10),
)  # fmt: skip
"""Joints and half width, m."""
_CONTACT_M = 0.5
"""What is lower than this darkens the floor straight below it, whatever the light."""
_MOST_M = 6.0
"""A low light throws no longer shadow than this."""


def cast_shadows(
    image: ImageArray, floor: ImageArray, joints: FloatArray, toward: FloatArray, *, strength: float, camera: Camera
) -> None:
    """Darken `image` ((H, W, 3) uint8, changed in place) where `floor` ((H, W) uint8, 255 = floor) lies in shadow.

    joints: (A, 17, 3) m; toward: (3,) unit vector to the light; strength: 0-1 share of the light that is missing.
    """
    height, width = image.shape[:2]
    mask = np.zeros((-(-height // _SHRINK), -(-width // _SHRINK)), np.uint8)
    _draw_limbs(mask, _on_floor(joints, toward), camera, widen=1.0, value=round(255 * strength))
    contact = np.zeros_like(mask)
    low = joints[..., 2] < _CONTACT_M
    _draw_limbs(contact, joints * np.array([1, 1, 0], np.float32), camera, widen=1.5, value=120, chosen=low)
    mask = cv2.max(cv2.GaussianBlur(mask, (0, 0), 1.3), cv2.GaussianBlur(contact, (0, 0), 1.6))
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return
    rows = slice(y * _SHRINK, min((y + h) * _SHRINK, height))
    columns = slice(x * _SHRINK, min((x + w) * _SHRINK, width))
    region = image[rows, columns]
    big = cv2.resize(mask[y : y + h, x : x + w], (w * _SHRINK, h * _SHRINK), interpolation=cv2.INTER_LINEAR)
    big = big[: region.shape[0], : region.shape[1]]
    kept = cv2.subtract(255, cv2.multiply(big, floor[rows, columns], scale=1 / 255))
    cv2.multiply(region, cv2.merge((kept, kept, kept)), dst=region, scale=1 / 255)
    image[rows, columns] = region


def _on_floor(joints: FloatArray, toward: FloatArray) -> FloatArray:
    """(A, 17, 3) joints moved along the light down to z = 0."""
    slope = toward[:2] / max(float(toward[2]), 0.15)
    offset = joints[..., 2:] * slope
    length = np.linalg.norm(offset, axis=-1, keepdims=True)
    offset *= np.minimum(1, _MOST_M / np.maximum(length, 1e-6))
    return np.concatenate([joints[..., :2] - offset, np.zeros_like(joints[..., :1])], axis=-1).astype(np.float32)


def _draw_limbs(
    mask: ImageArray,
    points: FloatArray,
    camera: Camera,
    *,
    widen: float,
    value: int,
    chosen: NDArray[np.bool_] | None = None,
) -> None:
    """Lines between the joints; with `chosen` ((A, 17)) only those whose both ends are."""
    pixels, depth = camera.project(points)
    pixels = np.clip(pixels * (16 / _SHRINK), -30_000, 30_000).astype(np.int64)
    for person in range(len(points)):
        for start, end, half_m in _LIMBS:
            nearest = float(min(depth[person, start], depth[person, end]))
            if nearest < 0.5 or (chosen is not None and not (chosen[person, start] and chosen[person, end])):
                continue
            thickness = max(1, round(2 * half_m * widen * camera.focal_px / nearest / _SHRINK))
            cv2.line(
                mask, pixels[person, start].tolist(), pixels[person, end].tolist(), value, thickness, cv2.LINE_AA, 4
            )

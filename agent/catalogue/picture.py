"""A drawn scene with people, the same on every machine: something to compare a pose model's answers on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.types import ImageArray

_BODY = {
    "head": (0.0, -0.86), "neck": (0.0, -0.68), "hip": (0.0, -0.06),
    "left_elbow": (0.26, -0.40), "left_hand": (0.30, -0.10), "right_elbow": (-0.24, -0.44), "right_hand": (-0.38, -0.22),
    "left_knee": (0.14, 0.44), "left_foot": (0.20, 0.96), "right_knee": (-0.13, 0.46), "right_foot": (-0.24, 0.94),
}  # fmt: skip
"""Joints of somebody who walks, in half body heights from the middle."""
_LIMBS = (
    ("hip", "right_knee", "right_foot"), ("neck", "right_elbow", "right_hand"), ("hip", "left_knee", "left_foot"),
    ("neck", "left_elbow", "left_hand"),
)  # fmt: skip
_PEOPLE = ((0.22, 0.52, 0.30, (150, 70, 40)), (0.50, 0.56, 0.36, (60, 60, 160)), (0.78, 0.48, 0.22, (70, 120, 60)))
"""Middle x and y and half height as shares of the picture, colour of the clothes (BGR)."""
_SKIN, _TROUSERS = (140, 165, 205), (70, 55, 50)


def drawn_people(height: int, width: int) -> ImageArray:
    """(height, width, 3) uint8 BGR: three people of different sizes on a street without anything else."""
    import cv2

    rows = np.linspace(0, 1, height)[:, None, None]
    canvas = np.where(rows < 0.45, (205, 190, 175) + 30 * rows, (120, 125, 125) - 40 * (rows - 0.45))
    image = np.ascontiguousarray(np.broadcast_to(canvas, (height, width, 3)).astype(np.uint8))
    for x, y, half, clothes in _PEOPLE:
        _draw_person(image, (x * width, y * height), half * height, clothes)
    blurred: ImageArray = cv2.GaussianBlur(image, (3, 3), 0.8)
    return blurred


def _draw_person(
    image: NDArray[Any], middle: tuple[float, float], half_px: float, clothes: tuple[int, int, int]
) -> None:
    import cv2

    def at(joint: str) -> tuple[int, int]:
        x, y = _BODY[joint]
        return round(middle[0] + x * half_px), round(middle[1] + y * half_px)

    thick = max(2, round(0.13 * half_px))
    for start, bend, end in _LIMBS:
        colour = _TROUSERS if start == "hip" else clothes
        cv2.line(image, at(start), at(bend), colour, thick, cv2.LINE_AA)
        cv2.line(image, at(bend), at(end), colour, max(2, round(0.8 * thick)), cv2.LINE_AA)
        cv2.circle(image, at(end), max(2, thick // 2), _SKIN if start == "neck" else (30, 30, 30), -1, cv2.LINE_AA)
    cv2.line(image, at("neck"), at("hip"), clothes, round(2.4 * thick), cv2.LINE_AA)
    cv2.circle(image, at("head"), round(0.13 * half_px), _SKIN, -1, cv2.LINE_AA)

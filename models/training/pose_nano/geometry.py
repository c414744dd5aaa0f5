"""Facts that network, targets and decoder share. A leaf module."""

from __future__ import annotations

import numpy as np

STRIDE = 8
"""Input px per cell of the maps of people."""
POINT_STRIDE = 4
"""Input px per cell of the maps of key points. Of a person of 34 px (square root of the box area) an eye that is 2 px off has an
OKS of 0.5, so cells of 8 px are too coarse."""
CANVAS = (480, 640)
"""(H, W) px of the network's input unless told otherwise: most cameras' pictures as they are, within 20 ms on two cores in 8 bits."""
TRAINED_AT = (448, 608)
"""(H, W) px of the input on which people have the size that they are trained at."""
OKS_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089], np.float32
)  # fmt: skip
"""Fall-off of COCO's object key-point similarity; OKS = exp(-d^2 / (2 s^2 (2 sigma)^2)), s^2 the person's area."""


LARGEST_STRIDE = 32
"""Sides of what the network sees are multiples of it."""


def size_of(text: str) -> tuple[int, int]:
    """`448x608` -> (448, 608), H and W. Raises ValueError."""
    height, _, width = text.partition("x")
    return checked_size((int(height), int(width)))


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """`size` (H, W), if the network can see it. Raises ValueError."""
    if any(side <= 0 or side % LARGEST_STRIDE for side in size):
        raise ValueError(f"{size[0]}x{size[1]}: sides are multiples of {LARGEST_STRIDE}")
    return size

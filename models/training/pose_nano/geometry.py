"""Facts that network, targets and decoder share. A leaf module."""

from __future__ import annotations

import numpy as np

STRIDE = 8
"""Input px per cell of the maps of people."""
POINT_STRIDE = 4
"""Input px per cell of the maps of key points. Of a person of 34 px (square root of the box area) an eye that is 2 px off has an
OKS of 0.5, so cells of 8 px are too coarse."""
CANVAS = (448, 608)
"""(H, W) px of the network's input unless told otherwise: as large as 20 ms on two cores allow in FP32, and a 4:3 picture all but
fills it."""
OKS_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089], np.float32
)  # fmt: skip
"""Fall-off of COCO's object key-point similarity; OKS = exp(-d^2 / (2 s^2 (2 sigma)^2)), s^2 the person's area."""


def size_of(text: str) -> tuple[int, int]:
    """`448x608` -> (448, 608), H and W. Raises ValueError."""
    height, _, width = text.partition("x")
    return int(height), int(width)

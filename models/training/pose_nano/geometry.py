"""Facts that network, targets and decoder share. A leaf module."""

from __future__ import annotations

import numpy as np

STRIDE = 8
"""Input px per cell of the maps of people."""
POINT_STRIDE = 4
"""Input px per cell of the maps of key points: an eye is 2 px from where it may be off for a half of OKS."""
OKS_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089], np.float32
)  # fmt: skip
"""Fall-off of COCO's object key-point similarity; OKS = exp(-d^2 / (2 s^2 (2 sigma)^2)), s^2 the person's area."""

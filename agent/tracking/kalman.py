"""Constant-velocity Kalman filter of boxes, for all tracks at once.

The filter is the one of DeepSORT and ByteTrack: the state is centre x, centre y, aspect ratio a = w / h and height h
with their velocities, per frame; noise grows with the height. Motion and measurement couple each coordinate only to
its own velocity, and every noise matrix is diagonal, so the 8x8 covariance consists of four independent 2x2 blocks for
ever. Here only those blocks are kept: plain element-wise arithmetic takes the place of matrix products and a Cholesky
solve, with the same result (a test holds it against the dense filter).

A state array has the shape (5, 4, N) float64: five rows (see the constants) of the coordinates x, y, a, h, each
contiguous over the tracks, so that every step is a handful of vector operations whatever N is. Boxes are (4, N) here.

Source: Wojke et al., Simple Online and Realtime Tracking with a Deep Association Metric, 2017.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POSITION, VELOCITY, VAR_POSITION, COVARIANCE, VAR_VELOCITY = range(5)
"""Rows of a state: mean, mean velocity, variance, covariance with the velocity, variance of the velocity."""

_ASPECT = 2
_HEIGHT = 3


class _Noise(NamedTuple):
    """A variance of each coordinate: slope (..., 4, 1) * height^2 + constant (..., 4, 1)."""

    slope: Floats
    constant: Floats

    def at(self, height2: Floats) -> Floats:
        """(..., 4, N) variances for the squared heights (N,)."""
        variance: Floats = self.slope * height2
        variance += self.constant
        return variance


def _noise(weight: float, aspect_std: float) -> _Noise:
    """Standard deviation weight * height for x, y and h; aspect_std for the aspect ratio."""
    slope = np.full((4, 1), weight**2)
    slope[_ASPECT] = 0.0
    constant = np.zeros((4, 1))
    constant[_ASPECT] = aspect_std**2
    return _Noise(slope, constant)


_POSITION_WEIGHT = 1 / 20
_VELOCITY_WEIGHT = 1 / 160
_START_POSITION = _noise(2 * _POSITION_WEIGHT, 1e-2)
_START_VELOCITY = _noise(10 * _VELOCITY_WEIGHT, 1e-5)
_MEASUREMENT = _noise(_POSITION_WEIGHT, 1e-1)
_MOTION = _Noise(
    *(
        np.stack((position, np.zeros((4, 1)), velocity))
        for position, velocity in zip(_noise(_POSITION_WEIGHT, 1e-2), _noise(_VELOCITY_WEIGHT, 1e-5), strict=True)
    )
)
"""Of one frame of motion, for the last three rows of a state."""

_STEP = np.array(
    [
        [1.0, 1.0, 0.0, 0.0, 0.0],  # position + velocity
        [0.0, 1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 2.0, 1.0],  # F P F' of a 2x2 block, row by row
        [0.0, 0.0, 0.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
)
"""One frame of motion: linear in the five rows of a state."""


def initiate(xyah: Floats) -> Floats:
    """States (5, 4, N) of new tracks at the measured boxes xyah (4, N), at rest."""
    height2 = np.square(xyah[_HEIGHT])
    state = np.zeros((5, *xyah.shape))
    state[POSITION] = xyah
    state[VAR_POSITION] = _START_POSITION.at(height2)
    state[VAR_VELOCITY] = _START_VELOCITY.at(height2)
    return state


def predict(state: Floats, lost: NDArray[np.bool_]) -> Floats:
    """States (5, 4, N) one frame later; tracks that are lost (N,) stop growing or shrinking."""
    before = state[POSITION, _HEIGHT]
    after = (_STEP @ state.reshape(5, -1)).reshape(state.shape)
    after[VAR_POSITION:] += _MOTION.at(np.square(before))
    after[VELOCITY, _HEIGHT] = np.where(lost, 0.0, state[VELOCITY, _HEIGHT])
    after[POSITION, _HEIGHT] = before + after[VELOCITY, _HEIGHT]
    return after


def correct(state: Floats, xyah: Floats) -> Floats:
    """Predicted states (5, 4, N) corrected by the measured boxes xyah (4, N)."""
    spread = _MEASUREMENT.at(np.square(state[POSITION, _HEIGHT]))
    spread += state[VAR_POSITION]
    covariances = state[VAR_POSITION : COVARIANCE + 1]
    gain = covariances / spread  # of the position, of the velocity
    after = state.copy()
    after[: VELOCITY + 1] += gain * (xyah - state[POSITION])
    after[VAR_POSITION : COVARIANCE + 1] -= gain[0] * covariances
    after[VAR_VELOCITY] -= gain[1] * state[COVARIANCE]
    return after


def to_xyxy(state: Floats) -> Floats:
    """Boxes (4, N) xyxy px of the states (5, 4, N)."""
    position: Floats = state[POSITION]
    half = position[_ASPECT:] * 0.5
    half[0] *= position[_HEIGHT]
    boxes = np.empty_like(position)
    np.subtract(position[:2], half, out=boxes[:2])
    np.add(position[:2], half, out=boxes[2:])
    return boxes


def to_xyah(boxes: Floats) -> Floats:
    """Boxes (4, N) xyxy px of positive size as measurements (4, N): centre x, centre y, w / h, h."""
    xyah = np.empty_like(boxes)
    size = xyah[2:]
    np.subtract(boxes[2:], boxes[:2], out=size)
    np.add(boxes[:2], size * 0.5, out=xyah[:2])
    xyah[_ASPECT] /= xyah[_HEIGHT]
    return xyah

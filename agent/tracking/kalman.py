"""Constant-velocity Kalman filter of boxes, for all tracks at once.

The filter is the one of DeepSORT and ByteTrack: the state is centre x, centre y, aspect ratio a = w / h and height h
with their velocities, per frame; noise grows with the height. Motion and measurement couple each coordinate only to
its own velocity, and every noise matrix is diagonal, so the 8x8 covariance consists of four independent 2x2 blocks for
ever. Here only those blocks are kept: plain element-wise arithmetic takes the place of matrix products and a Cholesky
solve, with the same result (a test holds it against the dense filter).

A state array has the shape (N, 5, 4) float64: five rows (see the constants) of the coordinates x, y, a, h.

Source: Wojke et al., Simple Online and Realtime Tracking with a Deep Association Metric, 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POSITION, VELOCITY, VAR_POSITION, COVARIANCE, VAR_VELOCITY = range(5)
"""Rows of a state: mean, mean velocity, variance, covariance with the velocity, variance of the velocity."""

_POSITION_WEIGHT = 1 / 20
_VELOCITY_WEIGHT = 1 / 160
_ASPECT = 2
_HEIGHT = 3
_SCALED = np.array([1.0, 1.0, 0.0, 1.0])
"""Which coordinates have noise in proportion to the height; the aspect ratio has constant noise."""
_ASPECT_ONLY = 1.0 - _SCALED


def _variance(height: Floats, weight: float, aspect_std: float) -> Floats:
    """(N,) heights -> (N, 4) variances: (weight * height)^2, for the aspect ratio aspect_std^2."""
    return np.square(weight * height)[:, None] * _SCALED + aspect_std**2 * _ASPECT_ONLY


def initiate(xyah: Floats) -> Floats:
    """States (N, 5, 4) of new tracks at the measured boxes xyah (N, 4), at rest."""
    height = xyah[:, _HEIGHT]
    state = np.zeros((len(xyah), 5, 4))
    state[:, POSITION] = xyah
    state[:, VAR_POSITION] = _variance(height, 2 * _POSITION_WEIGHT, 1e-2)
    state[:, VAR_VELOCITY] = _variance(height, 10 * _VELOCITY_WEIGHT, 1e-5)
    return state


def predict(state: Floats, lost: NDArray[np.bool_]) -> Floats:
    """States (N, 5, 4) one frame later; tracks that are lost (N,) stop growing or shrinking."""
    height = state[:, POSITION, _HEIGHT]
    after = state.copy()
    after[lost, VELOCITY, _HEIGHT] = 0.0
    after[:, POSITION] += after[:, VELOCITY]
    after[:, VAR_POSITION] += 2 * state[:, COVARIANCE] + state[:, VAR_VELOCITY]
    after[:, VAR_POSITION] += _variance(height, _POSITION_WEIGHT, 1e-2)
    after[:, COVARIANCE] += state[:, VAR_VELOCITY]
    after[:, VAR_VELOCITY] += _variance(height, _VELOCITY_WEIGHT, 1e-5)
    return after


def correct(state: Floats, xyah: Floats) -> Floats:
    """Predicted states (N, 5, 4) corrected by the measured boxes xyah (N, 4)."""
    variance = state[:, VAR_POSITION]
    covariance = state[:, COVARIANCE]
    innovation_variance = variance + _variance(state[:, POSITION, _HEIGHT], _POSITION_WEIGHT, 1e-1)
    gain = variance / innovation_variance
    gain_velocity = covariance / innovation_variance
    innovation = xyah - state[:, POSITION]
    after = state.copy()
    after[:, POSITION] += gain * innovation
    after[:, VELOCITY] += gain_velocity * innovation
    after[:, VAR_POSITION] -= gain * variance
    after[:, COVARIANCE] -= gain * covariance
    after[:, VAR_VELOCITY] -= gain_velocity * covariance
    return after


def to_xyxy(state: Floats) -> Floats:
    """Boxes (N, 4) xyxy px of the states (N, 5, 4)."""
    position = state[:, POSITION]
    height = position[:, _HEIGHT]
    half = np.empty((len(state), 2))
    half[:, 0] = position[:, _ASPECT] * height
    half[:, 1] = height
    half *= 0.5
    centre = position[:, :2]
    return np.concatenate((centre - half, centre + half), axis=1)


def to_xyah(boxes: Floats) -> Floats:
    """Boxes (N, 4) xyxy px of positive size as measurements (N, 4): centre x, centre y, w / h, h."""
    size = boxes[:, 2:] - boxes[:, :2]
    xyah = np.empty_like(boxes)
    xyah[:, :2] = boxes[:, :2] + size * 0.5
    xyah[:, _ASPECT] = size[:, 0] / size[:, 1]
    xyah[:, _HEIGHT] = size[:, 1]
    return xyah

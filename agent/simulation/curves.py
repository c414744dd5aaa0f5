"""Curves over time, at `RATE_HZ`: eased, smoothed, enveloped."""

from __future__ import annotations

import numpy as np

from agent.simulation.motion import RATE_HZ
from agent.simulation.skeleton import Array


def smoothstep(x: Array | float) -> Array:
    """0 below 0, 1 above 1, smooth between (3 x^2 - 2 x^3)."""
    clipped = np.clip(x, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3 - 2 * clipped))


def smooth(values: Array, seconds: float) -> Array:
    """Gaussian filter of (T, ...) along time; sigma in seconds; the ends are held."""
    sigma = seconds * RATE_HZ
    reach = int(2.5 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    flat = values.reshape(len(values), -1)
    padded = np.concatenate([np.repeat(flat[:1], reach, 0), flat, np.repeat(flat[-1:], reach, 0)])
    out = np.stack([np.convolve(padded[:, k], kernel, "valid") for k in range(flat.shape[1])], axis=1)
    return out.reshape(values.shape)


def envelope(values: Array, seconds: float) -> Array:
    """A smooth curve (T,) that is nowhere below `values` (T,) by more than a hair."""
    reach = max(1, int(2.5 * seconds * RATE_HZ))
    padded = np.pad(values, reach, mode="edge")
    return smooth(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1), seconds)

"""The fitted motion model: gaits as Fourier series, other movements as low-rank splines. See models/human-motion/CARD.md.

It holds coefficients only; `models/training/fit_motion.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.config.paths import resource_dir
from agent.errors import ModelError
from agent.simulation.skeleton import NUM_BONES, Array, unit

RATE_HZ = 60
"""Frames a second in which motion is made; what lies between is interpolated."""
GRAVITY = 9.81


@dataclass(frozen=True, slots=True, eq=False)
class Gait:
    """One gait of the model.

    mean, slope: (1 + 2 H, 30) Fourier coefficients and their change with the Froude number; styles: (S, 1 + 2 H, 30), one
    standard deviation each; centre: Froude number of `mean`; stride: length per leg length = stride[0] + stride[1] Fr;
    rest: phases between which the left ankle rests; swing: (24, 2) progress and height / leg of the ankle in between.
    """

    mean: Array
    slope: Array
    styles: Array
    centre: float
    stride: tuple[float, float]
    rest: tuple[float, float]
    swing: Array

    def stride_m(self, speed_mps: float, leg_m: float) -> float:
        """Length of two steps."""
        return leg_m * float(self.stride[0] + self.stride[1] * speed_mps / (GRAVITY * leg_m) ** 0.5)

    def pose(self, phase: Array, froude: Array, style: Array) -> tuple[Array, Array]:
        """phase: (T,) turns; froude: (T,); style: (S,). Returns (T, 9, 3) bones above the hips and (T, 3) pelvis per leg."""
        harmonics = np.arange(1, (len(self.mean) - 1) // 2 + 1)
        angles = 2 * np.pi * phase[:, None] * harmonics
        terms = np.concatenate([np.ones((len(phase), 1)), np.cos(angles), np.sin(angles)], axis=1)
        fixed = self.mean + np.tensordot(style, self.styles, axes=1)
        values = terms @ fixed + (terms @ self.slope) * (froude - self.centre)[:, None]
        return unit(values[:, :27].reshape(-1, 9, 3)), values[:, 27:]

    def swing_at(self, share: float) -> tuple[float, float]:
        """Progress and height / leg of the ankle at `share` (0-1) of its way."""
        position = share * (len(self.swing) - 1)
        low = min(int(position), len(self.swing) - 2)
        part = position - low
        first, second = self.swing[low], self.swing[low + 1]
        return float(first[0] + (second[0] - first[0]) * part), float(first[1] + (second[1] - first[1]) * part)


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """A movement. time: (K, r) B-spline coefficients; pose: (r, 43); contact_s: moment of the hit, 0 when there is none."""

    time: Array
    pose: Array
    duration_s: float
    contact_s: float

    def at(self, time_s: Array) -> tuple[Array, Array, Array]:
        """time_s: (T,), held at both ends. Returns (T, 13, 3) bones in the frame of the heading, (T, 3) pelvis per leg
        length in the frame of the start, counted from the resting ankle, and (T,) turn since the start, radians."""
        values = _splines(np.clip(time_s / self.duration_s, 0, 1), len(self.time)) @ self.time @ self.pose
        bones = unit(values[:, : NUM_BONES * 3].reshape(-1, NUM_BONES, 3))
        return bones, values[:, -4:-1], values[:, -1]


def _splines(share: Array, knots: int) -> Array:
    """(T, knots) uniform cubic B-splines over 0..1 with repeated ends (de Boor)."""
    grid = np.concatenate([np.zeros(3), np.linspace(0, 1, knots - 2), np.ones(3)])
    x = np.clip(share, 0, 1 - 1e-9)[:, None]
    basis = ((grid[:-1] <= x) & (x < grid[1:])).astype(np.float64)
    for degree in range(1, 4):
        left, right = grid[degree:-1] - grid[: -degree - 1], grid[degree + 1 :] - grid[1:-degree]
        rising = (x - grid[: -degree - 1]) / np.where(left > 0, left, np.inf)
        falling = (grid[degree + 1 :] - x) / np.where(right > 0, right, np.inf)
        basis = rising * basis[:, :-1] + falling * basis[:, 1:]
    return basis


@dataclass(frozen=True, slots=True, eq=False)
class MotionModel:
    """Everything that was fitted. stand: (13, 3) pose at rest."""

    walk: Gait
    run: Gait
    stand: Array
    primitives: dict[str, Primitive]


def load_motion_model(folder: Path | None = None) -> MotionModel:
    """The model in `folder`, by default the shipped one. Raises `ModelError` when it cannot be read."""
    path = (folder or resource_dir("models") / "human-motion") / "motion.npz"
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name].astype(np.float64) for name in stored.files}
        names = sorted(name.split("_", 1)[1].removesuffix("_time") for name in arrays if name.endswith("_time"))
        primitives = {name: _primitive(arrays, name) for name in names}
        return MotionModel(_gait(arrays, "walk"), _gait(arrays, "run"), arrays["stand"], primitives)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: not a motion model: {error}") from error


def _gait(arrays: dict[str, Array], name: str) -> Gait:
    stride, rest = arrays[f"{name}_stride"], arrays[f"{name}_rest"]
    return Gait(
        arrays[f"{name}_mean"], arrays[f"{name}_slope"], arrays[f"{name}_styles"], float(arrays[f"{name}_froude"][0]),
        (float(stride[0]), float(stride[1])), (float(rest[0]), float(rest[1])), arrays[f"{name}_swing"],
    )  # fmt: skip


def _primitive(arrays: dict[str, Array], name: str) -> Primitive:
    duration, contact = arrays[f"primitive_{name}_span"]
    return Primitive(
        arrays[f"primitive_{name}_time"], arrays[f"primitive_{name}_pose"], float(duration), float(contact)
    )

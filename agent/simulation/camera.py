"""A surveillance camera: perspective projection with mild radial distortion, and where to hang it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.types import FloatArray

Array = NDArray[np.floating[Any]]
"""Numbers of either precision, as callers have them."""

NEAR_M = 0.15
"""What is nearer than this to the lens is not seen."""
_PERSON_M = 1.75
_MIN_SEEN = 0.76
"""Share of the joints that a hung camera has in its picture, as far as its widest lens can."""
_MAX_FOV_DEG = 96.0


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A camera in the world of `values`.

    position: (3,) float32 m; rotation: (3, 3) float32, rows are the camera's right, down and forward axes in the world;
    focal_px: focal length, px; width, height: of the picture, px; the optical axis meets its centre.
    k1: first radial coefficient (Brown), below 0 = barrel.
    """

    position: FloatArray
    rotation: FloatArray
    focal_px: float
    width: int
    height: int
    k1: float = 0.0

    def __post_init__(self) -> None:
        if self.position.shape != (3,) or self.rotation.shape != (3, 3):
            raise ValueError(
                f"Camera: expected shapes (3,) and (3, 3), got {self.position.shape}, {self.rotation.shape}"
            )

    def to_camera(self, points: Array) -> FloatArray:
        """(..., 3) world, m -> (..., 3) camera frame, m: x right, y down, z forward (depth)."""
        return ((points - self.position) @ self.rotation.T).astype(np.float32)

    def project(self, points: Array) -> tuple[FloatArray, FloatArray]:
        """(..., 3) world, m -> (..., 2) px and (...) depth, m. Points behind the lens have a depth < NEAR_M; their px
        are those of a point at NEAR_M in the same direction, far outside the picture."""
        return self.project_local(self.to_camera(points))

    def project_local(self, local: Array) -> tuple[FloatArray, FloatArray]:
        """As `project`, for points (..., 3) in the camera frame."""
        depth = local[..., 2]
        flat = local[..., :2] / np.maximum(depth, NEAR_M)[..., None]
        radius2 = np.minimum(np.sum(flat * flat, axis=-1, keepdims=True), self._fold_radius2())
        pixels = flat * (1 + self.k1 * radius2) * self.focal_px + self._centre()
        return pixels.astype(np.float32), depth.astype(np.float32)

    def jacobian(self, local: Array) -> FloatArray:
        """(N, 3) camera frame, m -> (N, 2, 3) px/m, the derivative of `project_local`."""
        depth = np.maximum(local[:, 2], NEAR_M)
        x, y = local[:, 0] / depth, local[:, 1] / depth
        pinhole = np.zeros((len(local), 2, 3), np.float32)
        pinhole[:, 0, 0] = pinhole[:, 1, 1] = 1.0
        pinhole[:, 0, 2], pinhole[:, 1, 2] = -x, -y
        radius2 = np.minimum(x * x + y * y, self._fold_radius2())
        lens = np.empty((len(local), 2, 2), np.float32)
        lens[:, 0, 0] = 1 + self.k1 * (radius2 + 2 * x * x)
        lens[:, 1, 1] = 1 + self.k1 * (radius2 + 2 * y * y)
        lens[:, 0, 1] = lens[:, 1, 0] = 2 * self.k1 * x * y
        return (lens @ pinhole * (self.focal_px / depth)[:, None, None]).astype(np.float32)

    def rays(self) -> FloatArray:
        """(H, W, 3) float32: the direction in the world that each pixel's centre looks at; depth 1 m along the axis, so
        that `position + depth * ray` is the point at that depth."""
        centre = self._centre()
        seen_x = (np.arange(self.width, dtype=np.float32) - centre[0])[None] / np.float32(self.focal_px)
        seen_y = (np.arange(self.height, dtype=np.float32) - centre[1])[:, None] / np.float32(self.focal_px)
        x, y = seen_x + 0 * seen_y, seen_y + 0 * seen_x
        for _ in range(6 if self.k1 else 0):  # fixed point of the distortion; mild lenses converge in a few rounds
            factor = 1 / (1 + np.float32(self.k1) * np.minimum(x * x + y * y, np.float32(self._fold_radius2())))
            x, y = seen_x * factor, seen_y * factor
        right, down, forward = self.rotation
        rays = np.empty((self.height, self.width, 3), np.float32)
        for axis in range(3):
            rays[..., axis] = x * right[axis] + y * down[axis] + forward[axis]
        return rays

    def _centre(self) -> FloatArray:
        return np.array([(self.width - 1) / 2, (self.height - 1) / 2], np.float32)

    def _fold_radius2(self) -> float:
        """Squared radius at which a barrel lens would fold the picture back onto itself."""
        return 1 / (3.2 * -self.k1) if self.k1 < 0 else 1e6


def look_at(
    position: Array,
    target: Array,
    *,
    focal_px: float,
    width: int,
    height: int,
    roll: float = 0.0,
    k1: float = 0.0,
) -> Camera:
    """A camera at `position` that looks at `target` (both (3,) m, not one above the other); roll in rad, clockwise."""
    forward = np.asarray(target, np.float64) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    if np.linalg.norm(right) < 1e-6:
        raise ValueError("look_at: the target is straight above or below the camera")
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    rows = np.stack([np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right, forward])
    return Camera(np.asarray(position, np.float32), rows.astype(np.float32), float(focal_px), width, height, k1)


def hang_camera(points: Array, rng: np.random.Generator, *, width: int, height: int) -> Camera:
    """A camera 2.2-5 m up that looks at `points` ((N, 3) m, where people are) from the side of negative y.

    Direction, pitch, roll, lens and the size of people (nearer where they stay close together) come from `rng`.
    """
    centre = np.array([*np.median(points[:, :2], axis=0), 0.0])
    radius = max(1.6 * float(np.sqrt(points[:, :2].var(axis=0).sum())), 0.3)
    azimuth = np.radians(rng.normal(-90, 28))
    fov = np.radians(rng.uniform(48, 88))
    focal = width / 2 / np.tan(fov / 2)
    size_px = np.clip(_PERSON_M * width * rng.uniform(1.0, 1.9) / (2 * radius), 0.24 * height, 0.68 * height)
    distance = max(focal * _PERSON_M / float(size_px), radius + 0.9, 3.0)
    focal = float(size_px) * distance / _PERSON_M
    elevation = np.radians(rng.uniform(12, 36))
    camera_height = float(np.clip(distance * np.sin(elevation), 2.2, 5.0))
    ground = np.sqrt(max(distance**2 - camera_height**2, 4.0))
    position = np.array([centre[0] + np.cos(azimuth) * ground, centre[1] + np.sin(azimuth) * ground, camera_height])
    centre[2] = 0.9
    k1 = float(rng.choice([0.0, rng.uniform(-0.16, -0.02)]))
    roll = float(np.radians(rng.normal(0, 1.2)))
    first = look_at(position, centre, focal_px=focal, width=width, height=height)
    local = first.to_camera(points)
    seen = local[local[:, 2] > 1][:, :2] / local[local[:, 2] > 1][:, 2:]
    aim = np.median(seen, axis=0) + rng.normal(0, 0.06, 2)  # perspective shifts the middle of the ground upwards
    target = position + first.rotation.T @ np.array([*aim, 1.0])
    widest = width / 2 / np.tan(np.radians(_MAX_FOV_DEG / 2))
    while True:
        camera = look_at(position, target, focal_px=focal, width=width, height=height, roll=roll, k1=k1)
        pixels, depth = camera.project(points)
        inside = (depth > NEAR_M) & np.all((pixels >= 0) & (pixels < (width, height)), axis=-1)
        if inside.mean() >= _MIN_SEEN or focal * 0.94 < widest:
            return camera
        focal *= 0.94

"""A surveillance camera: perspective projection with mild radial distortion, and where to hang it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.types import FloatArray

NEAR_M = 0.15
"""What is nearer than this to the lens is not seen."""
_MAX_FOV_DEG = 100.0
_MIN_FOV_DEG = 34.0
_TARGET_HEIGHT_M = 0.9
"""Height of the point looked at: about the hips."""


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
            raise ValueError(f"Camera: expected shapes (3,) and (3, 3), got {self.position.shape}, {self.rotation.shape}")

    def to_camera(self, points: FloatArray) -> FloatArray:
        """(..., 3) world, m -> (..., 3) camera frame, m: x right, y down, z forward (depth)."""
        return ((points - self.position) @ self.rotation.T).astype(np.float32)

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(..., 3) world, m -> (..., 2) px and (...) depth, m. Points behind the lens have a depth < NEAR_M; their px
        are those of a point at NEAR_M in the same direction, far outside the picture."""
        return self.project_local(self.to_camera(points))

    def project_local(self, local: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `project`, for points (..., 3) in the camera frame."""
        depth = local[..., 2]
        flat = local[..., :2] / np.maximum(depth, NEAR_M)[..., None]
        radius2 = np.minimum(np.sum(flat * flat, axis=-1, keepdims=True), self._fold_radius2())
        pixels = flat * (1 + self.k1 * radius2) * self.focal_px + self._centre()
        return pixels.astype(np.float32), depth.astype(np.float32)

    def jacobian(self, local: FloatArray) -> FloatArray:
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
        rows, columns = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        seen = (np.stack([columns, rows], axis=-1) - self._centre()) / np.float32(self.focal_px)
        flat = seen.copy()
        for _ in range(6):  # fixed point of the distortion; mild lenses converge in a few rounds
            radius2 = np.minimum(np.sum(flat * flat, axis=-1, keepdims=True), self._fold_radius2())
            flat = seen / (1 + self.k1 * radius2)
        local = np.concatenate([flat, np.ones_like(flat[..., :1])], axis=-1).astype(np.float32)
        return (local @ self.rotation).astype(np.float32)

    def _centre(self) -> FloatArray:
        return np.array([(self.width - 1) / 2, (self.height - 1) / 2], np.float32)

    def _fold_radius2(self) -> float:
        """Squared radius at which a barrel lens would fold the picture back onto itself."""
        return 1 / (3.2 * -self.k1) if self.k1 < 0 else 1e6


def look_at(
    position: FloatArray, target: FloatArray, *, focal_px: float, width: int, height: int, roll: float = 0.0, k1: float = 0.0
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


def hang_camera(points: FloatArray, rng: np.random.Generator, *, width: int, height: int) -> Camera:
    """A camera 2.2-5 m up from which `points` ((N, 3) m, where people are) fill the picture.

    Direction, pitch, roll, lens and distance come from `rng`. A wide area is seen from further away.
    """
    low, high = np.percentile(points[:, :2], [2, 98], axis=0)
    centre = np.array([*(low + high) / 2, _TARGET_HEIGHT_M])
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = np.radians(rng.uniform(13, 36))
    distance = max(3.2, float(np.linalg.norm(high - low)) * rng.uniform(0.75, 1.25))
    roll, k1 = np.radians(rng.normal(0, 1.2)), float(rng.choice([0.0, rng.uniform(-0.16, -0.02)]))
    fill = rng.uniform(0.86, 1.06)
    toward = np.array([np.cos(azimuth), np.sin(azimuth)])
    camera_height = 0.0
    for _ in range(12):
        camera_height = float(np.clip(_TARGET_HEIGHT_M + distance * np.sin(elevation), 2.2, 5.0))
        ground = np.sqrt(max(distance**2 - (camera_height - _TARGET_HEIGHT_M) ** 2, 1.0))
        position = np.array([*(centre[:2] + toward * ground), camera_height])
        camera = _aimed(points, position, centre, fill, width=width, height=height, roll=roll, k1=k1)
        nearest = camera.to_camera(points)[:, 2].min()
        if _fov(camera) < _MAX_FOV_DEG and nearest > 1.2:
            break
        distance *= 1.15
    return camera


def _aimed(
    points: FloatArray, position: FloatArray, target: FloatArray, fill: float, *, width: int, height: int, roll: float, k1: float
) -> Camera:
    """Turned so that the points lie around the centre, focal length so that they take `fill` of the picture."""
    focal = float(width)
    aim = np.asarray(target, np.float64)
    camera = look_at(position, aim, focal_px=focal, width=width, height=height, roll=roll, k1=k1)
    for _ in range(3):
        local = camera.to_camera(points)
        flat = local[:, :2] / np.maximum(local[:, 2:], NEAR_M)
        low, high = np.percentile(flat, [1.5, 98.5], axis=0)
        size = np.maximum(high - low, 1e-3)
        focal = float(fill * min(width / size[0], height / size[1]))
        focal = float(np.clip(focal, *(width / 2 / np.tan(np.radians(fov / 2)) for fov in (_MAX_FOV_DEG, _MIN_FOV_DEG))))
        middle = (low + high) / 2
        direction = camera.rotation.T @ np.array([*middle, 1.0])
        aim = position + direction / np.linalg.norm(direction) * np.linalg.norm(target - position)
        camera = look_at(position, aim, focal_px=focal, width=width, height=height, roll=roll, k1=k1)
    return camera


def _fov(camera: Camera) -> float:
    return float(np.degrees(2 * np.arctan(camera.width / 2 / camera.focal_px)))

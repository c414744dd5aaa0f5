"""A stage of boxes in a shell, looked at through a camera: ray casting with lamps, contact shadows and a depth map."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.simulation.camera import NEAR_M, Array, Camera
from agent.simulation.materials import Material, surface
from agent.types import FloatArray, ImageArray

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Block:
    """An upright box: low and high corner (m, world), its sides and top. hides: people can be behind it."""

    low: Vector
    high: Vector
    side: Material
    top: Material
    hides: bool = True


@dataclass(frozen=True, slots=True)
class Shell:
    """What surrounds everything: floor at z = 0, four walls, ceiling. faces: floor, ceiling, walls at low x, high x, low y,
    high y; None = sky."""

    low: Vector
    high: Vector
    faces: tuple[Material | None, Material | None, Material | None, Material | None, Material | None, Material | None]


@dataclass(frozen=True, slots=True)
class Lamp:
    """A point light. reach_m: distance at which it has fallen to a half."""

    position: Vector
    strength: float
    reach_m: float


@dataclass(frozen=True, slots=True, eq=False)
class Ambience:
    """Light on the stage: level everywhere, lamps on top of it; BGR of the sky and of the light."""

    level: float
    lamps: tuple[Lamp, ...]
    sky: tuple[float, float, float] = (0.9, 0.85, 0.8)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Backdrop:
    """The scene without people. image: (H, W, 3) uint8 BGR; depth: (H, W) float32 m, infinite where nothing can stand in
    front of a person; floor: (H, W) float32 0-1, where shadows fall."""

    image: ImageArray
    depth: FloatArray
    floor: FloatArray


def build_backdrop(
    shell: Shell, blocks: tuple[Block, ...], ambience: Ambience, camera: Camera, *, brightness: float
) -> tuple[Backdrop, float]:
    """Cast a ray through every pixel.

    brightness: mean grey level (0-255) that automatic exposure aims at; the gain it chose comes with the picture.
    """
    rays = camera.rays()
    height, width = rays.shape[:2]
    albedo = np.empty((height, width, 3), np.float32)
    distance, face = _hit_shell(shell, camera.position, rays)
    for number, material in enumerate(shell.faces):
        where = np.flatnonzero(face == number)
        if material is None:
            albedo.reshape(-1, 3)[where] = np.array(ambience.sky, np.float32)
            continue
        seen, reach = rays.reshape(-1, 3).take(where, axis=0), distance.reshape(-1).take(where)
        points = camera.position + seen * reach[:, None]
        u, v = _texture_axes(points, number // 2)
        slant = np.maximum(np.abs(seen[:, (2, 0, 1)[number // 2]]), 0.12)
        albedo.reshape(-1, 3)[where] = surface(material, u, v, reach / (slant * np.float32(camera.focal_px)))
    depth = np.full((height, width), np.inf, np.float32)
    floor = (face == 0).astype(np.float32)
    normal_axis = (face // 2).astype(np.int8)
    open_sky = np.isin(face, [n for n, material in enumerate(shell.faces) if material is None])
    for block in sorted(blocks, key=lambda block: block.hides):
        _draw_block(block, camera, rays, (distance, albedo, depth, floor, normal_axis, open_sky))
    half = slice(None, None, 2), slice(None, None, 2)  # light is smooth
    points = camera.position + rays[half] * distance[half][..., None]
    light = _illumination(points, normal_axis[half], shell, blocks, ambience)
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    grey = (albedo[..., 0] + albedo[..., 1] + albedo[..., 2]) * light
    level = float(np.mean(grey[~open_sky])) / 3 if not open_sky.all() else 0.4
    gain = float(np.clip(brightness / 255 / max(level, 1e-3), 0.5, 2.6))
    light[open_sky] = 1 / gain
    picture = albedo * light[..., None]
    factor = np.array(ambience.tint, np.float32) * np.float32(255 * gain)
    image = np.minimum(picture * factor, 255).astype(np.uint8)
    return Backdrop(cv2.GaussianBlur(image, (3, 3), 0.6), depth, floor), gain


def _hit_shell(shell: Shell, origin: FloatArray, rays: FloatArray) -> tuple[FloatArray, NDArray[np.int8]]:
    """Depth at which each ray leaves the shell, and through which face (order of `Shell.faces`)."""
    best = np.full(rays.shape[:2], np.inf, np.float32)
    face = np.zeros(rays.shape[:2], np.int8)
    for axis, (number_low, number_high) in ((2, (0, 1)), (0, (2, 3)), (1, (4, 5))):
        direction = rays[..., axis]
        wall = np.where(direction < 0, np.float32(shell.low[axis]), np.float32(shell.high[axis]))
        safe = np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)
        reach = np.abs((wall - origin[axis]) / safe)
        nearer = reach < best
        best = np.where(nearer, reach, best)
        face[nearer] = np.where(direction < 0, number_low, number_high)[nearer]
    return best, face


def _draw_block(
    block: Block,
    camera: Camera,
    rays: FloatArray,
    layers: tuple[FloatArray, FloatArray, FloatArray, FloatArray, NDArray[np.int8], NDArray[np.bool_]],
) -> None:
    """Put a block into the layers (distance, albedo, depth, floor, normal axis, sky) where it is nearest."""
    region = _region(block, camera)
    if region is None:
        return
    distance, albedo, depth, floor, normal_axis, open_sky = (layer[region] for layer in layers)
    part = rays[region]
    enter = np.full(part.shape[:2], 0, np.float32)
    leave = np.full(part.shape[:2], np.inf, np.float32)
    axis_in = np.zeros(part.shape[:2], np.int8)
    for number, axis in enumerate((2, 0, 1)):
        direction = np.where(np.abs(part[..., axis]) < 1e-6, np.float32(1e-6), part[..., axis])
        one = (block.low[axis] - camera.position[axis]) / direction
        other = (block.high[axis] - camera.position[axis]) / direction
        first = np.minimum(one, other)
        later = first > enter
        enter = np.where(later, first, enter)
        axis_in[later] = number
        leave = np.minimum(leave, np.maximum(one, other))
    hit = (enter < leave) & (enter > NEAR_M) & (enter < distance)
    for number in range(3):
        where = np.nonzero(hit & (axis_in == number))
        if not len(where[0]):
            continue
        points = camera.position + part[where] * enter[where][:, None]
        u, v = _texture_axes(points - np.array(block.low, np.float32), number)
        albedo[where] = surface(block.side if number else block.top, u, v, enter[where] / np.float32(camera.focal_px))
    distance[hit] = enter[hit]
    floor[hit] = 0
    open_sky[hit] = False
    normal_axis[hit] = axis_in[hit]
    depth[hit] = enter[hit] if block.hides else depth[hit]


def _region(block: Block, camera: Camera) -> tuple[slice, slice] | None:
    """Part of the picture a block can be in; None when it is out of sight."""
    corners = np.array([
        (x, y, z) for x in (block.low[0], block.high[0]) for y in (block.low[1], block.high[1]) for z in (block.low[2], block.high[2])
    ], np.float32)  # fmt: skip
    pixels, depth = camera.project(corners)
    if depth.max() < NEAR_M:
        return None
    if depth.min() < NEAR_M * 2:
        return slice(0, camera.height), slice(0, camera.width)
    left, top = np.clip(np.floor(pixels.min(axis=0)) - 2, 0, (camera.width, camera.height)).astype(int)
    right, bottom = np.clip(np.ceil(pixels.max(axis=0)) + 3, 0, (camera.width, camera.height)).astype(int)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _texture_axes(points: Array, normal: int) -> tuple[FloatArray, FloatArray]:
    """Coordinates on a face, by the axis of its normal (0 = z, 1 = x, 2 = y)."""
    if normal == 0:
        return points[:, 0], points[:, 1]
    return points[:, 1 if normal == 1 else 0], points[:, 2]


def _illumination(
    points: Array, normal_axis: NDArray[np.int8], shell: Shell, blocks: tuple[Block, ...], ambience: Ambience
) -> FloatArray:
    """(H, W) light that arrives: lamps, and less of the sky in corners and beside blocks."""
    total = np.array([1.0, 0.88, 0.95], np.float32)[normal_axis]
    x, y, z = (np.ascontiguousarray(points[..., axis]) for axis in range(3))
    edge = np.minimum(np.minimum(x - shell.low[0], shell.high[0] - x), np.minimum(y - shell.low[1], shell.high[1] - y))
    upright = normal_axis > 0
    corner = np.where(upright, z, edge)
    total *= 1 - np.float32(0.42) * np.exp(np.maximum(corner, 0) * np.float32(-1 / 0.22))
    for block in blocks:
        near = ~upright & (z < min(block.high[2], 0.5) - 0.02)
        near &= (
            (x > block.low[0] - 0.6) & (x < block.high[0] + 0.6) & (y > block.low[1] - 0.6) & (y < block.high[1] + 0.6)
        )
        where = np.nonzero(near)
        if block.low[2] > 0.5 or not len(where[0]):
            continue
        dx = np.maximum(np.maximum(block.low[0] - x[where], x[where] - block.high[0]), 0)
        dy = np.maximum(np.maximum(block.low[1] - y[where], y[where] - block.high[1]), 0)
        total[where] *= 1 - np.float32(0.55) * np.exp((dx + dy) * np.float32(-1 / 0.16))
    return total * arriving(ambience, (x, y, z))


def arriving(ambience: Ambience, point: tuple[FloatArray, FloatArray, FloatArray]) -> FloatArray:
    """Light at points (x, y, z of any one shape, m), without what stands in its way."""
    light = np.full(point[0].shape, ambience.level, np.float32)
    for lamp in ambience.lamps:
        away = sum((values - np.float32(at)) ** 2 for values, at in zip(point, lamp.position, strict=True))
        light += np.float32(lamp.strength) / (1 + away * np.float32(1 / lamp.reach_m**2))
    return light

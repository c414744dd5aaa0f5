"""A stage of boxes in a shell, looked at through a camera: ray casting with lamps, contact shadows and a depth map."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.simulation.camera import NEAR_M, Camera
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
    """Light on the stage: BGR level everywhere, lamps on top of it, colour of the sky."""

    level: tuple[float, float, float]
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


def build_backdrop(shell: Shell, blocks: tuple[Block, ...], ambience: Ambience, camera: Camera) -> Backdrop:
    """Cast a ray through every pixel."""
    rays = camera.rays()
    height, width = rays.shape[:2]
    albedo = np.empty((height, width, 3), np.float32)
    distance, face = _hit_shell(shell, camera.position, rays)
    pixel_m = distance / np.float32(camera.focal_px)
    for number, material in enumerate(shell.faces):
        where = np.nonzero(face == number)
        if material is None:
            albedo[where] = np.array(ambience.sky, np.float32)
            continue
        points = camera.position + rays[where] * distance[where][:, None]
        u, v = _texture_axes(points, number // 2)
        slant = np.maximum(np.abs(rays[where][:, (2, 0, 1)[number // 2]]), 0.12)
        albedo[where] = surface(material, u, v, pixel_m[where] / slant)
    depth = np.full((height, width), np.inf, np.float32)
    floor = (face == 0).astype(np.float32)
    normal_axis = (face // 2).astype(np.int8)
    for block in sorted(blocks, key=lambda block: block.hides):
        _draw_block(block, camera, rays, (distance, albedo, depth, floor, normal_axis))
    sky = np.isin(face, [n for n, material in enumerate(shell.faces) if material is None]) & (normal_axis == face // 2)
    points = camera.position + rays * distance[..., None]
    light = _illumination(points, normal_axis, shell, blocks, ambience)
    light[sky & ~np.isfinite(depth)] = 1.0
    image = np.clip(albedo * light * np.array(ambience.tint, np.float32) * 255, 0, 255).astype(np.uint8)
    return Backdrop(cv2.GaussianBlur(image, (3, 3), 0.6), depth, floor)


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
    layers: tuple[FloatArray, FloatArray, FloatArray, FloatArray, NDArray[np.int8]],
) -> None:
    """Put a block into the layers (distance, albedo, depth, floor, normal axis) where it is nearest."""
    region = _region(block, camera)
    if region is None:
        return
    distance, albedo, depth, floor, normal_axis = (layer[region] for layer in layers)
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


def _texture_axes(points: FloatArray, normal: int) -> tuple[FloatArray, FloatArray]:
    """Coordinates on a face, by the axis of its normal (0 = z, 1 = x, 2 = y)."""
    if normal == 0:
        return points[:, 0], points[:, 1]
    return points[:, 1 if normal == 1 else 0], points[:, 2]


def _illumination(
    points: FloatArray, normal_axis: NDArray[np.int8], shell: Shell, blocks: tuple[Block, ...], ambience: Ambience
) -> FloatArray:
    """(H, W, 3) light that arrives: lamps, and less of the sky in corners and beside blocks."""
    side = np.array([0.0, -0.12, -0.05], np.float32)[normal_axis]
    total = 1.0 + side
    x, y, z = (points[..., axis] for axis in range(3))
    edge = np.minimum(np.minimum(x - shell.low[0], shell.high[0] - x), np.minimum(y - shell.low[1], shell.high[1] - y))
    upright = normal_axis > 0
    corner = np.where(upright, z, edge)
    total *= 1 - 0.42 * np.exp(-np.maximum(corner, 0) / 0.22)
    for block in blocks:
        if block.low[2] > 0.5:
            continue
        dx = np.maximum(np.maximum(block.low[0] - x, x - block.high[0]), 0)
        dy = np.maximum(np.maximum(block.low[1] - y, y - block.high[1]), 0)
        total *= 1 - np.where(upright, 0, 0.55) * np.exp(-(dx + dy) / 0.16) * (z < block.high[2] - 0.02)
    lamps = np.zeros_like(total)
    for lamp in ambience.lamps:
        offset = points - np.array(lamp.position, np.float32)
        lamps += lamp.strength / (1 + np.sum(offset * offset, axis=-1) / np.float32(lamp.reach_m) ** 2)
    return ((np.array(ambience.level, np.float32) + lamps[..., None]) * total[..., None]).astype(np.float32)

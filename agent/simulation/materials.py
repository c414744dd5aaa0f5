"""Procedural surfaces: what floors, walls and furniture look like at a point of the world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from agent.types import FloatArray

_TILE = 256
"""Pixels of the noise that all surfaces are made of; it repeats."""


@dataclass(frozen=True, slots=True)
class Material:
    """A surface. kind: one of `KINDS`; base, second: BGR 0-1; size_m: of its pattern; contrast: of its noise, 0-1."""

    kind: str
    base: tuple[float, float, float]
    second: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size_m: float = 0.5
    contrast: float = 0.12
    seed: int = 0


KINDS = ("plain", "tiles", "planks", "bricks", "rough", "shelf", "windows", "panel", "stripes")


@cache
def _noise(seed: int) -> FloatArray:
    """(256, 256) float32 with deviation 1: several octaves; repeats in both directions."""
    rng = np.random.default_rng((seed, 77))
    total = np.zeros((_TILE, _TILE), np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        wrapped = np.pad(grid, 2, mode="wrap")
        scale = _TILE // cells
        big = cv2.resize(
            wrapped, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_NEAREST
        )
        total += big[2 * scale : 2 * scale + _TILE, 2 * scale : 2 * scale + _TILE] / np.float32(cells**0.45)
    return (total / total.std()).astype(np.float32)


def noise(u: FloatArray, v: FloatArray, cell_m: float, seed: int) -> FloatArray:
    """Noise at (u, v) (same shape, m); its largest blots are `cell_m` wide."""
    scale = np.float32(_TILE / 4 / cell_m)
    shape = u.shape
    flat = [np.mod(values.reshape(1, -1) * scale, _TILE).astype(np.float32) for values in (u, v)]
    out = np.empty((1, flat[0].shape[1]), np.float32)
    for start in range(0, out.shape[1], 32_000):  # cv2.remap takes maps up to 32767 wide
        part = slice(start, start + 32_000)
        out[:, part] = cv2.remap(
            _noise(seed % 4), flat[0][:, part], flat[1][:, part], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
    return out.reshape(shape)


def surface(material: Material, u: FloatArray, v: FloatArray, pixel_m: FloatArray) -> FloatArray:
    """(N, 3) float32 BGR albedo of `material` at (u, v), m; pixel_m: (N,) width of a pixel there, detail below it fades."""
    base, second = (np.array(colour, np.float32) for colour in (material.base, material.second))
    share, shade = _layout(material, u, v, pixel_m)
    colour = base + (second - base) * share[:, None]
    grain = noise(u, v, max(material.size_m * 3, 1.0), material.seed) * np.float32(material.contrast)
    return np.clip(colour * (shade * (1 + grain))[:, None], 0.01, 1.0).astype(np.float32)


def _layout(material: Material, u: FloatArray, v: FloatArray, pixel_m: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Share of the second colour and factor of brightness, both (N,)."""
    size = np.float32(material.size_m)
    one = np.ones_like(u)
    fade = np.clip(size / (pixel_m * 6) - 0.5, 0, 1)
    if material.kind == "tiles":
        joint = _joint(u, size, pixel_m) + _joint(v, size, pixel_m)
        value = _cell_value(u / size, v / size, material.seed)
        return np.minimum(joint, 1) * fade, 1 + (value - 0.5) * 0.14 * fade
    if material.kind == "planks":
        row = np.floor(v / size)
        value = _cell_value((u + row * 0.77) / (size * 9), v / size, material.seed)
        streaks = noise(u * 0.15, v * 2.5, 1.0, material.seed + 1) * 0.07
        return _joint(v, size, pixel_m) * fade * 0.7, 1 + ((value - 0.5) * 0.3 + streaks) * fade
    if material.kind == "bricks":
        row = np.floor(v / size)
        shifted = u + (row % 2) * size * 1.5
        joint = _joint(v, size, pixel_m) + _joint(shifted, size * 3, pixel_m)
        value = _cell_value(shifted / (size * 3), v / size, material.seed)
        return np.minimum(joint, 1) * fade, 1 + (value - 0.5) * 0.3 * fade
    if material.kind == "shelf":
        return _shelf(u, v, size, material.seed, fade)
    if material.kind == "windows":
        inside = (np.mod(u / size, 1) > 0.34) & (np.mod(v / (size * 1.25), 1) > 0.42) & (v > 0.6)
        value = _cell_value(u / size, v / (size * 1.25), material.seed)
        return inside.astype(np.float32) * (0.75 + 0.25 * value), one
    if material.kind == "panel":
        frame = np.minimum(_joint(u, size, pixel_m, 0.10) + _joint(v, size * 2.1, pixel_m, 0.10), 1)
        return frame * fade, one
    if material.kind == "stripes":
        return (np.mod(u / size, 1) > 0.5).astype(np.float32) * fade + 0.5 * (1 - fade), one
    return np.zeros_like(u), one


def _joint(x: FloatArray, size: float, pixel_m: FloatArray, width_m: float = 0.008) -> FloatArray:
    """How much of a pixel the joint between two tiles covers, 0-1."""
    distance = np.abs(np.mod(x / size + 0.5, 1) - 0.5) * size
    half = np.maximum(pixel_m, width_m)
    return np.clip(1 - distance / half, 0, 1) * np.minimum(width_m * 2 / half, 1)


def _cell_value(u: FloatArray, v: FloatArray, seed: int) -> FloatArray:
    """A value 0-1 per cell of a unit grid."""
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    mixed = (i * 73_856_093) ^ (j * 19_349_663) ^ (seed * 83_492_791)
    return ((mixed & 0xFFFF) * np.float32(1 / 0xFFFF)).astype(np.float32)


def _shelf(u: FloatArray, v: FloatArray, size: float, seed: int, fade: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Boards with goods of many colours' brightness."""
    board = np.mod(v / size, 1) < 0.09
    good = _cell_value(u / (size * 0.28), v / size, seed)
    height = 0.45 + 0.5 * _cell_value(u / (size * 0.84), v / size, seed + 1)
    empty = np.mod(v / size, 1) > height
    brightness = np.where(empty, 0.25, 0.35 + 0.9 * good)
    return np.where(board, 0.0, 0.3 + 0.6 * good), np.where(board, 1.0, 1 + (brightness - 1) * (0.4 + 0.6 * fade))

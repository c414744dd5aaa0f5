"""Procedural surfaces: what floors, walls and furniture look like at a point of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from agent.simulation.camera import Array
from agent.types import FloatArray

_TILE = 256
"""Pixels of the noise that all surfaces are made of; it repeats."""
_REMAP_WIDTH = 32_000
"""OpenCV remaps rows of up to 32767 px."""


@dataclass(frozen=True, slots=True)
class Material:
    """A surface. kind: one of `KINDS`; base, second: BGR 0-1; size_m: of its pattern; contrast: of its noise, 0-1."""

    kind: str
    base: tuple[float, float, float]
    second: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size_m: float = 0.5
    contrast: float = 0.12
    seed: int = 0


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
    even: FloatArray = (total / total.std()).astype(np.float32)
    return even


def noise(u: Array, v: Array, cell_m: float, seed: int) -> FloatArray:
    """Noise at (u, v) (same shape, m); its largest blots are `cell_m` wide."""
    scale = np.float32(_TILE / 4 / cell_m)
    across, down = (np.mod(values.reshape(1, -1) * scale, _TILE).astype(np.float32) for values in (u, v))
    out = np.empty((1, across.shape[1]), np.float32)
    for start in range(0, out.shape[1], _REMAP_WIDTH):
        part = slice(start, start + _REMAP_WIDTH)
        out[:, part] = cv2.remap(
            _noise(seed % 4), across[:, part], down[:, part], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
    return out.reshape(u.shape)


def surface(material: Material, u: Array, v: Array, pixel_m: Array) -> FloatArray:
    """(N, 3) float32 BGR albedo of `material` at (u, v), m; pixel_m: (N,) width of a pixel there, detail below it fades."""
    base, second = (np.array(colour, np.float32) for colour in (material.base, material.second))
    fade = np.clip(material.size_m / (pixel_m * 6) - 0.5, 0, 1)
    share, shade = _LAYOUTS[material.kind](_Patch(u, v, pixel_m, fade, material.size_m, material.seed))
    colour = base + (second - base) * np.asarray(share, np.float32)[:, None]
    grain = 1 + noise(u, v, max(material.size_m * 3, 1.0), material.seed) * np.float32(material.contrast)
    albedo: FloatArray = np.clip(colour * (np.asarray(shade, np.float32) * grain)[:, None], 0.01, 1.0)
    return albedo


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    """N points of a surface. fade: (N,) 0-1, how much of its pattern can be seen from where the camera is."""

    u: Array
    v: Array
    pixel_m: Array
    fade: Array
    size: float
    seed: int

    def joint(self, x: Array, size: float, width_m: float = 0.008) -> Array:
        """How much of a pixel the joint between two cells covers, 0-1."""
        distance = np.abs(np.mod(x / size + 0.5, 1) - 0.5) * size
        half = np.maximum(self.pixel_m, width_m)
        return np.asarray(np.clip(1 - distance / half, 0, 1) * np.minimum(width_m * 2 / half, 1))

    def value(self, u: Array, v: Array, salt: int = 0) -> Array:
        """A value 0-1 per cell of a unit grid."""
        i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        mixed = (i * 73_856_093) ^ (j * 19_349_663) ^ ((self.seed + salt) * 83_492_791)
        return np.asarray((mixed & 0xFFFF) * np.float32(1 / 0xFFFF))


_Layout = tuple[Array, Array]
"""Share of the second colour and factor of brightness, both (N,)."""


def _plain(at: _Patch) -> _Layout:
    return np.zeros_like(at.u), np.ones_like(at.u)


def _tiles(at: _Patch) -> _Layout:
    joint = np.minimum(at.joint(at.u, at.size) + at.joint(at.v, at.size), 1)
    return joint * at.fade, 1 + (at.value(at.u / at.size, at.v / at.size) - 0.5) * 0.14 * at.fade


def _planks(at: _Patch) -> _Layout:
    row = np.floor(at.v / at.size)
    value = at.value((at.u + row * 0.77) / (at.size * 9), at.v / at.size)
    streaks = noise(at.u * 0.15, at.v * 2.5, 1.0, at.seed + 1) * 0.07
    return at.joint(at.v, at.size) * at.fade * 0.7, 1 + ((value - 0.5) * 0.3 + streaks) * at.fade


def _bricks(at: _Patch) -> _Layout:
    shifted = at.u + (np.floor(at.v / at.size) % 2) * at.size * 1.5
    joint = np.minimum(at.joint(at.v, at.size) + at.joint(shifted, at.size * 3), 1)
    value = at.value(shifted / (at.size * 3), at.v / at.size)
    return joint * at.fade, 1 + (value - 0.5) * 0.3 * at.fade


def _shelf(at: _Patch) -> _Layout:
    """Boards with goods of different height and brightness."""
    within = np.mod(at.v / at.size, 1)
    board = within < 0.09
    good = at.value(at.u / (at.size * 0.28), at.v / at.size)
    empty = within > 0.45 + 0.5 * at.value(at.u / (at.size * 0.84), at.v / at.size, 1)
    brightness = np.where(empty, 0.25, 0.35 + 0.9 * good)
    shade = 1 + (brightness - 1) * (0.4 + 0.6 * at.fade)
    return np.where(board, 0.0, 0.3 + 0.6 * good), np.where(board, 1.0, shade)


def _windows(at: _Patch) -> _Layout:
    high = at.size * 1.25
    inside = (np.mod(at.u / at.size, 1) > 0.34) & (np.mod(at.v / high, 1) > 0.42) & (at.v > 0.6)
    return inside * (0.75 + 0.25 * at.value(at.u / at.size, at.v / high)), np.ones_like(at.u)


def _panel(at: _Patch) -> _Layout:
    frame = np.minimum(at.joint(at.u, at.size, 0.10) + at.joint(at.v, at.size * 2.1, 0.10), 1)
    return frame * at.fade, np.ones_like(at.u)


def _lanes(at: _Patch) -> _Layout:
    """Painted lines every `size`, broken where cells say so, on ground with patches of repair."""
    line = at.joint(at.u, at.size, 0.07) * (np.mod(at.v / (at.size * 1.7), 1) < 0.75)
    patch = at.value(at.u / (at.size * 1.3) + 0.4, at.v / (at.size * 2.2)) > 0.75
    return line, np.where(patch, 0.88, 1.0)


_LAYOUTS: dict[str, Callable[[_Patch], _Layout]] = {
    "plain": _plain, "rough": _plain, "tiles": _tiles, "planks": _planks, "bricks": _bricks, "shelf": _shelf,
    "windows": _windows, "panel": _panel, "lanes": _lanes,
}  # fmt: skip
KINDS = tuple(_LAYOUTS)

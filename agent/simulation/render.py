"""Solids with light on them: from fragments to a picture of people, and who is seen where."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.simulation.camera import Camera
from agent.simulation.raster import MOVING_PX, Fragments, Outlines, Solids, fragments, outline
from agent.simulation.wardrobe import Look
from agent.types import FloatArray, ImageArray, IntArray

_FOLD_SIZE = 128
_KINDS = 3
"""Colours of a solid: base, trim, pattern."""


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """One far light and the sky.

    toward: (3,) unit vector to the light, world; direct, sky, ground: (3,) BGR, 0-1 of full exposure: from the light,
    and from above and below where the light does not reach. lamp_m: for a lamp at the camera, the distance at which
    its light has fallen to a half; 0 = light from far away.
    """

    toward: FloatArray
    direct: FloatArray
    sky: FloatArray
    ground: FloatArray
    lamp_m: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Wardrobe:
    """The surfaces of K solids, several people's in one; arrays as in `Look`. texture: see `fold_texture`."""

    colours: FloatArray
    trim: FloatArray
    pattern: FloatArray
    folds: FloatArray
    texture: FloatArray

    @classmethod
    def of(cls, looks: list[Look], texture: FloatArray) -> Wardrobe:
        """The surfaces of `looks` in order; at least one."""
        return cls(
            np.concatenate([look.colours for look in looks]),
            np.concatenate([look.trim for look in looks]),
            np.concatenate([look.pattern for look in looks]),
            np.concatenate([look.folds for look in looks]),
            texture,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Silhouettes:
    """What is seen of A actors. depth: (H, W) float32 m, people and occluders; actor: (H, W) int16, row of the actor
    seen at a pixel, -1 = none; boxes: (A, 4) around the visible pixels (max exclusive), NaN where none is;
    full_boxes: (A, 4) unclipped; visible_share: (A,) of the whole body's pixels."""

    depth: FloatArray
    actor: IntArray
    boxes: FloatArray
    full_boxes: FloatArray
    visible_share: FloatArray


def fold_texture(rng: np.random.Generator) -> FloatArray:
    """(128, 128) float32 around 0, within +-1: what folds do to the brightness of cloth; repeats in both directions."""
    total = np.zeros((_FOLD_SIZE, _FOLD_SIZE), np.float32)
    for sigma_x, sigma_y, weight in ((3, 9, 1.0), (8, 4, 0.8), (1.2, 1.2, 0.35)):
        noise = rng.standard_normal((_FOLD_SIZE, _FOLD_SIZE)).astype(np.float32)
        tiled = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), sigma_x, sigmaY=sigma_y)
        layer = tiled[_FOLD_SIZE : 2 * _FOLD_SIZE, _FOLD_SIZE : 2 * _FOLD_SIZE]
        total += weight * layer / layer.std()
    return np.clip(total / 3, -1, 1).astype(np.float32)


def draw_people(
    image: ImageArray, depth: FloatArray, solids: Solids, wardrobe: Wardrobe, *, camera: Camera, light: Light
) -> Silhouettes:
    """Draw `solids` into `image` ((H, W, 3) uint8 BGR, changed in place), behind what is nearer in `depth` ((H, W) m)."""
    height, width = image.shape[:2]
    outlines = outline(solids, camera)
    found = fragments(outlines, width=width, height=height)
    inside = (found.columns >= 0) & (found.columns < width) & (found.rows >= 0) & (found.rows < height)
    whole = found
    if not inside.all():
        found = found.take(np.flatnonzero(inside))
    pixel = found.rows * width + found.columns
    buffer = depth.copy().reshape(-1)
    np.minimum.at(buffer, pixel, found.depth)
    front = np.flatnonzero(found.depth <= buffer.take(pixel))
    seen, seen_pixel = found.take(front), pixel.take(front)
    image.reshape(-1, 3)[seen_pixel] = _shade(seen, solids, outlines, wardrobe, light)
    actor = np.full(height * width, -1, np.int16)
    actor[seen_pixel] = solids.owner.take(seen.solid)
    actor = actor.reshape(height, width)
    moving = (np.abs(outlines.drift_px).max(axis=(1, 2)) > MOVING_PX).take(seen.solid)
    if moving.any():
        _blur_motion(image, seen_pixel, moving)
    boxes, share = _extent(whole, seen, solids)
    return Silhouettes(buffer.reshape(height, width), actor, boxes, _full_boxes(outlines, solids), share)


def _shade(seen: Fragments, solids: Solids, outlines: Outlines, wardrobe: Wardrobe, light: Light) -> ImageArray:
    """(N, 3) uint8 colours of fragments: Lambert's law for the light, a hemisphere for the rest, folds in the cloth."""
    solid = seen.solid
    # Normals of a stretched sphere: its unit coordinates over the radii. (s e c, world x y z, K), rows contiguous.
    normals = (outlines.basis / solids.radii[:, None, :]) @ solids.axes * solids.radii.min(axis=1)[:, None, None]
    terms = np.ascontiguousarray(normals.transpose(1, 2, 0))
    x, y, z = (
        terms[0, axis].take(solid) * seen.s + terms[1, axis].take(solid) * seen.e + terms[2, axis].take(solid) * seen.c
        for axis in range(3)
    )
    per_length = 1 / np.sqrt(x * x + y * y + z * z)
    direct = (x * light.toward[0] + y * light.toward[1] + z * light.toward[2]) * per_length
    upward = z * (per_length * np.float32(0.5)) + np.float32(0.5)
    bumps = _bumps(seen, wardrobe)
    direct = np.maximum(direct + bumps * np.float32(0.22), 0)
    edge = (np.float32(0.72 * 255) + np.float32(0.28 * 255) * seen.c) * (1 + bumps * np.float32(0.16))
    if light.lamp_m:
        direct *= 2 / (1 + (seen.depth / np.float32(light.lamp_m)) ** 2)
    index = solid * _KINDS + _kind(seen, outlines, wardrobe)
    direct *= edge
    upward *= edge
    channels = []
    for channel in range(3):
        lit = (
            edge * light.ground[channel] + upward * (light.sky - light.ground)[channel] + direct * light.direct[channel]
        )
        albedo = np.ascontiguousarray(wardrobe.colours[..., channel]).reshape(-1).take(index)
        channels.append(np.minimum(albedo * lit, 255).astype(np.uint8))
    colour: ImageArray = np.stack(channels, axis=1)
    return colour


def _bumps(seen: Fragments, wardrobe: Wardrobe) -> FloatArray:
    """(N,) what folds add to the brightness; every solid has another piece of the texture."""
    down = (seen.t * np.float32(50) + seen.e * np.float32(8)).astype(np.int64) + seen.solid * 37
    right = (seen.s * np.float32(17)).astype(np.int64) + seen.solid * 53
    index = (down & (_FOLD_SIZE - 1)) * _FOLD_SIZE + (right & (_FOLD_SIZE - 1))
    return wardrobe.texture.reshape(-1).take(index) * wardrobe.folds.take(seen.solid)


def _kind(seen: Fragments, outlines: Outlines, wardrobe: Wardrobe) -> IntArray:
    """(N,) which colour of its solid a fragment has: 0 base, 1 trim, 2 pattern."""
    kind = np.zeros(len(seen.solid), np.int64)
    # The rules speak of left, front, up and t; turned into s, e, c and t per solid they cost one dot product a fragment.
    for number, rule in ((2, wardrobe.pattern), (1, wardrobe.trim)):
        used = np.any(rule[:, :4] != 0, axis=1)
        if not used.any():
            continue
        chosen = np.flatnonzero(used.take(seen.solid))
        solid = seen.solid.take(chosen)
        turned = np.einsum("kij,kj->ik", outlines.basis, rule[:, :3]).copy()
        value = rule[:, 3].take(solid) * seen.t.take(chosen)
        for term, coordinate in zip(turned, (seen.s, seen.e, seen.c), strict=True):
            value += term.take(solid) * coordinate.take(chosen)
        limit = rule[:, 4].take(solid)
        hit = np.mod(value + limit, 1) > 0.5 if number == 2 else value > limit
        kind[chosen[hit]] = number
    return kind


def _blur_motion(image: ImageArray, seen_pixel: IntArray, moving: NDArray[np.bool_]) -> None:
    """Average the moments that neighbouring rows of moving solids show. moving: (N,) of the pixels in `seen_pixel`."""
    height, width = image.shape[:2]
    mask = np.zeros(height * width, np.uint8)
    mask[seen_pixel[moving]] = 255
    x, y, w, h = cv2.boundingRect(mask.reshape(height, width))
    rows, columns = slice(max(y - 2, 0), y + h + 2), slice(max(x - 2, 0), x + w + 2)
    near = cv2.dilate(mask.reshape(height, width)[rows, columns], np.ones((3, 3), np.uint8))
    region = image[rows, columns]
    image[rows, columns] = cv2.copyTo(cv2.blur(region, (3, 3)), near, region.copy())


def _full_boxes(outlines: Outlines, solids: Solids) -> FloatArray:
    starts = np.flatnonzero(np.diff(solids.owner, prepend=-1))
    low = np.minimum.reduceat(np.where(outlines.seen[:, None], outlines.boxes[:, :2], np.inf), starts, axis=0)
    high = np.maximum.reduceat(np.where(outlines.seen[:, None], outlines.boxes[:, 2:], -np.inf), starts, axis=0)
    return np.concatenate([low, high + 1], axis=1).astype(np.float32)


def _extent(whole: Fragments, seen: Fragments, solids: Solids) -> tuple[FloatArray, FloatArray]:
    """(A, 4) boxes around visible pixels, NaN for none, and (A,) shares of the body's pixels that are visible."""
    count = int(solids.owner[-1]) + 1
    boxes, share = np.full((count, 4), np.nan, np.float32), np.zeros(count, np.float32)
    all_edges, seen_edges = (
        np.searchsorted(solids.owner.take(part.solid), np.arange(count + 1)) for part in (whole, seen)
    )
    for row in range(count):
        mine = slice(seen_edges[row], seen_edges[row + 1])
        columns, rows = seen.columns[mine], seen.rows[mine]
        if len(columns):
            boxes[row] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            share[row] = min(len(columns) / _area(whole, slice(all_edges[row], all_edges[row + 1])), 1.0)
    return boxes, share


def _area(whole: Fragments, mine: slice) -> int:
    """Pixels that fragments cover."""
    columns, rows = whole.columns[mine], whole.rows[mine]
    left, top = int(columns.min()), int(rows.min())
    stride = int(columns.max()) - left + 1
    mask = np.zeros((int(rows.max()) - top + 1) * stride, np.uint8)
    mask[(rows - top) * stride + (columns - left)] = 1
    return int(np.count_nonzero(mask))

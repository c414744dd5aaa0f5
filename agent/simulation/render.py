"""Solids with light on them: from fragments to a picture of people, and who is seen where."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from agent.simulation.camera import Camera
from agent.simulation.raster import Fragments, Outlines, Solids, fragments, outline
from agent.simulation.wardrobe import Look
from agent.types import FloatArray, ImageArray, IntArray

_FOLD_SIZE = 128
_MOVING_PX = 0.5


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
    """The surfaces of K solids, several people's in one; arrays as in `Look`."""

    colours: FloatArray
    trim: FloatArray
    pattern: FloatArray
    folds: FloatArray

    @classmethod
    def of(cls, looks: list[Look]) -> Wardrobe:
        """The surfaces of `looks` in order; at least one."""
        return cls(*(np.concatenate([getattr(look, name) for look in looks]) for name in cls.__slots__))


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
    image: ImageArray, depth: FloatArray, solids: Solids, wardrobe: Wardrobe, camera: Camera, light: Light, folds: FloatArray
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
    image.reshape(-1, 3)[seen_pixel] = _shade(seen, solids, outlines, wardrobe, light, folds)
    actor = np.full(height * width, -1, np.int16)
    actor[seen_pixel] = solids.owner.take(seen.solid)
    actor = actor.reshape(height, width)
    _blur_motion(image, outlines)
    boxes, share = _extent(whole, solids, actor)
    return Silhouettes(buffer.reshape(height, width), actor, boxes, _full_boxes(outlines, solids), share)


def _shade(
    seen: Fragments, solids: Solids, outlines: Outlines, wardrobe: Wardrobe, light: Light, folds: FloatArray
) -> ImageArray:
    """(N, 3) uint8 colours of fragments: Lambert's law for the light, a hemisphere for the rest, folds in the cloth."""
    solid = seen.solid
    surface = np.stack([seen.s, seen.e, seen.c], axis=1)
    inverse_axes = solids.axes / solids.radii[:, :, None]
    normals = (outlines.basis @ inverse_axes) * solids.radii.min(axis=1)[:, None, None]  # (K, 3 of s e c, 3 world)
    flat = normals.transpose(1, 2, 0)
    normal = [sum(np.ascontiguousarray(flat[i, j]).take(solid) * v for i, v in enumerate((seen.s, seen.e, seen.c))) for j in range(3)]
    length = np.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2])
    facing = sum(n * np.float32(d) for n, d in zip(normal, light.toward, strict=True)) / length
    upward = normal[2] / length
    bumps = folds[
        (seen.t * 50 + seen.e * 8 + solid * 37).astype(np.int64) & (_FOLD_SIZE - 1),
        (seen.s * 17 + solid * 53).astype(np.int64) & (_FOLD_SIZE - 1),
    ] * wardrobe.folds.take(solid)
    direct = np.maximum(facing + bumps * np.float32(0.22), 0)
    edge = (0.72 + 0.28 * seen.c) * (1 + bumps * np.float32(0.16))
    if light.lamp_m:
        direct = direct * (2 / (1 + (seen.depth / np.float32(light.lamp_m)) ** 2)).astype(np.float32)
    albedo = _albedo(seen, surface, outlines, wardrobe)
    glow = (0.5 + 0.5 * upward)[:, None]
    lit = light.ground + (light.sky - light.ground) * glow + light.direct * direct[:, None]
    colour: ImageArray = np.clip(albedo * lit * (255 * edge)[:, None], 0, 255).astype(np.uint8)
    return colour


def _albedo(seen: Fragments, surface: FloatArray, outlines: Outlines, wardrobe: Wardrobe) -> FloatArray:
    """(N, 3) base, trim or pattern colour of each fragment."""
    solid = seen.solid
    # The rules speak of left, front, up and t; turned into s, e, c and t per solid they cost one dot product a fragment.
    kind = np.zeros(len(solid), np.int64)
    for index, (rule, periodic) in enumerate(((wardrobe.pattern, True), (wardrobe.trim, False)), start=1):
        turned = np.einsum("kij,kj->ki", outlines.basis, rule[:, :3])
        used = np.any(rule[:, :4] != 0, axis=1)
        chosen = np.flatnonzero(used.take(solid))
        part = solid.take(chosen)
        value = np.einsum("ni,ni->n", surface.take(chosen, axis=0), turned.take(part, axis=0))
        value += rule[:, 3].take(part) * seen.t.take(chosen)
        limit = rule[:, 4].take(part)
        hit = (value + limit) % 1 > 0.5 if periodic else value > limit
        kind[chosen[hit]] = 3 - index
    return wardrobe.colours.reshape(-1, 3).take(solid * 3 + kind, axis=0)


def _blur_motion(image: ImageArray, outlines: Outlines) -> None:
    """Average the moments that neighbouring pixels of moving solids show."""
    height, width = image.shape[:2]
    moving = np.flatnonzero((np.abs(outlines.drift_px).max(axis=(1, 2)) > _MOVING_PX) & outlines.seen)
    margin = np.abs(outlines.drift_px).max(axis=(1, 2)) / 2 + 2
    for index in moving:
        left, top, right, bottom = outlines.boxes[index]
        rows = slice(max(int(top - margin[index]), 0), min(int(bottom + margin[index]), height))
        columns = slice(max(int(left - margin[index]), 0), min(int(right + margin[index]), width))
        if rows.start < rows.stop and columns.start < columns.stop:
            image[rows, columns] = cv2.blur(image[rows, columns], (3, 3))


def _full_boxes(outlines: Outlines, solids: Solids) -> FloatArray:
    starts = np.flatnonzero(np.diff(solids.owner, prepend=-1))
    low = np.minimum.reduceat(np.where(outlines.seen[:, None], outlines.boxes[:, :2], np.inf), starts, axis=0)
    high = np.maximum.reduceat(np.where(outlines.seen[:, None], outlines.boxes[:, 2:], -np.inf), starts, axis=0)
    return np.concatenate([low, high + 1], axis=1).astype(np.float32)


def _extent(whole: Fragments, solids: Solids, actor: IntArray) -> tuple[FloatArray, FloatArray]:
    """(A, 4) boxes around visible pixels and (A,) shares of the body's pixels that are visible."""
    count = int(solids.owner[-1]) + 1
    owner = solids.owner.take(whole.solid)
    edges = np.searchsorted(owner, np.arange(count + 1))
    boxes, share = np.full((count, 4), np.nan, np.float32), np.zeros(count, np.float32)
    height, width = actor.shape
    for row in range(count):
        columns, rows = (values[edges[row] : edges[row + 1]] for values in (whole.columns, whole.rows))
        if not len(columns):
            continue
        left, top = int(columns.min()), int(rows.min())
        mask = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), np.uint8)
        mask.reshape(-1)[(rows - top) * mask.shape[1] + columns - left] = 1
        region = actor[max(top, 0) : top + mask.shape[0], max(left, 0) : left + mask.shape[1]]
        x, y, w, h = cv2.boundingRect((region == row).astype(np.uint8))
        if w:
            x, y = x + max(left, 0), y + max(top, 0)
            boxes[row] = x, y, x + w, y + h
            share[row] = np.count_nonzero(region == row) / max(np.count_nonzero(mask), 1)
    return boxes, share

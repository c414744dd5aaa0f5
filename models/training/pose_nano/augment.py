"""Random views of prepared pictures: turn, scale, crop, mirror, mosaic, colour, blur, noise, compression. Pure but for OpenCV.

Everything is a function of the generator given, so a sample is remade exactly from its number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from agent.types import FloatArray, ImageArray
from pose_nano.geometry import CANVAS, TRAINED_AT
from pose_nano.store import PAD, Annotations, Sample

MIRROR = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
"""COCO's key points with left and right exchanged."""
LEAST_SIDE_PX = 10.0  # people smaller than this become unknown regions
LEAST_KEYPOINTS, LEAST_SHARE = 3, 0.12  # and those of whom less is on the canvas
STRAIGHT_DEGREES = 8  # boxes of people who are turned further are drawn anew
NEAR_SOMEBODY = 0.95


@dataclass(frozen=True, slots=True)
class Recipe:
    """How wild the views are. canvas: (H, W) px; zoom: range of person size relative to the whole picture on the network's
    final canvas; mosaic, lying, distorted: probabilities of four pictures in one, of a turn by any angle up to 110 degrees and of
    `distort`; hidden: who shows no key point is looked at 1 + hidden times as often as who shows all."""

    canvas: tuple[int, int] = CANVAS
    final: tuple[int, int] = TRAINED_AT
    zoom: tuple[float, float] = (0.55, 1.8)
    turn_degrees: float = 20.0
    lying: float = 0.1
    mosaic: float = 0.25
    distorted: float = 1.0
    hidden: float = 0.0


def view(draw: Callable[[], Sample], recipe: Recipe, rng: np.random.Generator) -> Sample:
    """One training picture; `draw` gives prepared pictures."""
    height, width = recipe.canvas
    if rng.random() >= recipe.mosaic:
        image, people = _place(draw(), recipe.canvas, recipe, rng, 1.0)
        return Sample(_distorted(image, recipe, rng), people)
    image = np.full((height, width, 3), PAD, np.uint8)
    row, column = (int(side * rng.uniform(0.35, 0.65)) for side in (height, width))
    parts = []
    for top, bottom in ((0, row), (row, height)):
        for left, right in ((0, column), (column, width)):
            tile, people = _place(draw(), (bottom - top, right - left), recipe, rng, 0.6)
            image[top:bottom, left:right] = tile if rng.random() < 0.5 else distort(tile, rng)
            shift = np.array([left, top], np.float32)
            parts.append(replace(people, boxes=people.boxes + np.tile(shift, 2), keypoints=people.keypoints + shift))
    return Sample(_distorted(image, recipe, rng), Annotations.joined(parts))


def _distorted(image: ImageArray, recipe: Recipe, rng: np.random.Generator) -> ImageArray:
    return distort(image, rng) if rng.random() < recipe.distorted else image


def _place(
    sample: Sample, canvas: tuple[int, int], recipe: Recipe, rng: np.random.Generator, factor: float
) -> tuple[ImageArray, Annotations]:
    """A sample turned, scaled and cropped on to a canvas; looks at people rather than at empty corners."""
    height, width = sample.image.shape[:2]
    fitted = min(recipe.final[0] / height, recipe.final[1] / width)
    scale = fitted * factor * float(np.exp(rng.uniform(*np.log(recipe.zoom))))
    angle = rng.uniform(-110, 110) if rng.random() < recipe.lying else rng.normal() * recipe.turn_degrees / 2
    stretch = float(np.exp(rng.normal() * 0.06))
    mirrored = rng.random() < 0.5
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.diag([scale * stretch * (-1 if mirrored else 1), scale / stretch])
    focus = _focus(sample, recipe, rng)
    aim = np.array([canvas[1], canvas[0]]) * rng.uniform(0.2, 0.8, 2)
    # A picture smaller than the canvas stays inside it; one that is larger covers it, mostly.
    span = np.abs(matrix) @ np.array([width, height])
    middle = matrix @ (np.array([width, height]) / 2 - focus) + aim
    slack = np.abs(np.array([canvas[1], canvas[0]]) - span) / 2 + 0.1 * span * rng.random()
    centre = np.array([canvas[1], canvas[0]]) / 2
    moved = np.clip(middle, centre - slack, centre + slack)
    affine = np.concatenate([matrix, (moved - matrix @ (np.array([width, height]) / 2))[:, None]], axis=1)
    method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    image = cv2.warpAffine(
        sample.image,
        affine,
        (canvas[1], canvas[0]),
        flags=method,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PAD,) * 3,
    )
    people = transform(
        sample.people, affine.astype(np.float32), straight=abs(angle) < STRAIGHT_DEGREES, mirrored=mirrored
    )
    return image, clip(people, canvas)  # type: ignore[return-value]  # OpenCV's stubs do not know the dtype


def _focus(sample: Sample, recipe: Recipe, rng: np.random.Generator) -> FloatArray:
    """(2,) px of the source: mostly near somebody."""
    size = np.array([sample.image.shape[1], sample.image.shape[0]], np.float32)
    known = sample.people.labelled
    if known.any() and rng.random() < NEAR_SOMEBODY:
        chance = 1 + recipe.hidden * (sample.people.seen[known] < 1).mean(axis=1)
        box = sample.people.boxes[known][rng.choice(len(chance), p=chance / chance.sum())]
        return (box[:2] + (box[2:] - box[:2]) * rng.uniform(0.2, 0.8, 2)).astype(np.float32)
    return (size * rng.random(2)).astype(np.float32)


def transform(people: Annotations, affine: FloatArray, *, straight: bool, mirrored: bool) -> Annotations:
    """People after a 2 x 3 affine map. Boxes of turned people are drawn anew around their key points."""
    if not len(people):
        return people
    keypoints = people.keypoints @ affine[:, :2].T + affine[:, 2]
    corners = people.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ affine[:, :2].T + affine[:, 2]
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    if not straight:
        near = _around(keypoints, people, float(np.sqrt(abs(np.linalg.det(affine[:, :2])))))
        boxes = np.where((people.labelled & (people.weights > 0).any(axis=1))[:, None], near, boxes)
    moved = replace(people, boxes=boxes.astype(np.float32), keypoints=keypoints.astype(np.float32))
    if not mirrored:
        return moved
    return replace(
        moved, keypoints=moved.keypoints[:, MIRROR], weights=moved.weights[:, MIRROR], seen=moved.seen[:, MIRROR]
    )


def _around(keypoints: FloatArray, people: Annotations, scale: float) -> FloatArray:
    """Boxes around believed key points with the mean margin that the people's boxes had before."""
    believed = (people.weights > 0)[..., None]
    low, high = (np.where(believed, people.keypoints, fill) for fill in (np.inf, -np.inf))
    margin = np.concatenate([low.min(axis=1) - people.boxes[:, :2], people.boxes[:, 2:] - high.max(axis=1)], axis=1)
    room = np.nan_to_num(np.maximum(margin, 0).mean(axis=1, keepdims=True) * scale, posinf=0)
    low, high = (np.where(believed, keypoints, fill) for fill in (np.inf, -np.inf))
    return np.concatenate([low.min(axis=1) - room, high.max(axis=1) + room], axis=1)


def clip(people: Annotations, canvas: tuple[int, int]) -> Annotations:
    """People on a canvas of (H, W) px: what is outside is not believed; who hardly shows becomes an unknown region."""
    if not len(people):
        return people
    edge = np.array([canvas[1], canvas[0]], np.float32)
    whole = (people.boxes[:, 2:] - people.boxes[:, :2]).prod(axis=1)
    boxes = np.clip(people.boxes, 0, np.tile(edge, 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = ((people.keypoints >= 0) & (people.keypoints < edge)).all(axis=-1)
    weights = people.weights * inside
    enough = ((weights > 0).sum(axis=1) >= LEAST_KEYPOINTS) & (sides.max(axis=1) >= LEAST_SIDE_PX)
    enough &= sides.prod(axis=1) > LEAST_SHARE * whole
    clipped = Annotations(boxes, people.keypoints, weights, people.seen * inside, people.labelled & enough)
    keep = sides.min(axis=1) > 1
    return clipped.rows(keep)


def distort(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Colour, light, blur, noise, compression, lost detail, a covered patch: each with its own chance."""
    image = _colours(image, rng)
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6))  # type: ignore[assignment]  # stubs
    elif rng.random() < 0.1:
        image = _motion_blur(image, rng)
    if rng.random() < 0.1:
        image = _coarse(image, rng)
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(2, 14), (*image.shape[:2], 1 if rng.random() < 0.5 else 3))
        image = np.clip(image + noise.astype(np.float32), 0, 255).astype(np.uint8)
    if rng.random() < 0.12:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 70))])
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)  # type: ignore[assignment]  # stubs
    if rng.random() < 0.12:
        image = _cover(image, rng)
    return image


def _colours(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Gain, contrast and gamma per channel by one table; grey or exchanged channels now and then."""
    if rng.random() < 0.12:
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        image = cv2.merge([grey, grey, grey])  # type: ignore[assignment]  # stubs
    elif rng.random() < 0.12:
        image = np.ascontiguousarray(image[..., rng.permutation(3)])
    level = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma = np.exp(rng.normal() * 0.3)
    gain = np.exp(rng.normal() * 0.2 + rng.normal(size=3) * 0.1)
    lift = rng.normal() * 0.08
    table = np.clip(((level**gamma - 0.5) * gain + 0.5 + lift) * 255, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, 3))  # type: ignore[return-value]  # stubs


def _motion_blur(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * (length - 1) / 2
    start, end = ((np.array([length - 1] * 2) / 2 + sign * reach).round().astype(int) for sign in (-1, 1))
    cv2.line(kernel, tuple(map(int, start)), tuple(map(int, end)), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())  # type: ignore[return-value]  # stubs


def _coarse(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    height, width = image.shape[:2]
    factor = rng.uniform(0.35, 0.8)
    small = cv2.resize(image, (max(8, int(width * factor)), max(8, int(height * factor))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]  # stubs


def _cover(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    height, width = image.shape[:2]
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        h, w = (int(side * rng.uniform(0.04, 0.2)) for side in (height, width))
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return image

"""What the maps should be for the people of one picture. Pure NumPy.

Sizes: s = sqrt(box area) px. Widths of the score maps and radii grow with s, so that near and far people count alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.types import NUM_KEYPOINTS, FloatArray
from pose_nano.geometry import OKS_SIGMAS, POINT_STRIDE, STRIDE
from pose_nano.store import Annotations

TORSO = (5, 6, 11, 12)
CENTRE_SIGMA, CENTRE_LEAST_PX = 0.11, 6.0
POINT_SIGMA, POINT_LEAST_PX, POINT_MOST_PX = 0.05, 3.0, 10.0
OFFSET_RADIUS, OFFSET_LEAST_PX, OFFSET_MOST_PX = 0.18, 12.0, 40.0
OWNED = 0.35  # cells whose centre score is at least this answer for their person's box and pose
PEAK = 0.3  # less than this is no key point's place


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Of one picture, R x C cells of people and 2 R x 2 C of key points; float32.

    centres: (R, C) 0-1, -1 unknown; keypoints: (17, 2 R, 2 C) 0-1, -1 unknown; owner_weight: (R, C), > 0 where `boxes`
    (R, C, 4) xyxy px and `poses` (17, 2, R, C) px count; pose_weight: (17, R, C) of the latter; offsets: (17, 2, 2 R, 2 C) px from the
    cell's centre with offset_weight (17, 2 R, 2 C). pose_scale, offset_scale: 1 / (2 sigma s) per px, so that what is left of an
    error is what OKS sees; the weights are the trust in a label.
    """

    centres: FloatArray
    keypoints: FloatArray
    owner_weight: FloatArray
    boxes: FloatArray
    poses: FloatArray
    pose_scale: FloatArray
    pose_weight: FloatArray
    offsets: FloatArray
    offset_scale: FloatArray
    offset_weight: FloatArray


def cell_centres(height: int, width: int, stride: int = STRIDE) -> FloatArray:
    """(R, C, 2) x and y px of the middle of each cell of a picture of `height` x `width` px."""
    y, x = np.mgrid[: height // stride, : width // stride].astype(np.float32)
    return (np.stack([x, y], axis=-1) + np.float32(0.5)) * stride


def person_centres(people: Annotations) -> FloatArray:
    """(P, 2) px: mean of the believed shoulders and hips, else of the believed key points, else the middle of the box."""
    torso = np.zeros(NUM_KEYPOINTS, np.float32)
    torso[list(TORSO)] = 1
    weights = people.weights * torso
    weights = np.where((weights > 0).sum(axis=1, keepdims=True) >= 2, weights, people.weights)
    total = weights.sum(axis=1, keepdims=True)
    middle = (people.boxes[:, :2] + people.boxes[:, 2:]) / 2
    mean = (people.keypoints * weights[..., None]).sum(axis=1) / np.maximum(total, 1e-6)
    return np.where(total > 0, mean, middle).astype(np.float32)


def draw(people: Annotations, height: int, width: int) -> Targets:
    """Targets of a picture of `height` x `width` px; people that are not labelled leave their box unknown."""
    cells, fine = cell_centres(height, width), cell_centres(height, width, POINT_STRIDE)
    regions = people.boxes[~people.labelled]
    unknown, unknown_fine = _inside(cells, regions), _inside(fine, regions)
    people = people.rows(people.labelled)
    if not len(people):
        return _empty(unknown, unknown_fine)
    extent = people.boxes[:, 2:] - people.boxes[:, :2]
    size = np.sqrt(np.maximum(extent.prod(axis=1), 64.0)).astype(np.float32)
    centres, owner_weight, owner = _draw_centres(people, cells, size, unknown)
    distance2 = _distances2(fine, people.keypoints)
    sigma = np.clip(POINT_SIGMA * size, POINT_LEAST_PX, POINT_MOST_PX)[:, None, None, None]
    keypoints = _draw_keypoints(people, distance2, sigma, unknown_fine)
    radius = np.clip(OFFSET_RADIUS * size, OFFSET_LEAST_PX, OFFSET_MOST_PX)[:, None, None, None]
    believed = people.weights[:, :, None, None]
    relative = np.where((believed > 0) & (distance2 < radius**2), distance2 / radius**2, np.inf)
    nearest = relative.argmin(axis=0)  # (17, 2 R, 2 C)
    kinds = np.arange(NUM_KEYPOINTS)[:, None, None]
    close = np.isfinite(np.take_along_axis(relative, nearest[None], axis=0)[0])
    scale = 1 / (2 * OKS_SIGMAS[None] * size[:, None])  # (P, 17)
    offsets = np.moveaxis(people.keypoints[nearest, kinds] - fine[None], -1, 1)
    poses = np.moveaxis(people.keypoints[owner] - cells[:, :, None], (2, 3), (0, 1))
    return Targets(
        centres=centres,
        keypoints=keypoints,
        owner_weight=owner_weight,
        boxes=people.boxes[owner],
        poses=poses.astype(np.float32),
        pose_scale=np.moveaxis(scale[owner], 2, 0),
        pose_weight=np.moveaxis(people.weights[owner], 2, 0) * owner_weight,
        offsets=offsets.astype(np.float32),
        offset_scale=scale[nearest, kinds],
        offset_weight=np.where(close, people.weights[nearest, kinds], 0).astype(np.float32),
    )


def _distances2(cells: FloatArray, points: FloatArray) -> FloatArray:
    """(P, 17, R, C) px^2 from the cells (R, C, 2), rows and columns of a grid, to the points (P, 17, 2)."""
    x = (cells[0, :, 0] - points[..., :1]) ** 2
    y = (cells[:, 0, 1] - points[..., 1:]) ** 2
    distance2: FloatArray = y[..., :, None] + x[..., None, :]
    return distance2


def _draw_centres(
    people: Annotations, cells: FloatArray, size: FloatArray, unknown: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
    """Score map, weight of each cell as a person's, and whose it is (row of `people`)."""
    last = cells[-1, -1]
    middle = np.clip(person_centres(people), cells[0, 0], last)
    sigma = np.maximum(CENTRE_SIGMA * size, CENTRE_LEAST_PX)[:, None, None]
    distance2 = ((cells[None] - middle[:, None, None]) ** 2).sum(axis=-1)
    score = np.exp(-distance2 / (2 * sigma**2))
    nearest = distance2.reshape(len(people), -1).argmin(axis=1)
    score.reshape(len(people), -1)[np.arange(len(people)), nearest] = 1  # each person has one full positive
    owner = score.argmax(axis=0)
    best = score.max(axis=0)
    weight = np.where(best >= OWNED, best, 0).astype(np.float32)
    centres = np.where(unknown & (best < OWNED), -1, best).astype(np.float32)
    return centres, weight, owner


def _draw_keypoints(
    people: Annotations, distance2: FloatArray, sigma: FloatArray, unknown: NDArray[np.bool_]
) -> FloatArray:
    score = np.exp(-distance2 / (2 * sigma**2))
    flat = score.reshape(*score.shape[:2], -1)
    nearest = distance2.reshape(flat.shape).argmin(axis=-1)[..., None]
    np.put_along_axis(flat, nearest, np.where(np.take_along_axis(flat, nearest, -1) > PEAK, 1, 0), -1)
    seen = people.seen[:, :, None, None]
    best = (score * np.maximum(seen, 0)).max(axis=0)
    doubtful = ((seen < 0) & (distance2 < (3 * sigma) ** 2)).any(axis=0) | unknown
    return np.where(doubtful & (best < PEAK), -1, best).astype(np.float32)


def _inside(cells: FloatArray, boxes: FloatArray) -> NDArray[np.bool_]:
    """(R, C): cells in any of the boxes."""
    x, y = cells[..., 0, None], cells[..., 1, None]
    inside: NDArray[np.bool_] = ((x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])).any(
        axis=-1
    )
    return inside


def _empty(unknown: NDArray[np.bool_], unknown_fine: NDArray[np.bool_]) -> Targets:
    (rows, columns), fine = unknown.shape, unknown_fine.shape
    grid = np.where(unknown, -1, 0).astype(np.float32)
    points = np.broadcast_to(np.where(unknown_fine, -1, 0).astype(np.float32), (NUM_KEYPOINTS, *fine)).copy()
    return Targets(
        centres=grid,
        keypoints=points,
        owner_weight=np.zeros((rows, columns), np.float32),
        boxes=np.zeros((rows, columns, 4), np.float32),
        poses=np.zeros((NUM_KEYPOINTS, 2, rows, columns), np.float32),
        pose_scale=np.zeros((NUM_KEYPOINTS, rows, columns), np.float32),
        pose_weight=np.zeros((NUM_KEYPOINTS, rows, columns), np.float32),
        offsets=np.zeros((NUM_KEYPOINTS, 2, *fine), np.float32),
        offset_scale=np.zeros((NUM_KEYPOINTS, *fine), np.float32),
        offset_weight=np.zeros((NUM_KEYPOINTS, *fine), np.float32),
    )

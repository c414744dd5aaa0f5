"""Who is who: overlap of boxes, likeness of poses, and the assignment between tracks and detections."""

from __future__ import annotations

from typing import NamedTuple

import lap
import numpy as np
from numpy.typing import NDArray

from agent.tracking.kalman import Floats

Indices = NDArray[np.integer]

_TINY = float(np.finfo(np.float64).tiny)
_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089]
)  # fmt: skip
"""Per-joint standard deviations of COCO's object key-point similarity."""


class Assignment(NamedTuple):
    """rows[i] goes with columns[i]; the rest is free. All ascending by row, free_columns by column."""

    rows: Indices
    columns: Indices
    free_rows: Indices
    free_columns: Indices


def pairwise_iou(a: Floats, b: Floats, *, pixel: float = 0.0) -> Floats:
    """Intersection over union (A, B) of the boxes a (4, A) and b (4, B), xyxy px; 0 for boxes without extent.

    pixel: added to every width and height. 1 is the convention of `cython_bbox` (corners are the first and the last
    pixel), which ByteTrack's published code uses; 0 is the one of the metrics.
    """
    start_a, start_b = a[:2], b[:2]
    end_a, end_b = a[2:] + pixel, b[2:] + pixel
    overlap: Floats = np.minimum(end_a[:, :, None], end_b[:, None])
    overlap -= np.maximum(start_a[:, :, None], start_b[:, None])
    np.maximum(overlap, 0.0, out=overlap)
    intersection: Floats = overlap[0]
    intersection *= overlap[1]
    width_a, height_a = end_a - start_a
    width_b, height_b = end_b - start_b
    union = (width_a * height_a)[:, None] + width_b * height_b
    union -= intersection
    # A box turned inside out has no intersection but may spoil the union.
    np.maximum(union, _TINY, out=union)
    intersection /= union
    return intersection


def pairwise_oks(a: Floats, b: Floats, areas: Floats) -> Floats:
    """Object key-point similarity (A, B) of the poses a (A, 17, 3) and b (B, 17, 3): x, y px and score 0-1.

    areas: (B,) px^2 of the people b, the scale of the distances. Each joint counts with the product of its two scores
    instead of COCO's visibility flag; joints that are not finite do not count. NaN where no joint counts.
    """
    # (A, B, 17) arrays throughout: with 200 people on both sides that is 5 MB each.
    weight = _joint_weight(a)[:, None] * _joint_weight(b)
    a, b = np.nan_to_num(a, posinf=0.0, neginf=0.0), np.nan_to_num(b, posinf=0.0, neginf=0.0)
    distance2 = np.square(a[:, None, :, 0] - b[:, :, 0]) + np.square(a[:, None, :, 1] - b[:, :, 1])
    scale2 = 2 * np.square(2 * _SIGMAS) * np.maximum(areas, 1.0)[:, None]
    similarity = np.exp(-distance2 / scale2)
    total = weight.sum(axis=-1)
    oks: Floats = np.full(total.shape, np.nan)
    np.divide((similarity * weight).sum(axis=-1), total, out=oks, where=total > 0)
    return oks


def _joint_weight(pose: Floats) -> Floats:
    """(N, 17, 3) -> (N, 17): the score, 0 where anything of the joint is not finite."""
    return np.where(np.isfinite(pose).all(axis=-1), np.clip(pose[..., 2], 0.0, 1.0), 0.0)


def assign(cost: Floats, limit: float) -> Assignment:
    """The assignment of least total cost between the rows and columns of cost (R, C), where a pair may stay free.

    Leaving a row and a column free costs `limit`, so no pair dearer than that is made. Jonker-Volgenant (`lap`) on the
    cost matrix extended as upstream ByteTrack does it.
    """
    rows, columns = (cost < limit).nonzero()
    if len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())):  # nobody has a choice: common, and cheaper
        return Assignment(rows, columns, _others(cost.shape[0], rows), _others(cost.shape[1], columns))
    column_of, row_of = lap.lapjv(cost, extend_cost=True, cost_limit=limit, return_cost=False)
    matched = (column_of >= 0).nonzero()[0]
    return Assignment(matched, column_of[matched], (column_of < 0).nonzero()[0], (row_of < 0).nonzero()[0])


def _others(length: int, chosen: Indices) -> Indices:
    """The numbers below `length` that are not among the chosen."""
    free = np.ones(length, np.bool_)
    free[chosen] = False
    others: Indices = free.nonzero()[0]
    return others

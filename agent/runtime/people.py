"""Do two sessions see the same people? Pure.

Detections cannot be compared element by element: the non-maximum suppression inside a graph may order near-equal scores
differently, leaves out or adds people at its threshold, and TensorRT's pads with rows of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SEEN = 0.3
"""Key points of a lower score are guesses; where a guess lies is noise."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the same person may be off.

    min_score: people of a lower score need no counterpart; score: difference of a person's score; position_px: of any box
    edge and of any key point seen, px of the canvas.
    """

    min_score: float
    score: float
    position_px: float


def compare_people(want: tuple[Array, Array], have: tuple[Array, Array], tolerance: Tolerance) -> str:
    """The first difference between two answers to the same pictures, in words; empty = none.

    want, have: `dets` (B, N, 5) xyxy and score, `keypoints` (B, N, 17, 3) x, y, score, in canvas px; N may differ.
    """
    if problem := _wrong_shape(want, have):
        return problem
    for picture in range(len(want[0])):
        known = _people(want[0][picture], want[1][picture])
        found = _people(have[0][picture], have[1][picture])
        for difference in _differences(known, found, tolerance):
            return f"picture {picture}: {difference}"
    return ""


def _wrong_shape(want: tuple[Array, Array], have: tuple[Array, Array]) -> str:
    known, points = want
    if not (known.ndim == 3 and points.ndim == 4 and points.shape[:2] == known.shape[:2]) or (
        (known.shape[2], points.shape[3]) != (5, 3)
    ):
        return f"outputs are of the shapes {known.shape} and {points.shape}, not (B, N, 5) and (B, N, K, 3)"
    dets, keypoints = have
    batch, tail = len(known), points.shape[2:]
    count = dets.shape[1] if dets.ndim == 3 else -1
    if dets.shape == (batch, count, 5) and keypoints.shape == (batch, count, *tail):
        return ""
    expected = f"({batch}, N, 5) and ({batch}, N, {tail[0]}, 3)"
    return f"outputs should have the shapes {expected}, found {dets.shape} and {keypoints.shape}"


def _people(dets: Array, keypoints: Array) -> tuple[Array, Array]:
    """The rows that are people, best first: finite, of some score and area; as float64."""
    dets, keypoints = dets.astype(np.float64), keypoints.astype(np.float64)
    finite = np.isfinite(dets).all(axis=1) & np.isfinite(keypoints).all(axis=(1, 2))
    real = finite & (dets[:, 4] > 0) & (dets[:, 2] > dets[:, 0]) & (dets[:, 3] > dets[:, 1])
    rows = np.flatnonzero(real)
    rows = rows[np.argsort(-dets[rows, 4], kind="stable")]
    return dets[rows], keypoints[rows]


def _differences(known: tuple[Array, Array], found: tuple[Array, Array], tolerance: Tolerance) -> Iterator[str]:
    free = list(range(len(found[0])))
    for index, (det, points) in enumerate(zip(*known, strict=True)):
        if det[4] < tolerance.min_score:
            break
        name = f"the person of score {det[4]:.2f} at {np.round(det[:4]).astype(int).tolist()}"
        if not free:
            yield f"{name} is not found (person {index})"
            return
        offsets = {row: float(np.abs(found[0][row, :4] - det[:4]).max()) for row in free}
        nearest = min(offsets, key=offsets.__getitem__)
        free.remove(nearest)
        if offsets[nearest] > tolerance.position_px:
            yield f"{name} is not found; the nearest box is {offsets[nearest]:.1f} px off"
        yield from _same_person(name, (det, points), (found[0][nearest], found[1][nearest]), tolerance)
    for row in free:
        if found[0][row, 4] > tolerance.min_score + tolerance.score:
            place = np.round(found[0][row, :4]).astype(int).tolist()
            yield f"a person of score {found[0][row, 4]:.2f} at {place} should not be there"


def _same_person(
    name: str, known: tuple[Array, Array], found: tuple[Array, Array], tolerance: Tolerance
) -> Iterator[str]:
    difference = abs(float(found[0][4] - known[0][4]))
    if difference > tolerance.score:
        yield f"the score of {name} is off by {difference:.3f} (allowed: {tolerance.score:g})"
    seen = known[1][:, 2] >= _SEEN
    if seen.any():
        offset = float(np.abs(found[1][seen, :2] - known[1][seen, :2]).max())
        if offset > tolerance.position_px:
            yield f"a key point of {name} is {offset:.1f} px off (allowed: {tolerance.position_px:g})"

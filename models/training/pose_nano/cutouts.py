"""Real people cut out of their pictures and put before others, so that the network cannot know them by where they stand.

Pictures with pseudo-labels come from few places, and each of these hardly changes. The outline is GrabCut's (Rother et al. 2004), begun with
limbs of the labelled skeleton; the rest is copy and paste (Ghiasi et al. 2021, arXiv:2012.07177).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.types import FloatArray, ImageArray
from pose_nano.augment import transform
from pose_nano.store import Annotations, Sample

Mask = NDArray[np.uint8]

LEAST_HEIGHT_PX = 64.0
LEAST_SEEN = 10
_LIMBS = (
    (5, 7, 0.05), (7, 9, 0.04), (6, 8, 0.05), (8, 10, 0.04), (11, 13, 0.07), (13, 15, 0.05), (12, 14, 0.07), (14, 16, 0.05),
    (5, 6, 0.05), (11, 12, 0.06),
)  # fmt: skip
"""Two joints and the half width of what is between them, in heights of the person."""
_TORSO = (5, 6, 12, 11)
_HEAD = (0, 1, 2, 3, 4)
_HEAD_RADIUS, _HEAD_ABOVE = 0.065, 0.35
"""In heights; and how far its middle is above the shoulders, in lengths of the trunk."""
_CORE, _REACH = 0.35, 1.9
"""What is somebody for sure, and what may be, in widths of the limbs."""
_MOST_ENLARGED = 1.8
_ROUNDS = 3
_LIKE_LIMBS = 0.55
"""Overlap of the outline and the limbs; less, and GrabCut took the wall for the person."""
_COVERED = 128
_HIDDEN_WEIGHT = 0.5
_LEAST_SHOWN = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """image: (h, w, 3) uint8 BGR; alpha: (h, w) uint8; person: annotations of one, px of the cut."""

    image: ImageArray
    alpha: Mask
    person: Annotations


def cut(sample: Sample, row: int) -> Cutout | None:
    """Person `row` of a picture, or None: too little seen, too small, somebody else in the way, or no outline to be found."""
    people = sample.people
    points, seen = people.keypoints[row], (people.weights[row] > 0) & (people.seen[row] == 1)
    box = people.boxes[row]
    height = float(max(box[2:] - box[:2]))
    if not people.labelled[row] or seen.sum() < LEAST_SEEN or height < LEAST_HEIGHT_PX or _crowded(people, row):
        return None
    room = 0.12 * height
    edge = np.array([sample.image.shape[1], sample.image.shape[0]])
    left, top = np.maximum(box[:2] - room, 0).astype(int).tolist()
    right, bottom = np.minimum(box[2:] + room, edge).astype(int).tolist()
    image = np.ascontiguousarray(sample.image[top:bottom, left:right])
    shift = np.array([left, top], np.float32)
    alpha = outline(image, points - shift, seen, height)
    if alpha is None:
        return None
    one = people.rows(slice(row, row + 1))
    return Cutout(image, alpha, replace(one, boxes=one.boxes - np.tile(shift, 2), keypoints=one.keypoints - shift))


def _crowded(people: Annotations, row: int) -> bool:
    """Whether a third of the box, or of somebody else's, is shared."""
    box = people.boxes[row]
    others = np.delete(people.boxes, row, axis=0)
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = np.minimum((box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return bool((np.maximum(shared, 0).prod(axis=1) > areas / 3).any())


def outline(image: ImageArray, points: FloatArray, seen: NDArray[np.bool_], height: float) -> Mask | None:
    """(h, w) uint8: how much of each px is the person with these joints (17, 2); None where the picture does not tell."""
    limbs = _limbs(image.shape[:2], points, seen, height, 1.0)
    state = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    state[_limbs(image.shape[:2], points, seen, height, _REACH) > 0] = cv2.GC_PR_BGD
    state[limbs > 0] = cv2.GC_PR_FGD
    state[_limbs(image.shape[:2], points, seen, height, _CORE) > 0] = cv2.GC_FGD
    if not ((state == cv2.GC_BGD).any() and (state == cv2.GC_FGD).any()):
        return None
    cv2.grabCut(image, state, None, np.zeros((1, 65)), np.zeros((1, 65)), _ROUNDS, cv2.GC_INIT_WITH_MASK)
    mask = np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(np.uint8)
    common, either = (mask & limbs).sum(), (mask | limbs).sum()
    if common < _LIKE_LIMBS * either:
        return None
    soft: Mask = cv2.GaussianBlur(mask * np.uint8(255), (3, 3), 0).astype(np.uint8)
    return soft


def _limbs(shape: Sequence[int], points: FloatArray, seen: NDArray[np.bool_], height: float, factor: float) -> Mask:
    """1 within `factor` widths of a limb whose joints are seen, else 0."""
    mask = np.zeros(tuple(shape), np.uint8)
    places = np.round(points).astype(int)
    for one, other, width in _LIMBS:
        if seen[one] and seen[other]:
            thick = max(1, round(2 * width * height * factor))
            cv2.line(mask, places[one].tolist(), places[other].tolist(), 1, thick)
    if seen[list(_TORSO)].all():
        cv2.fillConvexPoly(mask, cv2.convexHull(places[list(_TORSO)].astype(np.int32)), 1)
    head = _head(points, seen)
    if head is not None:
        cv2.circle(mask, head.round().astype(int).tolist(), max(1, round(_HEAD_RADIUS * height * factor)), 1, -1)
    return mask


def _head(points: FloatArray, seen: NDArray[np.bool_]) -> FloatArray | None:
    """(2,) its middle: among its joints, or above the shoulders of somebody who looks away."""
    rows = [joint for joint in _HEAD if seen[joint]]
    if rows:
        middle: FloatArray = points[rows].mean(axis=0)
        return middle
    if not seen[list(_TORSO)].all():
        return None
    shoulders, hips = points[[5, 6]].mean(axis=0), points[[11, 12]].mean(axis=0)
    above: FloatArray = shoulders + _HEAD_ABOVE * (shoulders - hips)
    return above


def paste(sample: Sample, cutout: Cutout, rng: np.random.Generator, heights: tuple[float, float]) -> Sample:
    """The picture with the person before it, mirrored or not, somewhere; height: between `heights`, of the picture's.

    Joints that it covers are not seen any more; who is mostly covered becomes an unknown region.
    """
    size = np.array([sample.image.shape[1], sample.image.shape[0]])
    box = cutout.person.boxes[0]
    wanted = float(np.exp(rng.uniform(*np.log(heights)))) * size[1]
    scale = min(_MOST_ENLARGED, wanted / float(max(box[2:] - box[:2])))
    image, alpha, person = _scaled(cutout, scale)
    if rng.random() < 0.5:
        image, alpha, person = _mirrored(image, alpha, person)
    middle = (person.boxes[0, :2] + person.boxes[0, 2:]) / 2
    corner = np.round(size * rng.uniform(0.05, 0.95, 2) - middle).astype(int)
    low = np.maximum(corner, 0)
    high = np.minimum(corner + np.array(image.shape[1::-1]), size)
    if (high - low).min() < 8:
        return sample
    there = (slice(low[1], high[1]), slice(low[0], high[0]))
    here = (slice(low[1] - corner[1], high[1] - corner[1]), slice(low[0] - corner[0], high[0] - corner[0]))
    cover = np.zeros(sample.image.shape[:2], np.uint8)
    cover[there] = alpha[here]
    share = (alpha[here].astype(np.float32) / 255)[..., None]
    canvas = sample.image.copy()
    canvas[there] = np.round(_lit(image[here], rng) * share + canvas[there] * (1 - share)).astype(np.uint8)
    moved = replace(
        person,
        boxes=person.boxes + np.tile(corner, 2).astype(np.float32),
        keypoints=person.keypoints + corner.astype(np.float32),
    )
    return Sample(canvas, Annotations.joined([hidden(sample.people, cover), _cropped(moved, size)]))


def _scaled(cutout: Cutout, scale: float) -> tuple[ImageArray, Mask, Annotations]:
    size = [max(1, round(side * scale)) for side in cutout.alpha.shape[::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image, alpha = (cv2.resize(part, size, interpolation=method) for part in (cutout.image, cutout.alpha))
    return image, alpha, cutout.person.scaled(scale)  # type: ignore[return-value]  # stubs


def _mirrored(image: ImageArray, alpha: Mask, person: Annotations) -> tuple[ImageArray, Mask, Annotations]:
    about = np.array([(-1, 0, image.shape[1]), (0, 1, 0)], np.float32)
    other = transform(person, about, straight=True, mirrored=True)
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(alpha[:, ::-1]), other


def _lit(image: ImageArray, rng: np.random.Generator) -> FloatArray:
    """The person in other light than where it was."""
    gain = np.exp(rng.normal() * 0.15 + rng.normal(size=3) * 0.07)
    lit: FloatArray = np.clip(image * gain + rng.normal() * 12, 0, 255).astype(np.float32)
    return lit


def hidden(people: Annotations, cover: Mask) -> Annotations:
    """People behind `cover` (H, W)."""
    if not len(people):
        return people
    height, width = cover.shape
    columns, rows = (
        np.clip(people.keypoints[..., axis], 0, side - 1).astype(int) for axis, side in ((0, width), (1, height))
    )
    inside = ((people.keypoints >= 0) & (people.keypoints < (width, height))).all(axis=-1)
    behind = inside & (cover[rows, columns] >= _COVERED)
    shown = ((people.weights > 0) & ~behind).sum(axis=1)
    return replace(
        people,
        weights=np.where(behind, people.weights * _HIDDEN_WEIGHT, people.weights).astype(np.float32),
        seen=np.where(behind & (people.seen > 0), 0, people.seen).astype(np.float32),
        labelled=people.labelled & (shown >= _LEAST_SHOWN * np.maximum((people.weights > 0).sum(axis=1), 1)),
    )


def _cropped(person: Annotations, size: NDArray[np.int64]) -> Annotations:
    """Joints outside are not believed; who hardly shows is an unknown region."""
    inside = ((person.keypoints >= 0) & (person.keypoints < size)).all(axis=-1)
    weights = person.weights * inside
    shown = (weights > 0).sum(axis=1) >= np.maximum(3, 0.25 * (person.weights > 0).sum(axis=1))
    return replace(
        person,
        boxes=np.clip(person.boxes, 0, np.tile(size, 2)).astype(np.float32),
        weights=weights.astype(np.float32),
        seen=(person.seen * inside).astype(np.float32),
        labelled=person.labelled & shown,
    )

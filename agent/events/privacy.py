"""Faces are made unrecognisable before a picture is held, stored or shown.

A head region is estimated for every person the pose estimator reports, also the doubtful ones, and replaced by the
few colours of a coarse grid: what is thrown away cannot be brought back. Limit: a face that belongs to no reported
person stays as it is; `FaceBlur` bridges short drop-outs of the estimator, not people it never finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.types import FloatArray, ImageArray, People

GRID = 4
"""A head keeps GRID x GRID colours."""

_FACE = slice(0, 5)  # nose, eyes, ears
_LEFT_EYE, _RIGHT_EYE = 1, 2
_LEFT_SHOULDER, _RIGHT_SHOULDER, _LEFT_HIP, _RIGHT_HIP = 5, 6, 11, 12
_USABLE = 0.2  # key-point score from which a point may help to place a region
_SURE = 0.5  # face points above this need no second opinion from the shoulders

# Head radius (hair and chin included, with a margin) per body measure. From adult means: eyes 6.3 cm apart, ear to ear
# 14.5 cm or ear to nose 12 cm, shoulder joints 36 cm, shoulders to hips 50 cm, height 170 cm; wanted radius about 17 cm.
_PER_EYES, _PER_FACE, _PER_SHOULDERS, _PER_TORSO, _PER_BOX = 2.6, 1.25, 0.48, 0.34, 0.085
_MAX_PER_BODY = 2.5
_MAX_PER_BOX = 0.6
_MOVE = 3.0  # how far a head may get from one picture to the next, in its radii: about running speed at 10 fps
_NECK = 1.5  # distance from the middle of the shoulders to the middle of the head, in head radii


@dataclass(frozen=True, slots=True)
class _Body:
    """One person's measures, px. points: (17, 2); ok: (17,) bool, the key points that can be used."""

    points: NDArray[np.float64]
    ok: NDArray[np.bool_]
    scores: NDArray[np.float64]
    box: NDArray[np.float64]

    def middle(self, first: int, second: int) -> NDArray[np.float64] | None:
        usable = [index for index in (first, second) if self.ok[index]]
        return self.points[usable].mean(axis=0) if usable else None

    def distance(self, first: int, second: int) -> float:
        if not (self.ok[first] and self.ok[second]):
            return 0.0
        return float(np.hypot(*(self.points[first] - self.points[second])))

    @property
    def face_span(self) -> float:
        """Largest distance between two of the face points."""
        face = self.points[_FACE][self.ok[_FACE]]
        return float(np.hypot(*np.moveaxis(face[:, None] - face[None], 2, 0)).max()) if len(face) else 0.0

    @property
    def length(self) -> float:
        """Longer side of the box."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1], 1.0))


def head_regions(people: People) -> list[FloatArray]:
    """Per person one or two ellipses (cx, cy, rx, ry) px that hold the head, each (1..2, 4) float32.

    From the face points, scaled by the largest body measure at hand; without sure face points also from the shoulders;
    without either the upper third of the box, or all of it when the person lies.
    """
    return [np.array(_regions_of(_body(people, index)), np.float32) for index in range(len(people))]


def obscure(image: ImageArray, regions: FloatArray) -> None:
    """Replace each region of `image` ((H, W, 3) uint8, changed in place) by a coarse grid of its mean colours.

    regions: (R, 4) ellipses as `head_regions` gives them; parts outside the picture are ignored.
    """
    height, width = image.shape[:2]
    for cx, cy, rx, ry in regions:
        left, right = max(int(cx - rx), 0), min(int(np.ceil(cx + rx)), width)
        top, bottom = max(int(cy - ry), 0), min(int(np.ceil(cy + ry)), height)
        if right <= left or bottom <= top:
            continue
        area = image[top:bottom, left:right]
        coarse = cv2.resize(area, (GRID, GRID), interpolation=cv2.INTER_AREA)
        smooth = cv2.resize(coarse, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        mask = np.zeros(area.shape[:2], np.uint8)
        axes = (int(np.ceil(rx)), int(np.ceil(ry)))
        cv2.ellipse(mask, (int(cx) - left, int(cy) - top), axes, 0, 0, 360, 255, cv2.FILLED)
        cv2.copyTo(smooth, mask, area)


class FaceBlur:
    """Blurs the heads of one camera's pictures, and for `hold_s` those that were there a moment ago.

    Estimators lose people for single frames; without the memory one such frame would show the face.
    """

    def __init__(self, hold_s: float = 1.0) -> None:
        self.hold_ns = round(hold_s * 1e9)
        self._missed: list[tuple[int, FloatArray]] = []  # last seen at, regions
        self._present: list[tuple[int, FloatArray]] = []

    def apply(self, image: ImageArray, people: People, t_mono_ns: int, scale: float = 1.0) -> None:
        """Blur `image` in place.

        people: in source pixels, all that the estimator reported; scale: picture px per source px;
        t_mono_ns: the frame's time on the camera's time line.
        """
        self.see(people, t_mono_ns)
        for _, head in self._missed + self._present:
            obscure(image, head * np.float32(scale))

    def see(self, people: People, t_mono_ns: int) -> None:
        """Remember the heads of a picture that is not shown; arguments as of `apply`."""
        heads = head_regions(people)
        known = [(t, old) for t, old in self._missed + self._present if 0 <= t_mono_ns - t <= self.hold_ns]
        taken = _successors([old for _, old in known], heads)
        self._missed = [head for index, head in enumerate(known) if index not in taken]
        self._present = [(t_mono_ns, head) for head in heads]


def _successors(old: list[FloatArray], new: list[FloatArray]) -> set[int]:
    """Indices of the `old` heads that live on in a `new` one: nearest first, one to one, within _MOVE radii."""
    if not old or not new:
        return set()
    was, now = np.stack([head[0] for head in old]), np.stack([head[0] for head in new])
    apart = np.hypot(*np.moveaxis(was[:, None, :2] - now[None, :, :2], 2, 0)) / now[None, :, 2]
    taken: set[int] = set()
    used: set[int] = set()
    for flat in np.argsort(apart, axis=None):
        i, j = divmod(int(flat), len(new))
        if apart[i, j] > _MOVE:
            break
        if i not in taken and j not in used:
            taken.add(i)
            used.add(j)
    return taken


def _body(people: People, index: int) -> _Body:
    points = people.keypoints[index].astype(np.float64)
    scores = np.nan_to_num(people.keypoint_scores[index].astype(np.float64))
    ok = (scores >= _USABLE) & np.isfinite(points).all(axis=1)
    return _Body(points, ok, scores, np.nan_to_num(people.boxes[index].astype(np.float64)))


def _regions_of(body: _Body) -> list[tuple[float, float, float, float]]:
    radius = _radius(body)
    regions = []
    face = np.flatnonzero(body.ok[_FACE])
    if len(face):
        spread = np.ptp(body.points[face], axis=0)
        cx, cy = body.points[face].min(axis=0) + spread / 2
        # Points that lie apart more than a head allows are misplaced: cover all of them rather than choose.
        regions.append((cx, cy, max(radius, spread[0] * 0.75), max(radius, spread[1] * 0.75)))
    if np.count_nonzero(body.scores[face] >= _SURE) < 2:
        regions.append(_without_face(body, radius))
    return regions


def _radius(body: _Body) -> float:
    """Head radius from the largest measure: turning away shortens each of them, only misplaced points lengthen them."""
    shoulders = body.middle(_LEFT_SHOULDER, _RIGHT_SHOULDER)
    hips = body.middle(_LEFT_HIP, _RIGHT_HIP)
    torso = float(np.hypot(*(shoulders - hips))) if shoulders is not None and hips is not None else 0.0
    from_body = max(
        body.distance(_LEFT_SHOULDER, _RIGHT_SHOULDER) * _PER_SHOULDERS, torso * _PER_TORSO, body.length * _PER_BOX
    )
    from_face = max(body.distance(_LEFT_EYE, _RIGHT_EYE) * _PER_EYES, body.face_span * _PER_FACE)
    if torso > 0:  # the whole trunk is there to tell when the face points belong to two people
        from_face = min(from_face, from_body * _MAX_PER_BODY)
    return max(min(max(from_body, from_face), body.length * _MAX_PER_BOX), 2.0)


def _without_face(body: _Body, radius: float) -> tuple[float, float, float, float]:
    """Where the head must be when the face points do not say."""
    shoulders = body.middle(_LEFT_SHOULDER, _RIGHT_SHOULDER)
    hips = body.middle(_LEFT_HIP, _RIGHT_HIP)
    if shoulders is not None:
        up = np.array([0.0, -1.0])
        if hips is not None and np.hypot(*(shoulders - hips)) > radius:
            up = (shoulders - hips) / np.hypot(*(shoulders - hips))
        cx, cy = shoulders + up * radius * _NECK
        return cx, cy, radius * 1.3, radius * 1.3
    left, top, right, bottom = body.box
    cx, half_width = (left + right) / 2, (right - left) / 2
    if right - left > bottom - top:  # lying, and no idea which end is up
        return cx, (top + bottom) / 2, half_width * 1.2, (bottom - top) * 0.6
    return cx, top + (bottom - top) / 6, half_width, (bottom - top) / 5

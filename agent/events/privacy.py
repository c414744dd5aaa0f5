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
_FARTHEST_PX = 1e5  # from the picture's corner; what an estimator puts beyond it means nothing
_USABLE = 0.2  # key-point score from which a point may help to place a region
_SURE = 0.5  # face points above this need no second opinion from the shoulders

# Head radius (hair and chin included, with a margin) per body measure. From adult means: eyes 6.3 cm apart, ear to ear
# 14.5 cm or ear to nose 12 cm, shoulder joints 36 cm, shoulders to hips 50 cm, height 170 cm; wanted radius about 17 cm.
_PER_EYES, _PER_FACE, _PER_SHOULDERS, _PER_TORSO, _PER_BOX = 2.6, 1.25, 0.48, 0.34, 0.085
_MAX_PER_BODY = 2.5
_MAX_PER_BOX = 0.6
_FACE_SHARE = 0.4  # what has to be hidden of a head, by radius: eyes, nose, mouth
_FASTEST = 30.0  # how far a head may get in a second, in its radii: about running speed
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
    return [np.array(_regions_of(body), np.float32) for body in _bodies(people)]


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


@dataclass(slots=True, eq=False)
class _Head:
    """A head as it was last seen. regions: (1..2, 4) as of `head_regions`; speed: (2,) px/s, 0 when not known.

    origin: the head before, if it is not certain that it was this one; speed is then what that would take.
    """

    t_mono_ns: int
    regions: FloatArray
    speed: NDArray[np.float64]
    origin: _Head | None = None


class FaceBlur:
    """Blurs the heads of one camera's pictures, and for `hold_s` those that were there a moment ago.

    Estimators lose people for single frames; without the memory one such frame would show the face.
    """

    def __init__(self, hold_s: float = 1.0) -> None:
        self.hold_ns = round(hold_s * 1e9)
        self._heads: list[_Head] = []

    def apply(self, image: ImageArray, people: People, t_mono_ns: int, scale: float = 1.0) -> None:
        """Blur `image` in place.

        people: in source pixels, all that the estimator reported; scale: picture px per source px;
        t_mono_ns: the frame's time on the camera's time line.
        """
        self.see(people, t_mono_ns)
        for head in self._heads:
            obscure(image, head.regions * np.float32(scale))

    def see(self, people: People, t_mono_ns: int) -> None:
        """Remember the heads of a picture that is not shown; arguments as of `apply`."""
        found = [_Head(t_mono_ns, regions, np.zeros(2)) for regions in head_regions(people)]
        known = [head for head in self._heads if 0 <= t_mono_ns - head.t_mono_ns <= self.hold_ns]
        over = _follow(known, found) if known and found else set()
        self._heads = [head for head in known if head not in over] + found


def _follow(known: list[_Head], found: list[_Head]) -> set[_Head]:
    """Those `known` heads that live on in `found` ones, whose speed and origin are set.

    In a clinch an estimator may report now the one, now the other, so to be near is not enough: the new cover must hide the
    face where it was, or where it is if it went on as before. One that starts to move, or turns, is covered twice until the
    next step is like the first.
    """
    was, now = np.stack([head.regions[0] for head in known]), np.stack([head.regions[0] for head in found])
    passed_s = np.array([[(found[0].t_mono_ns - head.t_mono_ns) / 1e9] for head in known])
    way = now[None, :, :2] - was[:, None, :2]
    ahead = np.stack([head.speed for head in known]) * passed_s
    face, cover = was[:, None, 2:].min(axis=2) * _FACE_SHARE, np.maximum(now[None, :, 2:].min(axis=2), 1.0)
    stayed, went_on = ((np.linalg.norm(by, axis=2) + face) / cover for by in (way, way - ahead[:, None]))
    over: set[_Head] = set()
    same = _pairs(np.minimum(stayed, went_on), 1.0)
    for i, j in same.items():
        over.add(known[i])
        if passed_s[i, 0] == 0:  # the same picture once more
            found[j].speed, found[j].origin = known[i].speed, known[i].origin
            continue
        found[j].speed = way[i, j] / passed_s[i]
        if went_on[i, j] < 1.0 and (origin := known[i].origin) is not None:
            over.add(origin)
    leap = np.linalg.norm(way, axis=2) / cover
    leap[list(same)] = np.inf
    leap[:, list(same.values())] = np.inf
    leap[leap >= _FASTEST * passed_s] = np.inf
    for i, j in _pairs(leap, np.inf).items():
        found[j].speed, found[j].origin = way[i, j] / passed_s[i], known[i]
        known[i].origin = None  # no chain into the past
    return over


def _pairs(apart: NDArray[np.float64], most: float) -> dict[int, int]:
    """Row -> column of what is less than `most` apart: nearest first, one to one."""
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for flat in np.argsort(apart, axis=None):
        i, j = divmod(int(flat), apart.shape[1])
        if apart[i, j] >= most:
            break
        if i not in pairs and j not in used:
            pairs[i] = j
            used.add(j)
    return pairs


def _bodies(people: People) -> list[_Body]:
    points = people.keypoints.astype(np.float64)
    scores = np.nan_to_num(people.keypoint_scores.astype(np.float64))
    ok = (scores >= _USABLE) & (np.abs(points) <= _FARTHEST_PX).all(axis=2)  # False for NaN
    boxes = np.nan_to_num(people.boxes.astype(np.float64)).clip(-_FARTHEST_PX, _FARTHEST_PX)
    return [_Body(*one) for one in zip(points, ok, scores, boxes, strict=True)]


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

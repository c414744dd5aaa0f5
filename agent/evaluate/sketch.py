"""A scene's truth without its picture: for hours of scenes where nobody looks at pixels.

People are seen through the scene's own camera and hide each other roughly: a key point is hidden when it lies in the middle
of somebody nearer. Furniture hides nobody. A hundred times as fast as drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.simulation.camera import NEAR_M, Camera
from agent.simulation.values import Script, Shot, Truth
from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray, IntArray

_AROUND_JOINTS_M = 0.12
"""A body reaches about this far beyond its joints; the head by twice as much."""
_CORE = 0.5
"""Share of a nearer person's box, about its middle, that hides what is behind: arms and the gaps beside legs do not."""
_DISTINCT_M = 0.1
_HIDDEN, _SEEN = 1, 2
"""Visibility as in COCO."""


class SketchScene:
    """Implements `agent.simulation.values.Scene`; every picture is the same black one, read-only."""

    def __init__(self, script: Script, camera: Camera) -> None:
        self._script = script
        self._camera = camera
        self._black: ImageArray = np.zeros((camera.height, camera.width, 3), np.uint8)
        self._black.setflags(write=False)

    @property
    def width(self) -> int:
        """Of the picture, px."""
        return self._camera.width

    @property
    def height(self) -> int:
        """Of the picture, px."""
        return self._camera.height

    def shot(self, t_s: float) -> Shot:
        """No picture, but who is where."""
        actors = sorted(self._script.actors(t_s), key=lambda actor: actor.actor_id)
        joints = np.array([actor.joints for actor in actors], np.float32).reshape(-1, NUM_KEYPOINTS, 3)
        seen = _look(joints, self._camera)
        edges = np.array([self.width, self.height] * 2, np.float32)
        return Shot(
            self._black,
            Truth(
                t_s=t_s,
                actor_ids=np.array([actors[row].actor_id for row in seen.rows], np.int64),
                boxes=np.clip(seen.boxes, 0, edges),
                full_boxes=seen.boxes,
                keypoints=seen.points,
                visibility=seen.visibility,
                visible_share=(seen.visibility == _SEEN).mean(axis=1, dtype=np.float32),
                actions=tuple(actors[row].action for row in seen.rows),
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """rows: the N people with a key point in the picture; the rest as in `Truth`, boxes of whole bodies."""

    rows: list[int]
    points: FloatArray
    boxes: FloatArray
    visibility: IntArray


def _look(joints: FloatArray, camera: Camera) -> _Seen:
    """Who is in the picture, from joints (A, 17, 3) in m of the world."""
    points, depth = camera.project(joints)
    edges = np.array([camera.width, camera.height])
    inside = (depth > NEAR_M) & ((points >= 0) & (points < edges)).all(axis=-1)
    kept = np.flatnonzero(inside.any(axis=1) & (depth > NEAR_M).all(axis=1))
    points, depth, inside = points[kept], depth[kept], inside[kept]
    boxes = _boxes(points, depth, camera)
    visibility = np.where(inside, np.where(_hidden(points, depth, boxes), _HIDDEN, _SEEN), 0).astype(np.int64)
    return _Seen(kept.tolist(), points, boxes, visibility)


def _hidden(points: FloatArray, depth: FloatArray, boxes: FloatArray) -> NDArray[np.bool_]:
    """(N, 17) whether somebody nearer stands in front of a key point."""
    hidden = np.zeros(depth.shape, bool)
    distance = depth.mean(axis=1) if len(depth) else np.zeros(0)
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * _CORE
    for row in range(len(points)):
        nearer = np.flatnonzero(distance < distance[row] - _DISTINCT_M)
        off = np.abs(points[row][:, None] - centre[nearer][None])  # (17, nearer, 2)
        hidden[row] = (off < half[nearer][None]).all(axis=-1).any(axis=1)
    return hidden


def _boxes(points: FloatArray, depth: FloatArray, camera: Camera) -> FloatArray:
    """(N, 4) xyxy px around the bodies of the joints."""
    if not len(points):
        return np.zeros((0, 4), np.float32)
    margin = _AROUND_JOINTS_M * camera.focal_px / depth.mean(axis=1, keepdims=True)
    low, high = points.min(axis=1) - margin, points.max(axis=1) + margin
    low[:, 1] -= margin[:, 0]  # the nose is the highest joint of somebody who stands
    return np.concatenate([low, high], axis=1).astype(np.float32)

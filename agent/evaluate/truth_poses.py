"""The simulation's truth as a pose estimator would report it: to judge what comes after pose estimation by itself.

Errors are those of estimators on COCO: normal, in the scale of the key point's OKS constant and the person's size, with a
part that lasts (bad spots of a network stay bad for a while) and now and then a point on the wrong side of the body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.simulation.values import Truth
from agent.types import NUM_KEYPOINTS, FloatArray, People

COCO_SIGMAS = np.array(
    [0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089]
)  # fmt: skip
"""Spread of COCO's annotators per key point, as a share of the person's scale (square root of the area)."""
_MIRROR = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
_BODY_SHARE = 0.53
"""Area of a person over that of the box, the mean of COCO."""


@dataclass(frozen=True, slots=True)
class EstimatorNoise:
    """How good the estimator is.

    spread: standard deviation of seen key points in COCO sigmas; hidden: that of hidden ones; lasting: how much of an error
    is still there in the next frame (0-1); swaps: chance that a person's left and right are exchanged in a frame;
    misses: chance that a wholly visible person is not reported in a frame; it grows as less of the person is seen.
    min_visible: people of whom less is seen are never reported.
    """

    spread: float = 1.0
    hidden: float = 3.0
    lasting: float = 0.8
    swaps: float = 0.005
    misses: float = 0.02
    min_visible: float = 0.15


class NoisyTruth:
    """Turns each frame's truth into what an estimator might have said; frames in order. Same seed, same errors."""

    def __init__(self, seed: int, noise: EstimatorNoise | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._noise = noise or EstimatorNoise()
        self._errors: dict[int, NDArray[np.float64]] = {}

    def people(self, truth: Truth) -> People:
        """The reported people of one frame, in an order of their own."""
        noise, rng = self._noise, self._rng
        self._errors = {actor: self._next_error(actor) for actor in truth.actor_ids.tolist()}
        missed = noise.misses + (1 - noise.misses) * np.clip(0.5 - truth.visible_share, 0, 0.5)
        kept = np.flatnonzero((truth.visible_share >= noise.min_visible) & (rng.random(len(missed)) >= missed))
        kept = rng.permutation(kept)
        if not len(kept):
            return People.empty()
        keypoints = np.stack([self._keypoints(truth, row) for row in kept.tolist()])
        keypoint_scores = np.stack([self._keypoint_scores(truth.visibility[row]) for row in kept])
        size = np.maximum(truth.boxes[kept, 2:] - truth.boxes[kept, :2], 1)
        boxes = truth.boxes[kept] + rng.normal(0, 0.02, (len(kept), 4)) * np.tile(size, 2)
        scores = np.clip(0.55 + 0.4 * truth.visible_share[kept] + rng.normal(0, 0.04, len(kept)), 0.05, 1)
        return People(
            boxes.astype(np.float32), keypoints, keypoint_scores.astype(np.float32), scores.astype(np.float32)
        )

    def _next_error(self, actor: int) -> NDArray[np.float64]:
        """(17, 2) standard normal values that go on from those of the frame before (AR(1) of unit variance)."""
        fresh = self._rng.normal(size=(NUM_KEYPOINTS, 2))
        before = self._errors.get(actor)
        lasting = self._noise.lasting
        return fresh if before is None else lasting * before + np.sqrt(1 - lasting**2) * fresh

    def _keypoints(self, truth: Truth, row: int) -> FloatArray:
        left, top, right, bottom = truth.full_boxes[row].tolist()
        scale = np.sqrt(max((right - left) * (bottom - top), 1.0) * _BODY_SHARE)
        spread = np.where(truth.visibility[row] == 2, self._noise.spread, self._noise.hidden) * COCO_SIGMAS * scale
        points = truth.keypoints[row] + self._errors[int(truth.actor_ids[row])] * spread[:, None]
        if self._rng.random() < self._noise.swaps:
            points = points[_MIRROR]
        exact: FloatArray = points.astype(np.float32)
        return exact

    def _keypoint_scores(self, visibility: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seen points are sure, hidden ones doubtful, those outside the picture next to nothing."""
        mean = np.choose(visibility, (0.03, 0.4, 0.85))
        spread = np.choose(visibility, (0.02, 0.15, 0.08))
        return np.clip(self._rng.normal(mean, spread), 0.001, 1.0)

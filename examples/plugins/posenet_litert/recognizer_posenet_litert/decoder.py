"""From PoseNet's maps to people: fast greedy decoding, vectorised over all candidates at once. Pure NumPy and OpenCV.

The method is that of PersonLab (Papandreou et al., ECCV 2018, section 3.2): every local maximum of a key point's
heatmap may seed a person; mid-range displacements lead from key point to key point along a tree, short-range offsets
pull each arrival on to the key point; the best seeds win and suppress seeds that lie on their key points.

Frame of reference: pixels of the network's input; the centre of grid cell (row, column) is pixel
(row * stride, column * stride), because the input is stride * (cells - 1) + 1 pixels in each direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from agent.types import NUM_KEYPOINTS
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int = NDArray[np.intp]
Bool = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

STRIDE = 16
TREE = (
    (0, 1), (1, 3), (0, 2), (2, 4), (0, 5), (5, 7), (7, 9), (5, 11), (11, 13), (13, 15), (0, 6), (6, 8), (8, 10),
    (6, 12), (12, 14), (14, 16),
)  # fmt: skip
"""Parent and child of the model's 16 displacement edges, in channel order; the backward edges follow."""

_EDGES = np.array(TREE + tuple((child, parent) for parent, child in TREE))
_SOURCE, _TARGET = _EDGES.T
# Channel of the y of each edge's displacement; x is 16 further: 16 y, 16 x forward, then 16 y, 16 x backward.
_CHANNEL: Int = np.arange(32) + np.where(np.arange(32) < len(TREE), 0, len(TREE))
# From a channel to those of its vector, y and x; _SELF: the channel alone.
_SELF = np.zeros((1, 1, 1, 1), np.intp)
_SHORT_X = np.array([0, NUM_KEYPOINTS])[:, None, None, None]
_MID_X = np.array([0, len(TREE)])[:, None, None, None]

# COCO's fall-off per key point: k = 2 sigma, and OKS = exp(-d^2 / (2 area k^2)).
_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089],
    np.float32,
)  # fmt: skip
_OKS_VARIANCES = (2 * _SIGMAS) ** 2

_SEEDS_PER_PERSON = 2 * NUM_KEYPOINTS
"""Bounds the work on a picture full of peaks (noise, a saturated map): the strongest seeds are followed."""


def _walks() -> tuple[Bool, ...]:
    """Per distance from the root: (17 roots, 32 edges), true where the walk from that root takes that edge then.

    The edges form a tree, so the way from a root to each key point is unique and needs no priority queue.
    """
    reached = np.eye(NUM_KEYPOINTS, dtype=bool)
    frontier = reached.copy()
    steps = []
    while frontier.any():
        step = frontier[:, _SOURCE] & ~reached[:, _TARGET]
        frontier = np.zeros_like(reached)
        roots, edges = np.nonzero(step)
        frontier[roots, _TARGET[edges]] = True
        reached |= frontier
        steps.append(step)
    return tuple(steps[:-1])


_WALKS = _walks()


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """Parameters of the decoding, lengths in pixels of the network's input.

    candidate_threshold: least heatmap score of a seed; keypoint_threshold: least score of a key point that counts in
    suppression; nms_radius_px: a seed this near to the same key point of a person already found is dropped;
    refinement_steps: short-range corrections after each displacement; oks_threshold: of two people more alike than
    this the weaker is dropped; min_keypoints, score_threshold: people with fewer key points at keypoint_threshold or
    a lower score are dropped; max_people: the best are kept.
    """

    candidate_threshold: float = 0.3
    keypoint_threshold: float = 0.3
    nms_radius_px: float = 20.0
    refinement_steps: int = 5
    oks_threshold: float = 0.5
    min_keypoints: int = 3
    score_threshold: float = 0.1
    max_people: int = 50


@dataclass(frozen=True, slots=True)
class Affine:
    """Quantisation of a uint8 tensor: real = scale * (stored - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, eq=False)
class Skeletons:
    """Decoded people, best first.

    keypoints: (N, 17, 2) float32 xy, px of the network's input; keypoint_scores: (N, 17) float32 0-1;
    scores: (N,) float32 0-1, the mean score of the key points that no better person already holds.
    """

    keypoints: Float
    keypoint_scores: Float
    scores: Float


class _Map:
    """Bilinear look-up in one uint8 output, as stored: the maps are never dequantised as a whole.

    stored: (R, C, channels). Points are (2, N) float32, y then x, in cells, inside the grid.
    """

    def __init__(self, stored: Bytes) -> None:
        rows, columns, self._channels = stored.shape
        self._stored = stored.reshape(-1)
        self._columns = columns
        # The last row and column are reached with weight 1 from the cell before.
        self._last_base = np.array([[rows - 2], [columns - 2]])
        self._corners = np.array([[0, 1], [columns, columns + 1]])[..., None] * self._channels

    def values(self, points: Float, channel: Int, table: Float) -> Float:
        """(N,) float32: table[stored] between the cells around each point, in channel (N,)."""
        weights, index = self._around(points, channel, _SELF)
        mixed: Float = (weights * table[self._stored.take(index)]).reshape(4, -1).sum(axis=0)
        return mixed

    def vectors(self, points: Float, channel: Int, to_x: Int, affine: Affine) -> Float:
        """(2, N) float32: the real values in channel (N,) and, `to_x` further, its partner: y and x of a vector."""
        weights, index = self._around(points, channel, to_x)
        # The weights of a point sum to 1, so mixing commutes with the affine dequantisation.
        mixed: Float = (weights * self._stored.take(index)).reshape(2, 4, -1).sum(axis=1)
        mixed -= affine.zero_point
        mixed *= affine.scale
        return mixed

    def _around(self, points: Float, channel: Int, shifts: Int) -> tuple[Float, Int]:
        """Of the four cells around each point the weights (2, 2, N) and, per channel shift, flat indices (K, 2, 2, N)."""
        base = np.minimum(points.astype(np.intp), self._last_base)
        parts = np.empty((2, *points.shape), np.float32)
        np.subtract(points, base, out=parts[1])
        np.subtract(1, parts[1], out=parts[0])
        first = (base[0] * self._columns + base[1]) * self._channels + channel
        weights: Float = parts[:, None, 0] * parts[None, :, 1]
        return weights, first + (self._corners + shifts)


class Decoder:
    """Decodes the three uint8 maps of one model; holds tables only, so one instance serves any number of images.

    heatmaps, short, mid: the quantisation of the output tensors.
    """

    def __init__(self, options: DecoderOptions, *, heatmaps: Affine, short: Affine, mid: Affine) -> None:
        self._options = options
        logits = (np.arange(256) - heatmaps.zero_point) * heatmaps.scale
        self._score_of = (1 / (1 + np.exp(-logits))).astype(np.float32)
        # The sigmoid grows with the stored value (scale > 0), so the threshold is one comparison of bytes.
        self._least_byte = int(np.searchsorted(self._score_of, np.float32(options.candidate_threshold)))
        self._short = Affine(short.scale / STRIDE, short.zero_point)
        self._mid = Affine(mid.scale / STRIDE, mid.zero_point)

    def decode(self, heatmaps: Bytes, short: Bytes, mid: Bytes) -> Skeletons:
        """People in the maps of one image.

        heatmaps: (R, C, 17) logits; short: (R, C, 34), 17 y then 17 x offsets in px; mid: (R, C, 64), displacements
        in px along the 16 edges of `TREE`, 16 y then 16 x forward, 16 y then 16 x backward; all uint8 as stored, R and
        C at least 2.
        """
        rows, columns, kinds = np.nonzero(self._peaks(heatmaps))
        if not len(kinds):
            return _nobody()
        scores = self._score_of[heatmaps[rows, columns, kinds]]
        order: Int = np.argsort(-scores, kind="stable")
        order = order[: _SEEDS_PER_PERSON * self._options.max_people]
        kinds, scores = kinds[order], scores[order]
        cells = np.stack((rows, columns))[:, order].astype(np.float32)

        last = np.array(heatmaps.shape[:2], np.float32)[:, None] - 1
        points = self._walk(_Map(short), _Map(mid), cells, kinds, last)
        every = np.tile(np.arange(NUM_KEYPOINTS), len(kinds))
        keypoint_scores = _Map(heatmaps).values(points.reshape(2, -1), every, self._score_of).reshape(points.shape[1:])
        keypoint_scores[np.arange(len(kinds)), kinds] = scores
        return self._select(points.transpose(1, 2, 0)[..., ::-1] * STRIDE, keypoint_scores, kinds)

    def _peaks(self, heatmaps: Bytes) -> Bool:
        """(R, C, 17): cells that reach the threshold and are the highest of their 3 x 3 neighbourhood."""
        highest = cv2.dilate(heatmaps, np.ones((3, 3), np.uint8))
        peaks: Bool = (heatmaps >= self._least_byte) & (heatmaps == highest)
        return peaks

    def _walk(self, short: _Map, mid: _Map, cells: Float, kinds: Int, last: Float) -> Float:
        """(2, S, 17) y and x in cells: each of the S seeds (2, S) followed along the tree to all its key points."""

        def corrected(position: Float, kind: Int) -> Float:
            position = position + short.vectors(position, kind, _SHORT_X, self._short)
            return np.minimum(np.maximum(position, 0, out=position), last, out=position)

        points = np.empty((2, len(kinds), NUM_KEYPOINTS), np.float32)
        points[:, np.arange(len(kinds)), kinds] = corrected(cells, kinds)
        for step in _WALKS:
            seed, edge = np.nonzero(step[kinds])
            position = points[:, seed, _SOURCE[edge]]
            position += mid.vectors(position, _CHANNEL[edge], _MID_X, self._mid)
            np.minimum(np.maximum(position, 0, out=position), last, out=position)
            target = _TARGET[edge]
            for _ in range(self._options.refinement_steps):
                position = corrected(position, target)
            points[:, seed, target] = position
        return points

    def _select(self, points: Float, keypoint_scores: Float, kinds: Int) -> Skeletons:
        """The greedy part: best seed first; each person taken suppresses the seeds on its key points."""
        options, radius = self._options, self._options.nms_radius_px**2
        seeds = points[np.arange(len(kinds)), kinds]
        alive = np.ones(len(kinds), bool)
        held = np.zeros_like(keypoint_scores, bool)
        taken: list[int] = []
        while alive.any():
            best = int(alive.argmax())
            taken.append(best)
            alive &= ((seeds - points[best, kinds]) ** 2).sum(axis=1) > radius
            alive[best] = False
            # A key point on the same one of a better person is no evidence for this one.
            held[alive] |= ((points[alive] - points[best]) ** 2).sum(axis=2) <= radius
        people = np.array(taken)
        scores = np.where(held[people], 0, keypoint_scores[people]).mean(axis=1)
        visible = (keypoint_scores[people] >= options.keypoint_threshold).sum(axis=1)
        order = np.argsort(-scores, kind="stable")
        order = order[((scores >= options.score_threshold) & (visible >= options.min_keypoints))[order]]
        people, scores = people[order], scores[order]
        keep = self._without_doubles(points[people], keypoint_scores[people])
        return Skeletons(points[people][keep], keypoint_scores[people][keep], scores[keep])

    def _without_doubles(self, points: Float, keypoint_scores: Float) -> Int:
        """Indices of at most max_people people, best first, that are not too like a better one."""
        visible = keypoint_scores >= self._options.keypoint_threshold
        alive = np.ones(len(points), bool)
        kept: list[int] = []
        while alive.any() and len(kept) < self._options.max_people:
            best = int(alive.argmax())
            kept.append(best)
            alive &= _oks(points[best], visible[best], points, visible) <= self._options.oks_threshold
            alive[best] = False
        return np.array(kept, np.intp)


def _oks(reference: Float, reference_visible: Bool, others: Float, others_visible: Bool) -> Float:
    """(N,) object key-point similarity of `others` (N, 17, 2) to `reference` (17, 2), 0 where none is visible in both.

    Over the key points visible in both; the area is that of the box around the reference's visible ones.
    """
    width, height = np.ptp(reference[reference_visible], axis=0)
    area = max(float(width * height), 1.0)
    distance = ((others - reference) ** 2).sum(axis=2)
    common = others_visible & reference_visible
    alike = np.where(common, np.exp(-distance / (2 * area * _OKS_VARIANCES)), 0).sum(axis=1)
    similarity: Float = alike / np.maximum(common.sum(axis=1), 1)
    return similarity


def _nobody() -> Skeletons:
    return Skeletons(
        np.zeros((0, NUM_KEYPOINTS, 2), np.float32),
        np.zeros((0, NUM_KEYPOINTS), np.float32),
        np.zeros(0, np.float32),
    )

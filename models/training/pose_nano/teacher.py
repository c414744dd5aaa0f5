"""Pseudo-labels: what several passes of a teacher say of a video, merged, followed through time, sorted by trust.

Passes are other resolutions and mirrored pictures (`extract_poses.py --flip`). Poses of one person are averaged; a pose that
the neighbouring frames do not confirm, or few passes saw, is kept as a region where nothing is known, not as a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.types import NUM_KEYPOINTS, FloatArray
from pose_nano.geometry import OKS_SIGMAS
from pose_nano.store import Annotations

SAME_OKS = 0.35
"""Two poses more alike than this, in one frame or the next, are of one person."""
SEEN = 0.3
"""Score from which a key point of PoseNet is there; below `GUESSED` nothing is said of it."""
GUESSED = 0.1
_LABEL_SCORE, _LABEL_KEYPOINTS = 0.3, 6
_REGION_SCORE = 0.1
_SPREAD = 1.0  # of the passes, in units of OKS' fall-off: at this a key point is believed half
_MARGIN = 0.1
_NEIGHBOURS = (-2, -1, 1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """People of one frame. keypoints: (N, 17, 2) px; scores: (N, 17) 0-1; trust: (N, 17) 0-1, agreement of the passes."""

    keypoints: FloatArray
    scores: FloatArray
    trust: FloatArray

    def __len__(self) -> int:
        return len(self.keypoints)


def read_pass(file: Path) -> list[Poses]:
    """Frames of a file of `extract_poses.py`."""
    with np.load(file) as content:
        ends = np.cumsum(content["counts"])
        keypoints, scores = content["keypoints"], content["keypoint_scores"]
    starts = np.concatenate([[0], ends[:-1]])
    return [Poses(keypoints[a:b], scores[a:b], np.ones_like(scores[a:b])) for a, b in zip(starts, ends, strict=True)]


def similarity(one: Poses, other: Poses) -> FloatArray:
    """(N, M) OKS over the key points that both see, 0 where there are fewer than 3."""
    if not len(one) or not len(other):
        return np.zeros((len(one), len(other)), np.float32)
    both = (one.scores[:, None] >= SEEN) & (other.scores[None] >= SEEN)
    area = np.maximum(_area(one)[:, None], _area(other)[None])
    distance2 = ((one.keypoints[:, None] - other.keypoints[None]) ** 2).sum(axis=-1)
    alike = np.exp(-distance2 / (2 * area[..., None] * (2 * OKS_SIGMAS) ** 2)) * both
    count = both.sum(axis=-1)
    result: FloatArray = np.where(count >= 3, alike.sum(axis=-1) / np.maximum(count, 1), 0).astype(np.float32)
    return result


def _area(poses: Poses) -> FloatArray:
    low, high = _extent(poses)
    return np.maximum((high - low).prod(axis=-1) * 1.2, 64.0)


def _extent(poses: Poses) -> tuple[FloatArray, FloatArray]:
    seen = poses.scores >= SEEN
    seen |= ~seen.any(axis=1, keepdims=True)
    low = np.where(seen[..., None], poses.keypoints, np.inf).min(axis=1)
    high = np.where(seen[..., None], poses.keypoints, -np.inf).max(axis=1)
    return low, high


def merge(passes: Sequence[Poses]) -> Poses:
    """One set of people out of several passes over the same frame; a key point that a pass misses counts 0 there."""
    if len(passes) == 1:
        return passes[0]
    groups: list[list[tuple[FloatArray, FloatArray]]] = []
    heads: list[Poses] = []
    for poses in passes:
        taken: set[int] = set()
        for row in np.argsort(-poses.scores.mean(axis=1)):
            one = Poses(poses.keypoints[row : row + 1], poses.scores[row : row + 1], poses.trust[row : row + 1])
            alike = [0.0 if g in taken else float(similarity(head, one)[0, 0]) for g, head in enumerate(heads)]
            group = int(np.argmax(alike)) if alike else -1
            if group < 0 or alike[group] < SAME_OKS:
                group = len(groups)
                groups.append([])
                heads.append(one)
            groups[group].append((one.keypoints[0], one.scores[0]))
            taken.add(group)
    merged = [_average(group, len(passes)) for group in groups]
    arrays = [np.stack(column) for column in zip(*merged, strict=True)] if merged else _no_arrays()
    return Poses(*arrays)


def _average(group: list[tuple[FloatArray, FloatArray]], passes: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Position weighted by the square of the score, mean score over all passes, trust from the spread."""
    points = np.stack([point for point, _ in group])
    scores = np.stack([score for _, score in group])
    weight = np.maximum(scores, 1e-3)[..., None] ** 2
    mean = (points * weight).sum(axis=0) / weight.sum(axis=0)
    spread2 = (((points - mean) ** 2).sum(axis=-1, keepdims=True) * weight).sum(axis=0) / weight.sum(axis=0)
    total = scores.sum(axis=0) / passes
    one = Poses(mean[None], scores.max(axis=0)[None], total[None])
    unit2 = _area(one) * (2 * OKS_SIGMAS) ** 2
    trust = 1 / (1 + spread2[:, 0] / (unit2 * _SPREAD**2))
    return mean.astype(np.float32), total.astype(np.float32), trust.astype(np.float32)


def _no_arrays() -> list[FloatArray]:
    return [np.zeros((0, NUM_KEYPOINTS, 2), np.float32), *(np.zeros((0, NUM_KEYPOINTS), np.float32) for _ in range(2))]


def confirmed(frames: Sequence[Poses], index: int) -> tuple[Poses, FloatArray]:
    """People of frame `index`, each key point the median with its neighbours in time; and (N,) the share of the neighbouring
    frames that show the same person."""
    here = frames[index]
    near = [index + step for step in _NEIGHBOURS if 0 <= index + step < len(frames)]
    points, scores = [here.keypoints], [here.scores]
    support = np.zeros(len(here), np.float32)
    for other in near:
        alike = similarity(here, frames[other])
        if not alike.size:
            continue
        best = alike.argmax(axis=1)
        same = alike[np.arange(len(here)), best] >= SAME_OKS
        support += same / len(near)
        if abs(other - index) == 1:
            points.append(np.where(same[:, None, None], frames[other].keypoints[best], here.keypoints))
            scores.append(np.where(same[:, None], frames[other].scores[best], here.scores))
    middle = np.median(points, axis=0) if len(points) == 3 else here.keypoints
    return Poses(middle.astype(np.float32), np.mean(scores, axis=0).astype(np.float32), here.trust), support


def annotate(poses: Poses, support: FloatArray, width: int, height: int) -> Annotations:
    """Labels and unknown regions of one frame of `width` x `height` px."""
    if not len(poses):
        return Annotations.empty()
    score = poses.scores.mean(axis=1)
    seen = poses.scores >= SEEN
    low, high = _extent(poses)
    room = _MARGIN * (high - low).max(axis=1, keepdims=True)
    boxes = np.concatenate([low - room, high + room], axis=1)
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)
    labelled = (score >= _LABEL_SCORE) & (seen.sum(axis=1) >= _LABEL_KEYPOINTS) & (support >= 0.5)
    guessed = poses.scores >= GUESSED
    people = Annotations(
        boxes=boxes,
        keypoints=poses.keypoints,
        weights=np.where(seen, poses.trust, np.where(guessed, 0.2 * poses.trust, 0)).astype(np.float32),
        seen=np.where(seen & (poses.trust > 0.4), 1, -1).astype(np.float32),
        labelled=labelled,
    )
    keep = (score >= _REGION_SCORE) & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 2)
    return people.rows(keep)

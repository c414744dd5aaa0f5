"""ByteTrack: every detection box counts, the doubtful ones for known tracks only.

Source: Zhang et al., ByteTrack: Multi-Object Tracking by Associating Every Detection Box, ECCV 2022; order of steps and
thresholds as in the authors' published code. Written anew with all tracks in one structured array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.config.schema import TrackingConfig
from agent.tracking import kalman
from agent.tracking.association import Assignment, Indices, assign, pairwise_iou, pairwise_oks
from agent.tracking.kalman import Floats
from agent.types import NUM_KEYPOINTS, FloatArray, FrameStamp, IntArray, People, Tracks, TrackState

PALACE = TrackingConfig(
    variant="palace",
    track_threshold=0.5,
    new_margin=0.1,
    match_threshold=0.8,
    min_box_area_px=0.0,
    keep_wide=True,
)
"""Parameters under which the variant `palace` repeats the reference vectors of ByteTrack-cpp frame by frame."""

_UPSTREAM_FPS = 30.0
_PIXEL = 1.0
"""Upstream's overlap counts corners as pixels (see `pairwise_iou`)."""

_TRACK = np.dtype(
    [
        ("id", np.int64),
        ("motion", np.float64, (5, 4)),  # see kalman.py
        ("box", np.float64, (4,)),  # xyxy px: what detections are compared with
        ("pose", np.float64, (NUM_KEYPOINTS, 3)),  # last matched: x, y from the centre of the box px, score
        ("confirmed", np.bool_),
        ("lost", np.bool_),
        ("expired", np.bool_),  # lost for longer than the buffer
        ("first_frame", np.int64),
        ("last_frame", np.int64),
        ("detection", np.int64),  # row of the input matched in this frame, -1 = none
    ]
)
"""One track. The table keeps tracked rows before lost ones, each in the order in which they came to be so."""


class Matched(NamedTuple):
    """The confirmed tracks seen in one frame.

    track_ids: (N,) int64; boxes: (N, 4) float64 xyxy px from the filter; detections: (N,) rows of the input.
    """

    track_ids: IntArray
    boxes: Floats
    detections: Indices


@dataclass(frozen=True, slots=True, eq=False)
class _Detections:
    """The usable detections of one frame. rows: where they stand in the input; poses: only if they are compared."""

    rows: Indices
    boxes: Floats
    scores: Floats
    poses: Floats | None


class _Pairs(NamedTuple):
    """Outcome of the three associations: matched tracks and detections, and who is left."""

    tracks: Indices
    detections: Indices
    newly_lost: Indices
    unconfirmed: Indices
    new: Indices


class ByteTracker:
    """Gives people of consecutive frames their identities; one instance per camera.

    Identities are 1, 2, 3, ... per instance and never given twice, not even after `reset`. The same input gives the
    same output. A row whose box or score is not finite, or whose box has no positive width and height, is left out
    and counted in `dropped_inputs`.

    >>> tracker = ByteTracker(TrackingConfig())
    >>> boxes = np.array([[10.0, 10.0, 50.0, 110.0]])
    >>> tracker.track(boxes, np.array([0.9])).track_ids
    array([1])
    >>> tracker.track(boxes + 2.0, np.array([0.8])).track_ids
    array([1])
    """

    def __init__(self, config: TrackingConfig, *, fps: float = _UPSTREAM_FPS) -> None:
        """fps: frames per second that `update` will see; scales how long a lost track is kept."""
        if not (np.isfinite(fps) and fps > 0):
            raise ValueError(f"fps: expected a positive number, got {fps}")
        self._config = config
        self._buffer_frames = int(fps / _UPSTREAM_FPS * config.buffer_frames)
        self._frame = 0
        self._next_id = 1
        self._dropped_inputs = 0
        self._removed: IntArray = np.empty(0, np.int64)
        self._table: NDArray[np.void] = np.empty(0, _TRACK)

    @property
    def dropped_inputs(self) -> int:
        """Unusable rows since the tracker was made."""
        return self._dropped_inputs

    @property
    def removed(self) -> tuple[int, ...]:
        """Identities that the last `update`, `track` or `reset` gave up for good; some were never confirmed."""
        return tuple(self._removed.tolist())

    @property
    def lost_ids(self) -> tuple[int, ...]:
        """Identities not seen in the last frame that may still come back."""
        return tuple(self._table["id"][self._table["lost"]].tolist())

    def reset(self) -> None:
        """Forget everybody, as after a cut; the next frame counts as the first one again."""
        self._removed = self._table["id"].copy()
        self._table = self._table[:0]
        self._frame = 0

    def update(self, stamp: FrameStamp, people: People) -> Tracks:
        """The confirmed people of this frame with their identities.

        Boxes come from the filter, key points and scores from the matched person. Frames must come in order; every
        call is one frame of the filter's time. Raises nothing for bad rows, see the class.
        """
        pose = np.dstack((people.keypoints, people.keypoint_scores)) if self._config.keypoint_weight else None
        found = self.track(people.boxes, people.scores, pose)
        return Tracks(
            stamp,
            People(
                found.boxes.astype(np.float32),
                people.keypoints[found.detections],
                people.keypoint_scores[found.detections],
                people.scores[found.detections],
            ),
            found.track_ids,
            np.full(len(found.track_ids), TrackState.TRACKED, np.int64),
        )

    def track(self, boxes: FloatArray | Floats, scores: FloatArray | Floats, poses: Any = None) -> Matched:
        """One frame as bare arrays: boxes (N, 4) xyxy px, scores (N,) 0-1, poses (N, 17, 3) x, y px and score.

        poses: used only with `keypoint_weight`; None stands for people without key points.
        """
        self._frame += 1
        table = self._table
        table["detection"] = -1
        seen = self._usable(boxes, scores, poses)
        self._predict(table)
        pairs = self._associate(table, seen)
        self._correct(table, pairs, seen)
        dropped = np.zeros(len(table), np.bool_)
        dropped[pairs.unconfirmed] = True
        dropped |= self._expire(table, pairs)
        self._rearrange(table, pairs, dropped, self._start(seen, pairs.new))
        return self._output()

    def _usable(self, boxes: Any, scores: Any, poses: Any) -> _Detections:
        """The rows that can be worked with, in float64."""
        scores = np.asarray(scores, np.float64)
        boxes = np.asarray(boxes, np.float64)
        if boxes.shape != (len(scores), 4):
            raise ValueError(f"boxes: expected shape ({len(scores)}, 4), got {boxes.shape}")
        usable = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        rows = np.flatnonzero(usable)
        if len(rows) < len(scores):
            self._dropped_inputs += len(scores) - len(rows)
            boxes, scores = boxes[rows], scores[rows]
        if self._config.keypoint_weight and poses is not None:
            return _Detections(rows, boxes, scores, np.asarray(poses, np.float64)[rows])
        return _Detections(rows, boxes, scores, None)

    def _predict(self, table: NDArray[np.void]) -> None:
        """One frame ahead, for confirmed tracks only: a track seen once has no velocity yet."""
        confirmed = table["confirmed"]
        if confirmed.all():
            motion = table["motion"] = kalman.predict(table["motion"], table["lost"])
            if self._config.variant == "upstream":
                table["box"] = kalman.to_xyxy(motion)
            return
        rows = np.flatnonzero(confirmed)
        motion = kalman.predict(table["motion"][rows], table["lost"][rows])
        table["motion"][rows] = motion
        if self._config.variant == "upstream":
            table["box"][rows] = kalman.to_xyxy(motion)

    def _associate(self, table: NDArray[np.void], seen: _Detections) -> _Pairs:
        """The three associations: sure detections, doubtful detections, tracks seen once."""
        config = self._config
        sure = np.flatnonzero(seen.scores > config.track_threshold)
        doubtful = np.flatnonzero((seen.scores <= config.track_threshold) & (seen.scores > config.low_threshold))
        confirmed = np.flatnonzero(table["confirmed"])
        once = np.flatnonzero(~table["confirmed"])
        iou = pairwise_iou(table["box"], seen.boxes, pixel=_PIXEL)
        first = assign(1 - self._likeness(table, seen, iou, confirmed, sure), config.match_threshold)
        rest = confirmed[first.free_rows]
        rest = rest[~table["lost"][rest]]
        second = assign(1 - iou[rest[:, None], doubtful], config.second_match_threshold)
        sure_rest = sure[first.free_columns]
        third = self._associate_once(seen, iou, once, sure_rest)
        new = sure_rest[third.free_columns]
        return _Pairs(
            np.concatenate((confirmed[first.rows], rest[second.rows], once[third.rows])),
            np.concatenate((sure[first.columns], doubtful[second.columns], sure_rest[third.columns])),
            rest[second.free_rows],
            once[third.free_rows],
            new[seen.scores[new] >= config.track_threshold + config.new_margin],
        )

    def _likeness(
        self, table: NDArray[np.void], seen: _Detections, iou: Floats, rows: Indices, columns: Indices
    ) -> Floats:
        """(rows, columns) similarity of the first association: overlap, poses where asked for, detector's score."""
        similarity: Floats = iou[rows[:, None], columns]
        weight = self._config.keypoint_weight
        if weight and seen.poses is not None and similarity.size:
            boxes = table["box"][rows]
            poses = table["pose"][rows]
            poses[..., :2] += (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # carried along by the predicted box
            size = seen.boxes[columns, 2:] - seen.boxes[columns, :2]
            oks = pairwise_oks(poses, seen.poses[columns], size.prod(axis=1))
            similarity = np.where(np.isnan(oks), similarity, (1 - weight) * similarity + weight * oks)
        return similarity * seen.scores[columns] if self._config.variant == "upstream" else similarity

    def _associate_once(self, seen: _Detections, iou: Floats, once: Indices, columns: Indices) -> Assignment:
        """Tracks seen once against the sure detections that are left."""
        similarity = iou[once[:, None], columns]
        if self._config.variant == "upstream":
            similarity = similarity * seen.scores[columns]
        return assign(1 - similarity, self._config.unconfirmed_match_threshold)

    def _correct(self, table: NDArray[np.void], pairs: _Pairs, seen: _Detections) -> None:
        """Bring the matched tracks up to date."""
        rows = pairs.tracks
        motion = kalman.correct(table["motion"][rows], kalman.to_xyah(seen.boxes[pairs.detections]))
        table["motion"][rows] = motion
        table["box"][rows] = boxes = kalman.to_xyxy(motion)
        table["confirmed"][rows] = True
        table["last_frame"][rows] = self._frame
        table["detection"][rows] = seen.rows[pairs.detections]
        if seen.poses is not None:
            table["pose"][rows] = _relative(seen.poses[pairs.detections], boxes)

    def _expire(self, table: NDArray[np.void], pairs: _Pairs) -> NDArray[np.bool_]:
        """(N,) lost tracks to give up for their age.

        Upstream's bookkeeping gives a track whose time is up one more frame; one found in that frame stays marked
        and is given up as soon as it is lost again.
        """
        missed = table["detection"] < 0
        lost = table["lost"] & missed
        dropped: NDArray[np.bool_] = lost & table["expired"]
        table["expired"] |= lost & (self._frame - table["last_frame"] > self._buffer_frames)
        dropped[pairs.newly_lost] = table["expired"][pairs.newly_lost]
        return dropped

    def _start(self, seen: _Detections, new: Indices) -> NDArray[np.void]:
        """Tracks for the detections `new`; confirmed at their second hit, in the first frame at once."""
        tracks = np.zeros(len(new), _TRACK)
        if len(new):
            tracks["id"] = np.arange(self._next_id, self._next_id + len(new))
            self._next_id += len(new)
            tracks["motion"] = kalman.initiate(kalman.to_xyah(seen.boxes[new]))
            tracks["box"] = seen.boxes[new]
            tracks["confirmed"] = self._frame == 1
            tracks["first_frame"] = tracks["last_frame"] = self._frame
            tracks["detection"] = seen.rows[new]
            if seen.poses is not None:
                tracks["pose"] = _relative(seen.poses[new], seen.boxes[new])
        return tracks

    def _rearrange(
        self, table: NDArray[np.void], pairs: _Pairs, dropped: NDArray[np.bool_], new: NDArray[np.void]
    ) -> None:
        """Settle who is tracked and who is lost, take in new tracks, drop the removed and the doubles."""
        was_lost = table["lost"].copy()
        table["lost"] = is_lost = (was_lost & (table["detection"] < 0)) | _mask(len(table), pairs.newly_lost)
        # Where a row goes: 0 stays tracked, 1 new, 2 found again, 3 stays lost, 4 newly lost.
        group = np.where(was_lost, np.where(is_lost, 3, 2), np.where(is_lost, 4, 0))
        if len(new):
            table = np.concatenate((table, new))
            group = np.concatenate((group, np.full(len(new), 1)))
            dropped = np.concatenate((dropped, np.zeros(len(new), np.bool_)))
        dropped |= self._duplicates(table, dropped)
        self._removed = table["id"][dropped]
        if dropped.any() or (np.diff(group) < 0).any():
            order = np.argsort(group, kind="stable")
            table = table[order[~dropped[order]]]
        self._table = table

    def _duplicates(self, table: NDArray[np.void], dropped: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N,) of a tracked and a lost track on the same spot the younger one (the tracked one when equally old)."""
        double = np.zeros(len(table), np.bool_)
        lost = np.flatnonzero(table["lost"] & ~dropped)
        if not len(lost):
            return double
        tracked = np.flatnonzero(~table["lost"] & ~dropped)
        iou = pairwise_iou(table["box"][tracked], table["box"][lost], pixel=_PIXEL)
        i, j = np.nonzero(1 - iou < self._config.duplicate_iou_distance)
        if len(i):
            age = table["last_frame"] - table["first_frame"]
            older = age[tracked[i]] > age[lost[j]]
            double[lost[j[older]]] = True
            double[tracked[i[~older]]] = True
        return double

    def _output(self) -> Matched:
        """Confirmed tracks of this frame whose box has a plausible size and shape."""
        table = self._table
        shown = table["confirmed"] & (table["detection"] >= 0)
        size = table["box"][:, 2:] - table["box"][:, :2]
        shown &= size[:, 0] * size[:, 1] > self._config.min_box_area_px
        if not self._config.keep_wide:
            shown &= size[:, 0] <= self._config.max_aspect_ratio * size[:, 1]
        rows = np.flatnonzero(shown)
        return Matched(table["id"][rows], table["box"][rows], table["detection"][rows])


def _mask(length: int, rows: Indices) -> NDArray[np.bool_]:
    mask = np.zeros(length, np.bool_)
    mask[rows] = True
    return mask


def _relative(poses: Floats, boxes: Floats) -> Floats:
    """Poses (N, 17, 3) with x, y from the centres of the boxes (N, 4)."""
    poses = poses.copy()
    poses[..., :2] -= (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    return poses

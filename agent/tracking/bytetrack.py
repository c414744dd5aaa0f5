"""ByteTrack: every detection box counts, the doubtful ones for known tracks only.

Source: Zhang et al., ByteTrack: Multi-Object Tracking by Associating Every Detection Box, ECCV 2022; order of steps and
thresholds as in the authors' published code. Written anew with all tracks in the columns of one table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.config.schema import TrackingConfig
from agent.tracking import kalman
from agent.tracking.association import Assignment, Indices, assign, pairwise_iou, pairwise_oks
from agent.tracking.kalman import Floats
from agent.tracking.table import TrackTable
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
_MAX_PX = 1e6
_MIN_PX = 1e-3
"""Beyond these a box is no box but an accident of arithmetic."""
_NOBODY: Indices = np.empty(0, np.intp)


class Matched(NamedTuple):
    """The confirmed tracks seen in one frame.

    track_ids: (N,) int64; boxes: (N, 4) float64 xyxy px from the filter; detections: (N,) rows of the input.
    """

    track_ids: IntArray
    boxes: Floats
    detections: Indices


class _Detections(NamedTuple):
    """The usable detections of one frame.

    rows: (N,) where they stand in the input; boxes: (4, N) xyxy px; scores: (N,); poses: (N, 17, 3), (N, 0, 3) unused.
    """

    rows: Indices
    boxes: Floats
    scores: Floats
    poses: Floats


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
    same output. A row whose box or score is not finite, or whose box has no positive width and height (or reaches a
    million px), is left out and counted in `dropped_inputs`.

    >>> tracker = ByteTracker(TrackingConfig())
    >>> boxes = np.array([[10.0, 10.0, 50.0, 110.0]])
    >>> tracker.track(boxes, np.array([0.9])).track_ids
    array([1])
    >>> tracker.track(boxes + 2.0, np.array([0.8])).track_ids
    array([1])
    """

    def __init__(self, config: TrackingConfig, *, fps: float = _UPSTREAM_FPS) -> None:
        """fps: see `set_fps`."""
        self._config = config
        self.set_fps(fps)
        self._frame = 0
        self._next_id = 1
        self._dropped_inputs = 0
        self._removed: tuple[int, ...] = ()
        self._upstream = config.variant == "upstream"
        self._with_poses = config.keypoint_weight > 0
        # Tracked before lost, each in the order in which they came to be so.
        self._table = TrackTable.empty(with_poses=self._with_poses)

    @property
    def dropped_inputs(self) -> int:
        """Unusable rows since the tracker was made."""
        return self._dropped_inputs

    @property
    def removed(self) -> tuple[int, ...]:
        """Identities that the last `update`, `track` or `reset` gave up for good; some were never confirmed."""
        return self._removed

    @property
    def lost_ids(self) -> tuple[int, ...]:
        """Identities not seen in the last frame that may still come back."""
        life = self._table.life
        return tuple(life["id"][life["lost"]].tolist())

    def set_fps(self, fps: float) -> None:
        """Frames per second that `update` sees from now on; scales how long a lost track is kept. Raises ValueError."""
        if not (np.isfinite(fps) and fps > 0):
            raise ValueError(f"fps: expected a positive number, got {fps}")
        self._buffer_frames = int(fps / _UPSTREAM_FPS * self._config.buffer_frames)

    def reset(self) -> None:
        """Forget everybody, as after a cut; the next frame counts as the first one again."""
        self._removed = tuple(self._table.life["id"].tolist())
        self._table = TrackTable.empty(with_poses=self._with_poses)
        self._frame = 0

    def update(self, stamp: FrameStamp, people: People) -> Tracks:
        """The confirmed people of this frame with their identities.

        Boxes come from the filter, key points and scores from the matched person. Frames must come in order; every
        call is one frame of the filter's time. Raises nothing for bad rows, see the class.
        """
        poses = np.dstack((people.keypoints, people.keypoint_scores)) if self._with_poses else None
        found = self.track(people.boxes, people.scores, poses)
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

    def track(
        self, boxes: FloatArray | Floats, scores: FloatArray | Floats, poses: FloatArray | Floats | None = None
    ) -> Matched:
        """One frame as bare arrays: boxes (N, 4) xyxy px, scores (N,) 0-1, poses (N, 17, 3) x, y px and score.

        poses: used only with `keypoint_weight`; None stands for people without key points. Raises ValueError for
        arrays that do not fit together.
        """
        seen = self._usable(boxes, scores, poses)
        self._frame += 1
        table = self._table
        table.life["detection"] = -1
        self._predict(table)
        pairs = self._associate(table, seen)
        self._correct(table, pairs, seen)
        self._removed = ()
        self._table = self._without_doubles(self._settle(table, pairs, seen))
        return self._output()

    def _usable(
        self, boxes: FloatArray | Floats, scores: FloatArray | Floats, poses: FloatArray | Floats | None
    ) -> _Detections:
        """The rows that can be worked with, in float64."""
        n = len(scores)
        if boxes.shape != (n, 4):
            raise ValueError(f"boxes: expected shape ({n}, 4), got {boxes.shape}")
        columns = np.array(boxes.T, np.float64, order="C")
        confidence = np.asarray(scores, np.float64)
        left, top, right, bottom = columns
        usable = np.logical_and.reduce(np.abs(columns) < _MAX_PX)  # comparisons are false for what is not a number
        usable &= np.isfinite(confidence)
        usable &= right > left + _MIN_PX
        usable &= bottom > top + _MIN_PX
        rows = usable.nonzero()[0]
        if len(rows) < n:
            self._dropped_inputs += n - len(rows)
            columns, confidence = columns[:, rows], confidence[rows]
        if not self._with_poses:
            return _Detections(rows, columns, confidence, np.empty((len(rows), 0, 3)))
        chosen = np.zeros((len(rows), NUM_KEYPOINTS, 3)) if poses is None else np.asarray(poses, np.float64)[rows]
        return _Detections(rows, columns, confidence, chosen)

    def _predict(self, table: TrackTable) -> None:
        """One frame ahead, for confirmed tracks only: one seen once has no velocity yet and stays where it is."""
        motion = kalman.predict(table.motion, table.life["lost"])
        confirmed = table.life["confirmed"]
        if np.count_nonzero(confirmed) < len(table):
            once = (~confirmed).nonzero()[0]
            motion[..., once] = table.motion[..., once]
        table.motion = motion
        if self._upstream:
            table.boxes = kalman.to_xyxy(motion)

    def _associate(self, table: TrackTable, seen: _Detections) -> _Pairs:
        """The three associations: sure detections, doubtful detections, tracks seen once."""
        config, scores = self._config, seen.scores
        is_sure = scores > config.track_threshold
        sure: Indices = is_sure.nonzero()[0]
        doubtful = (scores > config.low_threshold).nonzero()[0] if len(sure) < len(scores) else _NOBODY
        doubtful = doubtful[~is_sure[doubtful]]
        confirmed = table.life["confirmed"].nonzero()[0]
        once = (~table.life["confirmed"]).nonzero()[0] if len(confirmed) < len(table) else _NOBODY
        iou = pairwise_iou(table.boxes, seen.boxes, pixel=_PIXEL)
        first = _match(self._likeness(table, seen, iou, confirmed, sure), confirmed, sure, config.match_threshold)
        rest = first.free_rows
        rest = rest[~table.life["lost"][rest]]
        second = _match(_part(iou, rest, doubtful), rest, doubtful, config.second_match_threshold)
        sure = first.free_columns
        third = _match(self._fused(_part(iou, once, sure), seen, sure), once, sure, config.unconfirmed_match_threshold)
        new = third.free_columns
        return _Pairs(
            np.concatenate((first.rows, second.rows, third.rows)),
            np.concatenate((first.columns, second.columns, third.columns)),
            second.free_rows,
            third.free_rows,
            new[scores[new] >= config.track_threshold + config.new_margin],
        )

    def _likeness(self, table: TrackTable, seen: _Detections, iou: Floats, rows: Indices, columns: Indices) -> Floats:
        """(rows, columns) similarity of the first association: overlap, poses where asked for, detector's score."""
        similarity = _part(iou, rows, columns)
        weight = self._config.keypoint_weight
        if self._with_poses and similarity.size:
            poses = _moved(table.poses[rows], table.boxes[:, rows], +1)  # carried along by the predicted box
            width, height = seen.boxes[2:, columns] - seen.boxes[:2, columns]
            oks = pairwise_oks(poses, seen.poses[columns], width * height)
            similarity = np.where(np.isnan(oks), similarity, (1 - weight) * similarity + weight * oks)
        return self._fused(similarity, seen, columns)

    def _fused(self, similarity: Floats, seen: _Detections, columns: Indices) -> Floats:
        """The similarity to the detections `columns`, weighed with their scores where the variant does so."""
        return similarity * seen.scores[columns] if self._upstream and similarity.size else similarity

    def _correct(self, table: TrackTable, pairs: _Pairs, seen: _Detections) -> None:
        """Bring the matched tracks up to date."""
        rows, life = pairs.tracks, table.life
        motion = kalman.correct(table.motion.take(rows, -1), kalman.to_xyah(seen.boxes.take(pairs.detections, -1)))
        boxes = kalman.to_xyxy(motion)
        table.motion[..., rows] = motion
        table.boxes[:, rows] = boxes
        life["confirmed"][rows] = True
        life["last_frame"][rows] = self._frame
        life["detection"][rows] = seen.rows[pairs.detections]
        if self._with_poses:
            table.poses[rows] = _moved(seen.poses[pairs.detections], boxes, -1)

    def _settle(self, table: TrackTable, pairs: _Pairs, seen: _Detections) -> TrackTable:
        """Who is tracked, who is lost, who is given up: the table after this frame."""
        life = table.life
        was_lost = life["lost"].nonzero()[0]
        still_lost = was_lost[life["detection"][was_lost] < 0]
        dropped = np.concatenate((pairs.unconfirmed, self._expired(life, still_lost, pairs.newly_lost)))
        new = pairs.new
        if not (len(new) or len(dropped) or len(pairs.newly_lost) or len(still_lost) < len(was_lost)):
            return table
        # The order of the table: stays tracked, new, found again, stays lost, newly lost; at the end who goes.
        group = np.zeros(len(table) + len(new), np.int64)
        group[len(table) :] = 1
        group[was_lost] = 2
        group[still_lost] = 3
        group[pairs.newly_lost] = 4
        group[dropped] = 5
        life["lost"][was_lost] = False
        life["lost"][still_lost] = life["lost"][pairs.newly_lost] = True
        self._removed += tuple(life["id"][dropped].tolist())
        order = group.argsort(kind="stable")
        return (table.extended(self._start(seen, new)) if len(new) else table).take(order[: len(order) - len(dropped)])

    def _expired(self, life: NDArray[np.void], still_lost: Indices, newly_lost: Indices) -> Indices:
        """Lost tracks to give up for their age.

        Upstream's bookkeeping gives a track whose time is up one more frame; one found in that frame stays marked
        and is given up as soon as it is lost again.
        """
        lost = np.concatenate((still_lost, newly_lost))
        expired: Indices = lost[life["expired"][lost]]
        life["expired"][still_lost] = life["last_frame"][still_lost] < self._frame - self._buffer_frames
        return expired

    def _start(self, seen: _Detections, new: Indices) -> TrackTable:
        """Tracks for the detections `new`; confirmed at their second hit, in the first frame at once."""
        started = TrackTable.empty(with_poses=self._with_poses, n=len(new))
        life = started.life
        life["id"] = np.arange(self._next_id, self._next_id + len(new))
        self._next_id += len(new)
        life["first_frame"] = life["last_frame"] = self._frame
        life["confirmed"] = self._frame == 1
        life["detection"] = seen.rows[new]
        started.boxes = seen.boxes[:, new]
        started.motion = kalman.initiate(kalman.to_xyah(started.boxes))
        started.poses = _moved(seen.poses[new], started.boxes, -1)
        return started

    def _without_doubles(self, table: TrackTable) -> TrackTable:
        """Of a tracked and a lost track on the same spot the younger goes (the tracked one when equally old)."""
        tracked = len(table) - int(np.count_nonzero(table.life["lost"]))
        if tracked == len(table):
            return table
        iou = pairwise_iou(table.boxes[:, :tracked], table.boxes[:, tracked:], pixel=_PIXEL)
        i, j = (iou > 1 - self._config.duplicate_iou_distance).nonzero()
        if not len(i):
            return table
        j = j + tracked
        age = table.life["last_frame"] - table.life["first_frame"]
        double = np.zeros(len(table), np.bool_)
        double[np.where(age[i] > age[j], j, i)] = True
        self._removed += tuple(table.life["id"][double].tolist())
        return table.take((~double).nonzero()[0])

    def _output(self) -> Matched:
        """Confirmed tracks of this frame whose box has a plausible size and shape."""
        life, boxes = self._table.life, self._table.boxes
        width, height = boxes[2:] - boxes[:2]
        shown = life["confirmed"] & (life["detection"] >= 0)
        shown &= width * height > self._config.min_box_area_px
        if not self._config.keep_wide:
            shown &= width <= self._config.max_aspect_ratio * height
        rows = shown.nonzero()[0]
        return Matched(life["id"][rows], boxes.take(rows, -1).T, life["detection"][rows])


def _match(similarity: Floats, tracks: Indices, detections: Indices, limit: float) -> Assignment:
    """`assign` by 1 - similarity (tracks, detections), in the numbers of the tracks and detections themselves."""
    if not similarity.size:
        return Assignment(_NOBODY, _NOBODY, tracks, detections)
    found = assign(1 - similarity, limit)
    return Assignment(
        tracks[found.rows], detections[found.columns], tracks[found.free_rows], detections[found.free_columns]
    )


def _part(matrix: Floats, rows: Indices, columns: Indices) -> Floats:
    """matrix[rows][:, columns], without copies where that is all of it; both ascend."""
    if len(rows) < matrix.shape[0]:
        matrix = matrix.take(rows, 0)
    return matrix.take(columns, 1) if len(columns) < matrix.shape[1] else matrix


def _moved(poses: Floats, boxes: Floats, sign: int) -> Floats:
    """Poses (N, 17, 3) with the centres of the boxes (4, N) added to x, y (sign +1) or taken away (-1)."""
    if not poses.size:
        return poses
    moved = poses.copy()
    moved[..., :2] += (0.5 * sign * (boxes[:2] + boxes[2:])).T[:, None]
    return moved

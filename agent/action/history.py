"""Rolling key points of a camera's tracks, shared by every service that watches it. Pure NumPy, no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.action.change import RESTLESS
from agent.types import NUM_KEYPOINTS, FloatArray, FrameStamp, IntArray, Tracks

BoolArray = NDArray[np.bool_]

MISSING_SCORE = 0.01
"""Key points at or below this score count as not seen (the convention of PYSKL's PreNormalize2D)."""
_FIRST_SLOTS = 16


@dataclass(frozen=True, slots=True, eq=False)
class TrackHistory:
    """The tracks of one camera over F consecutive frames, ordered by track id; arrays are copies of the ring.

    track_ids: (N,) int64; keypoints: (N, F, 17, 3) float32, x and y in px and the score 0-1, zeros where the joint or
    the person was not seen; seen: (N, F) bool; t_ns: (F,) int64, ascending; width, height: of the frames, px.
    change: (F, RESTLESS, 17) float32 of `change.PictureChange`, or None.
    """

    track_ids: IntArray
    keypoints: FloatArray
    seen: BoolArray
    t_ns: IntArray
    width: int
    height: int
    change: FloatArray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.track_ids), len(self.t_ns))
        if self.seen.shape != expected or self.keypoints.shape != (*expected, NUM_KEYPOINTS, 3):
            raise ValueError(
                f"TrackHistory: expected seen {expected} and keypoints {(*expected, NUM_KEYPOINTS, 3)}, "
                f"got {self.seen.shape} and {self.keypoints.shape}"
            )

    def __len__(self) -> int:
        return len(self.track_ids)

    def take(self, index: NDArray[np.integer] | BoolArray) -> TrackHistory:
        """The tracks at `index` (integer or boolean array), in that order."""
        return replace(self, track_ids=self.track_ids[index], keypoints=self.keypoints[index], seen=self.seen[index])

    def without_scraps(self, joints: int) -> TrackHistory:
        """Frames in which fewer than `joints` of somebody are seen count as frames without them."""
        seen = self.seen & ((self.keypoints[..., 2] > 0).sum(axis=2) >= joints)
        return replace(self, keypoints=np.where(seen[..., None, None], self.keypoints, np.float32(0)), seen=seen)


class TrackBuffer:
    """Ring of the last `capacity` frames; one slot per track, freed when its last frame has left the ring.

    The arrays are allocated once and doubled up to `max_tracks` slots, never per frame. When all slots are taken by
    tracks still in the ring, further tracks are left out (`refused` counts them), so memory stays bounded whatever the
    tracker says: `max_tracks * capacity * 204` bytes.
    """

    def __init__(self, capacity: int, max_tracks: int = 256, *, change: bool = False) -> None:
        """change: keep what `change.PictureChange` says of each frame, too."""
        if capacity < 2 or max_tracks < 1:
            raise ValueError(f"expected capacity >= 2 and max_tracks >= 1, got {capacity} and {max_tracks}")
        self._capacity = capacity
        self._max_tracks = max_tracks
        self._allocate(min(_FIRST_SLOTS, max_tracks))
        self._t_ns = np.zeros(capacity, np.int64)
        self._change = np.zeros((capacity, RESTLESS, NUM_KEYPOINTS), np.float32) if change else None
        self._slot_of: dict[int, int] = {}
        self._frames = 0
        self._size = (0, 0)
        self.refused = 0

    def __len__(self) -> int:
        """Frames held, at most `capacity`."""
        return min(self._frames, self._capacity)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of the frames held, px; (0, 0) before the first."""
        return self._size

    @property
    def newest_ns(self) -> int:
        """Time of the newest frame, ns; 0 when there is none."""
        return int(self._t_ns[(self._frames - 1) % self._capacity]) if self._frames else 0

    def reset(self) -> None:
        """Forget every frame and track."""
        self._seen[:] = False
        self._counts[:] = 0
        self._slot_of.clear()
        self._free = list(range(len(self._seen)))[::-1]
        self._frames = 0

    def push(self, tracks: Tracks, change: FloatArray | None = None) -> None:
        """Append one frame, later than the newest one held. Key points that are not finite count as missing.

        change: (RESTLESS, 17) float32, see `change.PictureChange`; None = unknown.

        Frames of another size than before start the buffer anew: positions of the two do not compare.
        """
        column = self._start_frame(tracks.stamp)
        if self._change is not None:
            self._change[column] = 0.0 if change is None else change
        if len(tracks.track_ids) == 0:
            return
        people = tracks.people
        joints = np.concatenate((people.keypoints, people.keypoint_scores[..., None]), axis=-1)
        score = joints[..., 2]
        missing = ~(np.isfinite(joints).all(axis=-1) & (score > MISSING_SCORE))
        joints[missing] = 0.0
        np.minimum(score, 1.0, out=score)
        slots = self._slots_for(tracks.track_ids)
        if slots.min() < 0:
            kept = slots >= 0
            slots, joints = slots[kept], joints[kept]
        self._joints[slots, column] = joints
        self._seen[slots, column] = True
        self._counts[slots] += 1

    def history(self, since_ns: int) -> TrackHistory:
        """Every track with its frames from the last one at or before `since_ns` on (all, when that has left the ring)."""
        times, order = self._ordered()
        start = max(0, int(np.searchsorted(times, since_ns, side="right")) - 1)
        return self._read(times[start:], order[start:])

    def last(self, frames: int) -> TrackHistory:
        """Every track over the newest `frames` frames, or as many as there are."""
        times, order = self._ordered()
        start = max(0, len(order) - frames)
        return self._read(times[start:], order[start:])

    def _start_frame(self, stamp: FrameStamp) -> int:
        """Make room for a frame; returns its column."""
        size = (stamp.width, stamp.height)
        if self._frames and size != self._size:
            self.reset()
        if self._frames and stamp.t_mono_ns <= self.newest_ns:
            raise ValueError(f"frame times must ascend: {stamp.t_mono_ns} ns after {self.newest_ns} ns")
        self._size = size
        column = self._frames % self._capacity
        self._evict(column)
        self._t_ns[column] = stamp.t_mono_ns
        self._frames += 1
        return column

    def _evict(self, column: int) -> None:
        leaving = self._seen[:, column]
        if not leaving.any():
            return
        self._counts -= leaving
        gone = leaving & (self._counts == 0)
        leaving[:] = False
        if gone.any():
            for slot in np.flatnonzero(gone)[::-1].tolist():
                del self._slot_of[self._id_of[slot]]
                self._free.append(slot)

    def _slots_for(self, track_ids: IntArray) -> NDArray[np.intp]:
        slots = np.empty(len(track_ids), np.intp)
        for row, track_id in enumerate(track_ids.tolist()):
            slot = self._slot_of.get(track_id)
            if slot is None:
                slot = self._new_slot(track_id)
            slots[row] = slot
        return slots

    def _new_slot(self, track_id: int) -> int:
        if not self._free:
            if len(self._seen) == self._max_tracks:
                self.refused += 1
                return -1
            self._grow()
        slot = self._free.pop()
        self._slot_of[track_id] = slot
        self._id_of[slot] = track_id
        return slot

    def _allocate(self, slots: int) -> None:
        self._joints = np.zeros((slots, self._capacity, NUM_KEYPOINTS, 3), np.float32)
        self._seen = np.zeros((slots, self._capacity), np.bool_)
        self._counts = np.zeros(slots, np.int64)
        self._id_of = [0] * slots
        self._free = list(range(slots))[::-1]

    def _grow(self) -> None:
        joints, seen, counts, ids = self._joints, self._seen, self._counts, self._id_of
        old = len(seen)
        self._allocate(min(2 * old, self._max_tracks))
        self._joints[:old], self._seen[:old], self._counts[:old], self._id_of[:old] = joints, seen, counts, ids
        self._free = [slot for slot in self._free if slot >= old]

    def _ordered(self) -> tuple[IntArray, NDArray[np.intp]]:
        """Times and ring columns, oldest first."""
        order = (np.arange(self._frames - len(self), self._frames)) % self._capacity
        return self._t_ns[order], order

    def _read(self, times: IntArray, order: NDArray[np.intp]) -> TrackHistory:
        pairs = sorted(self._slot_of.items())
        ids = np.array([track_id for track_id, _ in pairs], np.int64)
        slots = np.array([slot for _, slot in pairs], np.intp)
        seen = self._seen[slots[:, None], order]
        inside = seen.any(axis=1)
        ids, slots, seen = ids[inside], slots[inside], seen[inside]
        joints = self._joints[slots[:, None], order]
        joints[~seen] = 0.0
        width, height = self._size
        change = None if self._change is None else self._change[order]
        return TrackHistory(ids, joints, seen, times, width, height, change)

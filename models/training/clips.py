"""Poses of a clip -> tracks -> windows, through the agent's own tracker and window code, so that training and the field
see the same tensors by construction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.action.windows import WITHOUT_CHANGE, ActionWindows
from agent.config.schema import ServiceConfig, TrackingConfig
from agent.tracking.bytetrack import ByteTracker
from agent.types import FrameStamp, ImageArray, People, Poses, Tracks, Window

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

TRACKING = TrackingConfig(track_threshold=0.3, low_threshold=0.12, new_margin=0.05, keep_wide=True)
"""ByteTrack for PoseNet, whose scores are low: over the fight clips a tenth is below 0.17, the median 0.37, a tenth above
0.69. Unlike a detector's, a low score here is mostly a real person badly seen."""
POSE_THRESHOLD = 0.12
_COLUMNS = ("tensor", "label", "clip", "variant", "t_end_s", "regular")


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Windows with what is known about them; row i of every array belongs to window i.

    tensor: (N, M, T, V, C) float16, C as the recipe's window; label: (N,) int8, 1 = the action, 0 = not, -1 = leave out of training;
    clip: (N,) index into `files`; variant: (N,) the estimator and rate it came from; t_end_s: (N,); regular: (N,) bool, the
    agent itself would make this window (the others end elsewhere and are for training).
    """

    tensor: NDArray[np.float16]
    label: NDArray[np.int8]
    clip: NDArray[np.int32]
    variant: NDArray[np.str_]
    t_end_s: NDArray[np.float32]
    regular: NDArray[np.bool_]
    files: tuple[str, ...]

    def save(self, file: Path) -> None:
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        np.savez_compressed(file, files=np.array(self.files), **arrays)

    @classmethod
    def load(cls, file: Path, channels: int = WITHOUT_CHANGE) -> Samples:
        """channels: the first so many of the windows."""
        with np.load(file) as data:
            arrays = {name: data[name] for name in _COLUMNS}
            arrays["tensor"] = arrays["tensor"][..., :channels]
            return cls(files=tuple(data["files"].tolist()), **arrays)


def load_poses(file: Path, every: int = 1) -> list[Poses]:
    """The poses of one clip as `extract_poses.py` wrote them; `every` = 2 keeps every second frame, as a slowed camera."""
    with np.load(file) as data:
        ends = np.cumsum(data["counts"])
        fps, width, height = float(data["fps"]), int(data["width"]), int(data["height"])
        columns = [data[name].astype(np.float32) for name in ("boxes", "keypoints", "keypoint_scores", "scores")]
    poses = []
    for number in range(0, len(ends), every):
        rows = slice(ends[number - 1] if number else 0, ends[number])
        people = People(*(column[rows] for column in columns))
        people = people.take(people.scores >= POSE_THRESHOLD)
        time = number / fps
        stamp = FrameStamp("clip", number, round(time * 1e9), EPOCH + timedelta(seconds=time), width, height)
        poses.append(Poses(stamp, people))
    return poses


def tracks_of(poses: Sequence[Poses], tracking: TrackingConfig = TRACKING) -> Iterator[Tracks]:
    """Through the agent's tracker."""
    seconds = (poses[-1].stamp.t_mono_ns - poses[0].stamp.t_mono_ns) * 1e-9 if len(poses) > 1 else 1.0
    tracker = ByteTracker(tracking, fps=max(1.0, (len(poses) - 1) / seconds))
    for frame in poses:
        yield tracker.update(frame.stamp, frame.people)


def windows_of(
    tracks: Sequence[Tracks], service: ServiceConfig, frames: Iterable[tuple[ImageArray, People] | None] = repeat(None)
) -> list[Window]:
    """The windows the agent would classify. frames: pictures and all people in them, for services that look at their change."""
    windows = ActionWindows("clip", {"s": service})
    found = [w for one, frame in zip(tracks, frames, strict=False) for w in windows.push(one, *(frame or ()))]
    return found + windows.flush()


def extra_windows_of(tracks: Sequence[Tracks], service: ServiceConfig, every: int) -> list[Window]:
    """Windows that end at every `every`-th frame: a live stream brings them ending anywhere."""
    # A step and a half short of full, so that the window is not due before its last frame.
    span_ns = (service.window.length - 1.6) / service.window.rate_hz * 1e9
    made = []
    for end in range(every, len(tracks), every):
        last_ns = tracks[end - 1].stamp.t_mono_ns
        windows = ActionWindows("clip", {"s": service})
        for frame in tracks[:end]:
            if last_ns - frame.stamp.t_mono_ns < span_ns:
                windows.push(frame)
        made += windows.flush()
    return made

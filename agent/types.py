"""Values that cross stages. A leaf module: it imports nothing of the agent.

Everything is frozen and slotted; arrays are made read-only on construction, so a value can be handed
to any task or thread. Coordinates are pixels of the source image, origin top left, x to the right.
Key points are the 17 of COCO in their usual order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
ImageArray = NDArray[np.uint8]

KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
NUM_KEYPOINTS = len(KEYPOINTS)
SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
POSE_SLOT = "pose"
"""The slot of the pose model: what reports, metrics and manifests call its place."""


def action_slot(service: str) -> str:
    """The slot of a service's model."""
    return f"action/{service}"


def _freeze(owner: str, name: str, array: NDArray[np.generic], shape: tuple[int | None, ...]) -> None:
    """Check `array` against `shape` (None = any) and make it read-only."""
    matches = array.ndim == len(shape) and all(
        want is None or have == want for want, have in zip(shape, array.shape, strict=True)
    )
    if not matches:
        wanted = tuple("*" if want is None else want for want in shape)
        raise ValueError(f"{owner}.{name}: expected shape {wanted}, got {array.shape}")
    array.setflags(write=False)


@dataclass(frozen=True, slots=True)
class FrameStamp:
    """Identity and time of a frame, without its picture.

    camera_id: the configured camera; seq: 0, 1, 2, ... per opened source, dropped frames leave gaps.
    t_mono_ns: the camera's own time line, never going back: `time.monotonic_ns()` at capture for live sources,
    presentation time since the start for files. All durations and rules use it.
    t_utc: wall time of capture (files: start of the run + presentation time). Only for what leaves the box.
    width, height: of the source image, px.
    """

    camera_id: str
    seq: int
    t_mono_ns: int
    t_utc: datetime
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture. image: (H, W, 3) uint8 BGR."""

    stamp: FrameStamp
    image: ImageArray

    def __post_init__(self) -> None:
        _freeze("Frame", "image", self.image, (self.stamp.height, self.stamp.width, 3))


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """What a pose estimator found in one image; N = 0 is normal.

    boxes: (N, 4) float32 xyxy px; keypoints: (N, 17, 2) float32 px; keypoint_scores: (N, 17) float32 0-1;
    scores: (N,) float32 0-1.
    """

    boxes: FloatArray
    keypoints: FloatArray
    keypoint_scores: FloatArray
    scores: FloatArray

    def __post_init__(self) -> None:
        n = len(self.scores)
        _freeze("People", "scores", self.scores, (n,))
        _freeze("People", "boxes", self.boxes, (n, 4))
        _freeze("People", "keypoints", self.keypoints, (n, NUM_KEYPOINTS, 2))
        _freeze("People", "keypoint_scores", self.keypoint_scores, (n, NUM_KEYPOINTS))

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> People:
        """Nobody."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros((0, NUM_KEYPOINTS, 2), np.float32),
            np.zeros((0, NUM_KEYPOINTS), np.float32),
            np.zeros((0,), np.float32),
        )

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> People:
        """The people at `index` (integer or boolean array), in that order."""
        return People(self.boxes[index], self.keypoints[index], self.keypoint_scores[index], self.scores[index])


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """The people of one frame, as estimated."""

    stamp: FrameStamp
    people: People


class TrackState(IntEnum):
    """Life of a track (ByteTrack)."""

    NEW = 0  # seen once, not yet confirmed
    TRACKED = 1
    LOST = 2
    REMOVED = 3


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """The confirmed people of one frame with their identity.

    people: boxes smoothed by the tracker's filter, key points and scores of the matched detection.
    track_ids: (N,) int64, unique per camera; states: (N,) int64 of TrackState.
    """

    stamp: FrameStamp
    people: People
    track_ids: IntArray
    states: IntArray

    def __post_init__(self) -> None:
        n = len(self.people)
        _freeze("Tracks", "track_ids", self.track_ids, (n,))
        _freeze("Tracks", "states", self.states, (n,))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A classifier's input.

    tensor: (M, T, V, C) float32; C = 3 is x, y, score, C = 2 is x, y; normalised as the service asks.
    t_start_ns, t_end_ns: first and last frame on the camera's time line; t_end_utc: wall time of the last frame.
    track_ids: the people in the window, best first, at most M of them. partial: the source ended before it was full.
    """

    camera_id: str
    service: str
    tensor: FloatArray
    t_start_ns: int
    t_end_ns: int
    t_end_utc: datetime
    track_ids: tuple[int, ...]
    partial: bool = False

    def __post_init__(self) -> None:
        _freeze("Window", "tensor", self.tensor, (None, None, NUM_KEYPOINTS, None))


@dataclass(frozen=True, slots=True)
class ActionScores:
    """A classifier's verdict on one window. probability: of the service's action, 0-1."""

    camera_id: str
    service: str
    probability: float
    probs: dict[str, float]
    t_start_ns: int
    t_end_ns: int
    t_end_utc: datetime
    track_ids: tuple[int, ...]
    latency_s: float


class EventPhase(StrEnum):
    """Phases of an event, in order; `detected` opens it, `resolved` closes it."""

    DETECTED = "detected"
    ACTIVE = "active"
    SUSTAINED = "sustained"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Event:
    """One step in the life of an event, as the rules emit it; `sequence` is given when it is committed.

    event_id: UUIDv7, unique per step (the id to deduplicate on); incident_id: UUIDv7 shared by all steps of one
    incident. kind: the service (`fight`, `fall`) or a system kind (`camera`, `gap`, ...).
    t_start_ns: onset on the camera's time line; t_utc: wall time of the capture that caused this step;
    t_onset_utc: wall time of the onset; duration_s: since onset; confidence: 0-1, the highest so far.
    attributes: JSON-able extras (evidence names, reasons).
    """

    event_id: str
    incident_id: str
    kind: str
    phase: EventPhase
    camera_id: str
    track_ids: tuple[int, ...]
    t_start_ns: int
    t_utc: datetime
    t_onset_utc: datetime
    duration_s: float
    confidence: float
    attributes: dict[str, object] = field(default_factory=dict)


class Lane(IntEnum):
    """Delivery lanes; a smaller number goes first. Only ALARM and EVENT carry a sequence."""

    ALARM = 0
    EVENT = 1
    STATE = 2
    TELEMETRY = 3


GAP = "gap"
"""The kind of events that announce a Loss; they themselves are never given up for want of room or patience."""


class LossReason(StrEnum):
    """Why messages will not arrive."""

    AGE = "age"  # waited longer than its lane allows
    BYTES = "bytes"  # its lane was full: the oldest went
    SPACE = "space"  # the disk was full
    STORAGE = "storage"  # the database could not be written
    REFUSED = "refused"  # the broker does not take it, now or ever
    DAMAGE = "damage"  # the database was damaged
    RESTORED = "restored"  # the database is an older copy of itself
    CUT_OFF = "cut_off"  # a power loss cut off the last commit: its numbers were told to nobody


@dataclass(frozen=True, slots=True)
class Loss:
    """Messages that will not arrive any more.

    lane: None = of several or unknown lanes. sink: who will not get them, empty = nobody gets them any more. ranges: the sequences in question, first and last of each run, rising; empty in
    lanes without a sequence. lost: how many messages; None where nobody knows which of the numbers were still to be delivered.
    """

    reason: LossReason
    lane: Lane | None
    ranges: tuple[tuple[int, int], ...]
    lost: int | None
    detail: str = ""
    sink: str = ""


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """A committed message that waits for its acknowledgement.

    row_id: key in the store; sequence: gapless per device over the alarm and event lanes, None elsewhere;
    t_created_utc: wall time of the commit; attempts: publishes so far.
    """

    row_id: int
    lane: Lane
    sequence: int | None
    event_id: str
    topic: str
    payload: bytes
    content_type: str
    retain: bool
    t_created_utc: datetime
    attempts: int


class CameraPhase(StrEnum):
    """What a camera is doing."""

    CONNECTING = "connecting"
    STREAMING = "streaming"
    FROZEN = "frozen"
    BLIND = "blind"
    OFFLINE = "offline"
    ENDED = "ended"  # a file has been read to its end
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """A camera's state at one moment.

    fps: frames delivered per second over the last seconds; moved: it shows another view than it used to, whatever its phase.
    """

    camera_id: str
    phase: CameraPhase
    fps: float
    width: int
    height: int
    frames: int
    dropped: int
    reconnects: int
    error: str = ""
    moved: bool = False


class Level(StrEnum):
    """Health of the whole agent."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"

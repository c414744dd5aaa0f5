"""The ports: what the core needs from the outside world, as Protocols.

Adapters implement them, plug-ins implement them, fakes of the tests implement them, and all pass the same contract
tests. Methods without `async` block and run on a thread owned by the object's user.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from agent.errors import RecognizerError
from agent.types import (
    ActionScores,
    CameraStatus,
    Event,
    FloatArray,
    Frame,
    ImageArray,
    Lane,
    LossReason,
    OutboxRecord,
    People,
    Tracks,
)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a source says when it opens. fps 0 and frame_count 0 mean unknown; live sources have no end."""

    width: int
    height: int
    fps: float
    frame_count: int
    live: bool


class VideoSource(Protocol):
    """A thing that yields pictures; blocking, used by one decoder thread."""

    def open(self) -> StreamInfo:
        """Connect. Raises SourceError when it cannot be opened now (it will be tried again)."""
        ...

    def read(self) -> tuple[ImageArray, int] | None:
        """The next picture ((H, W, 3) uint8 BGR) and its presentation time in ns since open; None at the end.

        Raises SourceError when the stream broke.
        """
        ...

    def close(self) -> None:
        """Release everything; may be called twice and from another thread to interrupt `read`."""
        ...


class FrameStream(Protocol):
    """A running camera: frames for the pipeline, status for everyone else."""

    @property
    def camera_id(self) -> str: ...

    @property
    def live(self) -> bool:
        """Live: the newest frame wins and drops are counted. Not live: every frame, at the consumer's speed."""
        ...

    def frames(self) -> AsyncIterator[Frame]:
        """Frames until a file ends; a live camera goes on for ever, through reconnects."""
        ...

    def status(self) -> CameraStatus: ...


@runtime_checkable
class PoseEstimator(Protocol):
    """Finds people and their key points. Used from one inference thread."""

    @property
    def name(self) -> str:
        """Model name and version for reports, e.g. `rtmo-s`."""
        ...

    @property
    def max_batch(self) -> int:
        """The most images one call takes."""
        ...

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        """One People per image, in source pixels.

        images: 1..max_batch arrays (H, W, 3) uint8 BGR, sizes may differ.
        Raises DataError (bad image), DeviceMemoryError, ModelError, FatalError (dead CUDA context).
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class ScalableEstimator(Protocol):
    """A PoseEstimator that can look at smaller pictures for less work; a plug-in may be one."""

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) px: the input that a picture is given at present."""
        ...

    @property
    def own_scale(self) -> float:
        """The share of its configured size that it chose for itself at the start; 1 = all of it."""
        ...

    def scale_pictures(self, scale: float) -> None:
        """From the next call of `estimate` on take pictures at `scale` (0-1] of `own_scale` of their configured size; answers stay in
        source pixels. From any thread."""
        ...


@runtime_checkable
class ActionClassifier(Protocol):
    """Scores windows. Used from one inference thread."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """K class names; the service's own name is the positive class."""
        ...

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(M, T, V, C) of one window."""
        ...

    def classify(self, batch: FloatArray) -> FloatArray:
        """(B, M, T, V, C) float32 -> probabilities (B, K) float32, rows sum to 1. Raises as `PoseEstimator.estimate`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Message:
    """Something to commit and deliver.

    payload: called once inside the commit with the sequence it was given (None outside the alarm and event lanes);
    returns the bytes to publish. kind/phase/camera_id/t_utc_iso describe it in the event history.
    """

    lane: Lane
    event_id: str
    topic: str
    payload: Callable[[int | None], bytes]
    content_type: str = "application/json"
    retain: bool = False
    kind: str = ""
    phase: str = ""
    camera_id: str = ""
    t_utc_iso: str = ""


class EventStore(Protocol):
    """Durable first stop of everything that must arrive."""

    @property
    def series(self) -> str:
        """What the sequences count in (docs/events.md); also to be asked for while a payload is made."""
        ...

    async def put(self, message: Message) -> int | None:
        """Returns once `message` is on disk: its sequence (None where the lane has none).

        Raises StorageFullError, StorageError.
        """
        ...

    def give_up(self, lane: Lane, reason: LossReason) -> None:
        """One message of `lane` will not be put any more: to be announced when the store can."""
        ...

    def on_room(self, callback: Callable[[bool], None]) -> None:
        """Have `callback` called when the store runs out of room, before events fail, and when it has room again."""
        ...


@dataclass(frozen=True, slots=True)
class Envelope:
    """What goes along with a payload where the protocol carries it (MQTT 5; MQTT 3.1.1 leaves it out).

    utf8: the payload is UTF-8 text; expiry_s: seconds after which the broker may throw it away, None = never;
    response_topic, correlation_data: of a question and its answer; user_properties: names and values, in this order.
    """

    content_type: str = ""
    utf8: bool = False
    expiry_s: int | None = None
    response_topic: str = ""
    correlation_data: bytes = b""
    user_properties: tuple[tuple[str, str], ...] = ()


class Publisher(Protocol):
    """The way out."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None:
        """Returns once the broker has acknowledged with a good reason code.

        Raises TransientError (offline, timed out: try again), its subclasses QuotaError (wait the longest) and
        UnexplainedError (try again, not for ever), RejectedError (never again).
        """
        ...


@dataclass(frozen=True, slots=True)
class Received:
    """A message that came in. What only MQTT 5 carries is empty in MQTT 3.1.1; expiry_s: what was left of it, None = none."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    response_topic: str = ""
    correlation_data: bytes = b""
    content_type: str = ""
    user_properties: tuple[tuple[str, str], ...] = ()
    expiry_s: int | None = None


@runtime_checkable
class EventSink(Protocol):
    """A way out for alarms and events beside the broker. Used from one task, one call at a time."""

    @property
    def max_batch(self) -> int:
        """The most records one call takes."""
        ...

    async def deliver(self, records: Sequence[OutboxRecord]) -> int:
        """Deliver from the front, in order; how many are safe with the other side, 1 or more.

        records: 1..max_batch, sequences rising; the rest of them comes again with the next call.
        Errors are about the first of them, and say that none is known to be safe. Raises TransientError (try again), its
        subclasses BusyError (not before a time), AccessError (wait the longest), UnexplainedError (an answer about this
        record: try again, not for ever), RejectedError (never again). A record that comes again has the same event_id.
        """
        ...

    async def close(self) -> None:
        """Release everything; may be called twice."""
        ...


class HealthSink(Protocol):
    """Where parts raise and clear reasons (see health/reasons.py)."""

    def raise_reason(self, reason: str, detail: str = "") -> None: ...

    def clear_reason(self, reason: str) -> None: ...


class PipelineListener(Protocol):
    """What a camera's pipeline tells the outside. The `on_` methods without `async` must return at once."""

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        """A frame went through: all people found in it, and the tracked ones."""
        ...

    def on_scores(self, scores: ActionScores) -> None:
        """A window was classified."""
        ...

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        """Inference failed on one frame (stage `pose`) or on one window of `service` (`action`); the pipeline goes on without it."""
        ...

    async def on_event(self, event: Event) -> None:
        """Returns once the event is safe; events of a camera come one after the other. It is the listener's from the call on, also when
        who waits for it is cancelled."""
        ...


def as_image(array: np.ndarray) -> ImageArray:
    """`array` as an image, or a ValueError that names what is wrong with it."""
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"expected a non-empty (H, W, 3) uint8 image, got {array.shape} {array.dtype}")
    return array

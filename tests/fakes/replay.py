"""A stream of made-up frames and an estimator that replays recorded poses: the pipeline without camera and model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from agent.errors import RecognizerError
from agent.types import (
    ActionScores,
    CameraPhase,
    CameraStatus,
    Event,
    FloatArray,
    Frame,
    FrameStamp,
    ImageArray,
    People,
    Tracks,
)

T0_UTC = datetime(2026, 1, 1, tzinfo=UTC)


class ReplayEstimator:
    """A PoseEstimator: the n-th image gets the n-th recorded People, starting again at the end."""

    name = "replay"
    max_batch = 8

    def __init__(self, recording: Sequence[People | RecognizerError]) -> None:
        self._recording = recording
        self._next = 0

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        found = []
        for _ in images:
            entry = self._recording[self._next % len(self._recording)]
            self._next += 1
            if isinstance(entry, RecognizerError):
                raise entry
            found.append(entry)
        return found

    def close(self) -> None:
        """Nothing to free."""


class ReplayStream:
    """A FrameStream of `count` small frames at `fps`; `gaps` maps a frame number to extra seconds before it."""

    def __init__(
        self,
        count: int,
        *,
        camera_id: str = "cam",
        fps: float = 25.0,
        live: bool = False,
        size: tuple[int, int] = (48, 64),
        gaps: dict[int, float] | None = None,
    ) -> None:
        self.camera_id = camera_id
        self.live = live
        self.delivered = 0
        self._count = count
        self._fps = fps
        self._size = size
        self._gaps = gaps or {}

    async def frames(self) -> AsyncIterator[Frame]:
        height, width = self._size
        image: ImageArray = np.zeros((height, width, 3), np.uint8)
        t_s = 0.0
        for n in range(self._count):
            t_s += self._gaps.get(n, 0.0) + (1 / self._fps if n else 0.0)
            stamp = FrameStamp(self.camera_id, n, round(t_s * 1e9), T0_UTC + timedelta(seconds=t_s), width, height)
            self.delivered += 1
            yield Frame(stamp, image)
            await asyncio.sleep(0)

    def status(self) -> CameraStatus:
        return CameraStatus(self.camera_id, CameraPhase.STREAMING, self._fps, 64, 48, self.delivered, 0, 0)


class RecordingListener:
    """A PipelineListener that remembers everything it was told."""

    def __init__(self) -> None:
        self.tracks: list[Tracks] = []
        self.scores: list[ActionScores] = []
        self.failures: list[tuple[str, str]] = []
        self.events: list[Event] = []

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        self.tracks.append(tracks)

    def on_scores(self, scores: ActionScores) -> None:
        self.scores.append(scores)

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self.failures.append((f"{stage}/{service}" if service else stage, str(error)))

    async def on_event(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.events.append(event)


def walkers(people: int, frames: int, *, size: tuple[int, int] = (1080, 1920), seed: int = 1) -> list[People]:
    """`people` upright figures walking sideways through the picture, one People per frame."""
    random = np.random.default_rng(seed)
    height, width = size
    figure = 0.2 * height
    x0 = np.linspace(0.05, 0.95, people) * width
    y0 = random.uniform(0.1, 0.75, people) * height
    speed = random.uniform(-0.002, 0.002, people) * width
    skeleton: FloatArray = np.stack([random.uniform(0, 0.4, 17), np.linspace(0, 1, 17)], axis=1).astype(np.float32)
    recording = []
    for n in range(frames):
        origin = np.stack([x0 + speed * n, y0], axis=1)
        keypoints = origin[:, None] + figure * skeleton + random.normal(0, 1, (people, 17, 2))
        boxes = np.concatenate([origin, origin + np.array([0.4, 1.0]) * figure], axis=1)
        ones = np.ones(people, np.float32)
        scores = np.full((people, 17), 0.9, np.float32)
        recording.append(People(boxes.astype(np.float32), keypoints.astype(np.float32), scores, 0.9 * ones))
    return recording

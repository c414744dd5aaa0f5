"""The parts between a simulated scene and the pipeline: the stream, truth in place of an estimator, the listener."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta

from agent.drift.card import CardMeter
from agent.errors import RecognizerError
from agent.evaluate.mot import MotBoxes
from agent.simulation.values import Scene, Truth
from agent.types import (
    ActionScores,
    CameraPhase,
    CameraStatus,
    Event,
    Frame,
    FrameStamp,
    ImageArray,
    People,
    Tracks,
)

CAMERA_ID = "scene"
SEEN_SHARE = 0.2
"""Of whom the camera sees less, nobody can be asked to find."""
_START_UTC = datetime(2026, 1, 1, tzinfo=UTC)


class SceneStream:
    """A FrameStream of `scene` from 0 s on, every frame, at the consumer's speed.

    on_truth: called with the truth of each frame just before it is handed out. off_loop: draw on a thread; without
    drawing that costs more than it saves.
    """

    live = False
    camera_id = CAMERA_ID

    def __init__(
        self, scene: Scene, *, fps: float, seconds: float, on_truth: Callable[[Truth], None], off_loop: bool = True
    ) -> None:
        self._scene = scene
        self._fps = fps
        self._count = max(1, round(seconds * fps))
        self._on_truth = on_truth
        self._off_loop = off_loop
        self._done = 0

    async def frames(self) -> AsyncIterator[Frame]:
        """See FrameStream."""
        scene = self._scene
        for n in range(self._count):
            t_s = n / self._fps
            shot = await asyncio.to_thread(scene.shot, t_s) if self._off_loop else scene.shot(t_s)
            stamp = FrameStamp(
                CAMERA_ID, n, round(t_s * 1e9), _START_UTC + timedelta(seconds=t_s), scene.width, scene.height
            )
            self._on_truth(shot.truth)
            self._done = n + 1
            yield Frame(stamp, shot.image)

    def status(self) -> CameraStatus:
        """See FrameStream."""
        phase = CameraPhase.ENDED if self._done == self._count else CameraPhase.STREAMING
        return CameraStatus(CAMERA_ID, phase, self._fps, self._scene.width, self._scene.height, self._done, 0, 0)


class TruthEstimator:
    """A PoseEstimator that reports noisy truth: what `tell` was given, in that order, one per image."""

    name = "simulated truth with noise"
    max_batch = 8

    def __init__(self) -> None:
        self._told: deque[People] = deque()

    def tell(self, people: People) -> None:
        """What the next image without an answer shows."""
        self._told.append(people)

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        """See PoseEstimator."""
        return [self._told.popleft() for _ in images]

    def close(self) -> None:
        """Nothing to free."""


class SceneWatcher:
    """A PipelineListener that keeps events, verdicts and tracks, and from `on_truth` what they are held against.

    seen: time in s of each frame and the visible share, 0-1, of everybody in its picture, by actor id; truth, tracks: the
    boxes of each frame, counted from 1, truth without people of whom less than `SEEN_SHARE` is seen; kept: whom the agent
    followed, with key points, in every `keep_every`-th frame from the first on (0 = in none). progress: called once a frame;
    meter: told what is seen.
    """

    def __init__(self, progress: Callable[[], None], meter: CardMeter, *, keep_every: int = 0) -> None:
        self.events: list[Event] = []
        self.scores: list[ActionScores] = []
        self.failures: list[str] = []
        self.seen: list[tuple[float, dict[int, float]]] = []
        self.truth: list[MotBoxes] = []
        self.tracks: list[MotBoxes] = []
        self.kept: list[Tracks] = []
        self._keep_every = keep_every
        self._progress = progress
        self._meter = meter

    def on_truth(self, truth: Truth) -> None:
        """The truth of the next frame; frames in order."""
        shares = dict(zip(truth.actor_ids.tolist(), truth.visible_share.tolist(), strict=True))
        self.seen.append((truth.t_s, shares))
        there = truth.visible_share >= SEEN_SHARE
        self.truth.append(MotBoxes.of_frame(len(self.truth) + 1, truth.actor_ids[there], truth.boxes[there]))

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        self.tracks.append(MotBoxes.of_frame(frame.stamp.seq + 1, tracks.track_ids, tracks.people.boxes))
        if self._keep_every and frame.stamp.seq % self._keep_every == 0:
            self.kept.append(tracks)
        self._meter.observe_people(people)
        self._progress()

    def on_scores(self, scores: ActionScores) -> None:
        self.scores.append(scores)
        self._meter.observe_scores(scores)

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self.failures.append(f"{stage}: {error}")

    async def on_event(self, event: Event) -> None:
        self.events.append(event)

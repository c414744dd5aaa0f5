"""One camera from frame to event: three loops joined by short queues, so that decoding, pose estimation,
tracking and classification of neighbouring frames overlap."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np

from agent.errors import FatalError, RecognizerError, SourceError
from agent.pipeline.worker import BatchWorker
from agent.ports import FrameStream, PipelineListener
from agent.types import ActionScores, Event, FloatArray, Frame, FrameStamp, ImageArray, People, Tracks, Window

IN_FLIGHT_LIVE = 1
"""Frames of a live camera at the pose worker: the next one is taken when the last is done, hence never stale."""
IN_FLIGHT_FILE = 2
"""... of a file: one in work, one ready, so that the worker never waits for the loop."""
PENDING_FRAMES = 2
PENDING_WINDOWS = 4
RESET_GAP_NS = 2_000_000_000
"""After a longer hole in the time line (reconnect) nobody is where he was: tracks and windows start afresh."""
TICK_NS = 1_000_000_000


class Tracker(Protocol):
    """Pure multi-object tracker."""

    def update(self, stamp: FrameStamp, people: People) -> Tracks: ...

    def set_fps(self, fps: float) -> None: ...

    def reset(self) -> None: ...


class WindowBuffer(Protocol):
    """Pure sliding windows of all services of one camera."""

    def push(self, tracks: Tracks, image: ImageArray | None = None, people: People | None = None) -> list[Window]: ...

    def flush(self) -> list[Window]: ...

    def reset(self) -> None: ...


class Rules(Protocol):
    """Pure event state machine of one service."""

    def step(self, scores: ActionScores) -> list[Event]: ...

    def tick(self, now_ns: int, now_utc: datetime) -> list[Event]: ...

    def close(self, now_ns: int, now_utc: datetime) -> list[Event]: ...


@dataclass(frozen=True, slots=True)
class Service:
    """One recognition service as a camera sees it. positive: index of the action among `labels`."""

    name: str
    worker: BatchWorker[FloatArray, FloatArray]
    labels: tuple[str, ...]
    positive: int
    rules: Rules


@dataclass(frozen=True, slots=True)
class _Classification:
    """A window on its way through its classifier."""

    window: Window
    service: Service
    result: asyncio.Future[FloatArray]
    submitted: float


class CameraPipeline:
    """Runs one camera until its stream ends.

    A frame or window whose inference fails counts as empty and is reported to the listener; only FatalError and bugs
    leave `run`. When the stream ends, everything under way is finished, partial windows are classified and open
    events are closed. fps: asked at each frame for the stream's rate, which a reconnect or the governor changes.
    """

    def __init__(
        self,
        stream: FrameStream,
        *,
        pose: BatchWorker[ImageArray, People],
        tracker: Tracker,
        fps: Callable[[], float],
        windows: WindowBuffer,
        services: Mapping[str, Service],
        listener: PipelineListener,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stream = stream
        self._pose = pose
        self._tracker = tracker
        self._fps = fps
        self._windows = windows
        self._services = services
        self._listener = listener
        self._clock_ns = clock_ns
        self._poses: asyncio.Queue[tuple[Frame, asyncio.Future[People]] | None] = asyncio.Queue(PENDING_FRAMES)
        self._verdicts: asyncio.Queue[_Classification | FrameStamp | None] = asyncio.Queue(PENDING_WINDOWS)
        self._due: deque[Event] = deque()  # not told yet
        self._last: FrameStamp | None = None
        self._broken: SourceError | None = None
        self._last_seen_ns = 0  # on the clock, when `_last` came in: a paced file's time line is not the clock's

    async def run(self) -> None:
        """Frames in, events out, until the stream ends. Cancellation drops what is under way.

        Raises SourceError when the stream broke, after everything up to there has been handled.
        """
        async with asyncio.TaskGroup() as group:
            name = self._stream.camera_id
            group.create_task(self._feed(), name=f"{name}.feed")
            group.create_task(self._track(), name=f"{name}.track")
            judge = group.create_task(self._judge(), name=f"{name}.judge")
            if self._stream.live:
                ticker = group.create_task(self._tick(), name=f"{name}.tick")
                judge.add_done_callback(lambda _: ticker.cancel())
        if self._broken is not None:
            raise self._broken

    async def _feed(self) -> None:
        """Stream -> pose worker."""
        free = asyncio.Semaphore((IN_FLIGHT_LIVE if self._stream.live else IN_FLIGHT_FILE) - 1)
        try:
            async for frame in self._stream.frames():
                future = self._pose.submit(frame.image)
                future.add_done_callback(lambda _: free.release())
                await self._poses.put((frame, future))
                await free.acquire()
        except SourceError as error:  # what came before it still counts
            self._broken = error
        await self._poses.put(None)

    async def _track(self) -> None:
        """Poses -> tracks -> windows -> classifiers."""
        next_tick_ns = -math.inf
        while (entry := await self._poses.get()) is not None:
            frame, future = entry
            people = await self._people(frame, future)
            self._prepare(frame.stamp)
            started = time.perf_counter()
            tracks = self._tracker.update(frame.stamp, people)
            self._listener.on_tracks(frame, people, tracks, time.perf_counter() - started)
            for window in self._windows.push(tracks, frame.image, people):
                await self._classify(window)
            if frame.stamp.t_mono_ns >= next_tick_ns:
                next_tick_ns = frame.stamp.t_mono_ns + TICK_NS
                await self._verdicts.put(frame.stamp)
        for window in [] if self._stream.live else self._windows.flush():
            await self._classify(window)
        await self._verdicts.put(None)

    async def _people(self, frame: Frame, future: asyncio.Future[People]) -> People:
        try:
            return await future
        except FatalError:
            raise
        except RecognizerError as error:
            self._listener.on_failure(frame.stamp.camera_id, "pose", error)
            return People.empty()

    def _prepare(self, stamp: FrameStamp) -> None:
        """What tracker and windows must know before a frame: the stream's rate, and whether there was a hole."""
        self._tracker.set_fps(self._fps())
        if self._last is not None and stamp.t_mono_ns - self._last.t_mono_ns > RESET_GAP_NS:
            self._tracker.reset()
            self._windows.reset()
        self._last, self._last_seen_ns = stamp, self._clock_ns()

    async def _classify(self, window: Window) -> None:
        service = self._services[window.service]
        future = service.worker.submit(window.tensor)
        await self._verdicts.put(_Classification(window, service, future, time.perf_counter()))

    async def _judge(self) -> None:
        """Classifier verdicts and passing time -> events, in order."""
        while (entry := await self._verdicts.get()) is not None:
            if isinstance(entry, FrameStamp):
                await self._emit(
                    event
                    for service in self._services.values()
                    for event in service.rules.tick(entry.t_mono_ns, entry.t_utc)
                )
            elif (scores := await self._scores(entry)) is not None:
                self._listener.on_scores(scores)
                await self._emit(entry.service.rules.step(scores))
        await self.close_events()

    async def _scores(self, entry: _Classification) -> ActionScores | None:
        window = entry.window
        try:
            probs = np.asarray(await entry.result)
        except FatalError:
            raise
        except RecognizerError as error:
            self._listener.on_failure(window.camera_id, "action", error, window.service)
            return None
        return ActionScores(
            camera_id=window.camera_id,
            service=window.service,
            probability=float(probs[entry.service.positive]),
            probs=dict(zip(entry.service.labels, probs.tolist(), strict=True)),
            t_start_ns=window.t_start_ns,
            t_end_ns=window.t_end_ns,
            t_end_utc=window.t_end_utc,
            track_ids=window.track_ids,
            latency_s=time.perf_counter() - entry.submitted,
        )

    async def _tick(self) -> None:
        """A live camera's time goes on while it delivers nothing."""
        while True:
            await asyncio.sleep(TICK_NS / 1e9)
            if self._last is None or self._verdicts.full():
                continue
            silent_ns = self._clock_ns() - self._last_seen_ns
            if silent_ns > TICK_NS:
                now_utc = self._last.t_utc + timedelta(microseconds=silent_ns // 1000)
                await self._verdicts.put(replace(self._last, t_mono_ns=self._last.t_mono_ns + silent_ns, t_utc=now_utc))

    async def close_events(self) -> None:
        """Tell what has not been told, and close the incidents that are open: for one who has cancelled `run`, which does it itself
        when it ends."""
        if self._last is not None:
            for service in self._services.values():
                await self._emit(service.rules.close(self._last.t_mono_ns, self._last.t_utc))

    async def _emit(self, events: Iterable[Event]) -> None:
        self._due.extend(events)
        while self._due:
            await self._listener.on_event(self._due.popleft())

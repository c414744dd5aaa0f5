"""One camera from frame to event, with real tracker, windows and rules."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import numpy as np
import pytest
from fakes.replay import RecordingListener, ReplayEstimator, ReplayStream, walkers

from agent.action.windows import ActionWindows
from agent.config.schema import ServiceConfig, TrackingConfig
from agent.errors import DataError, FatalError, RecognizerError, SourceError
from agent.events.rules import EventRules
from agent.pipeline.camera import CameraPipeline, Service
from agent.pipeline.worker import BatchWorker
from agent.tracking.bytetrack import ByteTracker
from agent.types import Event, EventPhase, FloatArray, Frame, People

RULES = {"alert_count": 1, "normal_count": 1, "min_duration_s": 0.5, "max_duration_s": 5, "cooldown_s": 0}


class Scripted:
    """An action classifier that answers with scripted probabilities, the last one for ever."""

    def __init__(self, probabilities: list[float | RecognizerError]) -> None:
        self._script = itertools.chain(probabilities, itertools.repeat(probabilities[-1]))

    def __call__(self, windows: list[FloatArray]) -> list[FloatArray]:
        answers = [next(self._script) for _ in windows]
        for answer in answers:
            if isinstance(answer, RecognizerError):
                raise answer
        return [np.array([answer, 1 - answer], np.float32) for answer in answers]  # type: ignore[operator]


async def run(
    stream: ReplayStream,
    *,
    recording: list[People | RecognizerError] | None = None,
    probabilities: list[float | RecognizerError] | None = None,
    length: int = 20,
    stride: int = 10,
    rules: dict[str, float] | None = None,
    listener: RecordingListener | None = None,
) -> RecordingListener:
    config = ServiceConfig.model_validate(
        {
            "model": "/none",
            "window": {"length": length, "stride": stride, "min_track_frames": 3},
            "rules": RULES | (rules or {}),
        }
    )
    listener = listener or RecordingListener()
    ids = (f"id-{n:06d}" for n in itertools.count())
    estimator = ReplayEstimator(recording if recording is not None else walkers(3, 200))  # type: ignore[arg-type]
    pose = BatchWorker("pose", estimator.estimate)
    action = BatchWorker("fight", Scripted(probabilities or [0.1]))
    machine = EventRules(stream.camera_id, "fight", config.rules, lambda: next(ids))
    pipeline = CameraPipeline(
        stream,
        pose=pose,
        tracker=ByteTracker(TrackingConfig()),
        fps=lambda: 25.0,
        windows=ActionWindows(stream.camera_id, {"fight": config}),
        services={"fight": Service("fight", action, ("fight", "other"), 0, machine)},
        listener=listener,
    )
    pose.start()
    action.start()
    try:
        await asyncio.wait_for(pipeline.run(), 30)
    except asyncio.CancelledError:
        await pipeline.close_events()
        raise
    finally:
        await pose.close()
        await action.close()
    return listener


async def test_every_frame_of_a_file_is_tracked_in_order() -> None:
    listener = await run(ReplayStream(150))
    assert [tracks.stamp.seq for tracks in listener.tracks] == list(range(150))
    assert listener.tracks[-1].track_ids.tolist() == [1, 2, 3]


async def test_windows_come_each_stride() -> None:
    listener = await run(ReplayStream(100), length=20, stride=10)
    ends = [round(scores.t_end_ns / 1e9 * 25) for scores in listener.scores]
    assert ends[:9] == [19, 29, 39, 49, 59, 69, 79, 89, 99]


async def test_short_file_still_gets_a_verdict() -> None:
    listener = await run(ReplayStream(12), length=100, stride=50, probabilities=[0.7])
    assert [scores.probability for scores in listener.scores] == [pytest.approx(0.7)]


async def test_an_incident_runs_through_its_phases_and_ends_with_the_file() -> None:
    listener = await run(ReplayStream(300), probabilities=[0.1, 0.1, 0.9])
    phases = [event.phase for event in listener.events]
    assert phases[0] is EventPhase.DETECTED
    assert phases[-1] is EventPhase.RESOLVED
    assert EventPhase.ACTIVE in phases
    assert len({event.incident_id for event in listener.events}) == 1
    assert len({event.event_id for event in listener.events}) == len(listener.events)


async def test_failed_pose_costs_its_frame_only() -> None:
    recording: list[People | RecognizerError] = [*walkers(2, 200)]
    recording[50] = DataError("torn picture")
    listener = await run(ReplayStream(150), recording=recording)
    assert len(listener.tracks) == 150
    assert listener.failures == [("pose", "torn picture")]
    assert len(listener.tracks[50].track_ids) == 0
    assert listener.tracks[51].track_ids.tolist() == [1, 2]


async def test_failed_classification_costs_its_window_only() -> None:
    listener = await run(ReplayStream(100), probabilities=[0.1, DataError("odd window"), 0.2])
    assert listener.failures == [("action/fight", "odd window")]
    assert len(listener.scores) == 8


async def test_dead_device_ends_the_run() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run(ReplayStream(100), recording=[*walkers(2, 10), FatalError("context lost")])
    assert caught.group_contains(FatalError)


async def test_hole_in_the_time_line_starts_tracks_afresh() -> None:
    listener = await run(ReplayStream(100, gaps={50: 10.0}))
    assert listener.tracks[49].track_ids.tolist() == [1, 2, 3]
    assert not set(listener.tracks[60].track_ids.tolist()) & {1, 2, 3}


async def test_nobody_in_view_is_no_verdict_and_no_phantom() -> None:
    listener = await run(ReplayStream(150), recording=[People.empty()], probabilities=[0.99])
    assert all(len(tracks.track_ids) == 0 for tracks in listener.tracks)
    assert listener.events == []


async def test_cancellation_stops_at_once() -> None:
    stream = ReplayStream(1_000_000)
    task = asyncio.create_task(run(stream))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert stream.delivered < 1_000_000


class Hanging(RecordingListener):
    """Takes the first event for long."""

    async def on_event(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) == 1:
            await asyncio.Event().wait()


async def test_what_happened_together_with_an_event_that_hangs_is_told_before_the_end() -> None:
    listener = Hanging()
    rules = {"min_duration_s": 0, "normal_count": 100}
    task = asyncio.create_task(run(ReplayStream(1_000_000), probabilities=[0.9], rules=rules, listener=listener))
    while not listener.events:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert [event.phase for event in listener.events] == [EventPhase.DETECTED, EventPhase.ACTIVE, EventPhase.RESOLVED]


class Breaking(ReplayStream):
    """Breaks after its frames."""

    async def frames(self) -> AsyncIterator[Frame]:
        async for frame in super().frames():
            yield frame
        raise SourceError("cut off")


async def test_file_that_breaks_closes_its_incident_and_then_says_so() -> None:
    stream = Breaking(100)
    listener = RecordingListener()
    with pytest.raises(SourceError, match="cut off"):
        await run(stream, probabilities=[0.9], listener=listener)
    assert listener.events[0].phase is EventPhase.DETECTED
    assert listener.events[-1].phase is EventPhase.RESOLVED
    assert len(listener.tracks) == 100


class Pausing(ReplayStream):
    """A live stream that falls silent after its frames."""

    async def frames(self) -> AsyncIterator[Frame]:
        async for frame in super().frames():
            yield frame
        await asyncio.sleep(3.5)


async def test_silent_camera_ages_on_its_own_time_line() -> None:
    listener = await run(Pausing(100, live=True), probabilities=[0.9], rules={"silence_s": 1.5})
    resolved = listener.events[-1]
    assert resolved.phase is EventPhase.RESOLVED
    assert resolved.attributes["reason"] == "silence"
    last = listener.tracks[-1].stamp
    assert (resolved.t_utc - last.t_utc).total_seconds() == pytest.approx(1.5, abs=0.5)

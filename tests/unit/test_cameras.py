"""The cameras of a running agent, with real decoders, tracker and supervision over small video files."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from fakes.plugin import create_classifier
from fakes.replay import RecordingListener, ReplayEstimator, walkers
from fakes.video import FPS, make_video
from fakes.views import look_elsewhere

from agent import recognition
from agent.config.delivery import OutboxConfig
from agent.config.schema import AgentConfig, CameraConfig
from agent.daemon.cameras import DRAIN_S, Cameras
from agent.daemon.slowness import JUDGED_S
from agent.daemon.viewpoints import Viewpoints
from agent.errors import ConfigError
from agent.health.governor import LADDER
from agent.health.reasons import HealthState
from agent.outbox.history import EventQuery
from agent.outbox.store import OutboxStore
from agent.pipeline.worker import BatchWorker
from agent.ports import Message
from agent.recognition import Recognition, function_of
from agent.tracking.bytetrack import ByteTracker
from agent.types import (
    POSE_SLOT,
    CameraPhase,
    CameraStatus,
    Event,
    EventPhase,
    ImageArray,
    Lane,
    People,
    action_slot,
)

SERVICE = {
    "min_fps": 0.55, "classifier": "scripted", "model": "/none", "options": {"script": [0.9]}, "rules": {"alert_count": 1},
    "window": {"length": 4, "stride": 2, "min_track_frames": 1},
}  # fmt: skip


def config_of(*services: str) -> AgentConfig:
    return AgentConfig.model_validate(
        {"tracking": {"min_box_area_px": 0}, "services": dict.fromkeys(services, SERVICE)}
    )


def with_windows(config: AgentConfig, **window: int) -> AgentConfig:
    services = {
        name: service.model_copy(update={"window": service.window.model_copy(update=window)})
        for name, service in config.services.items()
    }
    return config.model_copy(update={"services": services})


class KeepingListener(RecordingListener):
    """Has events committed before it remembers them, where there is a store."""

    store: OutboxStore | None = None

    async def on_event(self, event: Event) -> None:
        if self.store is not None:
            await self.store.put(
                Message(Lane.EVENT, event.event_id, "t", lambda _: b"{}", kind=event.kind, phase=event.phase.value)
            )
        await super().on_event(event)


class Desk:
    """Cameras with everything real around them but the models."""

    def __init__(self, cameras: Cameras, pose: BatchWorker[Any, Any], folder: Path) -> None:
        self.cameras = cameras
        self.pose = pose
        self.folder = folder
        self.health: HealthState
        self.ended: list[str] = []
        self.removed: list[str] = []
        self.restarted: list[str] = []
        self.listener: KeepingListener
        self.viewpoints: Viewpoints
        self.now_s: list[float]  # by which it is told whether a camera is slow
        self.gate = threading.Event()  # set: the model answers
        self.held = threading.Event()  # it has a picture and does not

    def camera(self, camera_id: str, **settings: Any) -> CameraConfig:
        video = self.folder / f"{camera_id}.mp4"
        if not video.exists() and "source" not in settings:
            make_video(video)
        return CameraConfig.model_validate(
            {"id": camera_id, "source": str(video), "pace": True, "loop": True, "frozen_after_s": 0, "blind_after_s": 0}
            | settings
        )

    def status(self, camera_id: str) -> CameraStatus:
        return next(status for status in self.cameras.statuses() if status.camera_id == camera_id)

    def frames(self, camera_id: str) -> int:
        return sum(tracks.stamp.camera_id == camera_id for tracks in self.listener.tracks)

    def stride(self, camera_id: str) -> int:
        """Of its service's windows."""
        run = self.cameras._entries[camera_id].run
        assert run is not None
        return run.windows._plans["fight"].stride

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.cameras.statuses()}"
            await asyncio.sleep(0.01)

    async def streaming(self, *camera_ids: str) -> None:
        for camera_id in camera_ids:
            await self.until(lambda name=camera_id: self.frames(name) > 0, f"{camera_id} streams")  # type: ignore[misc]


@pytest.fixture
def config() -> AgentConfig:
    return config_of("fight")


@pytest_asyncio.fixture
async def desk(tmp_path: Path, config: AgentConfig) -> AsyncIterator[Desk]:
    estimator = ReplayEstimator(walkers(2, 50, size=(48, 64)))
    gate, held = threading.Event(), threading.Event()
    gate.set()

    def estimate(images: Sequence[ImageArray]) -> list[People]:
        if not gate.is_set():
            held.set()
            gate.wait(30)
        return estimator.estimate(images)

    pose: BatchWorker[Any, Any] = BatchWorker("pose", estimate, max_batch=8)
    models: dict[str, Any] = {POSE_SLOT: estimator}
    workers: dict[str, BatchWorker[Any, Any]] = {POSE_SLOT: pose}
    for name, service in config.services.items():
        models[action_slot(name)] = classifier = create_classifier(name, service)
        workers[action_slot(name)] = BatchWorker(name, function_of(classifier))
    for worker in workers.values():
        worker.start()
    async with asyncio.TaskGroup() as group:
        ended: list[str] = []
        removed: list[str] = []
        restarted: list[str] = []
        now_s = [0.0]
        listener, health = KeepingListener(), HealthState()
        viewpoints = Viewpoints(tmp_path / "viewpoints.json")
        recognition = Recognition(config, models, workers)
        cameras = Cameras(
            recognition, listener, group=group, health=health, viewpoints=viewpoints, on_restart=restarted.append,
            on_ended=ended.append, on_removed=removed.append, clock=lambda: now_s[0],
        )  # fmt: skip
        made = Desk(cameras, pose, tmp_path)
        made.now_s = now_s
        made.removed, made.gate, made.held, made.viewpoints = removed, gate, held, viewpoints
        made.listener, made.health, made.ended, made.restarted = listener, health, ended, restarted
        yield made
        await cameras.drain()
    for worker in workers.values():
        await worker.close()


async def test_an_open_incident_of_a_camera_that_does_not_drain_is_closed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.daemon.cameras.DRAIN_S", 0.1)
    await desk.cameras.apply([desk.camera("one")])
    await desk.until(lambda: bool(desk.listener.events), "an incident opens")
    desk.gate.clear()  # the model answers no more
    await desk.until(desk.held.is_set, "a frame waits for it")
    with structlog.testing.capture_logs() as logs:
        await desk.cameras.apply([])
    desk.gate.set()
    assert "camera_did_not_drain" in [log["event"] for log in logs]
    first, last = desk.listener.events[0], desk.listener.events[-1]
    assert (last.phase, last.incident_id, last.attributes) == (
        EventPhase.RESOLVED, first.incident_id, {"reason": "closed"}
    )  # fmt: skip
    assert desk.removed == ["one"]


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[OutboxStore]:
    opened = await OutboxStore.open(tmp_path / "events.db", OutboxConfig())
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def two_incidents_and_a_store_that_hangs(
    desk: Desk, store: OutboxStore, folder: Path
) -> AsyncIterator[sqlite3.Connection]:
    """Of the camera `one`, which waits for its model; the connection has the lock for which the store waits longer than the camera."""
    await desk.cameras.apply([desk.camera("one")])
    await desk.until(lambda: {event.kind for event in desk.listener.events} == {"fight", "fall"}, "two incidents open")
    desk.listener.store = store
    with contextlib.closing(sqlite3.connect(folder / "events.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        desk.gate.clear()
        await desk.until(desk.held.is_set, "a frame waits for the model")
        yield other


@pytest.mark.parametrize("config", [config_of("fight", "fall")])
async def test_a_store_that_hangs_while_a_camera_is_removed_gets_its_closing_events_when_it_answers(
    desk: Desk, store: OutboxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.daemon.cameras.DRAIN_S", 0.1)
    monkeypatch.setattr("agent.daemon.cameras.CLOSE_S", 0.2)
    async with two_incidents_and_a_store_that_hangs(desk, store, tmp_path) as other:
        with structlog.testing.capture_logs() as logs:
            await desk.cameras.apply([])
        assert "camera_incidents_not_closed_yet" in [log["event"] for log in logs]
        assert desk.removed == ["one"]
        assert not [event for event in desk.listener.events if event.phase is EventPhase.RESOLVED]
        other.execute("COMMIT")
    await desk.until(
        lambda: (
            {event.kind for event in desk.listener.events if event.phase is EventPhase.RESOLVED} == {"fight", "fall"}
        ),
        "both are closed",
    )
    desk.gate.set()
    rows = await store.events(EventQuery())
    assert sorted(row.kind for row in rows if row.phase == "resolved") == ["fall", "fight"]


@pytest.mark.parametrize("config", [config_of("fight", "fall")])
async def test_a_store_that_hangs_does_not_hold_up_the_end(
    desk: Desk, store: OutboxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.daemon.cameras.DRAIN_S", 0.1)
    monkeypatch.setattr("agent.daemon.cameras.CLOSE_S", 0.2)
    async with two_incidents_and_a_store_that_hangs(desk, store, tmp_path):
        began = time.monotonic()
        await desk.cameras.drain()
        assert time.monotonic() - began < 1.5
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "camera.one.close"]
    desk.gate.set()


async def test_unchanged_cameras_go_on_undisturbed(desk: Desk) -> None:
    one, two = desk.camera("one"), desk.camera("two")
    await desk.cameras.apply([one, two])
    await desk.streaming("one", "two")
    before = desk.status("one").frames
    await desk.cameras.apply([one, desk.camera("two", read_timeout_s=5)])
    await desk.until(lambda: desk.status("one").frames > before, "one goes on")
    assert desk.status("one").frames >= before
    assert desk.ended == ["two", "two"]  # its pipeline ran to the end, then it was gone
    seqs = [tracks.stamp.seq for tracks in desk.listener.tracks if tracks.stamp.camera_id == "one"]
    assert seqs == sorted(seqs)


async def test_live_keys_change_without_opening_the_camera_again(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("one", max_fps=0)])
    await desk.streaming("one")
    await desk.cameras.apply([desk.camera("one", max_fps=1, priority=7)])
    await desk.until(lambda: desk.frames("one") > 3, "some frames")
    assert desk.ended == []
    await asyncio.sleep(0.3)
    before = desk.frames("one")
    await asyncio.sleep(0.5)
    assert desk.frames("one") - before <= 1


async def test_removed_and_disabled_cameras_end_and_new_ones_start(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("one"), desk.camera("two")])
    await desk.streaming("one", "two")
    await desk.cameras.apply([desk.camera("one", enabled=False), desk.camera("three")])
    await desk.streaming("three")
    assert [status.camera_id for status in desk.cameras.statuses()] == ["three"]


async def test_a_moved_camera_has_a_reason_of_its_own_that_goes_with_it(desk: Desk) -> None:
    config = desk.camera("one")
    look_elsewhere(desk.viewpoints.of(config))
    await desk.cameras.apply([config, desk.camera("two")])
    await desk.streaming("one", "two")
    assert desk.status("one").phase is CameraPhase.STREAMING
    desk.cameras.report_health()
    assert {reason.reason for reason in desk.health.snapshot().reasons} == {"camera_moved:one"}
    await desk.cameras.apply([desk.camera("one", priority=7, max_fps=5, read_timeout_s=3), desk.camera("two")])
    await desk.until(lambda: desk.status("one").phase is CameraPhase.STREAMING, "its next life")
    desk.cameras.report_health()
    assert {reason.reason for reason in desk.health.snapshot().reasons} == {"camera_moved:one"}
    await desk.cameras.apply([desk.camera("two")])
    assert desk.health.snapshot().reasons == ()


async def test_a_live_camera_of_which_too_few_frames_are_looked_at_says_so(desk: Desk) -> None:
    make_video(desk.folder / "one.mp4", frames=60, fps=60)
    await desk.cameras.apply([desk.camera("one", max_fps=60), desk.camera("file", pace=False)])
    await desk.streaming("one", "file")
    desk.gate.clear()  # a model that takes its time
    await desk.until(desk.held.is_set, "a frame waits for it")

    def reasons(seconds: float) -> dict[str, str]:
        desk.now_s[0] += seconds
        desk.cameras.report_health()
        return {reason.reason: reason.detail for reason in desk.health.snapshot().reasons}

    assert reasons(0) == reasons(JUDGED_S - 1) == {}
    assert reasons(1) == {"camera_slow:one": "0.00 frames/s are looked at: nothing is recognised"}
    desk.gate.set()
    before = desk.status("one").frames
    await desk.until(lambda: desk.status("one").frames > before + 10, "it gets on")
    assert reasons(19) == {"camera_slow:one": "0.00 frames/s are looked at: nothing is recognised"}, (
        "not judged again yet"
    )
    await desk.until(lambda: desk.status("one").frames > before + JUDGED_S / 2, "it gets on")
    assert reasons(JUDGED_S - 19)["camera_slow:one"].endswith("looked at: fight asks for 0.55")
    before = desk.status("one").frames
    await desk.until(lambda: desk.status("one").frames > before + 0.65 * JUDGED_S, "it gets on")
    assert reasons(JUDGED_S) == {}
    desk.gate.clear()
    assert list(reasons(JUDGED_S)) == ["camera_slow:one"]
    desk.gate.set()
    await desk.cameras.apply([])
    assert desk.health.snapshot().reasons == ()


async def test_a_missing_file_is_offline_with_its_reason_and_can_be_taken_away_at_once(desk: Desk) -> None:
    settings = {"source": str(desk.folder / "none.mp4")}
    await desk.cameras.apply([desk.camera("gone", **settings)])
    await desk.until(lambda: desk.status("gone").phase is CameraPhase.OFFLINE, "offline")
    assert "no such file" in desk.status("gone").error
    desk.cameras.report_health()
    assert {reason.reason for reason in desk.health.snapshot().reasons} == {"camera_offline:gone"}
    began = time.monotonic()
    await desk.cameras.apply([])
    assert time.monotonic() - began < 1
    assert desk.health.snapshot().reasons == ()


async def test_every_life_of_a_camera_that_is_over_is_told(desk: Desk) -> None:
    """The next one has a time line of its own."""
    await desk.cameras.apply([desk.camera("gone", source=str(desk.folder / "none.mp4"))])
    await desk.until(lambda: len(desk.ended) >= 2, "a second life has failed")
    assert set(desk.ended) == {"gone"}
    assert desk.removed == []
    await desk.cameras.apply([])
    assert desk.removed == ["gone"]


async def test_time_goes_on_for_silent_cameras_that_are_live(desk: Desk) -> None:
    missing = {
        "source": str(desk.folder / "none.mp4"),
        "pace": False,
    }  # live, it would be silent during each of its tries
    await desk.cameras.apply([desk.camera("paced"), desk.camera("file", pace=False), desk.camera("gone", **missing)])
    await desk.streaming("paced", "file")
    await desk.until(lambda: desk.status("gone").phase is CameraPhase.OFFLINE, "offline")
    assert desk.cameras.silent() == []
    for entry in desk.cameras._entries.values():
        if entry.camera is not None:
            entry.camera.pause()
    assert desk.cameras.resting() == ["paced", "file", "gone"]
    assert desk.cameras.silent() == ["paced"]
    for entry in desk.cameras._entries.values():
        if entry.camera is not None:
            entry.camera.resume()


async def test_a_camera_that_fails_while_it_is_taken_away_is_not_waited_for(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("gone", source=str(desk.folder / "none.mp4"))])
    while desk.cameras.source("gone") is None:  # its first try has begun
        await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - it has failed, and the loop does not know yet
    began = time.monotonic()
    await desk.cameras.apply([])
    assert time.monotonic() - began < DRAIN_S / 2
    assert not desk.restarted


async def test_a_camera_in_backoff_that_is_replaced_does_not_come_back(desk: Desk) -> None:
    """Its old task must find nothing to do when it wakes, and must not hurt the new one."""
    missing = {"source": str(desk.folder / "late.mp4")}
    for timeout_s in (1, 2, 3, 4):
        await desk.cameras.apply([desk.camera("late", read_timeout_s=timeout_s, **missing)])
        await desk.until(lambda: desk.status("late").phase is CameraPhase.OFFLINE, "offline")
    make_video(desk.folder / "whole.mp4").rename(desk.folder / "late.mp4")
    await desk.streaming("late")
    assert desk.restarted


async def test_a_file_read_to_its_end_is_reported_and_stays_in_the_list(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("short", loop=False, pace=False)])
    await desk.until(lambda: bool(desk.ended), "ended")
    assert desk.ended == ["short"]
    assert desk.status("short").phase is CameraPhase.ENDED
    assert desk.status("short").frames == 12
    assert desk.cameras.resting() == ["short"]


async def test_a_source_nothing_can_read_changes_nothing(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("one")])
    await desk.streaming("one")
    bad = [desk.camera("a", source="zzz://x"), desk.camera("b", source="yyy://x")]
    with pytest.raises(ConfigError) as caught:
        await desk.cameras.apply(bad)
    assert len(caught.value.problems) == 2
    assert [status.camera_id for status in desk.cameras.statuses()] == ["one"]
    assert desk.ended == []


async def test_a_path_that_cannot_be_looked_at_is_its_cameras_trouble_alone(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("one"), desk.camera("long", source=str(desk.folder / f"{'x' * 300}.mp4"))])
    await desk.streaming("one")
    await desk.until(lambda: desk.status("long").phase is CameraPhase.OFFLINE, "offline")
    assert "File name too long" in desk.status("long").error


async def test_whatever_comes_up_about_a_source_changes_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise LookupError("rtsp://user:secret@10.0.0.1/1 is unheard of")

    await desk.cameras.apply([desk.camera("one")])
    await desk.streaming("one")
    monkeypatch.setattr("agent.capture.network.NetworkSource.__init__", bug)
    with pytest.raises(ConfigError, match=r"camera 'new': LookupError: .* is unheard of") as caught:
        await desk.cameras.apply([desk.camera("new", source="rtsp://user:secret@10.0.0.1/1")])
    assert "secret" not in str(caught.value)
    assert [status.camera_id for status in desk.cameras.statuses()] == ["one"]


async def test_changes_that_meet_happen_one_after_the_other(desk: Desk) -> None:
    sets = [["one"], ["two"], ["one", "two"], ["two", "three"], ["three"]]
    await asyncio.gather(*(desk.cameras.apply([desk.camera(name) for name in names]) for names in sets))
    await desk.streaming("three")
    assert [status.camera_id for status in desk.cameras.statuses()] == ["three"]


async def test_after_the_drain_nothing_starts_any_more(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("one")])
    await desk.streaming("one")
    await desk.cameras.drain()
    frames = desk.frames("one")
    await desk.cameras.apply([desk.camera("two")])
    await asyncio.sleep(0.1)
    assert [status.camera_id for status in desk.cameras.statuses()] == ["one"]
    assert desk.frames("one") == frames
    assert desk.ended == ["one", "one"]


async def test_the_governor_slows_and_pauses_what_matters_least(desk: Desk) -> None:
    await desk.cameras.apply([desk.camera("door", priority=5), desk.camera("yard")])
    await desk.streaming("door", "yard")
    desk.cameras.apply_step(LADDER[-1])
    await desk.until(lambda: desk.status("yard").phase is CameraPhase.PAUSED, "yard pauses")
    assert desk.status("door").phase is CameraPhase.STREAMING
    assert desk.cameras.resting() == ["yard"]
    desk.cameras.apply_step(LADDER[0])
    await desk.until(lambda: desk.status("yard").phase is CameraPhase.STREAMING, "yard goes on")


async def test_nobody_pauses_for_a_camera_that_shows_nothing(desk: Desk) -> None:
    missing = {"source": str(desk.folder / "late.mp4")}
    await desk.cameras.apply([desk.camera("late", priority=9, **missing), desk.camera("yard")])
    await desk.streaming("yard")
    await desk.until(lambda: desk.status("late").phase is CameraPhase.OFFLINE, "offline")
    desk.cameras.apply_step(LADDER[-1])
    assert desk.status("yard").phase is CameraPhase.STREAMING
    make_video(desk.folder / "whole.mp4").rename(desk.folder / "late.mp4")
    await desk.streaming("late")
    desk.cameras.report_health()
    assert desk.status("yard").phase is CameraPhase.PAUSED
    await desk.cameras.apply([desk.camera("late", priority=9, loop=False, pace=False), desk.camera("yard")])
    await desk.until(lambda: desk.status("late").phase is CameraPhase.ENDED, "ended")
    desk.cameras.report_health()
    assert desk.status("yard").phase is CameraPhase.STREAMING


async def test_a_slowed_camera_is_judged_before_its_rules_take_it_for_silent(desk: Desk) -> None:
    """Windows of frames, once the stream has said how many come in a second: the file does so at 10."""
    desk.cameras._recognition.config = with_windows(desk.cameras._recognition.config, length=100, stride=40)
    await desk.cameras.apply([desk.camera("live"), desk.camera("whole", pace=False)])
    await desk.streaming("live", "whole")
    for step, strides in ((0, [40, 40]), (5, [25, 50]), (0, [40, 40])):
        desk.cameras._step = LADDER[step]
        desk.cameras.report_health()
        assert [desk.stride(name) for name in ("live", "whole")] == strides


async def test_batches_wait_only_for_cameras_that_deliver(desk: Desk) -> None:
    missing = desk.camera("gone", source=str(desk.folder / "none.mp4"))
    await desk.cameras.apply([desk.camera("one"), missing])
    assert desk.pose.submitters == 2
    await desk.streaming("one")
    await desk.until(lambda: desk.status("gone").phase is CameraPhase.OFFLINE, "offline")
    desk.cameras.report_health()
    assert desk.pose.submitters == 1


async def test_the_tracker_of_a_thinned_camera_counts_the_frames_that_are_left(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else somebody lost would be kept for six seconds where one is configured, or for a sixth of one."""
    rates: list[float] = []

    class Noted(ByteTracker):
        def set_fps(self, fps: float) -> None:
            rates.append(fps)
            super().set_fps(fps)

    monkeypatch.setattr(recognition, "ByteTracker", Noted)
    desk.cameras.apply_step(replace(LADDER[0], max_fps=5))
    await desk.cameras.apply([desk.camera("one")])
    await desk.streaming("one")
    assert rates[-1] == 5
    desk.cameras.apply_step(LADDER[0])
    await desk.until(lambda: rates[-1] == FPS, "all frames count again")
    desk.cameras.apply_step(replace(LADDER[0], max_fps=5))
    await desk.until(lambda: rates[-1] == 5, "the governor comes back")

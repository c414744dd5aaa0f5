"""A camera over scripted sources: delivery, reconnects, pauses, status."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import structlog
from fakes.video import ScriptedSource, Step, make_video, number_of, numbered_image

from agent.capture.base import SourceDeniedError
from agent.capture.camera import Camera, CaptureReport, open_camera
from agent.capture.decoder import Clock
from agent.capture.viewpoint import SETTLED_AFTER_S, Viewpoint
from agent.config.schema import CameraConfig
from agent.errors import FatalError, SourceError
from agent.ports import FrameStream
from agent.types import CameraPhase, Frame

QUICK = {"initial_s": 0.002, "max_s": 0.01}
PICTURES: list[Step] = [numbered_image(index) for index in range(10)]
RANDOM = np.random.default_rng(3)


def config(source: str = "scripted", **more: Any) -> CameraConfig:
    return CameraConfig.model_validate({"id": "cam", "source": source, "reconnect": QUICK, **more})


def camera(
    source: ScriptedSource,
    *,
    endless: bool = True,
    clock: Clock | None = None,
    viewpoint: Viewpoint | None = None,
    **more: Any,
) -> Camera:
    return Camera(config(**more), source, endless=endless, clock=clock, viewpoint=viewpoint)


async def collect(stream: FrameStream, count: int = 1000) -> list[Frame]:
    frames: list[Frame] = []
    async for frame in stream.frames():
        frames.append(frame)
        if len(frames) >= count:
            break
    return frames


async def until(condition: Callable[[], bool], limit_s: float = 5) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


def decoder_threads() -> int:
    return sum(thread.name.startswith("decode-") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
async def no_thread_stays() -> AsyncIterator[None]:
    yield
    assert decoder_threads() == 0


async def test_a_file_gives_every_frame_and_ends(tmp_path: Path) -> None:
    async with open_camera(config(str(make_video(tmp_path / "a.mp4", 20)))) as stream:
        assert not stream.live
        frames = await collect(stream)
        status = stream.status()
    assert [number_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.stamp.seq for frame in frames] == list(range(20))
    assert [frame.stamp.t_mono_ns for frame in frames] == [index * 100_000_000 for index in range(20)]
    assert (frames[9].stamp.t_utc - frames[0].stamp.t_utc).total_seconds() == pytest.approx(0.9)
    assert not frames[0].image.flags.writeable
    assert (status.phase, status.frames, status.dropped, status.error) == (CameraPhase.ENDED, 20, 0, "")
    assert (status.width, status.height) == (64, 48)


async def test_a_slow_consumer_of_a_file_loses_nothing(tmp_path: Path) -> None:
    async with open_camera(config(str(make_video(tmp_path / "a.mp4", 20)))) as stream:
        seqs = []
        async for frame in stream.frames():
            seqs.append(frame.stamp.seq)
            await asyncio.sleep(0.005)
    assert seqs == list(range(20))


async def test_a_looped_file_goes_on_with_time_and_numbers(tmp_path: Path) -> None:
    async with open_camera(config(str(make_video(tmp_path / "a.mp4", 5)), loop=True)) as stream:
        frames = await collect(stream, 12)
        assert stream.status().reconnects == 0
    assert [frame.stamp.seq for frame in frames] == list(range(12))
    assert [frame.stamp.t_mono_ns // 1_000_000 for frame in frames] == [100 * index for index in range(12)]


async def test_a_paced_file_plays_at_its_own_speed_and_drops_for_a_slow_consumer(tmp_path: Path) -> None:
    async with open_camera(config(str(make_video(tmp_path / "a.mp4", 20, fps=40)), pace=True)) as stream:
        assert stream.live
        began = time.monotonic()
        frames = []
        async for frame in stream.frames():
            frames.append(frame)
            await asyncio.sleep(0.08)
        took_s = time.monotonic() - began
        status = stream.status()
    assert took_s >= 0.47
    assert len(frames) < 15
    assert status.dropped == 20 - len(frames)
    assert frames[-1].stamp.seq == 19
    assert status.phase is CameraPhase.ENDED


async def test_a_missing_file_is_an_error_for_the_consumer_and_not_tried_again(tmp_path: Path) -> None:
    async with open_camera(config(str(tmp_path / "none.mp4"))) as stream:
        with pytest.raises(SourceError, match=r"none\.mp4: no such file"):
            await collect(stream)
        status = stream.status()
    assert status.phase is CameraPhase.OFFLINE
    assert "no such file" in status.error


async def test_a_file_that_breaks_gives_what_it_has_and_the_status_says_so(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    async with open_camera(config(str(path))) as stream:
        frames = await collect(stream)
        status = stream.status()
    assert 5 < len(frames) < 58
    assert status.phase is CameraPhase.ENDED
    assert "damaged or cut off" in status.error


async def test_a_folder_reports_what_it_skipped(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 3)
    (tmp_path / "b.mp4").touch()
    async with open_camera(config(str(tmp_path))) as stream:
        assert len(await collect(stream)) == 3
        assert "b.mp4: the file is empty" in stream.status().error


async def test_a_live_camera_reconnects_by_itself_and_keeps_counting() -> None:
    source = ScriptedSource(
        [*PICTURES[:3], SourceError("cable pulled")], [SourceError("no route")], [*PICTURES[:3], -1.0]
    )
    async with camera(source) as stream:
        assert stream.live
        await until(lambda: source.opened == 3)
        await until(lambda: stream.status().phase is CameraPhase.STREAMING)
        [frame] = await collect(stream, 1)
        await until(lambda: stream.status().reconnects == 1)
        status, report = stream.status(), stream.report()
    assert frame.stamp.seq >= 2
    assert status.error == ""
    assert report.errors == 2


async def test_a_camera_that_is_offline_at_the_start_comes_up_later() -> None:
    source = ScriptedSource(*[[SourceError("connection refused")]] * 4, [*PICTURES, -1.0])
    async with camera(source) as stream:
        await until(lambda: stream.status().phase is CameraPhase.OFFLINE)
        assert stream.status().error == "connection refused"
        assert len(await collect(stream, 1)) == 1
        assert stream.status().reconnects == 0


async def test_live_time_stamps_are_those_of_the_capture() -> None:
    ticks = iter(range(1_000_000_000, 10**15, 40_000_000))
    clock = Clock(monotonic_ns=lambda: next(ticks))
    source = ScriptedSource([PICTURES[0], 0.05, PICTURES[1], 0.05, PICTURES[2], -1.0])
    async with camera(source, clock=clock, frozen_after_s=0, blind_after_s=0) as stream:
        frames = await collect(stream, 3)
    times = [frame.stamp.t_mono_ns for frame in frames]
    assert times == sorted(set(times))
    assert times[0] >= 1_000_000_000


async def test_the_newest_frame_of_a_live_camera_wins() -> None:
    async with camera(ScriptedSource([*PICTURES, -1.0])) as stream:
        await until(lambda: stream.status().dropped == 9)
        [frame] = await collect(stream, 1)
    assert frame.stamp.seq == 9


async def test_backoff_grows_resets_and_asks_refused_credentials_last() -> None:
    draws: list[float] = []
    now_ns = [0]

    def draw() -> float:
        draws.append(0.0)
        return 0.0

    source = ScriptedSource(*[[SourceError("down")]] * 5, [SourceDeniedError("401")], [PICTURES[0], -1.0])
    clock = Clock(monotonic_ns=lambda: now_ns[0], random=draw)
    began = time.monotonic()
    async with camera(source, clock=clock, reconnect={"initial_s": 0.001, "max_s": 0.3}) as stream:
        await collect(stream, 1)
    assert len(draws) == 5  # the refusal drew no lot: it waited the longest time
    assert time.monotonic() - began >= 0.3


async def test_a_stable_stream_resets_the_backoff() -> None:
    waits: list[int] = []
    now_ns = [0]
    stable = [PICTURES[0], 0.05, SourceError("lost")]
    source = ScriptedSource([SourceError("down")], [SourceError("down")], stable, [PICTURES[0], -1.0])

    def monotonic_ns() -> int:
        now_ns[0] += 6_000_000_000  # each look at the clock is 6 s later: the stream lasts
        return now_ns[0]

    def attempts(_: object = None) -> float:
        waits.append(source.opened)
        return 0.0

    async with camera(source, clock=Clock(monotonic_ns=monotonic_ns, random=attempts)) as stream:
        await until(lambda: source.opened == 4)
        await collect(stream, 1)
    assert waits == [1, 2, 3]


async def test_closing_during_a_long_backoff_is_quick() -> None:
    source = ScriptedSource([SourceError("down")])
    stream = camera(source, reconnect={"initial_s": 600, "max_s": 600})
    async with stream:
        await until(lambda: stream.status().phase is CameraPhase.OFFLINE)
        began = time.monotonic()
    assert time.monotonic() - began < 1


async def test_closing_interrupts_a_read_that_hangs_and_ends_the_frames() -> None:
    stream = camera(ScriptedSource([PICTURES[0], -1.0]))
    await stream.start()
    task = asyncio.create_task(collect(stream), name="consumer")
    await until(lambda: stream.status().frames == 1)
    began = time.monotonic()
    await stream.close()
    await stream.close()
    assert time.monotonic() - began < 1
    assert len(await task) == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_cancellation_as_the_thread_ends_is_not_lost(turns: int) -> None:
    stream = camera(ScriptedSource([PICTURES[0], -1.0]))
    await stream.start()
    closing = asyncio.create_task(stream.close(), name="closing")
    await asyncio.sleep(0)
    stream._stopped.set()  # the thread has just ended
    for _ in range(turns):
        await asyncio.sleep(0)
    if closing.cancel():  # else it had come to its end
        with pytest.raises(asyncio.CancelledError):
            await closing
    await stream.close()


async def test_closing_a_file_with_a_full_queue_does_not_hang(tmp_path: Path) -> None:
    stream = open_camera(config(str(make_video(tmp_path / "a.mp4", 20))))
    await stream.start()
    await asyncio.sleep(0.05)
    await asyncio.wait_for(stream.close(), 2)


async def test_a_pause_closes_a_live_source_and_resuming_opens_it_again() -> None:
    source = ScriptedSource([step for picture in PICTURES for step in (picture, 0.01)] + [-1.0])
    async with camera(source) as stream:
        await collect(stream, 1)
        stream.pause()
        await until(lambda: source.open_now == 0)
        assert stream.status().phase is CameraPhase.PAUSED
        assert stream.report().errors == 0
        stream.resume()
        await until(lambda: source.open_now == 1)
        await collect(stream, 2)
        assert stream.status().phase is CameraPhase.STREAMING


async def test_a_paused_file_goes_on_where_it_was(tmp_path: Path) -> None:
    async with open_camera(config(str(make_video(tmp_path / "a.mp4", 20)))) as stream:
        stream.pause()
        await asyncio.sleep(0.1)
        assert stream.status().phase is CameraPhase.PAUSED
        stream.resume()
        assert [frame.stamp.seq for frame in await collect(stream)] == list(range(20))


async def test_max_fps_thins_a_live_camera_and_may_change_while_running() -> None:
    script: list[Step] = [step for _ in range(20) for picture in PICTURES for step in (picture, 0.01)]
    async with camera(ScriptedSource([*script, -1.0]), max_fps=20.0) as stream:
        frames = await collect(stream, 6)
        gaps = np.diff([frame.stamp.t_mono_ns for frame in frames]) / 1e9
        assert gaps.mean() >= 0.04
        assert stream.status().dropped == 0
        stream.set_max_fps(0)
        assert stream.report().max_fps == 0
        frames = await collect(stream, 5)
        assert np.diff([frame.stamp.seq for frame in frames]).max() <= 2
        with pytest.raises(ValueError, match="max_fps"):
            stream.set_max_fps(-1)


async def test_a_frozen_camera_shows_and_recovers() -> None:
    still = RANDOM.integers(0, 255, (48, 64, 3), np.uint8)
    other = RANDOM.integers(0, 255, (48, 64, 3), np.uint8)
    moves = threading.Event()

    class Freezing(ScriptedSource):
        def read(self) -> tuple[np.ndarray, int] | None:
            time.sleep(0.002)
            return (other if moves.is_set() else still).copy(), 0

    start = time.monotonic_ns()
    fast = Clock(monotonic_ns=lambda: start + (time.monotonic_ns() - start) * 100)
    async with camera(Freezing([]), clock=fast, frozen_after_s=10) as stream:
        await until(lambda: stream.status().phase is CameraPhase.STREAMING)
        await until(lambda: stream.status().phase is CameraPhase.FROZEN)
        moves.set()
        await until(lambda: stream.status().phase is CameraPhase.STREAMING)


async def test_a_covered_camera_shows_as_blind() -> None:
    black: list[Step] = [step for _ in range(300) for step in (np.zeros((48, 64, 3), np.uint8), 0.002)]
    start = time.monotonic_ns()
    fast = Clock(monotonic_ns=lambda: start + (time.monotonic_ns() - start) * 100)
    async with camera(ScriptedSource([*black, -1.0]), clock=fast) as stream:
        await until(lambda: stream.status().phase is CameraPhase.BLIND)


async def test_a_turned_camera_shows_as_moved_and_goes_on_streaming_through_another_connection() -> None:
    views = [cv2.resize(RANDOM.integers(0, 255, (9, 12, 3), np.uint8), (64, 48)) for _ in range(2)]
    turned = threading.Event()

    class Turning(ScriptedSource):
        def read(self) -> tuple[np.ndarray, int] | None:
            time.sleep(0.002)
            noise = RANDOM.integers(0, 4, (48, 64, 3), np.uint8)
            return np.minimum(views[turned.is_set()], 250) + noise, 0

    start = time.monotonic_ns()
    fast = Clock(monotonic_ns=lambda: start + (time.monotonic_ns() - start) * 400)
    viewpoint = Viewpoint(60.0)
    async with camera(Turning([]), clock=fast, viewpoint=viewpoint) as stream:
        await until(lambda: (learned := viewpoint.learned) is not None and learned.known_s == SETTLED_AFTER_S, 20)
        assert not stream.status().moved
    turned.set()
    async with camera(Turning([]), clock=fast, viewpoint=viewpoint) as stream:
        await until(lambda: stream.status().moved)
        assert stream.status().phase is CameraPhase.STREAMING
        turned.clear()
        await until(lambda: not stream.status().moved)


async def test_what_a_covered_camera_shows_is_no_view() -> None:
    black: list[Step] = [step for _ in range(600) for step in (np.zeros((48, 64, 3), np.uint8), 0.002)]
    start = time.monotonic_ns()
    fast = Clock(monotonic_ns=lambda: start + (time.monotonic_ns() - start) * 200)
    viewpoint = Viewpoint(60.0)
    async with camera(ScriptedSource([*black, -1.0]), clock=fast, viewpoint=viewpoint) as stream:
        await until(lambda: stream.status().phase is CameraPhase.BLIND)
        await asyncio.sleep(0.5)  # a hundred seconds of it
    assert viewpoint.learned is None


async def test_a_source_that_gives_no_images_is_offline_with_the_reason() -> None:
    source = ScriptedSource([np.zeros((48, 64), np.uint8)], [PICTURES[0], -1.0])
    async with camera(source, reconnect={"initial_s": 0.2, "max_s": 0.2}, clock=Clock(random=lambda: 0.9)) as stream:
        await until(lambda: "expected a non-empty (H, W, 3) uint8 image" in stream.status().error)
        assert len(await collect(stream, 1)) == 1


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    ("method", "fault", "shown"),
    [
        ("open", ValueError("boom"), "ValueError: boom"),
        ("open", None, "open() gave a NoneType, expected a StreamInfo"),
        ("open", SystemExit(5), "SystemExit: 5"),
        ("read", KeyError("x"), "KeyError: 'x'"),
        ("read", PICTURES[0], "read() gave a ndarray, expected an image and its time, or None"),
        ("read", (numbered_image(1).tolist(), 0), "AttributeError: 'list' object has no attribute"),
        ("read", SystemExit(3), "SystemExit: 3"),
    ],
)
async def test_what_a_plug_in_does_wrong_is_its_cameras_trouble_alone(
    method: str, fault: object, shown: str, live: bool
) -> None:
    """Its camera is offline with the reason, logged once with its traceback, and tried again."""

    class Wrong(ScriptedSource):
        faults = 2

    def wrong(self: Wrong) -> object:
        if not self.faults:
            return getattr(ScriptedSource, method)(self)
        self.faults -= 1
        if isinstance(fault, BaseException):
            raise fault
        return fault

    setattr(Wrong, method, wrong)
    with structlog.testing.capture_logs() as logs:
        source = Wrong(PICTURES, live=live)
        async with camera(source, endless=live) as stream:
            if live:
                assert await collect(stream, 3)
                assert not source.faults
            else:
                with pytest.raises(SourceError, match=re.escape(shown)):
                    await collect(stream)
                assert shown in stream.status().error
    told = [log for log in logs if shown in str(log.get("error"))]
    assert told
    if isinstance(fault, BaseException):
        assert told[0]["exc_info"] is fault


async def test_a_source_that_cannot_be_closed_ends_all_the_same() -> None:
    class Stuck(ScriptedSource):
        def close(self) -> None:
            super().close()
            raise ValueError("boom")

    with structlog.testing.capture_logs() as logs:
        async with camera(Stuck(PICTURES)) as stream:
            assert await collect(stream, 3)
    assert any(log["event"] == "source not closed" and log["error"] == "ValueError: boom" for log in logs)


async def test_the_error_of_a_plug_in_shows_no_password() -> None:
    secret = "rtsp://h/user=admin_password=tlJwpbo6_channel=1.sdp"
    source = ScriptedSource([SourceError(f"cannot open {secret} nor rtsp://admin:tlJwpbo6@h/")])
    async with Camera(config(secret), source, endless=True) as stream:
        await until(lambda: stream.status().phase is CameraPhase.OFFLINE)
        assert "cannot open rtsp://h/user=admin_password=***" in stream.status().error
        assert "tlJwpbo6" not in stream.status().error


async def test_only_a_fresh_process_helps_where_a_source_says_so() -> None:
    class Dead(ScriptedSource):
        def read(self) -> None:
            raise FatalError("the device is gone")

    async with camera(Dead(PICTURES)) as stream:
        with pytest.raises(FatalError):
            await collect(stream)


async def test_an_empty_looped_source_is_an_error_and_no_busy_loop() -> None:
    source = ScriptedSource([], live=False)
    async with camera(source, endless=False, loop=True) as stream:
        with pytest.raises(SourceError, match="no frame in it"):
            await collect(stream)
    assert source.opened == 1


async def test_frames_before_start_and_a_second_start_are_refused() -> None:
    stream = camera(ScriptedSource([-1.0]))
    assert stream.status().phase is CameraPhase.CONNECTING
    await stream.close()
    with pytest.raises(RuntimeError, match="not started"):
        await collect(stream)
    async with stream:
        with pytest.raises(RuntimeError, match="started before"):
            await stream.start()


@pytest.mark.parametrize("times", [200, pytest.param(1000, marks=pytest.mark.slow)])
async def test_reconnects_leave_nothing_behind(times: int) -> None:
    source = ScriptedSource([*PICTURES[:2], SourceError("lost")])
    threads = threading.active_count()
    async with camera(source, reconnect={"initial_s": 1e-6, "max_s": 1e-6}):
        await until(lambda: source.opened >= times, 30)
        assert threading.active_count() <= threads + 1
        assert source.open_now <= 1
    assert source.open_now == 0


def test_a_loop_that_goes_away_does_not_strand_the_thread() -> None:
    stream = camera(ScriptedSource([step for _ in range(500) for step in (PICTURES[0], 0.002)] + [-1.0]))

    async def start_only() -> None:
        await stream.start()
        await asyncio.sleep(0.02)

    asyncio.run(start_only())
    stream.interrupt()
    thread = stream._thread
    assert thread is not None
    thread.join(3)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("nominal", "most", "expected"),
    [(30.0, 0.0, 30.0), (30.0, 5.0, 5.0), (25.0, 60.0, 25.0), (0.0, 5.0, 5.0), (0.0, 0.0, 0.0)],
)
def test_what_a_consumer_may_expect_is_what_thinning_leaves(nominal: float, most: float, expected: float) -> None:
    assert CaptureReport(nominal, 0.0, most, 0).expected_fps == expected

"""Cameras over real HTTP and RTSP servers that come, go and misbehave."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from fakes.video import make_video, serve_streams

from agent.capture.camera import Camera, open_camera
from agent.config.schema import CameraConfig
from agent.types import CameraPhase, CameraStatus

RTSP_SERVER = Path(__file__).with_name("rtsp_server.py")
SYSTEM_PYTHON = "/usr/bin/python3"
GI_CHECK = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None); assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"


def config(source: str, **more: object) -> CameraConfig:
    reconnect = {"initial_s": 0.1, "max_s": 0.3}
    return CameraConfig.model_validate(
        {"id": "cam", "source": source, "read_timeout_s": 5, "reconnect": reconnect, **more}
    )


async def until(camera: Camera, condition: Callable[[CameraStatus], bool], limit_s: float = 20) -> CameraStatus:
    """Take frames until the status is as wanted."""

    async def drain() -> None:
        async for _ in camera.frames():
            pass

    consumer = asyncio.create_task(drain(), name="drain")
    try:
        async with asyncio.timeout(limit_s):
            while not condition(camera.status()):
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not reached within {limit_s} s: {camera.status()}")
    finally:
        consumer.cancel()
    return camera.status()


@contextmanager
def stopped_at_exit(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ffmpeg_sender(port: int, film: Path) -> subprocess.Popen[str]:
    """Serves `film` once over HTTP as MPEG-TS at its own speed."""
    command = f"ffmpeg -v error -re -stream_loop -1 -i {film} -c copy -f mpegts -listen 1 http://127.0.0.1:{port}/live"
    return subprocess.Popen(command.split(), text=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
async def test_a_stream_that_is_killed_and_started_again_is_picked_up(tmp_path: Path, unused_tcp_port: int) -> None:
    film = make_video(tmp_path / "film.ts", 50, fps=25, size=(160, 120))
    async with open_camera(config(f"http://127.0.0.1:{unused_tcp_port}/live")) as camera:
        offline = await until(camera, lambda status: status.phase is CameraPhase.OFFLINE)
        assert "Connection refused" in offline.error
        with stopped_at_exit(ffmpeg_sender(unused_tcp_port, film)):
            first = await until(camera, lambda status: status.frames >= 10)
            assert (first.phase, first.width, first.height) == (CameraPhase.STREAMING, 160, 120)
        lost = await until(camera, lambda status: status.phase is CameraPhase.OFFLINE)
        with stopped_at_exit(ffmpeg_sender(unused_tcp_port, film)):
            again = await until(camera, lambda status: status.frames >= lost.frames + 10)
            assert again.reconnects == 1
            assert again.error == ""
            assert camera.report().nominal_fps == pytest.approx(25)


@pytest.fixture(scope="module")
def rtsp_available() -> None:
    """Skips where the system cannot serve RTSP."""
    if (
        not Path(SYSTEM_PYTHON).exists()
        or subprocess.run([SYSTEM_PYTHON, "-c", GI_CHECK], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's good and ugly plug-ins")


def rtsp_server(port: int) -> subprocess.Popen[str]:
    process = subprocess.Popen([SYSTEM_PYTHON, str(RTSP_SERVER), str(port)], text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


@pytest.mark.usefixtures("rtsp_available")
async def test_an_rtsp_camera_streams_and_comes_back_after_a_reboot(unused_tcp_port: int) -> None:
    async with open_camera(config(f"rtsp://127.0.0.1:{unused_tcp_port}/live")) as camera:
        with stopped_at_exit(rtsp_server(unused_tcp_port)):
            first = await until(camera, lambda status: status.frames >= 10)
            assert (first.width, first.height) == (160, 120)
        lost = await until(camera, lambda status: status.phase is CameraPhase.OFFLINE)
        with stopped_at_exit(rtsp_server(unused_tcp_port)):
            again = await until(camera, lambda status: status.frames >= lost.frames + 10)
            assert again.reconnects == 1


@pytest.mark.usefixtures("rtsp_available")
async def test_an_unknown_rtsp_path_is_named_and_tried_again(unused_tcp_port: int) -> None:
    with stopped_at_exit(rtsp_server(unused_tcp_port)):
        async with open_camera(config(f"rtsp://user:secret@127.0.0.1:{unused_tcp_port}/nothing")) as camera:
            status = await until(camera, lambda status: status.phase is CameraPhase.OFFLINE)
    assert "404 Not Found" in status.error
    assert "secret" not in status.error


async def test_mjpeg_over_http_is_read() -> None:
    with serve_streams(parts=8) as server:
        async with open_camera(config(server.url("mjpeg"))) as camera:
            status = await until(camera, lambda status: status.reconnects >= 2)
    assert status.frames >= 3


async def test_a_server_that_says_nothing_times_out_and_closing_waits_no_longer() -> None:
    with serve_streams() as server:
        camera = open_camera(config(server.url("hang"), read_timeout_s=0.5))
        async with camera:
            status = await until(camera, lambda status: status.phase is CameraPhase.OFFLINE)
            assert "no data for 0.5 s" in status.error
            began = time.monotonic()
        assert time.monotonic() - began < 1.5


async def test_a_stream_of_which_only_the_sound_goes_on_is_given_up_and_picked_up_again(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.ts", 12, sound_s=8)
    with serve_streams(film.read_bytes()) as server:
        async with open_camera(config(server.url("slow"), read_timeout_s=0.5)) as camera:
            await until(camera, lambda status: status.frames > 0)
            status = await until(camera, lambda status: status.phase is CameraPhase.OFFLINE)
            assert "no picture for 0." in status.error
            await until(camera, lambda status: status.reconnects == 1)


async def test_a_stream_of_which_only_the_sound_goes_on_is_closed_at_once(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.ts", 12, sound_s=8)
    with serve_streams(film.read_bytes()) as server:
        async with open_camera(config(server.url("slow"), read_timeout_s=2)) as camera:
            await until(camera, lambda status: status.frames > 0)
            await asyncio.sleep(0.5)
            assert camera.status().phase is CameraPhase.STREAMING
            began = time.monotonic()
        assert time.monotonic() - began < 1


async def test_a_change_of_resolution_in_a_stream_shows_in_the_frames(tmp_path: Path) -> None:
    small = make_video(tmp_path / "a.ts", 30, size=(64, 48)).read_bytes()
    large = make_video(tmp_path / "b.ts", 30, size=(128, 96)).read_bytes()
    sizes = set()
    with serve_streams(small + large) as server:
        async with open_camera(config(server.url("ts"))) as camera:
            async with asyncio.timeout(20):
                async for frame in camera.frames():
                    sizes.add(frame.image.shape[:2])
                    if len(sizes) == 2:
                        break
    assert sizes == {(48, 64), (96, 128)}


async def reconnect(path: str, transport_stream: bytes, times: int) -> tuple[int, int, float]:
    """Growth of threads, descriptors and MB of memory over `times` reconnects, after a warm-up of a tenth."""
    process = psutil.Process()
    with serve_streams(transport_stream, parts=4) as server:
        quick = config(server.url(path), reconnect={"initial_s": 1e-6, "max_s": 1e-6})
        async with open_camera(quick) as camera:
            await until(camera, lambda status: status.reconnects >= times // 10, 120)
            gc.collect()
            before = threading.active_count(), process.num_fds(), process.memory_info().rss
            await until(camera, lambda status: status.reconnects >= times + times // 10, 110)
            gc.collect()
            after = threading.active_count(), process.num_fds(), process.memory_info().rss
    grown_mb = (after[2] - before[2]) / 1e6
    print(
        f"{times} reconnects to {path}: threads {after[0] - before[0]:+d}, fds {after[1] - before[1]:+d}, {grown_mb:+.1f} MB",
        file=sys.stderr,
    )
    return after[0] - before[0], after[1] - before[1], grown_mb


@pytest.mark.parametrize("path", ["mjpeg", "ts"])
@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.slow)])
async def test_reconnects_leak_no_threads_descriptors_or_memory(tmp_path: Path, path: str, times: int) -> None:
    film = make_video(tmp_path / "film.ts", 4).read_bytes()
    threads, descriptors, grown_mb = await reconnect(path, film, times)
    # The server's own threads and sockets come and go: a handful either way is no leak, one per reconnect is.
    assert threads <= 3
    assert descriptors <= 6
    assert grown_mb <= 8

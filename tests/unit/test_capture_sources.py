"""Source strings, plug-ins, and what every VideoSource promises."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from fakes.video import SIZE, ScriptedSource, make_video, numbered_image, serve_streams

from agent.capture.base import GuardedSource, TwoStepSource, redact
from agent.capture.devices import V4l2Source
from agent.capture.files import FileSource, FolderSource
from agent.capture.network import NetworkSource
from agent.capture.sources import build_source
from agent.config.schema import CameraConfig
from agent.errors import ConfigError, SourceError
from agent.ports import StreamInfo, VideoSource
from agent.types import ImageArray


def config(source: str, **more: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": "cam", "source": source, **more})


@pytest.mark.parametrize(
    ("source", "kind", "endless"),
    [
        ("rtsp://user:secret@10.0.0.1/live", NetworkSource, True),
        ("RTSPS://10.0.0.1/live", NetworkSource, True),
        ("https://example.org/stream", NetworkSource, True),
        ("/dev/video7", V4l2Source, True),
        ("0", V4l2Source, True),
        ("film.mp4", FileSource, False),
        ("file:///tmp/film.mp4", FileSource, False),
    ],
)
def test_the_source_string_picks_the_adapter(source: str, kind: type, endless: bool) -> None:
    built = build_source(config(source))
    assert isinstance(built.source, kind)
    assert built.endless is endless


def test_a_folder_is_recognised(tmp_path: Path) -> None:
    assert isinstance(build_source(config(str(tmp_path))).source, FolderSource)


def test_a_path_that_cannot_be_looked_at_is_offline_not_wrong(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="File name too long"):
        build_source(config(f"{tmp_path}/{'x' * 300}.mp4")).source.open()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("file://~nobody-has-this-name/film.mp4", "there is no home folder for its ~"),
        ("sim://[", "sim:// Invalid IPv6 URL"),
    ],
)
def test_an_address_that_is_none_is_a_configuration_error_of_its_camera(source: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"camera 'cam': {re.escape(told)} \(hint: write "):
        build_source(config(source))


def test_an_unknown_scheme_is_a_configuration_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"camera 'cam': unknown kind of source 'gopher'.*rtsp://.*gst:"):
        build_source(config("gopher://cam/1"))


@pytest.mark.skipif("GStreamer:                   YES" in cv2.getBuildInformation(), reason="this OpenCV has GStreamer")
def test_a_gstreamer_pipeline_without_gstreamer_is_a_configuration_error_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"without GStreamer.*hint"):
        build_source(config("gst:videotestsrc ! appsink"))


def test_a_missing_device_is_offline_not_wrong() -> None:
    with pytest.raises(SourceError, match="/dev/video99: no such device"):
        build_source(config("99")).source.open()


PLUGIN = """
from agent.errors import SourceError
from agent.ports import StreamInfo
class Source:
    live = False
    def __init__(self, config): self.config = config
    def open(self): return StreamInfo(8, 8, 10.0, 0, False)
    def read(self): return None
    def close(self): pass
def refuse(config): raise ValueError(f"{config.source}: port missing")
def absent(config): raise SourceError("no such device")
def text(config): return "a text"
"""
PLUGIN_NAMES = "hall = {0}:Source\nbroken = {0}:Nothing\nrefusing = {0}:refuse\nabsent = {0}:absent\ntext = {0}:text\n"


@pytest.fixture
def plugin_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with good and bad entry points."""
    (tmp_path / "capture_plugin_for_test.py").write_text(PLUGIN)
    info = tmp_path / "capture_plugin_for_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: capture-plugin-for-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[recognizer_agent.sources]\n" + PLUGIN_NAMES.format("capture_plugin_for_test")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "capture_plugin_for_test", raising=False)
    return tmp_path


@pytest.mark.usefixtures("plugin_path")
def test_a_plug_in_serves_its_scheme() -> None:
    built = build_source(config("hall://north?people=3"))
    assert built.source.open().fps == 10.0
    assert built.endless is False


@pytest.mark.usefixtures("plugin_path")
def test_a_broken_plug_in_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="plug-in for 'broken' cannot be loaded"):
        build_source(config("broken://x"))


def test_a_plug_in_whose_import_fails_in_its_own_way_is_a_configuration_error(plugin_path: Path) -> None:
    (plugin_path / "capture_plugin_for_test.py").write_text("raise OSError('libndi.so: cannot open')")
    with pytest.raises(ConfigError, match=r"plug-in for 'hall' cannot be loaded: OSError: libndi\.so"):
        build_source(config("hall://x"))


@pytest.mark.usefixtures("plugin_path")
def test_what_a_plug_in_raises_names_it_and_no_password() -> None:
    with pytest.raises(ConfigError, match=r"camera 'cam': the plug-in for 'refusing' failed: ValueError: ") as caught:
        build_source(config("refusing://user:secret@host"))
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("plugin_path")
def test_a_plug_in_may_say_that_its_device_is_absent() -> None:
    built = build_source(config("absent://x"))
    with pytest.raises(SourceError, match="no such device"):
        built.source.open()
    assert built.endless is False  # the next try is the plug-in's


@pytest.mark.usefixtures("plugin_path")
def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="plug-in for 'text' made a str, which is no VideoSource"):
        build_source(config("text://x"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:p@ss@10.0.0.1:554/a?token=1", "rtsp://10.0.0.1:554/a"),
        ("http://10.0.0.1/a@b", "http://10.0.0.1/a@b"),
        ("http://10.0.0.1:80/a?mail=x", "http://10.0.0.1:80/a"),
        ("rtsp://user:se/cret@10.0.0.1/a", "rtsp://***"),
        ("rtsp://user:se?cret@10.0.0.1/a", "rtsp://***"),
        ("rtsp://user:se#cret@10.0.0.1/a?token=1", "rtsp://***"),
        ("rtsp://user:se cret@10.0.0.1/a", "rtsp://10.0.0.1/a"),
        ("http://10.0.0.1/a?password=two words", "http://10.0.0.1/a"),
        ("/data/what?.mp4", "/data/what?.mp4"),
        ("rtsp://h/user=admin_password=tlJwpbo6_channel=1_stream=0.sdp", "rtsp://h/user=admin_password=***"),
        (
            "gst: rtspsrc location=rtsp://10.0.0.1/x user-id=admin user-pw=s3cret ! decodebin",
            "gst: rtspsrc location=rtsp://10.0.0.1/x user-id=admin user-pw=*** ! decodebin",
        ),
        (
            "http://h/videostream.cgi&loginuse=admin&loginpas=abc",
            "http://h/videostream.cgi&loginuse=admin&loginpas=***",
        ),
    ],
)
def test_credentials_never_show(url: str, shown: str) -> None:
    assert redact(url) == shown


# --- the contract of VideoSource ---


def file_source(tmp_path: Path) -> Iterator[VideoSource]:
    yield FileSource(make_video(tmp_path / "a.mp4", 6))


def folder_source(tmp_path: Path) -> Iterator[VideoSource]:
    make_video(tmp_path / "a.mp4", 3)
    make_video(tmp_path / "b.mp4", 3, first=3)
    yield FolderSource(tmp_path)


def network_source(tmp_path: Path) -> Iterator[VideoSource]:
    with serve_streams(make_video(tmp_path / "a.ts", 6).read_bytes()) as server:
        yield NetworkSource(server.url("ts"), 5)


def scripted_source(tmp_path: Path) -> Iterator[VideoSource]:
    yield ScriptedSource([numbered_image(index) for index in range(6)], live=False)


@pytest.fixture(params=[file_source, folder_source, network_source, scripted_source])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VideoSource]:
    yield from request.param(tmp_path)


def pictures(source: VideoSource) -> list[tuple[ImageArray, int]]:
    """All pictures; a live source ends with an error."""
    found = []
    try:
        while (picture := source.read()) is not None:
            found.append(picture)
    except SourceError:
        assert isinstance(source, NetworkSource)
    return found


def test_open_says_what_comes(source: VideoSource) -> None:
    info = source.open()
    assert (info.width, info.height) == SIZE
    assert info.fps == pytest.approx(10)
    assert info.live is isinstance(source, NetworkSource)
    source.close()


def test_the_clock_of_a_stream_of_varying_rate_is_not_taken_for_its_rate(tmp_path: Path) -> None:
    file = tmp_path / "a.ts"
    with av.open(str(file), "w", format="mpegts") as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"tune": "zerolatency", "x264-params": "force-cfr=0:vfr-input=1"}
        )
        stream.width, stream.height = SIZE
        stream.codec_context.time_base = Fraction(1, 90_000)
        for number, pts in enumerate(np.cumsum(np.random.default_rng(1).integers(4500, 7500, 100)).tolist()):
            picture = av.VideoFrame.from_ndarray(numbered_image(number), "bgr24")
            picture.pts, picture.time_base = pts, Fraction(1, 90_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with serve_streams(file.read_bytes()) as server:
        source = NetworkSource(server.url("ts"), 5)
        assert source.open().fps == 0
        source.close()


def test_pictures_are_bgr_and_times_start_at_zero_and_rise(source: VideoSource) -> None:
    source.open()
    found = pictures(source)
    assert len(found) == 6
    assert all(image.shape == (SIZE[1], SIZE[0], 3) and image.dtype == np.uint8 for image, _ in found)
    times = [pts for _, pts in found]
    assert times[0] == 0
    assert times == sorted(times)
    source.close()


def test_opening_again_starts_again(source: VideoSource) -> None:
    source.open()
    source.read()
    source.close()
    source.close()
    with pytest.raises(SourceError):
        source.read()
    source.open()
    assert len(pictures(source)) == 6
    source.close()


def test_a_picture_is_not_overwritten_by_the_next(source: VideoSource) -> None:
    source.open()
    first = source.read()
    assert first is not None
    before = first[0].copy()
    pictures(source)
    source.close()
    assert np.array_equal(first[0], before)


def test_stepping_over_pictures_keeps_the_count(source: VideoSource) -> None:
    if not isinstance(source, TwoStepSource):
        pytest.skip("reads in one step")
    source.open()
    source.grab()
    source.grab()
    second = source.retrieve()
    assert round((float(second.mean()) - 10) / 12) == 1
    source.close()


class SlowSource(GuardedSource):
    """Takes its time in native code, which must not be freed meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.released_while_inside = False
        self.released = 0

    def _open(self) -> StreamInfo:
        return StreamInfo(8, 8, 10.0, 0, live=True)

    def _grab(self) -> int | None:
        self.inside.set()
        self.go_on.wait(5)
        self.released_while_inside = self.released > 0
        return 0

    def _retrieve(self) -> ImageArray:
        return np.zeros((8, 8, 3), np.uint8)

    def _release(self) -> None:
        self.released += 1


def test_close_from_another_thread_never_frees_under_the_reader() -> None:
    source = SlowSource()
    source.open()
    outcome: list[str] = []

    def read() -> None:
        try:
            source.read()
        except SourceError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    source.inside.wait(5)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 1
    source.go_on.set()
    thread.join()
    assert not source.released_while_inside
    assert source.released >= 1
    assert outcome == ["the source was closed"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("401", "401 Unauthorized"), ("404", "404 Not Found"), ("hang", "no data for 0.3 s")],
)
def test_a_refused_stream_says_why_without_credentials(path: str, reason: str) -> None:
    with serve_streams() as server, pytest.raises(SourceError) as caught:
        NetworkSource(server.url(path, "user:secret@"), 0.3).open()
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unescaped_password_is_kept_to_itself_and_the_way_out_told() -> None:
    with pytest.raises(SourceError, match=r"^rtsp://\*\*\*: cannot connect: .*write / as %2F") as caught:
        NetworkSource("rtsp://user:se/cret@127.0.0.1:1/x", 2).open()
    assert "cret" not in str(caught.value)


def test_a_stream_may_be_named_in_any_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as container:
        container.metadata["title"] = "TITLETITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_image(0), "bgr24")))
        container.mux(stream.encode(None))
    named = file.read_bytes().replace(b"TITLETITLE", "监控视频流".encode("gbk"))
    with serve_streams(named) as server:
        source = NetworkSource(server.url("ts"), 5)
        source.open()
        assert source.read() is not None
        source.close()


def test_a_video_that_nothing_can_decode_is_an_error_of_its_camera(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mkv", 3)
    known = b"V_MPEG4/ISO/AVC"
    assert known in file.read_bytes()
    with serve_streams(file.read_bytes().replace(known, b"V_MPEG4/ISO/XYZ")) as server:
        source = NetworkSource(server.url("ts"), 5)
        with pytest.raises(SourceError, match="FFmpeg has no decoder for its video"):
            source.open()
        source.close()


def test_a_server_that_is_not_there_refuses(unused_tcp_port_factory: Callable[[], int]) -> None:
    with pytest.raises(SourceError, match="cannot connect: Connection refused"):
        NetworkSource(f"rtsp://127.0.0.1:{unused_tcp_port_factory()}/x", 2).open()

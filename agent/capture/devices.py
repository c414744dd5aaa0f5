"""Local cameras through OpenCV: V4L2 devices, and GStreamer pipelines where OpenCV was built with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2

from agent.capture.base import GuardedSource
from agent.capture.files import retrieve_image, stream_info
from agent.capture.timeline import period_ns
from agent.errors import ConfigError, ConfigProblem, SourceError
from agent.ports import StreamInfo
from agent.types import ImageArray

_GSTREAMER_TIMEOUTS_SINCE = (4, 7)


class DeviceSource(GuardedSource):
    """A live cv2.VideoCapture back end. It has no end: a read that fails is a SourceError."""

    def __init__(self, target: str | int, name: str, backend: int, parameters: tuple[int, ...]) -> None:
        super().__init__()
        self._target = target
        self._name = name
        self._backend = backend
        self._parameters = parameters
        self._capture: Any = None
        self._frames = 0
        self._fps = 0.0

    def _open(self) -> StreamInfo:
        self._release()
        capture = cv2.VideoCapture(self._target, self._backend, list(self._parameters))
        if not capture.isOpened():
            raise SourceError(f"{self._name}: cannot be opened")
        self._capture = capture
        info = stream_info(capture, live=True)
        self._frames, self._fps = 0, info.fps
        return info

    def _grab(self) -> int | None:
        if self._capture is None:
            raise SourceError(f"{self._name}: not open")
        try:
            grabbed = self._capture.grab()
        except cv2.error as error:
            raise SourceError(f"{self._name}: {error.err}") from None
        if not grabbed:
            raise SourceError(f"{self._name}: no picture (unplugged, timed out or ended)")
        index, self._frames = self._frames, self._frames + 1
        return index * period_ns(self._fps)

    def _retrieve(self) -> ImageArray:
        return retrieve_image(self._capture, self._name)

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class V4l2Source(DeviceSource):
    """A V4L2 camera by device path or index."""

    def __init__(self, device: str) -> None:
        path = f"/dev/video{device}" if device.isdecimal() else device
        super().__init__(path, path, cv2.CAP_V4L2, ())
        self._path = Path(path)

    def _open(self) -> StreamInfo:
        if not self._path.exists():
            raise SourceError(f"{self._name}: no such device (is the camera plugged in?)")
        return super()._open()


def gstreamer_source(pipeline: str, timeout_s: float) -> DeviceSource:
    """A GStreamer pipeline that ends in an appsink, for example NVDEC on a Jetson.

    Raises ConfigError where OpenCV was built without GStreamer.
    """
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise ConfigError(
            [
                ConfigProblem(
                    message="the installed OpenCV was built without GStreamer, `gst:` sources cannot be opened",
                    hint="use the platform's OpenCV (python3-opencv of JetPack or Debian), or give an rtsp:// URL",
                )
            ]
        )
    return DeviceSource(pipeline, "gst pipeline", cv2.CAP_GSTREAMER, _timeouts(timeout_s))


def _timeouts(timeout_s: float) -> tuple[int, ...]:
    """Open and read time-outs, which GStreamer knows from OpenCV 4.7 on; before, it refuses a capture that names them."""
    version = tuple(int(part) for part in cv2.__version__.split(".")[:2])
    if version < _GSTREAMER_TIMEOUTS_SINCE:
        return ()
    timeout_ms = round(timeout_s * 1000)
    return (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms)

"""Small test videos, a scripted VideoSource and a real HTTP server of streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np

from agent.errors import SourceError
from agent.ports import StreamInfo
from agent.types import ImageArray

FPS = 10
SIZE = (64, 48)
"""Width, height."""
SOUND_HZ = 48_000
NS_PER_S = 1_000_000_000


def numbered_image(index: int, size: tuple[int, int] = SIZE) -> ImageArray:
    """A picture that tells its number (0-19) after lossy coding: `number_of` reads it back."""
    width, height = size
    return np.full((height, width, 3), 10 + 12 * (index % 20), np.uint8)


def number_of(image: ImageArray) -> int:
    """The number `numbered_image` put in."""
    return round((float(image.mean()) - 10) / 12)


def make_video(
    path: Path,
    frames: int = 12,
    *,
    size: tuple[int, int] = SIZE,
    fps: int = FPS,
    codec: str = "libx264",
    first: int = 0,
    times_ms: Sequence[int] = (),
    sound_s: float = 0.0,
) -> Path:
    """Write numbered pictures first, first + 1, ...; the container follows from the suffix.

    times_ms: when each is shown, in place of `fps`. sound_s: how long silence is heard with them, and after them.
    """
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("mp2", rate=SOUND_HZ) if sound_s else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_image(first + index, size), "bgr24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 2 * round(sound_s * SOUND_HZ)), np.int16), layout="stereo"
            )
            silence.sample_rate = SOUND_HZ
            container.mux([*sound.encode(silence), *sound.encode()])
    return path


Step = ImageArray | SourceError | float
"""A picture to give, an error to raise, or seconds to wait (for ever if negative, until closed)."""


class ScriptedSource:
    """A VideoSource that plays one script per opening; the last script repeats. A SourceError in first place of a
    script makes `open` fail."""

    def __init__(self, *scripts: Sequence[Step], live: bool = True, fps: float = FPS) -> None:
        self._scripts = scripts
        self._live = live
        self._fps = fps
        self._closed = threading.Event()
        self._closed.set()
        self._steps: Iterator[Step] = iter(())
        self._frames = 0
        self.opened = 0
        self.open_now = 0

    def open(self) -> StreamInfo:
        script = self._scripts[min(self.opened, len(self._scripts) - 1)]
        self.opened += 1
        if script and isinstance(script[0], SourceError):
            raise script[0]
        self._closed.clear()
        self.open_now += 1
        self._steps, self._frames = iter(script), 0
        return StreamInfo(SIZE[0], SIZE[1], self._fps, 0 if self._live else len(script), self._live)

    def read(self) -> tuple[ImageArray, int] | None:
        for step in self._steps:
            if self._closed.is_set():
                break
            if isinstance(step, SourceError):
                raise step
            if isinstance(step, int | float):
                self._closed.wait(None if step < 0 else step)
                continue
            self._frames += 1
            return step.copy(), round((self._frames - 1) * NS_PER_S / self._fps)
        if self._closed.is_set():
            raise SourceError("the source was closed")
        return None

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.open_now -= 1


class StreamServer(ThreadingHTTPServer):
    """Serves /ts (the bytes of an MPEG-TS file) and /mjpeg (`parts` JPEG parts), then closes the connection;
    /slow is /ts at 60 kB a second, /hang accepts and says nothing, /401 refuses, anything else is not found."""

    daemon_threads = True

    def __init__(self, transport_stream: bytes, parts: int) -> None:
        super().__init__(("127.0.0.1", 0), _StreamHandler)
        self.transport_stream = transport_stream
        self.parts = parts
        self.requests = 0
        self.released = threading.Event()

    def url(self, path: str, credentials: str = "") -> str:
        """Where `path` is served."""
        return f"http://{credentials}127.0.0.1:{self.server_port}/{path}"


class _StreamHandler(BaseHTTPRequestHandler):
    server: StreamServer

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path == "/ts":
            self._begin(200, "video/mp2t")
            self.wfile.write(self.server.transport_stream)
        elif self.path == "/slow":
            self._begin(200, "video/mp2t")
            with suppress(OSError):  # who has seen enough goes
                for begin in range(0, len(self.server.transport_stream), 3000):
                    self.wfile.write(self.server.transport_stream[begin : begin + 3000])
                    self.server.released.wait(0.05)
        elif self.path == "/mjpeg":
            self._begin(200, "multipart/x-mixed-replace; boundary=frame")
            for index in range(self.server.parts):
                jpeg = cv2.imencode(".jpg", numbered_image(index))[1].tobytes()
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                self.wfile.write(jpeg + b"\r\n")
        elif self.path == "/hang":
            self.server.released.wait(30)
        else:
            self._begin(401 if self.path == "/401" else 404, "text/plain")

    def _begin(self, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        """Keep the test's output clean."""


@contextmanager
def serve_streams(transport_stream: bytes = b"", parts: int = 5) -> Iterator[StreamServer]:
    """A running StreamServer."""
    server = StreamServer(transport_stream, parts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="stream-server")
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()

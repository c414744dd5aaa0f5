"""A camera: the async face of a decoder thread."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from agent.capture.decoder import Clock, Decoder
from agent.capture.handover import Handover
from agent.capture.sources import build_source
from agent.capture.timeline import RateMeter
from agent.capture.viewpoint import Viewpoint
from agent.capture.watch import View
from agent.config.schema import CameraConfig
from agent.ports import VideoSource
from agent.types import CameraPhase, CameraStatus, Frame

LOOK_AHEAD = 8
"""Decoded frames that wait for the consumer of a file: enough to keep decoding during one inference batch."""
_STOP_GRACE_S = 2.0

_log = structlog.get_logger("capture")


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What health needs beyond CameraStatus.

    nominal_fps: what the stream claims, 0 = unknown; decoded_fps: pictures that arrived per second, before thinning and
    dropping; errors: failed connections and broken streams so far.
    """

    nominal_fps: float
    decoded_fps: float
    max_fps: float
    errors: int

    @property
    def expected_fps(self) -> float:
        """Frames a second that a consumer may expect, after thinning; 0 = unknown."""
        return min((rate for rate in (self.nominal_fps, self.max_fps) if rate > 0), default=0.0)


def open_camera(config: CameraConfig, *, clock: Clock | None = None, viewpoint: Viewpoint | None = None) -> Camera:
    """The camera that `config` describes, not started yet: `async with open_camera(config) as camera`.

    viewpoint: what an earlier life of it has learned about where it looks.
    Raises ConfigError for a source nothing can read (unknown scheme, GStreamer without support). A source that is
    merely absent is no error here.
    """
    built = build_source(config)
    return Camera(config, built.source, endless=built.endless, clock=clock, viewpoint=viewpoint)


class Camera:
    """A FrameStream over any VideoSource, for one consumer at a time.

    Endless sources (cameras) reconnect for ever with full-jitter backoff. Sources with an end (files) raise their
    SourceError from `frames()`. Live (cameras, and files with `pace`) keeps the newest frame only.
    """

    def __init__(
        self,
        config: CameraConfig,
        source: VideoSource,
        *,
        endless: bool,
        clock: Clock | None = None,
        viewpoint: Viewpoint | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._endless = endless
        self._live = endless or config.pace
        self._clock = clock or Clock()
        self._viewpoint = viewpoint or Viewpoint(config.moved_after_s)
        self._max_fps = config.max_fps
        self._paused = False
        self._delivered = RateMeter()
        self._frames = 0
        self._handover: Handover | None = None
        self._decoder: Decoder | None = None
        self._thread: threading.Thread | None = None
        self._stopped = asyncio.Event()

    @property
    def camera_id(self) -> str:
        """The configured id."""
        return self._config.id

    @property
    def live(self) -> bool:
        """See FrameStream."""
        return self._live

    @property
    def source(self) -> VideoSource:
        """What is read, for what it knows beyond its pictures. It belongs to the decoder thread: look, do not read."""
        return self._source

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the decoder thread; returns at once, whether or not the source can be opened now. Once per camera."""
        if self._thread is not None:
            raise RuntimeError(f"camera {self.camera_id!r} was started before")
        loop = asyncio.get_running_loop()
        self._handover = Handover(loop, LOOK_AHEAD)
        self._decoder = Decoder(
            self._config, self._source, self._handover, endless=self._endless, live=self._live, clock=self._clock,
            viewpoint=self._viewpoint,
        )  # fmt: skip
        self._decoder.set_max_fps(self._max_fps)
        if self._paused:
            self._decoder.pause()
        self._thread = threading.Thread(
            target=self._run, args=(self._decoder, loop), name=f"decode-{self.camera_id}", daemon=True
        )
        self._thread.start()

    async def close(self) -> None:
        """Stop and wait for the thread, at most the read time-out and a little; `frames()` ends. Idempotent."""
        self.interrupt()
        if self._thread is None:
            return
        limit_s = self._config.read_timeout_s + _STOP_GRACE_S
        try:
            async with asyncio.timeout(limit_s):
                # `wait_for` swallows a cancellation that comes as it ends (Python 3.11)
                await self._stopped.wait()
        except TimeoutError:  # a daemon thread: it cannot hold up the end of the process
            _log.error("decoder thread does not stop", camera=self.camera_id, waited_s=limit_s)
        else:
            self._thread.join()  # it has run to its last line
        if self._handover is not None:
            self._handover.discard()

    def interrupt(self) -> None:
        """Ask the thread to stop, without waiting. From any thread."""
        if self._decoder is not None:
            self._decoder.stop()

    async def frames(self) -> AsyncIterator[Frame]:
        """See FrameStream. Raises SourceError when a source with an end cannot be read, RuntimeError before `start`."""
        if self._handover is None:
            raise RuntimeError(f"camera {self.camera_id!r} is not started")
        while (frame := await self._handover.get()) is not None:
            self._frames += 1
            self._delivered.add(self._clock.monotonic_ns())
            yield frame

    def set_max_fps(self, max_fps: float) -> None:
        """Hand on at most this many frames a second from now on, 0 = all. Files read without pace are not thinned."""
        if not (math.isfinite(max_fps) and max_fps >= 0):
            raise ValueError(f"max_fps must be 0 or more, got {max_fps}")
        self._max_fps = max_fps
        if self._decoder is not None:
            self._decoder.set_max_fps(max_fps)

    def pause(self) -> None:
        """Stop reading: a live source is closed, a file stays where it is."""
        self._paused = True
        if self._decoder is not None:
            self._decoder.pause()

    def resume(self) -> None:
        """Go on after `pause`: a live source is opened again."""
        self._paused = False
        if self._decoder is not None:
            self._decoder.resume()

    def status(self) -> CameraStatus:
        """See FrameStream. frames and fps count what the consumer took; dropped: replaced before it could."""
        decoder, handover = self._decoder, self._handover
        if decoder is None or handover is None:
            return CameraStatus(self.camera_id, CameraPhase.CONNECTING, 0.0, 0, 0, 0, 0, 0)
        width, height = decoder.size
        return CameraStatus(
            camera_id=self.camera_id,
            phase=self._phase(decoder),
            fps=self._delivered.per_second(self._clock.monotonic_ns()),
            width=width,
            height=height,
            frames=self._frames,
            dropped=handover.dropped,
            reconnects=decoder.reconnects,
            error=decoder.error,
            moved=self._viewpoint.moved,
        )

    def report(self) -> CaptureReport:
        """Rates and error count for health."""
        if self._decoder is None:
            return CaptureReport(0.0, 0.0, self._max_fps, 0)
        decoded_fps = self._decoder.decoded.per_second(self._clock.monotonic_ns())
        return CaptureReport(self._decoder.info.fps, decoded_fps, self._max_fps, self._decoder.errors)

    def _phase(self, decoder: Decoder) -> CameraPhase:
        if self._paused and decoder.phase is not CameraPhase.ENDED:
            return CameraPhase.PAUSED
        if decoder.phase is not CameraPhase.STREAMING:
            return decoder.phase
        return {View.FROZEN: CameraPhase.FROZEN, View.BLIND: CameraPhase.BLIND}.get(decoder.view, decoder.phase)

    def _run(self, decoder: Decoder, loop: asyncio.AbstractEventLoop) -> None:
        decoder.run()
        try:
            loop.call_soon_threadsafe(self._stopped.set)
        except RuntimeError:  # the loop is closed: nobody waits
            return

"""RTSP and HTTP streams through PyAV: it names the reason of a failure, takes options per stream and logs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import av
import av.error

from agent.capture.base import NS_PER_S, GuardedSource, SourceDeniedError, redact
from agent.capture.timeline import Timeline, plausible_fps
from agent.errors import SourceError
from agent.masking import MASK
from agent.ports import StreamInfo
from agent.types import ImageArray

_MAX_BAD_PACKETS = 250
"""Undecodable packets in a row (10 s at 25 fps) after which connecting again is worth more than waiting."""
_KEY_FRAME_S = 30.0
"""Video without a picture is waited for that long at least: some cameras send one to start from every 20 s."""
_RTSP_OPTIONS = {
    "rtsp_transport": "tcp"
}  # UDP loses packets under load, and a smeared picture is worse than a late one
_ESCAPE = " (in a password write / as %2F, ? as %3F, # as %23)"
_DENIED = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError, PermissionError)


class NetworkSource(GuardedSource):
    """A live stream. It has no end: when the sender stops, that is a SourceError.

    timeout_s: longest wait for the connection and for video to come.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__()
        self._url = url
        self._name = redact(url)
        self._timeout_s = timeout_s
        self._container: Any = None
        self._reset()

    def _reset(self) -> None:
        self._pictures: Iterator[Any] = iter(())
        self._picture: Any = None
        self._timeline = Timeline()
        self._tick_ns = 0.0

    def _open(self) -> StreamInfo:
        self._release()
        options = _RTSP_OPTIONS if self._url.lower().startswith("rtsp") else {}
        try:
            self._container = av.open(
                self._url,
                options=dict(options),
                timeout=(self._timeout_s, self._timeout_s),
                metadata_errors="replace",  # cameras name their streams in the encoding of their country
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._translated("cannot connect", error) from None
        if not self._container.streams.video:
            self._release()
            raise SourceError(f"{self._name}: the stream has no video")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            self._release()
            raise SourceError(f"{self._name}: FFmpeg has no decoder for its video; H.264 and H.265 are good choices")
        stream.thread_type = "SLICE"  # frame threads would hold pictures back
        stream.codec_context.thread_count = 1
        fps = plausible_fps(float(stream.average_rate or 0), float(stream.guessed_rate or 0))
        self._tick_ns = float(stream.time_base or 0) * NS_PER_S
        self._timeline.start_pass(fps)
        self._pictures = self._decode(stream)
        return StreamInfo(stream.codec_context.width, stream.codec_context.height, fps, 0, live=True)

    def _decode(self, stream: Any) -> Iterator[Any]:
        """Pictures; damaged packets are stepped over, as a player does."""
        bad = 0
        picture_s = packet_s = time.monotonic()
        try:
            for packet in self._container.demux():  # asked for video only, it never returns while there is only sound
                pictures: list[Any] = []
                if packet.stream is stream:
                    packet_s = time.monotonic()
                    try:
                        pictures = packet.decode()
                    except av.error.InvalidDataError:
                        bad += 1
                        if bad >= _MAX_BAD_PACKETS:
                            raise
                if pictures:
                    bad = 0
                    yield from pictures
                    picture_s = packet_s = time.monotonic()
                    continue
                now_s = time.monotonic()
                silent = now_s - packet_s > self._timeout_s or now_s - picture_s > max(self._timeout_s, _KEY_FRAME_S)
                if silent or self._closing.is_set():
                    raise SourceError(f"{self._name}: no picture for {now_s - picture_s:.1f} s")
        except av.error.FFmpegError:
            yield from _remaining(stream)
            raise

    def _grab(self) -> int | None:
        try:
            self._picture = next(self._pictures, None)
        except (av.error.FFmpegError, OSError) as error:
            raise self._translated("stream broke", error) from None
        if self._picture is None:
            raise SourceError(f"{self._name}: the stream ended")
        pts = self._picture.pts
        return self._timeline.place(None if pts is None else round(pts * self._tick_ns))

    def _retrieve(self) -> ImageArray:
        if self._picture is None:
            raise SourceError(f"{self._name}: not open")
        try:
            image: ImageArray = self._picture.to_ndarray(format="bgr24")
        except (av.error.FFmpegError, ValueError) as error:
            raise self._translated("picture cannot be converted", error) from None
        return image

    def _release(self) -> None:
        self._reset()
        if self._container is not None:
            self._container.close()  # PyAV's objects form cycles: without this, sockets wait for the collector
            self._container = None

    def _translated(self, what: str, error: Exception) -> SourceError:
        if isinstance(error, av.error.ExitError):  # what FFmpeg says when our time-out interrupts it
            return SourceError(f"{self._name}: {what}: no data for {self._timeout_s:g} s")
        reason = getattr(error, "strerror", None) or type(error).__name__  # str(error) holds the URL with its password
        kind = SourceDeniedError if isinstance(error, _DENIED) else SourceError
        hint = _ESCAPE if self._name.endswith(MASK) else ""
        return kind(f"{self._name}: {what}: {reason}{hint}")


def _remaining(stream: Any) -> list[Any]:
    """Pictures the decoder still holds when its stream breaks (it reorders, so it runs a few behind)."""
    try:
        pictures: list[Any] = stream.codec_context.decode(None)
    except av.error.FFmpegError:
        return []
    return pictures

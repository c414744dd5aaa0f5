"""Recorded video through OpenCV's FFmpeg: one file, or a folder of them as one stream."""

from __future__ import annotations

import math
import os
import re
import stat
from pathlib import Path
from typing import Any, cast

import cv2

from agent.capture.base import NS_PER_S, GuardedSource
from agent.capture.timeline import Timeline, plausible_fps
from agent.errors import SourceError
from agent.ports import StreamInfo
from agent.types import ImageArray

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".h264", ".h265", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
"""What a folder is searched for; a file named by itself may be called anything."""

_MAX_BAD_GRABS = 64
"""Failed reads in a row that end a file which should have more frames: damage is stepped over, an end is an end."""
_MISSING_FRAMES = 0.02
_MISSING_S = 1.0
"""A file ended early when both this share of its frames and this much time are missing (containers round and guess)."""
_MAX_SKIPPED_NAMED = 3


class FileSource(GuardedSource):
    """One video file. Presentation times start at 0 and rise; where the container has none, the frame rate stands in.

    Damaged stretches are stepped over; `problem` says what was lost.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path.absolute()  # FFmpeg would take `name:` at the start of a relative path for a protocol
        self._capture: Any = None
        self._info = StreamInfo(0, 0, 0.0, 0, live=False)
        self._reset_position()

    def _reset_position(self) -> None:
        self._frames = 0
        self._timeline = Timeline()
        self._problem = ""

    @property
    def problem(self) -> str:
        """See ReportingSource."""
        return self._problem

    def _open(self) -> StreamInfo:
        self._release()
        self._reset_position()
        check_readable(self._path)
        # One decoding thread costs least in all and leaves the cores to inference (docs/adr/0003-capture.md).
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise SourceError(f"{self._path}: not a readable video (another kind of file, damaged or cut off)")
        self._capture = capture
        self._info = stream_info(capture, live=False)
        self._timeline.start_pass(self._info.fps)
        return self._info

    def _grab(self) -> int | None:
        for _ in range(_MAX_BAD_GRABS):
            if self._capture is None:
                raise SourceError(f"{self._path}: not open")
            if self._capture.grab():
                return self._next_pts_ns()
            if not 0 < self._info.frame_count > self._frames:
                break
        self._note_early_end()
        if not self._frames:
            raise SourceError(f"{self._path}: no frame could be decoded")
        return None

    def _retrieve(self) -> ImageArray:
        return retrieve_image(self._capture, str(self._path))

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _next_pts_ns(self) -> int:
        position_ms = float(self._capture.get(cv2.CAP_PROP_POS_MSEC))
        # OpenCV says 0 for "unknown": raw streams all along, AVI with B-frames for the last few.
        known = math.isfinite(position_ms) and (position_ms > 0 or not self._frames)
        self._frames += 1
        return self._timeline.place(round(position_ms * (NS_PER_S // 1000)) if known else None)

    def _note_early_end(self) -> None:
        expected, fps = self._info.frame_count, self._info.fps
        if expected <= 0 or fps <= 0:
            return
        missing = expected - self._frames
        reached_s = self._timeline.last_ns / NS_PER_S
        if missing > expected * _MISSING_FRAMES and expected / fps - reached_s > _MISSING_S:
            self._problem = f"{self._path}: damaged or cut off, {self._frames} of {expected} frames could be read"


class FolderSource(GuardedSource):
    """The videos of a folder in natural order (2 before 10) as one stream with one time line.

    Files that cannot be opened are skipped; `problem` counts and names them. A folder without any readable video is an
    error. Presentation times go on across files, one frame period apart.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder.absolute()
        self._waiting: list[Path] = []
        self._current: FileSource | None = None
        self._problems: list[str] = []
        self._timeline = Timeline()

    @property
    def problem(self) -> str:
        """See ReportingSource."""
        problems = [*self._problems, *filter(None, [self._current.problem if self._current else ""])]
        if not problems:
            return ""
        named = "; ".join(problems[:_MAX_SKIPPED_NAMED])
        return f"{len(problems)} faulty file(s) in {self._folder}: {named}{' ...' if len(problems) > 3 else ''}"

    def _open(self) -> StreamInfo:
        self._release()
        self._problems = []
        self._timeline = Timeline()
        self._waiting = list_videos(self._folder)
        info = self._open_next()
        if info is None:
            raise SourceError(self.problem)
        return StreamInfo(info.width, info.height, info.fps, 0, live=False)

    def _open_next(self) -> StreamInfo | None:
        while self._waiting:
            source = FileSource(self._waiting.pop(0))
            try:
                info = source.open()
            except SourceError as error:
                self._problems.append(str(error))
                continue
            self._current = source
            self._timeline.start_pass(info.fps)
            return info
        return None

    def _grab(self) -> int | None:
        while self._current is not None:
            try:
                pts_ns = self._current.grab()
            except SourceError as error:  # opened, but not one frame in it
                self._problems.append(str(error))
                pts_ns = None
            if pts_ns is not None:
                return self._timeline.place(pts_ns)
            self._leave_current()
            self._open_next()
        return None

    def _leave_current(self) -> None:
        if self._current is None:
            return
        if self._current.problem:
            self._problems.append(self._current.problem)
        self._current.close()
        self._current = None

    def _retrieve(self) -> ImageArray:
        if self._current is None:
            raise SourceError(f"{self._folder}: not open")
        return self._current.retrieve()

    def _release(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None


def check_readable(path: Path) -> None:
    """Raise a SourceError that says why `path` cannot be a video; say nothing when it may be one."""
    try:
        status = path.stat()
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except OSError as error:
        raise SourceError(f"{path}: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path}: not a regular file")
    if not status.st_size:
        raise SourceError(f"{path}: the file is empty")


def list_videos(folder: Path) -> list[Path]:
    """The videos directly in `folder` in natural order. Raises SourceError when it is unreadable or has none."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  names alone, the order needs no stat
    except OSError as error:
        raise SourceError(f"{folder}: {os.strerror(error.errno or 0)}") from None
    videos = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")]
    if not videos:
        raise SourceError(f"{folder}: no videos in this folder")
    return [folder / name for name in sorted(videos, key=natural_key)]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key with numbers by value.

    >>> sorted(["clip10.mp4", "clip2.mp4", "Clip1.mp4"], key=natural_key)
    ['Clip1.mp4', 'clip2.mp4', 'clip10.mp4']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts)


def stream_info(capture: Any, *, live: bool) -> StreamInfo:
    """What an open cv2.VideoCapture knows; OpenCV's placeholders for "unknown" become 0."""
    count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return StreamInfo(
        width=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        fps=plausible_fps(float(capture.get(cv2.CAP_PROP_FPS))),
        frame_count=int(count) if not live and 0 < count < 1e12 else 0,
        live=live,
    )


def retrieve_image(capture: Any, name: str) -> ImageArray:
    """The grabbed picture of a cv2.VideoCapture. Raises SourceError when it cannot be converted."""
    if capture is None:
        raise SourceError(f"{name}: not open")
    try:
        done, image = capture.retrieve()
    except cv2.error as error:
        raise SourceError(f"{name}: picture cannot be converted: {error.err}") from None
    if not done or image is None:
        raise SourceError(f"{name}: the decoder gave no picture")
    return cast("ImageArray", image)

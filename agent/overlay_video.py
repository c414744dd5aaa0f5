"""`analyze --overlay`: the video once more, with what was recognised drawn on it.

A second pass over the file, when all is known: a verdict comes some frames after those that it is about, and to hold these back
would mean to hold them in memory. The first pass notes who was where, in a temporary file, and is the same as without.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import av
import cv2
import numpy as np

from agent.errors import DataError, RecognizerError, SourceError
from agent.events.evidence import step_time_ns
from agent.events.privacy import FaceBlur
from agent.offline import file_source
from agent.overlay import ActionBar, Mode, draw
from agent.ports import PipelineListener
from agent.recognition import NOMINAL_FPS
from agent.types import (
    NUM_KEYPOINTS,
    ActionScores,
    Event,
    EventPhase,
    FloatArray,
    Frame,
    FrameStamp,
    ImageArray,
    People,
    Tracks,
)

OVERLAY = "overlay.mp4"
VERDICT_SHOWN_S = 5.0
"""A verdict older than this is no longer drawn, as on the live page."""

_TICKS_PER_S = 90_000  # a period of 25, 30 and 30000/1001 frames a second is a whole number of them
_X264 = {"preset": "veryfast", "crf": "23", "bf": "0"}  # with B-frames MP4 misstates the length of an uneven video
_HEAD = struct.Struct("<qiiii?")  # t_mono_ns, width, height, people, tracks, its poses are known
_COLUMNS = np.cumsum([4, 1, NUM_KEYPOINTS])  # box, score, key-point scores, key points
_FLOATS = 5 + 3 * NUM_KEYPOINTS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SceneNotes:
    """A PipelineListener in front of `inner` that notes what an overlay needs, to be read when the video is done.

    Frames go to a nameless file in `folder`, about 500 bytes a person; verdicts and events stay in memory. A disk that is
    full disturbs nobody before the notes are read. alert: probability per service that turns its bar red.
    """

    def __init__(self, inner: PipelineListener, folder: Path, alert: Mapping[str, float]) -> None:
        self.frames = 0
        self.actions: list[tuple[int, ActionBar | Event]] = []
        """Verdicts and steps of events with their moment, ns on the camera's time line."""
        self._inner = inner
        self._folder = folder
        self._alert = alert
        self._file: IO[bytes] | None = None
        self._problem: OSError | None = None
        self._unseen = False  # the frame on the way to `on_tracks` has no poses

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, again
                self._file.close()

    @property
    def empty(self) -> bool:
        """There was no frame to note."""
        return self._file is None and self._problem is None

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        self._inner.on_tracks(frame, people, tracks, tracking_s)
        if self._problem is None:
            try:
                self._note(frame.stamp, people, tracks)
            except OSError as error:
                self._problem = error
        self._unseen = False

    def on_scores(self, scores: ActionScores) -> None:
        self._inner.on_scores(scores)
        bar = ActionBar(scores.service, scores.probability, self._alert.get(scores.service, 1.0))
        self.actions.append((scores.t_end_ns, bar))

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self._inner.on_failure(camera_id, stage, error, service)
        self._unseen |= stage == "pose"

    async def on_event(self, event: Event) -> None:
        await self._inner.on_event(event)
        self.actions.append((step_time_ns(event), event))

    def _note(self, stamp: FrameStamp, people: People, tracks: Tracks) -> None:
        if self._file is None:
            self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115  closed by __exit__
        counts = len(people), len(tracks.track_ids)
        self._file.write(_HEAD.pack(stamp.t_mono_ns, stamp.width, stamp.height, *counts, not self._unseen))
        for part in (_floats(people), _floats(tracks.people), tracks.track_ids):
            self._file.write(part.tobytes())
        self.frames += 1

    def read(self) -> Iterator[tuple[People | None, Tracks]]:
        """Everybody found (None where inference failed) and the tracked ones, frame by frame from the first. Raises OSError:
        the notes are not whole."""
        if self._problem is not None:
            raise self._problem
        if self._file is None:
            return
        self._file.seek(0)
        for number in range(self.frames):
            t_ns, width, height, found, tracked, seen = _HEAD.unpack(self._file.read(_HEAD.size))
            people, followed = (_people(self._file.read(4 * _FLOATS * count)) for count in (found, tracked))
            ids = np.frombuffer(self._file.read(8 * tracked), np.int64)
            stamp = FrameStamp("", number, t_ns, _EPOCH, width, height)
            yield people if seen else None, Tracks(stamp, followed, ids, np.ones(tracked, np.int64))


def _floats(people: People) -> FloatArray:
    keypoints = people.keypoints.reshape(-1, 2 * NUM_KEYPOINTS)
    columns = (people.boxes, people.scores[:, None], people.keypoint_scores, keypoints)
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _people(data: bytes) -> People:
    """The inverse of `_floats`."""
    rows = np.frombuffer(data, np.float32).reshape(-1, _FLOATS)
    boxes, scores, keypoint_scores, keypoints = np.split(rows, _COLUMNS, axis=1)
    return People(boxes, keypoints.reshape(-1, NUM_KEYPOINTS, 2), keypoint_scores, scores[:, 0])


class ActionTrace:
    """What there is to say about actions at moments that only rise. actions: see `SceneNotes.actions`."""

    def __init__(self, actions: Iterable[tuple[int, ActionBar | Event]]) -> None:
        self._waiting = deque(sorted(actions, key=itemgetter(0)))
        self._verdicts: dict[str, tuple[int, ActionBar]] = {}
        self._events: dict[str, Event] = {}

    def at(self, t_ns: int) -> list[ActionBar]:
        """The newest verdict of each service, then the events that run at `t_ns`, from `detected` to `resolved`."""
        while self._waiting and self._waiting[0][0] <= t_ns:
            moment_ns, one = self._waiting.popleft()
            if isinstance(one, Event):
                self._events[one.incident_id] = one
            else:
                self._verdicts[one.label] = (moment_ns, one)
        self._events = {
            incident: event
            for incident, event in self._events.items()
            if event.phase is not EventPhase.RESOLVED or step_time_ns(event) >= t_ns
        }
        fresh_ns = t_ns - round(VERDICT_SHOWN_S * 1e9)
        verdicts = [bar for moment_ns, bar in self._verdicts.values() if moment_ns >= fresh_ns]
        return verdicts + [ActionBar(f"EVENT {one.kind}", one.confidence, 0.0) for one in self._events.values()]


async def draw_overlay(
    video: Path, notes: SceneNotes, path: Path, *, blur_faces: bool, progress: Callable[[int, int], None]
) -> None:
    """Write `path` (H.264 in MP4): every frame of `video` that is in `notes`, at its time, to 1/90 ms.

    The picture has the size of the first frame, an odd side one pixel more (4:2:0 chroma). No sound. blur_faces: as in
    stored evidence; a frame whose inference failed is black then. progress: called with (frames done, frames in all).
    An earlier file at `path` goes first; the new one appears there when it is whole. Without a frame there is none.
    Raises DataError when it cannot be written, SourceError when `video` cannot be read a second time.
    """
    with _made_whole(path) as partial:
        if not notes.empty:
            await _draw_all(video, notes, partial, FaceBlur() if blur_faces else None, progress)


@contextmanager
def _made_whole(path: Path) -> Iterator[Path]:
    """The name under which to write what shall be `path`; nothing stays of what failed. Raises as `draw_overlay`."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        for old in (path, partial):
            old.unlink(missing_ok=True)
        yield partial
        if partial.exists():
            partial.replace(path)
    except (av.FFmpegError, OSError, SourceError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, SourceError):
            raise
        raise DataError(f"{path}: the overlay cannot be written: {error.strerror or error}") from error


async def _draw_all(
    video: Path, notes: SceneNotes, path: Path, blur: FaceBlur | None, progress: Callable[[int, int], None]
) -> None:
    trace = ActionTrace(notes.actions)
    with closing(file_source(video)) as source:
        fps = source.open().fps or NOMINAL_FPS
        with av.open(str(path), "w", format="mp4") as container:
            track = _VideoTrack(container, fps)
            for number, (people, tracks) in enumerate(notes.read(), start=1):
                picture = source.read()
                if picture is None:
                    raise SourceError(f"{video}: it has fewer frames than a moment ago")
                image, t_ns = picture[0], tracks.stamp.t_mono_ns
                mode = Mode.FULL
                if blur is not None and people is not None:
                    blur.apply(image, people, t_ns)
                elif blur is not None:  # nobody knows where the faces are
                    mode = Mode.SKELETON
                caption = f"frame {number}  {t_ns / 1e9:.2f} s"
                track.write(draw(image, tracks, mode=mode, actions=trace.at(t_ns), caption=caption), t_ns)
                progress(number, notes.frames)
                await asyncio.sleep(0)  # here Ctrl-C comes in
            track.finish()


class _VideoTrack:
    """The one stream of a container; its size is that of the first picture. fps: how long the last one is shown."""

    def __init__(self, container: Any, fps: float) -> None:
        self._container = container
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None
        self._last = -1

    def write(self, image: ImageArray, t_ns: int) -> None:
        """Append a picture; two that are closer than a tick move a tick apart. Raises av.FFmpegError."""
        image = _even(image)
        if self._stream is None:
            self._stream = self._open(image)
        size = (self._stream.width, self._stream.height)
        if image.shape[1::-1] != size:  # another file of a folder
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._last = max(round(t_ns * _TICKS_PER_S / 1e9), self._last + 1)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "bgr24")
        picture.pts, picture.time_base = self._last, Fraction(1, _TICKS_PER_S)
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def _open(self, image: ImageArray) -> Any:
        stream = self._container.add_stream("libx264", rate=self._rate, options=_X264)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        return stream


def _even(image: ImageArray) -> ImageArray:
    """`image` with its last row and column repeated where their number is odd."""
    bottom, right = image.shape[0] % 2, image.shape[1] % 2
    even: ImageArray = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return even

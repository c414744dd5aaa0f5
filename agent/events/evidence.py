"""The last seconds of one camera in memory, and the clips cut from them. No disk here: see `evidence_files`.

Pictures are thinned to `EvidenceConfig.fps`, scaled down, faces blurred, then JPEG-encoded: nothing else is kept.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import PurePosixPath

import cv2

from agent.config.schema import EvidenceConfig
from agent.errors import DataError
from agent.events.privacy import FaceBlur
from agent.types import Event, EventPhase, Frame, ImageArray, People, Tracks

MOST_PASSED_OVER = 128
"""Frames between two pictures whose people are remembered, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class EvidenceFrame:
    """A kept picture. jpeg: blurred and scaled, width x height px; tracks: in source pixels, with the frame's stamp."""

    jpeg: bytes
    width: int
    height: int
    tracks: Tracks

    @property
    def t_mono_ns(self) -> int:
        return self.tracks.stamp.t_mono_ns


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """What belongs to one incident, ready to be written.

    opened: the `detected` step; latest: the newest step known; frames: oldest first; faces_blurred: as configured while
    it was recorded.
    """

    opened: Event
    latest: Event
    frames: tuple[EvidenceFrame, ...]
    faces_blurred: bool

    @property
    def truncated(self) -> bool:
        """The clip was cut (`max_clip_s`, shutdown) before the incident ended."""
        return self.latest.phase is not EventPhase.RESOLVED

    @property
    def folder(self) -> PurePosixPath:
        """Where it goes, relative to the evidence root."""
        return evidence_folder(self.opened)


@dataclass(slots=True)
class _Recording:
    """An incident being recorded. until_ns: last moment that belongs to the clip, as far as known by now."""

    opened: Event
    latest: Event
    frames: list[EvidenceFrame]
    until_ns: int


def evidence_folder(event: Event) -> PurePosixPath:
    """`<camera>/<UTC date of the onset>/<incident>`: the same for every step of an incident."""
    return PurePosixPath(event.camera_id, f"{event.t_onset_utc:%Y-%m-%d}", event.incident_id)


def step_time_ns(event: Event) -> int:
    """The step's moment on the camera's time line."""
    return event.t_start_ns + round(event.duration_s * 1e9)


class EvidenceRing:
    """Keeps the recent past of one camera and records open incidents, in one life of it: when its time line begins anew, so
    does a new ring.

    lookback_s: how far behind the present an onset may lie, that is, how long the rules need to detect one; pictures
    are kept for `pre_roll_s + lookback_s`, so a clip starts `pre_roll_s` before the onset and not before the alarm.

    `offer` may run on another thread than the other methods (it costs milliseconds); calls of `offer` must not overlap.
    """

    def __init__(self, camera_id: str, config: EvidenceConfig, *, lookback_s: float = 10.0) -> None:
        self._camera_id = camera_id
        self._config = config
        self._period_ns = round(1e9 / config.fps)
        self._keep_ns = 0
        self.look_back(lookback_s)
        self._blur = FaceBlur()
        self._due_ns: int | None = None
        self._lock = threading.Lock()  # guards the three below
        self._passed_over: deque[tuple[int, People]] = deque(maxlen=MOST_PASSED_OVER)
        self._ring: deque[EvidenceFrame] = deque()
        self._recordings: dict[str, _Recording] = {}

    def look_back(self, lookback_s: float) -> None:
        """From now on; from any thread."""
        self._keep_ns = round((self._config.pre_roll_s + lookback_s) * 1e9)

    @property
    def held_bytes(self) -> int:
        """Bytes of the pictures in the ring (those of open recordings are mostly the same)."""
        with self._lock:
            return sum(len(frame.jpeg) for frame in self._ring)

    def wants(self, t_mono_ns: int) -> bool:
        """Whether `offer` would keep a frame of this time; cheap, so that a frame can be skipped without a thread."""
        return self._config.enabled and (self._due_ns is None or t_mono_ns >= self._due_ns)

    def pass_over(self, t_mono_ns: int, people: People) -> None:
        """A frame of this time shows `people` and is not offered: who is lost in the next one stays covered all the same."""
        if not (self._config.enabled and self._config.blur_faces):
            return
        with self._lock:
            self._passed_over.append((t_mono_ns, people))
            while t_mono_ns - self._passed_over[0][0] > self._blur.hold_ns:
                self._passed_over.popleft()

    def offer(self, frame: Frame, people: People, tracks: Tracks) -> list[Clip]:
        """Take one frame if it is time for one; the clips that are complete by now.

        people: everyone the estimator reported, also the doubtful: their heads are blurred; tracks: the confirmed ones,
        for the skeleton file. Raises DataError when the picture cannot be encoded.
        """
        t_ns = frame.stamp.t_mono_ns
        if not self.wants(t_ns):
            self.pass_over(t_ns, people)
            return self.poll(t_ns)
        # A grid of due times keeps the mean rate in spite of jitter; after a pause the grid starts anew.
        late_ns = t_ns - (t_ns if self._due_ns is None else self._due_ns)
        self._due_ns = t_ns + self._period_ns - (late_ns if late_ns < self._period_ns else 0)
        image = self._shrink(frame)
        if self._config.blur_faces:
            for before_ns, others in self._take_passed_over(t_ns):
                self._blur.see(others, before_ns)
            self._blur.apply(image, people, t_ns, scale=image.shape[1] / frame.stamp.width)
        good, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._config.jpeg_quality])
        if not good:
            raise DataError(f"{self._camera_id}: a {image.shape} picture could not be encoded")
        kept = EvidenceFrame(encoded.tobytes(), image.shape[1], image.shape[0], tracks)
        with self._lock:
            self._ring.append(kept)
            while self._ring[0].t_mono_ns < t_ns - self._keep_ns:
                self._ring.popleft()
            for recording in self._recordings.values():
                if t_ns <= recording.until_ns:
                    recording.frames.append(kept)
        return self.poll(t_ns)

    def observe(self, event: Event) -> None:
        """Follow an incident: `detected` starts its recording, `resolved` ends it after the post-roll."""
        if not self._config.enabled:
            return
        with self._lock:
            if event.phase is EventPhase.DETECTED:
                self._recordings[event.incident_id] = self._begin(event)
            elif (recording := self._recordings.get(event.incident_id)) is not None:  # None: cut at max_clip_s
                recording.latest = event
                if event.phase is EventPhase.RESOLVED:
                    post_roll_until_ns = step_time_ns(event) + round(self._config.post_roll_s * 1e9)
                    recording.until_ns = min(recording.until_ns, post_roll_until_ns)

    def poll(self, now_ns: int) -> list[Clip]:
        """The clips that are complete at `now_ns` of the camera's time line; for ticks while it delivers nothing."""
        with self._lock:
            done = [key for key, recording in self._recordings.items() if now_ns >= recording.until_ns]
            return [self._cut(self._recordings.pop(key)) for key in done]

    def flush(self) -> list[Clip]:
        """End of the source or of the agent: every open recording as it stands."""
        with self._lock:
            clips = [self._cut(recording) for recording in self._recordings.values()]
            self._recordings.clear()
        return clips

    def _take_passed_over(self, until_ns: int) -> list[tuple[int, People]]:
        """Those before `until_ns`, oldest first. Others, too, may have come in while the frame of that time was waiting."""
        with self._lock:
            passed = sorted(self._passed_over, key=lambda one: one[0])
            self._passed_over.clear()
            self._passed_over.extend(one for one in passed if one[0] >= until_ns)
        return [one for one in passed if one[0] < until_ns]

    def _begin(self, event: Event) -> _Recording:
        start_ns = event.t_start_ns - round(self._config.pre_roll_s * 1e9)
        frames = [frame for frame in self._ring if frame.t_mono_ns >= start_ns]
        first_ns = frames[0].t_mono_ns if frames else step_time_ns(event)
        until_ns = first_ns + round(self._config.max_clip_s * 1e9)
        return _Recording(event, event, [frame for frame in frames if frame.t_mono_ns <= until_ns], until_ns)

    def _cut(self, recording: _Recording) -> Clip:
        return Clip(recording.opened, recording.latest, tuple(recording.frames), self._config.blur_faces)

    def _shrink(self, frame: Frame) -> ImageArray:
        """A writable copy, at most `max_width_px` wide, both sides even as H.264 with 4:2:0 chroma needs."""
        height, width = frame.image.shape[:2]
        scale = min(1.0, self._config.max_width_px / width)
        size = (max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2))
        image = frame.image
        while image.shape[1] >= 2 * size[0] and image.shape[0] >= 2 * size[1]:
            # Halving is vectorised in OpenCV: 1.3 ms for 1080p to 640 px, one step of INTER_AREA takes 3.4 ms.
            image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
        if image.shape[1::-1] != size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        return image.copy() if image is frame.image else image

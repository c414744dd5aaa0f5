"""The blocking half of a camera: one thread that opens, reads, stamps, watches and reconnects."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import TypeVar

import structlog

from agent.backoff import full_jitter
from agent.capture.base import NS_PER_S, ReportingSource, SourceDeniedError, in_two_steps, redact, redact_in
from agent.capture.handover import Handover
from agent.capture.timeline import RateMeter, Thinner, Timeline
from agent.capture.viewpoint import Viewpoint, thumbnail
from agent.capture.watch import PictureWatch, View, sample_points
from agent.config.schema import CameraConfig
from agent.errors import FatalError, SourceError
from agent.ports import StreamInfo, VideoSource, as_image
from agent.types import CameraPhase, Frame, FrameStamp, ImageArray

STABLE_AFTER_S = 10.0
"""A connection that held this long counts as good: the next loss starts with the shortest wait again."""
_MAX_LAG_NS = NS_PER_S
"""A paced file that is later than this plays on from now instead of hurrying after its schedule."""

_log = structlog.get_logger("capture")
_T = TypeVar("_T")


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time and chance come from."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    utc_now: Callable[[], datetime] = _utc_now
    random: Callable[[], float] = random.random


class _Pass(Enum):
    """Why reading a source stopped without an error."""

    ENDED = auto()
    PAUSED = auto()
    STOPPED = auto()


class Decoder:
    """Reads `source` into `handover` until it ends, fails for good or is stopped. `run` belongs to one thread.

    The public counters are written by that thread alone; others may read them at any time.
    """

    def __init__(
        self,
        config: CameraConfig,
        source: VideoSource,
        handover: Handover,
        *,
        endless: bool,
        live: bool,
        clock: Clock,
        viewpoint: Viewpoint,
    ) -> None:
        self._config = config
        self._source = source
        self._pictures = in_two_steps(source)
        self._handover = handover
        self._endless = endless
        self._live = live
        self._clock = clock
        self._stop = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._timeline = Timeline()
        self._watch = PictureWatch(config.frozen_after_s, config.blind_after_s)
        self._viewpoint = viewpoint
        self._thinner = Thinner(config.max_fps)
        self._seq = 0
        self._last_ns = -1
        self._start_utc: datetime | None = None
        self._pace_from_ns: int | None = None
        self._opened = 0
        self.decoded = RateMeter()
        self.info = StreamInfo(0, 0, 0.0, 0, live=live)
        self.size = (0, 0)
        self.phase = CameraPhase.CONNECTING
        self.error = ""
        self.errors = 0

    # --- from any thread ---

    @property
    def view(self) -> View:
        """What the picture watch says."""
        return self._watch.view

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    @property
    def reconnects(self) -> int:
        """Connections made after the first one."""
        return max(0, self._opened - 1) if self._endless else 0

    def set_max_fps(self, max_fps: float) -> None:
        """Bound the frames handed on per second from now on; 0 = no bound. Live sources only."""
        self._thinner.max_fps = max_fps

    def pause(self) -> None:
        """Stop reading; a live source is closed, so that it costs nothing."""
        self._running.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running.set()

    def stop(self) -> None:
        """End `run` as soon as the current call into the source returns."""
        self._stop.set()
        self._running.set()
        self._handover.finish()
        self._close()

    # --- the thread ---

    def run(self) -> None:
        """Until the end. Never raises: the error that ended it goes to whoever takes the frames."""
        error: Exception | None = None
        try:
            self._serve()
        except SourceError as failure:
            self.phase, self.error, error = CameraPhase.OFFLINE, str(failure), failure
            _log.error("source failed", camera=self._config.id, error=str(failure))
        except Exception as failure:  # noqa: BLE001  a thread's last frame: the consumer raises it, nothing is hidden
            self.phase, self.error, error = CameraPhase.OFFLINE, f"{type(failure).__name__}: {failure}", failure
        finally:
            self._close()
            self._handover.finish(error)

    def _serve(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            if self.paused:
                self._running.wait()
                continue
            began_ns = self._clock.monotonic_ns()
            try:
                outcome = self._pass()
            except SourceError as error:
                self._close()
                if self._stop.is_set():
                    return
                if not self._endless:
                    raise
                stable = self._clock.monotonic_ns() - began_ns >= STABLE_AFTER_S * NS_PER_S
                attempt = 0 if stable and self.phase is CameraPhase.STREAMING else attempt
                self._wait_after(error, attempt)
                attempt += 1
                continue
            self._close()
            if outcome is _Pass.STOPPED:
                return
            if outcome is _Pass.ENDED and not self._config.loop:
                self.phase = CameraPhase.ENDED
                _log.info("source ended", camera=self._config.id, frames=self._seq, problem=self.error)
                return

    def _wait_after(self, error: SourceError, attempt: int) -> None:
        if self.phase is not CameraPhase.OFFLINE:  # once per outage, not once per try
            _log.warning("camera offline", camera=self._config.id, error=str(error))
        self.phase, self.error = CameraPhase.OFFLINE, str(error)
        self.errors += 1
        self._watch.reset()
        policy = self._config.reconnect
        denied = isinstance(error, SourceDeniedError)
        self._stop.wait(
            policy.max_s if denied else full_jitter(attempt, policy.initial_s, policy.max_s, self._clock.random)
        )

    def _pass(self) -> _Pass:
        """Open the source and read it until it ends, is paused or is stopped. Raises SourceError."""
        if self.phase is not CameraPhase.OFFLINE:
            self.phase = CameraPhase.CONNECTING
        self.info = self._ask(self._open)
        self.size = (self.info.width, self.info.height)
        self._timeline.start_pass(self.info.fps)
        self._watch.reset()
        self._viewpoint.interrupt()
        self._pace_from_ns = None
        if self._start_utc is None:
            self._start_utc = self._clock.utc_now()
        frames = 0
        while not self._stop.is_set():
            if self.paused:
                if self._endless:
                    return _Pass.PAUSED
                self._handover.flush()
                self._running.wait()
                self._pace_from_ns = None
                continue
            if not self._step():
                self._note_problem()
                return self._ended(frames)
            if not frames:
                self._connected()
            frames += 1
        return _Pass.STOPPED

    def _ended(self, frames: int) -> _Pass:
        if self._stop.is_set():
            return _Pass.STOPPED
        if self._endless:
            raise SourceError("the stream ended")
        if not frames:
            raise SourceError(f"{redact(self._config.source)}: no frame in it")
        return _Pass.ENDED

    def _connected(self) -> None:
        self._opened += 1
        self.phase, self.error = CameraPhase.STREAMING, ""
        self._note_problem()
        if self._opened == 1 or self._endless:
            width, height = self.size
            _log.info("camera streaming", camera=self._config.id, width=width, height=height, fps=self.info.fps)

    def _note_problem(self) -> None:
        if isinstance(self._source, ReportingSource) and self._source.problem:
            self.error = self._source.problem

    def _step(self) -> bool:
        """Read one picture and hand it on, unless it is thinned out. False at the end. Raises SourceError."""
        pts_ns = self._ask(self._pictures.grab)
        if pts_ns is None:
            return False
        now_ns = self._clock.monotonic_ns()
        self.decoded.add(now_ns)
        t_ns = max(now_ns, self._last_ns + 1) if self._endless else self._ask(lambda: self._timeline.place(int(pts_ns)))
        self._last_ns = t_ns
        seq, self._seq = self._seq, self._seq + 1
        if self._live:
            if not self._endless:
                self._keep_pace(t_ns)
            if not self._thinner.accept(t_ns):
                return True
        self._emit(self._ask(self._picture), seq, t_ns)
        return True

    def _open(self) -> StreamInfo:
        info = self._source.open()
        if not isinstance(info, StreamInfo):
            raise SourceError(f"open() gave a {type(info).__name__}, expected a StreamInfo")
        return info

    def _ask(self, call: Callable[[], _T]) -> _T:
        """What a call into the source gives. Raises SourceError whatever a plug-in's code does there, `sys.exit` too: one
        camera's trouble stays that camera's."""
        try:
            return call()
        except FatalError:
            raise
        except SourceError as error:
            error.args = (redact_in(str(error), self._config.source),)
            raise
        except BaseException as error:
            text = redact_in(f"{type(error).__name__}: {error}", self._config.source)
            if self.phase is not CameraPhase.OFFLINE:  # once per outage, not once per try
                _log.error("source has a bug", camera=self._config.id, error=text, exc_info=error)
            raise SourceError(text) from error

    def _close(self) -> None:
        try:
            self._source.close()
        except BaseException as error:  # noqa: BLE001 - a plug-in's bug; there is nothing more to do with it
            text = redact_in(f"{type(error).__name__}: {error}", self._config.source)
            _log.error("source not closed", camera=self._config.id, error=text, exc_info=error)

    def _picture(self) -> ImageArray:
        try:
            return as_image(self._pictures.retrieve())
        except ValueError as error:
            raise SourceError(f"{redact(self._config.source)}: {error}") from None

    def _emit(self, image: ImageArray, seq: int, t_ns: int) -> None:
        if self._watch.due(t_ns):
            self._watch.update(sample_points(image), t_ns)
        if self._watch.view is not View.CLEAR:
            self._viewpoint.interrupt()
        elif self._endless and self._viewpoint.due(t_ns):  # recordings may be of many places
            self._viewpoint.update(thumbnail(image), t_ns)
        height, width = image.shape[:2]
        self.size = (width, height)
        frame = Frame(FrameStamp(self._config.id, seq, t_ns, self._utc_of(t_ns), width, height), image)
        if self._live:
            self._handover.put_newest(frame)
        else:
            self._handover.put_all(frame)

    def _utc_of(self, t_ns: int) -> datetime:
        if self._endless or self._start_utc is None:
            return self._clock.utc_now()
        return self._start_utc + timedelta(microseconds=t_ns // 1000)

    def _keep_pace(self, t_ns: int) -> None:
        """Wait until the frame at `t_ns` is due at recorded speed, or until stopped."""
        now_ns = self._clock.monotonic_ns()
        if self._pace_from_ns is None or now_ns - (self._pace_from_ns + t_ns) > _MAX_LAG_NS:
            self._pace_from_ns = now_ns - t_ns
        self._stop.wait(max(0, self._pace_from_ns + t_ns - now_ns) / NS_PER_S)

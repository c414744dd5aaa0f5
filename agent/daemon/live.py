"""The live view: the newest frame of every camera, drawn and encoded only while somebody watches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from agent.config.schema import HttpConfig
from agent.events.privacy import FaceBlur
from agent.overlay import ActionBar, Mode, draw
from agent.types import ActionScores, Event, EventPhase, Frame, FrameStamp, ImageArray, People, Tracks

MAX_WIDTH_PX = 960
JPEG_QUALITY = 75
RECENT_EVENTS = 50
MOST_UNBLURRED = 128
VERDICT_SHOWN_S = 5.0
"""A verdict older than this is no longer drawn."""


Scene = tuple[Frame, People, Tracks]
"""A frame with everyone seen in it and the tracked ones."""


@dataclass(slots=True)
class _View:
    """What is known of one camera. pictures: per mode the newest one, of which frame it is, and until when it is new enough for whoever asks.

    unblurred: when and who, of the latest frames that `blur` has not seen.
    """

    newest: Scene | None = None
    unblurred: deque[tuple[int, People]] = field(default_factory=lambda: deque(maxlen=MOST_UNBLURRED))
    scores: dict[str, tuple[float, ActionScores]] = field(default_factory=dict)
    blur: FaceBlur = field(default_factory=FaceBlur)
    pictures: dict[Mode, tuple[FrameStamp, float, asyncio.Future[bytes]]] = field(default_factory=dict)


class LiveHub:
    """Fed by the pipeline on the loop; read by any number of viewers. alert: probability that turns a bar red."""

    def __init__(self, config: HttpConfig, alert: Mapping[str, float]) -> None:
        self._config = config
        self._alert = alert
        self._views: dict[str, _View] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=RECENT_EVENTS)
        self._open: dict[str, Event] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="live")
        self.viewers = 0

    def reconfigure(self, config: HttpConfig, alert: Mapping[str, float]) -> None:
        """Apply what may change while running: `live_fps`, and the thresholds of alerts."""
        self._config, self._alert = config, alert

    def close(self) -> None:
        """End the encoder."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- fed ----------------------------------------------------------------------------------------------------------

    def offer(self, frame: Frame, people: People, tracks: Tracks) -> None:
        """A new frame of a camera."""
        view = self._view(frame.stamp.camera_id)
        view.newest = (frame, people, tracks)
        view.unblurred.append((frame.stamp.t_mono_ns, people))
        while frame.stamp.t_mono_ns - view.unblurred[0][0] > view.blur.hold_ns:
            view.unblurred.popleft()

    def on_scores(self, scores: ActionScores) -> None:
        """A new verdict; a probability that is none, as rules see it, is not shown."""
        if not 0.0 <= scores.probability <= 1.0:  # False for NaN, which JSON does not have
            return
        self._view(scores.camera_id).scores[scores.service] = (time.monotonic(), scores)

    def on_event(self, event: Event, sequence: int | None) -> None:
        """An event; sequence None: it could not be committed, who looks at the page learns of it all the same."""
        if event.phase is EventPhase.RESOLVED:
            self._open.pop(event.incident_id, None)
        else:
            self._open[event.incident_id] = event
        self._events.appendleft(
            {
                "sequence": sequence, "event_id": event.event_id, "incident_id": event.incident_id, "kind": event.kind,
                "phase": event.phase.value, "camera": event.camera_id, "t": event.t_utc.isoformat(timespec="milliseconds"),
                "duration_s": round(event.duration_s, 2), "confidence": round(event.confidence, 3),
                "track_ids": list(event.track_ids),
            }
        )  # fmt: skip

    def forget(self, camera_id: str) -> None:
        """A camera was removed."""
        self._views.pop(camera_id, None)

    # --- read ---------------------------------------------------------------------------------------------------------

    @property
    def recent_events(self) -> list[dict[str, Any]]:
        """The latest event steps since the start, newest first."""
        return list(self._events)

    @property
    def active_incidents(self) -> list[dict[str, str]]:
        """Incidents that have not been resolved."""
        return [
            {
                "incident_id": event.incident_id,
                "kind": event.kind,
                "camera": event.camera_id,
                "phase": event.phase.value,
            }
            for event in self._open.values()
        ]

    def camera_state(self, camera_id: str) -> dict[str, Any]:
        """People and latest verdicts of one camera, for JSON."""
        view = self._views.get(camera_id)
        if view is None or view.newest is None:
            return {"people": 0, "track_ids": [], "scores": {}}
        _, people, tracks = view.newest
        return {
            "people": len(people),
            "track_ids": tracks.track_ids.tolist(),
            "scores": {name: round(scores.probability, 3) for name, scores in self._fresh(view).items()},
        }

    async def pictures(self, camera_id: str, mode: Mode = Mode.FULL) -> AsyncGenerator[bytes, None]:
        """JPEG pictures of a camera, at most `live_fps` a second, until the viewer leaves or the camera is removed."""
        view, shown = self._view(camera_id), None
        self.viewers += 1
        try:
            while self._views.get(camera_id) is view:
                if view.newest is not None and view.newest[0].stamp is not shown:
                    shown = view.newest[0].stamp
                    yield await self._picture(view, view.newest, mode)
                await asyncio.sleep(1 / self._config.live_fps)
        finally:
            self.viewers -= 1

    async def picture(self, camera_id: str, mode: Mode = Mode.FULL) -> bytes | None:
        """The newest picture of a camera; None while it has delivered none."""
        view = self._views.get(camera_id)
        return await self._picture(view, view.newest, mode) if view is not None and view.newest is not None else None

    async def _picture(self, view: _View, scene: Scene, mode: Mode) -> bytes:
        """Encoded `live_fps` times a second at most per mode, and one at a time, however many ask for it at whatever moments; one who
        leaves does not spoil it for the others."""
        stamp, now_s = scene[0].stamp, time.monotonic()  # not `seq`: that starts again with each source
        known = view.pictures.get(mode)
        if known is None or (known[0] is not stamp and known[1] <= now_s and known[2].done()):
            bars = [
                ActionBar(name, scores.probability, self._alert.get(name, 1.0))
                for name, scores in self._fresh(view).items()
            ]
            blur = view.blur if self._config.blur_faces else None
            seen = list(view.unblurred)
            view.unblurred.clear()
            work = asyncio.get_running_loop().run_in_executor(self._thread, encode, scene, bars, mode, blur, seen)
            known = view.pictures[mode] = (stamp, now_s + 1 / self._config.live_fps, work)
        return await asyncio.shield(known[2])

    def _fresh(self, view: _View) -> dict[str, ActionScores]:
        oldest = time.monotonic() - VERDICT_SHOWN_S
        return {name: scores for name, (at, scores) in view.scores.items() if at >= oldest}

    def _view(self, camera_id: str) -> _View:
        if camera_id not in self._views:
            self._views[camera_id] = _View()
        return self._views[camera_id]


def encode(
    scene: Scene,
    bars: Sequence[ActionBar],
    mode: Mode,
    blur: FaceBlur | None,
    seen: Sequence[tuple[int, People]] = (),
) -> bytes:
    """The scene as a JPEG, people drawn on it. seen: in the frames up to it, which were not encoded. Blocks for milliseconds."""
    frame, people, tracks = scene
    image = _scaled(frame.image)
    if blur is not None:
        for t_mono_ns, others in seen:
            blur.see(others, t_mono_ns)
        blur.apply(image, people, frame.stamp.t_mono_ns, scale=image.shape[1] / frame.stamp.width)
    caption = f"{frame.stamp.camera_id}  {frame.stamp.t_utc:%Y-%m-%d %H:%M:%S} UTC"
    drawn = draw(image, tracks, mode=mode, actions=bars, caption=caption, found=people)
    _, encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(encoded)


def _scaled(image: ImageArray) -> ImageArray:
    """A writable copy, at most `MAX_WIDTH_PX` wide."""
    height, width = image.shape[:2]
    if width <= MAX_WIDTH_PX:
        return image.copy()
    size = (MAX_WIDTH_PX, round(height * MAX_WIDTH_PX / width))
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))

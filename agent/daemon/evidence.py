"""Evidence of all cameras: a ring each, one thread that shrinks, blurs and encodes, one writer to disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from agent.config.schema import AgentConfig, EvidenceConfig, ServiceConfig
from agent.errors import DataError
from agent.events.evidence import Clip, EvidenceRing, evidence_folder, step_time_ns
from agent.events.evidence_writer import EvidenceWriter
from agent.health.governor import LADDER, Step
from agent.types import Event, Frame, People, Tracks

_log = structlog.get_logger(__name__)

MAX_PENDING = 4
"""Pictures that may wait for the thread, per camera; more are skipped, the clip then has a lower frame rate."""

SLOW_CAMERA_FPS = 10.0


class Evidence:
    """Takes frames and events of all cameras; never makes the pipeline wait and never fails it.

    lookback_s: how long the rules may take to open an incident; that much more is kept for the pre-roll. clock_ns: monotonic.
    """

    def __init__(
        self,
        config: EvidenceConfig,
        writer: EvidenceWriter,
        *,
        lookback_s: float = 10.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._config = config
        self._clock_ns = clock_ns
        self._lookback_s = lookback_s
        self._writer = writer
        self._rings: dict[str, EvidenceRing] = {}
        self._latest_ns: dict[str, tuple[int, int]] = {}  # by camera, on its time line and on the clock
        self._pending: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evidence")
        self.skipped = 0

    def offer(self, frame: Frame, people: People, tracks: Tracks) -> None:
        """Keep the frame if it is time for one. One of an earlier time than the frame before begins a new life of its camera."""
        camera_id, t_ns = frame.stamp.camera_id, frame.stamp.t_mono_ns
        if camera_id in self._latest_ns and t_ns < self._latest_ns[camera_id][0]:
            self.forget(camera_id)
        self._latest_ns[camera_id] = t_ns, self._clock_ns()
        ring = self._ring(camera_id)
        if not ring.wants(t_ns):
            ring.pass_over(t_ns, people)
            return
        if self._pending.get(camera_id, 0) >= MAX_PENDING:
            self.skipped += 1
            ring.pass_over(t_ns, people)
            return
        self._pending[camera_id] = self._pending.get(camera_id, 0) + 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, ring.offer, frame, people, tracks)
        work.add_done_callback(lambda done: self._offered(camera_id, done))

    def look_back(self, lookback_s: float) -> None:
        """The rules take another time to open an incident now."""
        self._lookback_s = lookback_s
        for ring in self._rings.values():
            ring.look_back(lookback_s)

    def attributes(self, event: Event) -> dict[str, object]:
        """What tells subscribers where the evidence of `event` will be."""
        return {"evidence": str(evidence_folder(event))} if self._config.enabled else {}

    def observe(self, event: Event) -> None:
        """Follow an incident: its recording begins and ends with it."""
        if self._config.enabled:
            self._ring(event.camera_id).observe(event)
            self._latest_ns.setdefault(event.camera_id, (step_time_ns(event), self._clock_ns()))

    def poll(self, camera_id: str) -> None:
        """Time goes on for a camera that delivers nothing, on its own time line: what it has recorded is cut when it is due."""
        if camera_id in self._rings and camera_id in self._latest_ns:
            latest_ns, seen_ns = self._latest_ns[camera_id]
            self._submit(self._rings[camera_id].poll(latest_ns + self._clock_ns() - seen_ns))

    def forget(self, camera_id: str) -> None:
        """A life of a camera is over: what it was recording is cut, behind the pictures that are still on their way."""
        self._latest_ns.pop(camera_id, None)
        ring = self._rings.pop(camera_id, None)
        if ring is not None:
            work = asyncio.get_running_loop().run_in_executor(self._thread, ring.flush)
            work.add_done_callback(lambda done: self._take(camera_id, done))

    async def drain(self) -> None:
        """Cut what is being recorded and wait until it is on disk."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)  # everything offered is in
        for ring in self._rings.values():
            self._submit(ring.flush())
        await self._writer.drain()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ring(self, camera_id: str) -> EvidenceRing:
        if camera_id not in self._rings:
            self._rings[camera_id] = EvidenceRing(camera_id, self._config, lookback_s=self._lookback_s)
        return self._rings[camera_id]

    def _offered(self, camera_id: str, done: asyncio.Future[list[Clip]]) -> None:
        self._pending[camera_id] -= 1
        self._take(camera_id, done)

    def _take(self, camera_id: str, done: asyncio.Future[list[Clip]]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._submit(done.result())
        elif isinstance(error, DataError):
            self.skipped += 1
        else:
            _log.error("evidence_offer_failed", camera=camera_id, exc_info=error)

    def _submit(self, clips: list[Clip]) -> None:
        for clip in clips:
            if not self._writer.submit(clip):
                _log.error("evidence_dropped", camera=clip.opened.camera_id, incident=clip.opened.incident_id)


def lookback_s(config: AgentConfig) -> float:
    """How far behind its alarm the onset of an incident may lie, on whichever step of the governor, at 10 frames a second where the
    rate is the camera's and nothing slows it."""
    services = [service for service in config.services.values() if service.enabled]
    return max((_detection_s(service, step) for service in services for step in LADDER), default=0.0)


def _detection_s(service: ServiceConfig, step: Step) -> float:
    window, fps = service.window, step.camera_fps(SLOW_CAMERA_FPS)
    stride = step.stride(window, service.rules.silence_s, usual_fps=SLOW_CAMERA_FPS, fps=fps)
    return (window.length + service.rules.alert_count * stride) / (window.rate_hz or fps)

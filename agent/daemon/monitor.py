"""The agent watching itself: probes to metrics, to health reasons, to the governor, to retained MQTT state."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from agent.config.schema import HealthConfig
from agent.errors import StorageError
from agent.health.governor import LADDER, Decision, Governor, Hold
from agent.health.gpu import FAULTS
from agent.health.probes import Probes, ProbeSample
from agent.health.reasons import HealthState, Reason
from agent.observe.metrics import CameraMetrics, Metrics
from agent.types import CameraPhase, CameraStatus, Lane

_log = structlog.get_logger(__name__)

STORE_PATIENCE_S = 5.0
"""A disk that hangs answers nothing at all; health and the governor do not wait for it."""


@dataclass(frozen=True, slots=True)
class OutboxFigures:
    """rows: waiting messages by lane; oldest_age_s: of the oldest, 0 = none waits."""

    rows: dict[Lane, int]
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class MonitorPorts:
    """What the monitor looks at and where it acts."""

    cameras: Callable[[], list[CameraStatus]]
    outbox: Callable[[], Awaitable[OutboxFigures]]
    models: Callable[[], dict[str, str]]
    apply_step: Callable[[int], None]
    publish_health: Callable[[dict[str, Any]], None]
    publish_camera: Callable[[str, dict[str, Any]], None]
    sinks: Callable[[], Mapping[str, dict[str, object]]] = dict


class Monitor:
    """One round per `probe_interval_s`; publishes on change and every `publish_interval_s`."""

    def __init__(
        self, config: HealthConfig, probes: Probes, health: HealthState, metrics: Metrics, ports: MonitorPorts
    ) -> None:
        self._config = config
        self._probes = probes
        self._health = health
        self._metrics = metrics
        self._ports = ports
        self._governor = Governor(config.governor)
        self._decision = Decision(0, changed=False, reasons=())
        self._held = Hold(0, 0, "")
        self._sample: ProbeSample | None = None
        self._outbox = OutboxFigures({}, 0.0)
        self._published: dict[str, tuple[float, object]] = {}
        self._camera_metrics: dict[str, tuple[CameraMetrics, CameraStatus]] = {}

    def reconfigure(self, config: HealthConfig) -> None:
        """Apply the keys that may change while running."""
        self._config = config
        self._governor.reconfigure(config.governor)

    def hold_degradation(self, step: int, for_s: float, who: str) -> None:
        """For a while not below `step` of the ladder; 0 lets go. Applied with the next round."""
        self._held = Hold(step, time.monotonic_ns() + int(for_s * 1e9), who)

    @property
    def step(self) -> int:
        """The governor's rung, 0 = full service."""
        return self._decision.step

    @property
    def outbox(self) -> OutboxFigures:
        """What the last round saw waiting."""
        return self._outbox

    async def round(self) -> None:
        """Measure once, decide, publish what changed or is due."""
        self._sample = sample = await self._probes.sample()
        await self._look_at_outbox()
        self._raise_reasons(sample)
        self._govern(sample)
        self._export(sample)
        snapshot = self._health.snapshot()
        reasons = tuple(reason.reason for reason in snapshot.reasons)
        level = (snapshot.level, reasons, self._decision.step, tuple(self._ports.models().items()))
        if self._due("health", level):
            self._ports.publish_health(self.report())
        statuses = self._ports.cameras()
        for status in statuses:
            if self._due(f"camera.{status.camera_id}", (status.phase, status.moved, status.error)):
                self._ports.publish_camera(status.camera_id, camera_report(status))
        for camera_id in self._camera_metrics.keys() - {status.camera_id for status in statuses}:
            self._take_leave(camera_id)

    def report(self) -> dict[str, Any]:
        """The payload of the `health` topic."""
        snapshot = self._health.snapshot()
        sample = self._sample
        return {
            "t": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **snapshot.as_dict(),
            "degradation": {
                "step": self._decision.step, "steps": len(LADDER) - 1, "reasons": list(self._decision.reasons),
                **asdict(LADDER[self._decision.step]),
            },
            "system": asdict(sample.system) if sample else None,
            "gpus": [_gpu_report(gpu) for gpu in sample.gpus] if sample else [],
            "outbox": {
                "rows": {lane.name.lower(): rows for lane, rows in self._outbox.rows.items()},
                "oldest_age_s": round(self._outbox.oldest_age_s, 1),
            },
            "sinks": dict(self._ports.sinks()),
            "models": self._ports.models(),
        }  # fmt: skip

    async def _look_at_outbox(self) -> None:
        """A database that cannot be read is when health matters most: the round goes on with the last figures."""
        try:
            async with asyncio.timeout(STORE_PATIENCE_S):
                self._outbox = await self._ports.outbox()
        except StorageError as error:
            self._health.raise_reason(Reason.STORAGE, str(error))
        except TimeoutError:
            self._health.raise_reason(Reason.STORAGE, f"the database has not answered for {STORE_PATIENCE_S:g} s")
        else:
            self._health.clear_reason(Reason.STORAGE)

    def _take_leave(self, camera_id: str) -> None:
        """A camera that is watched no more must not stay `streaming` in a retained topic."""
        _, last = self._camera_metrics.pop(camera_id)
        self._metrics.forget_camera(camera_id)
        self._published.pop(f"camera.{camera_id}", None)
        left = replace(last, phase=CameraPhase.OFFLINE, fps=0.0, error="not watched any more")
        self._ports.publish_camera(camera_id, camera_report(left))

    def _due(self, key: str, value: object) -> bool:
        now = time.monotonic()
        then, last = self._published.get(key, (float("-inf"), None))
        if value == last and now - then < self._config.publish_interval_s:
            return False
        self._published[key] = (now, value)
        return True

    def _raise_reasons(self, sample: ProbeSample) -> None:
        governor, signals = self._config.governor, sample.for_governor()
        free = sample.system.disk_free_bytes
        marks = (
            (Reason.CPU_HIGH, signals.cpu, governor.cpu_high, governor.cpu_low),
            (Reason.MEMORY_HIGH, signals.memory, governor.memory_high, governor.memory_low),
            (Reason.GPU_MEMORY_HIGH, signals.gpu_memory, governor.gpu_memory_high, governor.gpu_memory_low),
            (
                Reason.GPU_HOT,
                signals.gpu_temperature_c,
                governor.gpu_temperature_high_c,
                governor.gpu_temperature_low_c,
            ),
        )
        for reason, value, high, low in marks:
            if value is not None and value > high:
                self._health.raise_reason(reason, f"{value:.2f} > {high:.2f}")
            elif value is None or value < low:
                self._health.clear_reason(reason)
        low_disk = free is not None and free < self._config.disk_min_free_bytes
        self._health.set_reason(Reason.DISK_LOW, low_disk, f"{(free or 0) / 1e6:.0f} MB free")
        self._health.set_reason(Reason.GPU_LOST, any(gpu.lost for gpu in sample.gpus), "it no longer answers")
        held = sorted({fault for gpu in sample.gpus for fault in FAULTS & (gpu.throttle or frozenset())})
        self._health.set_reason(Reason.GPU_THROTTLED, bool(held), f"the clocks are held down: {', '.join(held)}")

    def _govern(self, sample: ProbeSample) -> None:
        now_ns = time.monotonic_ns()
        self._decision = self._held.over(
            self._governor.update(sample.for_governor(), now_ns), self._decision.step, now_ns
        )
        if self._decision.changed:
            _log.warning("degradation", step=self._decision.step, reasons=self._decision.reasons)
            self._ports.apply_step(self._decision.step)
        detail = f"step {self._decision.step}: {'; '.join(self._decision.reasons)}"
        self._health.set_reason(Reason.DEGRADED_STEP, self._decision.step > 0, detail)

    def _export(self, sample: ProbeSample) -> None:
        metrics, system = self._metrics, sample.system
        metrics.set_system(
            cpu=system.cpu, process_cpu=system.process_cpu, memory=system.memory, rss_bytes=system.rss_bytes,
            disk_free_bytes=system.disk_free_bytes, open_fds=system.open_fds, threads=system.threads,
        )  # fmt: skip
        for gpu in sample.gpus:
            metrics.set_gpu(
                gpu.gpu_id, memory_used_bytes=gpu.memory_used_bytes, memory_total_bytes=gpu.memory_total_bytes,
                temperature_c=gpu.temperature_c, utilisation=gpu.utilisation, clock_mhz=gpu.clock_mhz,
            )  # fmt: skip
        snapshot = self._health.snapshot()
        metrics.set_health(snapshot.level.value, {reason.code for reason in snapshot.reasons})
        metrics.set_degradation_step(self._decision.step)
        metrics.set_outbox(
            {lane.name.lower(): rows for lane, rows in self._outbox.rows.items()}, self._outbox.oldest_age_s
        )
        for status in self._ports.cameras():
            self._export_camera(status)

    def _export_camera(self, status: CameraStatus) -> None:
        known = self._camera_metrics.get(status.camera_id)
        metrics = known[0] if known else self._metrics.camera(status.camera_id)
        before = known[1] if known else None
        metrics.dropped(max(0, status.dropped - (before.dropped if before else 0)))
        metrics.reconnected(max(0, status.reconnects - (before.reconnects if before else 0)))
        metrics.streaming(status.phase is CameraPhase.STREAMING)
        self._camera_metrics[status.camera_id] = (metrics, status)


def camera_report(status: CameraStatus) -> dict[str, Any]:
    """The payload of the `cameras/<camera>/state` topic."""
    return {
        "t": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "camera": status.camera_id,
        "state": status.phase.value,
        "moved": status.moved,
        "fps": round(status.fps, 2),
        "width": status.width,
        "height": status.height,
        "frames": status.frames,
        "dropped": status.dropped,
        "reconnects": status.reconnects,
        "error": status.error,
    }


def _gpu_report(gpu: Any) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(gpu).items()}


def as_payload(document: dict[str, Any]) -> bytes:
    """JSON bytes of a state document."""
    return json.dumps(document, separators=(",", ":")).encode()

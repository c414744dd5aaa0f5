"""Documents as the real code makes them, for tests of schemas and of whoever reads them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.config.schema import AgentConfig, HealthConfig
from agent.daemon.monitor import Monitor, MonitorPorts, OutboxFigures, as_payload, camera_report
from agent.events.cloudevents import render
from agent.events.gaps import render_gap
from agent.events.ids import Uuid7
from agent.health.gpu import GpuSample, Throttle
from agent.health.probes import Probes, SystemProbe
from agent.health.reasons import HealthState
from agent.mqtt.discovery import discovery_document
from agent.mqtt.topics import Topics
from agent.observe.metrics import Metrics
from agent.types import CameraPhase, CameraStatus, Event, EventPhase, Lane, Loss, LossReason
from agent.update.machine import FINAL, Phase
from agent.update.parts import Progress
from agent.update.records import Action, Serving, Version
from agent.update.release import Release
from agent.update.state import ServerView, state_document

NOON = datetime(2026, 11, 23, 12, 0, 0, 123_456, tzinfo=UTC)
SERIES = "3f9a1c22b7e0"
GPU = GpuSample(
    "0", "Orin", 71.5, 90.0, 100.0, 2_000_000_000, 8_000_000_000, memory_shared=True, utilisation=0.8, clock_mhz=900.0,
    max_clock_mhz=1300.0, throttle=frozenset({Throttle.SW_THERMAL, Throttle.HW_SLOWDOWN}), lost=False,
)  # fmt: skip
STREAMING = CameraStatus("yard", CameraPhase.STREAMING, 24.981, 1920, 1080, 184_223, 17, 1)
SINKS: dict[str, dict[str, object]] = {
    "control-room": {
        "waiting": 2, "oldest_age_s": 1.5, "delivered": 4709, "failed": 2, "refused": 0, "error": "HTTP 503: the receiver failed",
    }
}  # fmt: skip
DRIFT_ATTRIBUTES: dict[str, object] = {
    "signal": "person_confidence", "slot": "pose", "model": "rtmo-s 1.0.0", "reason": "drift", "baseline": 0.742,
    "current": 0.631, "change": -0.149596, "limit": -0.1, "basis": "local", "blocks": 4102,
}  # fmt: skip
_new_id = Uuid7()


class _Gpus:
    """A probe that knows these GPUs."""

    def __init__(self, *samples: GpuSample) -> None:
        self._samples = samples

    def sample(self) -> tuple[GpuSample, ...]:
        return self._samples

    def close(self) -> None:
        """Nothing to release."""


async def _health(folder: Any, gpus: tuple[GpuSample, ...], reasons: dict[str, str], rounds: int) -> dict[str, Any]:
    health = HealthState()
    for reason, detail in reasons.items():
        health.raise_reason(reason, detail)

    async def outbox() -> OutboxFigures:
        return OutboxFigures(dict.fromkeys(Lane, 3), 12.25)

    ports = MonitorPorts(
        cameras=list, outbox=outbox, models=lambda: {"pose": "rtmo-s 1.0.0", "action/fight": "fight-stgcn 1.2.0"},
        apply_step=lambda _: None, publish_health=lambda _: None, publish_camera=lambda *_: None, sinks=lambda: SINKS,
    )  # fmt: skip
    monitor = Monitor(HealthConfig(), Probes(SystemProbe(folder), _Gpus(*gpus)), health, Metrics("1"), ports)
    for _ in range(rounds):
        await monitor.round()
    return monitor.report()


def health(
    folder: Any, *, gpus: tuple[GpuSample, ...] = (GPU,), reasons: dict[str, str] | None = None, rounds: int = 1
) -> dict[str, Any]:
    """The health document of a real monitor on this machine, as it stands on the wire."""
    named = {"camera_offline:yard": "connection refused", "mqtt_offline": ""} if reasons is None else reasons
    document = asyncio.run(_health(folder, gpus, named, rounds))
    decoded: dict[str, Any] = json.loads(as_payload(document))
    return decoded


def camera(**changes: Any) -> dict[str, Any]:
    """The state document of a camera."""
    decoded: dict[str, Any] = json.loads(as_payload(camera_report(replace(STREAMING, **changes))))
    return decoded


def event(sequence: int = 42, series: str = SERIES, **changes: Any) -> bytes:
    """A step of an incident on the wire; `changes` of the Event."""
    made = Event(
        event_id=_new_id(), incident_id=_new_id(), kind="fight", phase=EventPhase.DETECTED, camera_id="yard",
        track_ids=(7, 3), t_start_ns=0, t_utc=NOON, t_onset_utc=NOON - timedelta(seconds=4.5), duration_s=4.5,
        confidence=0.93, attributes={"evidence": "yard/2026-11-23/x", "extra": 1},
    )  # fmt: skip
    made = replace(made, **changes)
    return render(
        made, device_id="gate-1", sequence=sequence, emitted_utc=NOON, models={"pose": "rtmo-s 1.0.0"}, series=series
    )


def drift(sequence: int = 43, phase: EventPhase = EventPhase.DETECTED) -> bytes:
    """A model that has drifted."""
    return event(sequence, kind="drift", phase=phase, track_ids=(), attributes=dict(DRIFT_ATTRIBUTES))


def gap(*ranges: tuple[int, int], sequence: int = 44, lane: Lane | None = Lane.EVENT) -> bytes:
    """An announced loss."""
    runs = ranges or ((7, 9), (12, 12))
    loss = Loss(LossReason.AGE, lane, runs, sum(last - first + 1 for first, last in runs), "older than 30 days")
    return render_gap(loss, event_id=_new_id(), device_id="gate-1", sequence=sequence, emitted_utc=NOON, series=SERIES)


def configuration(*cameras: str, commands: dict[str, Any] | None = None) -> AgentConfig:
    """Cameras that watch `fight` and `fall`; one with a `+` in front watches falls only, one with a `-` is not enabled."""
    listed = [
        {
            "id": name.lstrip("+-"),
            "source": "0",
            "enabled": name[0] != "-",
            "services": ["fall"] if name[0] == "+" else None,
        }
        for name in cameras
    ]
    services = {"fight": {"model": "/none"}, "fall": {"model": "/none"}, "run": {"model": "/none", "enabled": False}}
    return AgentConfig.model_validate(
        {"device_id": "gate-1", "cameras": listed, "services": services, "commands": commands or {}}
    )


def discovery(
    *cameras: str,
    removed: dict[str, str] | None = None,
    base: str = "recognizer",
    commands: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What Home Assistant is told of them."""
    config = configuration(*cameras, commands=commands)
    made = discovery_document(config, Topics(base, "gate-1"), "0.1.0", removed)
    decoded: dict[str, Any] = json.loads(json.dumps(made))
    return decoded


def ota(phase: Phase | None = Phase.PROBATION) -> dict[str, Any]:
    """What `Updates` publishes of an update in `phase`; None = there was none yet."""
    contract = {
        "task": "pose", "inputs": [{"name": "input", "shape": [1, 3, 64, 96], "meaning": "letterbox"}],
        "outputs": [{"name": "dets", "shape": [1, "people", 5], "meaning": "detections"}],
    }  # fmt: skip
    release = Release.model_validate(
        {"slot": "pose", "name": "rtmo-s", "version": "1.1.0", "number": 4, "manifest_sha256": "ab" * 32, "unpacked_bytes": 9,
         "contract": contract}
    )  # fmt: skip
    version = Version("cd" * 32, release)
    slots = {"pose": Serving("pose", version, None, has_before=True, highest=4)}
    figures = {"verified": {"latency_ms": 18.4, "device": "cpu"}, "shadow": {"agreement": 0.97}}
    action = Action("1207", release.path, "pose", phase, release=release, figures=figures) if phase else None
    progress = Progress("watching", 0.4) if phase and phase not in FINAL else None
    server = ServerView("ok", "", 1_795_660_851_000_000 if phase else 0)
    return {"agent": "0.1.0", **state_document(action, progress, slots if phase else {}, server, NOON)}

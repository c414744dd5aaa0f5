"""The agent watching itself: what it publishes and when, which reasons it raises and clears."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import agent.daemon.monitor
from agent.config.schema import GovernorConfig, HealthConfig
from agent.daemon.monitor import Monitor, MonitorPorts, OutboxFigures
from agent.errors import StorageError
from agent.health.gpu import GpuSample, Throttle
from agent.health.probes import Probes, SystemSample
from agent.health.reasons import HealthState
from agent.observe.metrics import Metrics
from agent.types import CameraPhase, CameraStatus, Lane

CALM = SystemSample(
    cpu=0.2, process_cpu=0.1, memory=0.3, memory_total_bytes=8_000_000_000, rss_bytes=100_000_000,
    disk_free_bytes=9_000_000_000, disk_total_bytes=10_000_000_000, network_sent_bytes=0, network_received_bytes=0,
    load_1m=0.5, open_fds=20, threads=9,
)  # fmt: skip
STREAMING = CameraStatus("cam", CameraPhase.STREAMING, 25.0, 640, 480, 100, 3, 1)
NEVER_S = 1e6


class Machine:
    """Stands where the system and GPU probes stand; shows what it is told to."""

    def __init__(self) -> None:
        self.system = CALM
        self.gpus: tuple[GpuSample, ...] = ()

    def probes(self) -> Probes:
        class Shown:
            def __init__(self, look: Any) -> None:
                self.sample = look

            def close(self) -> None:
                """Nothing to release."""

        return Probes(Shown(lambda: self.system), Shown(lambda: self.gpus))  # type: ignore[arg-type]


@dataclass
class Desk:
    """A monitor with real health and metrics; what it published and did."""

    machine: Machine = field(default_factory=Machine)
    cameras: list[CameraStatus] = field(default_factory=lambda: [STREAMING])
    outbox: OutboxFigures | StorageError | None = field(default_factory=lambda: OutboxFigures({Lane.ALARM: 2}, 1.25))
    published: list[dict[str, Any]] = field(default_factory=list)
    cameras_published: list[dict[str, Any]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    health: HealthState = field(default_factory=HealthState)
    metrics: Metrics = field(default_factory=lambda: Metrics("1"))

    def monitor(self, **config: Any) -> Monitor:
        settings = {"publish_interval_s": NEVER_S, "governor": {"enabled": False}} | config
        ports = MonitorPorts(
            cameras=lambda: self.cameras,
            outbox=self._figures,
            models=lambda: {"pose": "p-1"},
            apply_step=self.steps.append,
            publish_health=self.published.append,
            publish_camera=lambda _, document: self.cameras_published.append(document),
        )
        config_ = HealthConfig.model_validate(settings)
        return Monitor(config_, self.machine.probes(), self.health, self.metrics, ports)

    async def _figures(self) -> OutboxFigures:
        if isinstance(self.outbox, StorageError):
            raise self.outbox
        while self.outbox is None:  # a disk that hangs
            await asyncio.sleep(0.01)
        return self.outbox

    def reasons(self) -> set[str]:
        return {reason.reason for reason in self.health.snapshot().reasons}

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"recognizer_{name}", labels)


async def test_publishes_on_change_only_until_it_is_due() -> None:
    desk = Desk()
    monitor = desk.monitor()
    for _ in range(3):
        await monitor.round()
    assert len(desk.published) == 1
    assert len(desk.cameras_published) == 1
    desk.health.raise_reason("mqtt_offline")
    await monitor.round()
    assert [document["level"] for document in desk.published] == ["ok", "degraded"]
    assert len(desk.cameras_published) == 1
    desk.cameras = [replace(STREAMING, phase=CameraPhase.FROZEN)]
    await monitor.round()
    assert [document["state"] for document in desk.cameras_published] == ["streaming", "frozen"]
    desk.cameras = [replace(desk.cameras[0], moved=True)]
    await monitor.round()
    assert [document["moved"] for document in desk.cameras_published] == [False, False, True]
    assert len(desk.published) == 2


async def test_publishes_again_when_due() -> None:
    desk = Desk()
    monitor = desk.monitor(publish_interval_s=0.02)
    await monitor.round()
    await asyncio.sleep(0.03)
    await monitor.round()
    assert len(desk.published) == len(desk.cameras_published) == 2


async def test_health_document_holds_everything_a_subscriber_asks_for() -> None:
    desk = Desk()
    await desk.monitor().round()
    (document,) = desk.published
    assert document["system"]["cpu"] == CALM.cpu
    assert document["outbox"] == {"rows": {"alarm": 2}, "oldest_age_s": 1.2}
    assert document["models"] == {"pose": "p-1"}
    assert document["degradation"]["step"] == 0
    assert desk.metric("outbox_depth", lane="alarm") == 2


@pytest.mark.parametrize(
    ("reason", "key", "high", "between", "low"),
    [("cpu_high", "cpu", 0.95, 0.8, 0.6), ("memory_high", "memory", 0.95, 0.85, 0.7)],
)
async def test_a_reason_stays_until_the_low_mark(
    reason: str, key: str, high: float, between: float, low: float
) -> None:
    desk = Desk()
    monitor = desk.monitor()
    seen = []
    for value in (between, high, between, low, between):
        desk.machine.system = replace(CALM, **{key: value})
        await monitor.round()
        seen.append(reason in desk.reasons())
    assert seen == [False, True, True, False, False]


async def test_little_disk_space_is_a_reason_and_unknown_space_is_none() -> None:
    desk = Desk()
    monitor = desk.monitor(disk_min_free_bytes=1000)
    desk.machine.system = replace(CALM, disk_free_bytes=999)
    await monitor.round()
    assert desk.reasons() == {"disk_low"}
    desk.machine.system = replace(CALM, disk_free_bytes=None)
    await monitor.round()
    assert desk.reasons() == set()


@pytest.mark.parametrize(
    ("throttle", "raised"),
    [
        (Throttle.SW_THERMAL, True), (Throttle.HW_THERMAL, True), (Throttle.HW_POWER_BRAKE, True),
        (Throttle.SW_POWER_CAP, False), (Throttle.HW_SLOWDOWN, False),
    ],
)  # fmt: skip
async def test_clocks_held_down_are_a_reason_unless_that_is_usual(throttle: Throttle, raised: bool) -> None:
    desk = Desk()
    desk.machine.gpus = (GpuSample("0"), GpuSample("1", temperature_c=60, throttle=frozenset({throttle})))
    await desk.monitor().round()
    assert desk.reasons() == ({"gpu_throttled"} if raised else set())
    assert [reason.detail.rpartition(" ")[2] for reason in desk.health.snapshot().reasons] == [throttle] * raised


async def test_the_governor_steps_down_and_up_and_says_so() -> None:
    desk = Desk()
    governor = GovernorConfig(interval_s=0.001, step_down_after_s=0, step_up_after_s=0)
    monitor = desk.monitor(governor=governor.model_dump())
    desk.machine.system = replace(CALM, cpu=0.99)
    for _ in range(3):
        await monitor.round()
        await asyncio.sleep(0.002)
    assert desk.steps == sorted(set(desk.steps))
    assert desk.steps[0] == 1
    assert "degraded_step" in desk.reasons()
    assert desk.published[-1]["degradation"]["step"] == monitor.step == desk.metric("degradation_step")
    desk.machine.system = CALM
    for _ in range(50):
        await monitor.round()
        await asyncio.sleep(0.002)
    assert monitor.step == 0
    assert desk.reasons() == set()


async def test_a_database_that_cannot_be_read_is_published_not_hidden() -> None:
    desk = Desk()
    monitor = desk.monitor()
    desk.outbox = StorageError("disk I/O error")
    await monitor.round()
    assert desk.reasons() == {"storage"}
    assert desk.published[-1]["level"] == "failed"
    desk.outbox = OutboxFigures({Lane.ALARM: 0}, 0.0)
    await monitor.round()
    assert desk.reasons() == set()


async def test_a_disk_that_hangs_is_published_and_does_not_stop_the_governor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.daemon.monitor, "STORE_PATIENCE_S", 0.05)
    desk = Desk()
    monitor = desk.monitor(governor={"interval_s": 0.001, "step_down_after_s": 0})
    await monitor.round()
    desk.outbox = None
    desk.machine.system = replace(CALM, cpu=0.99)
    async with asyncio.timeout(10):
        while monitor.step == 0:
            await monitor.round()
    assert {"storage", "cpu_high"} <= desk.reasons()
    assert desk.published[-1]["level"] == "failed"
    assert desk.published[-1]["outbox"]["rows"] == {"alarm": 2}, "those of the last round that had an answer"
    desk.outbox = OutboxFigures({Lane.ALARM: 0}, 0.0)
    await monitor.round()
    assert "storage" not in desk.reasons()


async def test_a_camera_that_was_removed_does_not_stay_streaming() -> None:
    desk = Desk()
    desk.metrics.camera("cam").frame()
    monitor = desk.monitor()
    await monitor.round()
    assert desk.metric("camera_streaming", camera="cam") == 1
    desk.cameras = []
    await monitor.round()
    await monitor.round()
    assert [(document["state"], document["error"]) for document in desk.cameras_published[1:]] == [
        ("offline", "not watched any more")
    ]
    assert b'camera="cam"' not in desk.metrics.render()  # an alert on `== 0` would never end
    desk.cameras = [STREAMING]
    await monitor.round()
    assert desk.metric("camera_streaming", camera="cam") == 1
    assert desk.cameras_published[-1]["state"] == "streaming"


async def test_camera_counters_only_grow_even_when_the_camera_starts_anew() -> None:
    desk = Desk()
    monitor = desk.monitor()
    for dropped, reconnects in ((3, 1), (5, 1), (0, 0), (2, 1)):
        desk.cameras = [replace(STREAMING, dropped=dropped, reconnects=reconnects)]
        await monitor.round()
    assert desk.metric("frames_dropped_total", camera="cam") == 7
    assert desk.metric("camera_reconnects_total", camera="cam") == 2


async def test_new_marks_apply_at_once() -> None:
    desk = Desk()
    monitor = desk.monitor()
    await monitor.round()
    monitor.reconfigure(HealthConfig(governor=GovernorConfig(enabled=False, cpu_high=0.1, cpu_low=0.05)))
    await monitor.round()
    assert desk.reasons() == {"cpu_high"}

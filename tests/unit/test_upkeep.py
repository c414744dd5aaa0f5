"""Delivery, evidence and models as health reasons and metrics."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes.graphs import rtmo_graph, stgcn_graph
from fakes.pretend_gpu import PretendGpu
from test_evidence import short_clip

from agent.action.stgcn import create as create_classifier
from agent.config.schema import EvidenceConfig, PoseConfig, ServiceConfig
from agent.daemon.upkeep import BACKLOG_AGE_S, SHOWN_FOR_S, Upkeep
from agent.errors import DeviceMemoryError
from agent.events.evidence_writer import EvidenceStats, EvidenceWriter
from agent.health.reasons import HealthState, Reason
from agent.observe.metrics import Metrics
from agent.outbox.relay import RelayStats
from agent.pose.rtmo import create as create_estimator
from agent.runtime.engines import EngineProgress, EngineState


@pytest.fixture
def health() -> HealthState:
    return HealthState()


def reasons(health: HealthState) -> set[str]:
    return {reason.reason for reason in health.snapshot().reasons}


def test_publishes_are_counted_once(health: HealthState) -> None:
    metrics = Metrics("1")
    upkeep = Upkeep(health, metrics)
    for delivered in (3, 3, 5):
        upkeep.look_at_delivery(RelayStats(delivered=delivered, retried=1), connected=True, oldest_age_s=0)
    value = metrics.registry.get_sample_value
    assert value("recognizer_publish_total", {"result": "ok"}) == 5
    assert value("recognizer_publish_total", {"result": "retry"}) == 1
    assert reasons(health) == set()


def test_backlog_is_named_only_on_an_open_connection(health: HealthState) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    upkeep.look_at_delivery(RelayStats(), connected=False, oldest_age_s=BACKLOG_AGE_S + 1)
    assert reasons(health) == set()
    upkeep.look_at_delivery(RelayStats(), connected=True, oldest_age_s=BACKLOG_AGE_S + 1)
    assert reasons(health) == {Reason.OUTBOX_BACKLOG}
    upkeep.look_at_delivery(RelayStats(), connected=True, oldest_age_s=1)
    assert reasons(health) == set()


def test_losses_are_shown_for_an_hour(health: HealthState) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    health.raise_reason(Reason.EVENTS_LOST, "1 lost")
    upkeep.look_at_delivery(RelayStats(rejected=1), connected=True, oldest_age_s=0)
    upkeep.let_go()
    assert reasons(health) == {Reason.EVENTS_LOST, Reason.MQTT_REJECTED}
    upkeep.let_go(time.monotonic() + SHOWN_FOR_S + 1)
    assert reasons(health) == set()


def test_the_hour_counts_from_the_latest_loss() -> None:
    now_s = [5.0]
    health = HealthState(monotonic_s=lambda: now_s[0])
    upkeep = Upkeep(health, Metrics("1"))
    health.raise_reason(Reason.EVENTS_LOST, "3 events")
    now_s[0] += 59 * 60
    health.raise_reason(Reason.EVENTS_LOST, "500 events")
    now_s[0] += 59 * 60
    upkeep.let_go(now_s[0])
    assert reasons(health) == {Reason.EVENTS_LOST}
    now_s[0] += 2 * 60
    upkeep.let_go(now_s[0])
    assert reasons(health) == set()


@pytest.mark.parametrize("years", [-56, 1])
def test_a_clock_that_is_put_right_makes_the_hour_neither_shorter_nor_longer(years: int) -> None:
    right = datetime(2026, 11, 28, tzinfo=UTC)
    now_utc, now_s = [right.replace(year=right.year + years)], [5.0]
    health = HealthState(lambda: now_utc[0], lambda: now_s[0])
    upkeep = Upkeep(health, Metrics("1"))
    health.raise_reason(Reason.EVENTS_LOST, "the event database was damaged")
    for minute in range(62):
        now_utc[0], now_s[0] = right + timedelta(minutes=minute), 5.0 + minute * 60
        upkeep.let_go(now_s[0])
        assert reasons(health) == ({Reason.EVENTS_LOST} if minute <= 60 else set())


def test_evidence_that_cannot_be_written_is_named_until_it_can(health: HealthState) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    upkeep.look_at_evidence(EvidenceStats(failed=1, last_error="no space"))
    assert health.snapshot().reasons[0].detail == "no space"
    upkeep.look_at_evidence(EvidenceStats(failed=1, last_error="no space"))
    assert reasons(health) == {Reason.EVIDENCE}
    upkeep.look_at_evidence(EvidenceStats(failed=1, written=1))
    assert reasons(health) == set()


async def test_evidence_without_a_clip_is_named_until_an_incident_is_kept_whole(
    health: HealthState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose FFmpeg has no H.264."""
    upkeep, writer = Upkeep(health, Metrics("1")), EvidenceWriter(tmp_path, EvidenceConfig())
    running = asyncio.create_task(writer.run())

    async def kept(incident: str) -> set[str]:
        assert writer.submit(short_clip(incident))
        await writer.drain()
        upkeep.look_at_evidence(writer.stats)
        return reasons(health)

    with monkeypatch.context() as patched:
        patched.setattr("agent.events.evidence_files.ENCODER", "no_such_encoder")
        assert await kept("one") == {Reason.EVIDENCE}
        assert "clip.mp4: no_such_encoder" in health.snapshot().reasons[0].detail
        assert await kept("two") == {Reason.EVIDENCE}
    assert await kept("three") == set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_engine_under_construction_is_a_fallback(health: HealthState) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    pose = SimpleNamespace(upgrade=EngineProgress(EngineState.BUILDING, 3.0, "40 %"))
    upkeep.look_at_models({"pose": pose, "action/fight": SimpleNamespace(upgrade=None)})
    assert reasons(health) == {"model_fallback:pose"}
    pose.upgrade = EngineProgress(EngineState.SERVING, 9.0)
    upkeep.look_at_models({"pose": pose, "action/fight": SimpleNamespace(upgrade=None)})
    assert reasons(health) == set()


def test_lesser_device_and_smaller_batches_are_a_fallback(
    health: HealthState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    gpu = PretendGpu(monkeypatch)
    options = {"labels": ["normal", "fight"]}
    fight = create_classifier("fight", ServiceConfig(model=stgcn_graph(tmp_path / "s.onnx"), options=options))
    gpu.no_room_for = "weights"
    pose = create_estimator(PoseConfig(model=rtmo_graph(tmp_path / "r.onnx"), threads=1))
    upkeep.look_at_models({"pose": pose, "action/fight": fight})
    assert reasons(health) == {"model_fallback:pose"}
    assert "cuda:0 passed over: loading r.onnx on cuda:0: CUDA failure 2" in health.snapshot().reasons[0].detail
    gpu.no_room_for = "run"
    with pytest.raises(DeviceMemoryError):
        fight.classify(np.zeros((2, *fight.input_shape), np.float32))
    upkeep.look_at_models({"action/fight": fight})
    assert reasons(health) == {"model_fallback:pose", "model_fallback:action/fight"}
    assert health.snapshot().reasons[1].detail == "out of device memory: batches of 1 in place of 16"

"""Delivery, evidence and engines as health reasons and metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent.daemon.upkeep import BACKLOG_AGE_S, SHOWN_FOR, Upkeep
from agent.events.evidence_writer import EvidenceStats
from agent.health.reasons import HealthState, Reason
from agent.observe.metrics import Metrics
from agent.outbox.relay import RelayStats
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
    upkeep.let_go(datetime.now(UTC) + SHOWN_FOR + timedelta(seconds=1))
    assert reasons(health) == set()


def test_the_hour_counts_from_the_latest_loss() -> None:
    now = [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)]
    health = HealthState(lambda: now[0])
    upkeep = Upkeep(health, Metrics("1"))
    health.raise_reason(Reason.EVENTS_LOST, "3 events")
    now[0] += timedelta(minutes=59)
    health.raise_reason(Reason.EVENTS_LOST, "500 events")
    now[0] += timedelta(minutes=59)
    upkeep.let_go(now[0])
    assert reasons(health) == {Reason.EVENTS_LOST}
    now[0] += timedelta(minutes=2)
    upkeep.let_go(now[0])
    assert reasons(health) == set()


def test_evidence_that_cannot_be_written_is_named_until_it_can(health: HealthState) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    upkeep.look_at_evidence(EvidenceStats(failed=1, last_error="no space"))
    assert health.snapshot().reasons[0].detail == "no space"
    upkeep.look_at_evidence(EvidenceStats(failed=1, last_error="no space"))
    assert reasons(health) == {Reason.EVIDENCE}
    upkeep.look_at_evidence(EvidenceStats(failed=1, written=1))
    assert reasons(health) == set()


def test_engine_under_construction_is_a_fallback(health: HealthState) -> None:
    upkeep = Upkeep(health, Metrics("1"))
    upkeep.look_at_engines({"pose": EngineProgress(EngineState.BUILDING, 3.0, "40 %"), "action/fight": None})
    assert reasons(health) == {"model_fallback:pose"}
    upkeep.look_at_engines({"pose": EngineProgress(EngineState.SERVING, 9.0), "action/fight": None})
    assert reasons(health) == set()

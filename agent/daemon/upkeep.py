"""Reasons and counters that nobody raises by himself: delivery, evidence and models looked at once a round."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agent.events.evidence_writer import EvidenceStats
from agent.health.reasons import HealthState, Reason, reason_key
from agent.observe.metrics import Metrics
from agent.outbox.relay import RelayStats
from agent.runtime.engines import EngineProgress, EngineState

BACKLOG_AGE_S = 120.0
"""Waiting longer than this on an open connection is a backlog."""
SHOWN_FOR_S = 3600.0
"""How long the latest loss stays a reason; it is announced then, and stays in log and metrics."""

_ONCE = (Reason.EVENTS_LOST, Reason.MQTT_REJECTED, Reason.SINK_REJECTED)


class Upkeep:
    """Compares counters with those of the round before."""

    def __init__(self, health: HealthState, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics
        self._relay = RelayStats()
        self._evidence = EvidenceStats()

    def look_at_delivery(self, stats: RelayStats, *, connected: bool, oldest_age_s: float) -> None:
        """Once a round while a broker is configured."""
        before = self._relay
        for result, delta in (
            ("ok", stats.delivered - before.delivered),
            ("retry", stats.retried - before.retried),
            ("rejected", stats.rejected - before.rejected),
        ):
            for _ in range(delta):
                self._metrics.count_publish(result)
        if stats.rejected > before.rejected:
            self._health.raise_reason(Reason.MQTT_REJECTED, f"{stats.rejected} messages are dead letters")
        backlog = connected and oldest_age_s > BACKLOG_AGE_S
        self._health.set_reason(Reason.OUTBOX_BACKLOG, backlog, f"the oldest message waits {oldest_age_s:.0f} s")
        self._relay = RelayStats(stats.delivered, stats.retried, stats.rejected, stats.in_flight)

    def look_at_evidence(self, stats: EvidenceStats) -> None:
        """Once a round."""
        before = self._evidence
        if stats.failed + stats.incomplete + stats.dropped > before.failed + before.incomplete + before.dropped:
            self._health.raise_reason(Reason.EVIDENCE, stats.last_error)
        elif stats.written > before.written:
            self._health.clear_reason(Reason.EVIDENCE)
        self._evidence = stats

    def look_at_models(self, models: Mapping[str, object]) -> None:
        """models: by slot. What a plug-in does not say (`upgrade`, `fallback`, `shortage`) is as it was asked for."""
        for slot, model in models.items():
            progress: EngineProgress | None = getattr(model, "upgrade", None)
            waiting = progress is not None and progress.state is not EngineState.SERVING
            engine = f"engine {progress.state.value}: {progress.detail}" if progress is not None and waiting else ""
            detail = "; ".join(filter(None, (getattr(model, "fallback", ""), getattr(model, "shortage", ""), engine)))
            self._health.set_reason(reason_key(Reason.MODEL_FALLBACK, slot), bool(detail), detail)

    def let_go(self, now_s: float | None = None) -> None:
        """Clear what happened once and is over. now_s: on the monotonic clock."""
        now_s = time.monotonic() if now_s is None else now_s
        for active in self._health.snapshot().reasons:
            if active.code in _ONCE and now_s - active.latest_s > SHOWN_FOR_S:
                self._health.clear_reason(active.reason)

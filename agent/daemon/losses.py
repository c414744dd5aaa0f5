"""Losses of the event database: announced to subscribers, counted, and shown in health."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from agent.events.cloudevents import CONTENT_TYPE
from agent.events.gaps import render_gap
from agent.health.reasons import Reason
from agent.mqtt.topics import Topics
from agent.observe.metrics import Metrics
from agent.ports import HealthSink, Message
from agent.types import GAP, Lane, Loss, LossReason


class LossDesk:
    """`announce` runs on the store's thread, `report` on the event loop."""

    def __init__(self, topics: Topics, new_id: Callable[[], str], metrics: Metrics, health: HealthSink) -> None:
        self._topics = topics
        self._new_id = new_id
        self._metrics = metrics
        self._health = health

    def announce(self, loss: Loss, series: str) -> Message:
        """The event that tells subscribers. It goes before everything else that waits."""
        event_id, emitted_utc = self._new_id(), datetime.now(UTC)

        def payload(sequence: int | None) -> bytes:
            return render_gap(
                loss,
                event_id=event_id,
                device_id=self._topics.device,
                sequence=sequence or 0,
                series=series,
                emitted_utc=emitted_utc,
            )

        return Message(
            Lane.ALARM, event_id, self._topics.event("", GAP), payload, CONTENT_TYPE, kind=GAP,
            t_utc_iso=emitted_utc.isoformat(),
        )  # fmt: skip

    def report(self, loss: Loss) -> None:
        """Count it, and raise `events_lost` where it concerns events. What the broker refused has a reason of its own, and of what a power
        loss cut off nothing had been committed."""
        lane = loss.lane.name.lower() if loss.lane is not None else "unknown"
        if loss.lost is not None:
            self._metrics.count_lost_messages(lane, loss.reason.value, loss.lost)
        if loss.ranges and loss.reason not in {LossReason.REFUSED, LossReason.CUT_OFF}:
            first, last = loss.ranges[0][0], loss.ranges[-1][1]
            what = (
                f"{loss.lost} events" if loss.lost is not None else f"perhaps events of the numbers {first} to {last}"
            )
            self._health.raise_reason(Reason.EVENTS_LOST, f"{what} ({loss.reason.value}) {loss.detail}".strip())

"""Incidents that a crash left open: closed at the next start, so that no subscriber waits for their end for ever."""

from __future__ import annotations

from collections.abc import Callable, Container

import structlog

from agent.errors import DataError
from agent.events.cloudevents import ReceivedEvent, parse
from agent.outbox.history import EventQuery, EventRow
from agent.outbox.store import OutboxStore
from agent.ports import PipelineListener
from agent.types import GAP, Event, EventPhase

_log = structlog.get_logger(__name__)

LOOK_BACK_ROWS = 5000
"""Steps looked at, whatever their age: nothing is committed while the agent is down, for however long that is."""


async def close_orphans(
    store: OutboxStore, listener: PipelineListener, new_id: Callable[[], str], *, alive: Container[str] = ()
) -> int:
    """Emit `resolved` with reason `restart` for each incident among the latest steps without one; how many there were.

    alive: incidents that outlive a restart.
    """
    rows = await store.events(EventQuery(limit=LOOK_BACK_ROWS, newest_first=True))
    orphans = [known for known in _open_incidents(rows) if known.incident_id not in alive]
    for known in orphans:
        await listener.on_event(_end(known, new_id()))
    return len(orphans)


def _open_incidents(newest_first: list[EventRow]) -> list[ReceivedEvent]:
    """The latest step of each incident whose latest step is not `resolved`, oldest first."""
    latest: dict[str, ReceivedEvent] = {}
    for row in newest_first:
        if row.kind == GAP:
            continue
        try:
            event = parse(row.payload)
        except DataError as error:  # written by another version: no reason not to start
            _log.warning("event_not_understood", sequence=row.sequence, error=str(error))
            continue
        latest.setdefault(event.incident_id, event)
    return [event for event in reversed(latest.values()) if event.phase is not EventPhase.RESOLVED]


def _end(known: ReceivedEvent, event_id: str) -> Event:
    """The closing step: what is known is when the incident was last seen, so that is when it ends."""
    return Event(
        event_id=event_id,
        incident_id=known.incident_id,
        kind=known.kind,
        phase=EventPhase.RESOLVED,
        camera_id=known.camera_id,
        track_ids=known.track_ids,
        t_start_ns=0,
        t_utc=known.captured_utc,
        t_onset_utc=known.onset_utc,
        duration_s=known.duration_s,
        confidence=known.confidence,
        attributes=known.attributes | {"reason": "restart"},
    )

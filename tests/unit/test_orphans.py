"""Incidents that a crash left open, closed over a real event database."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from fakes.replay import RecordingListener

from agent.config.delivery import OutboxConfig
from agent.daemon import orphans as module
from agent.daemon.orphans import close_orphans
from agent.events.cloudevents import render
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Event, EventPhase, Lane

NOW = datetime.now(UTC)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[OutboxStore]:
    store = await OutboxStore.open(tmp_path / "events.db", OutboxConfig())
    yield store
    await store.close()


class Keeping(RecordingListener):
    """Commits what it is told, as the agent's own listener does."""

    def __init__(self, store: OutboxStore) -> None:
        super().__init__()
        self._store = store

    async def on_event(self, event: Event) -> None:
        await put(self._store, event)
        await super().on_event(event)


def step(incident: str, phase: EventPhase, *, age: timedelta = timedelta(minutes=5), kind: str = "fight") -> Event:
    moment = NOW - age
    return Event(
        f"{incident}-{phase}", incident, kind, phase, "cam", (3, 4), 0, moment, moment - timedelta(seconds=2), 2.0, 0.9,
        {"evidence": "2026/incident"},
    )  # fmt: skip


async def put(store: OutboxStore, event: Event, payload: bytes | None = None) -> None:
    def body(sequence: int | None) -> bytes:
        assert sequence is not None
        return payload or render(event, device_id="box", sequence=sequence, emitted_utc=NOW)

    await store.put(
        Message(
            Lane.ALARM, event.event_id, "t", body, kind=event.kind, phase=event.phase.value, camera_id=event.camera_id,
            t_utc_iso=event.t_utc.isoformat(),
        )
    )  # fmt: skip


async def closed(store: OutboxStore) -> list[Event]:
    listener = Keeping(store)
    ids = (f"new-{n}" for n in itertools.count())
    assert await close_orphans(store, listener, lambda: next(ids)) == len(listener.events)
    return listener.events


async def test_an_open_incident_is_resolved_with_what_is_known_of_it(store: OutboxStore) -> None:
    await put(store, step("a", EventPhase.DETECTED))
    await put(store, step("a", EventPhase.ACTIVE))
    (event,) = await closed(store)
    assert (event.event_id, event.incident_id, event.phase) == ("new-0", "a", EventPhase.RESOLVED)
    assert event.attributes == {"reason": "restart", "evidence": "2026/incident"}
    assert (event.camera_id, event.track_ids, event.duration_s, event.confidence) == ("cam", (3, 4), 2.0, 0.9)
    assert abs(event.t_utc - (NOW - timedelta(minutes=5))) < timedelta(milliseconds=2)


async def test_it_is_closed_once(store: OutboxStore) -> None:
    await put(store, step("a", EventPhase.DETECTED))
    assert len(await closed(store)) == 1
    assert await closed(store) == []


async def test_resolved_incidents_are_left_alone(store: OutboxStore) -> None:
    await put(store, step("done", EventPhase.DETECTED))
    await put(store, step("done", EventPhase.RESOLVED))
    assert await closed(store) == []


async def test_an_incident_is_closed_however_long_the_machine_was_off(store: OutboxStore) -> None:
    await put(store, step("done", EventPhase.DETECTED, age=timedelta(days=41)))
    await put(store, step("done", EventPhase.RESOLVED, age=timedelta(days=41)))
    await put(store, step("old", EventPhase.DETECTED, age=timedelta(days=40)))
    assert [event.incident_id for event in await closed(store)] == ["old"]


async def test_what_lies_far_back_in_the_history_is_not_looked_at(
    store: OutboxStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_BACK_ROWS", 2)
    for incident in ("a", "b", "c"):
        await put(store, step(incident, EventPhase.DETECTED))
    assert [event.incident_id for event in await closed(store)] == ["b", "c"]


async def test_several_are_closed_in_the_order_in_which_they_were_last_seen(store: OutboxStore) -> None:
    for incident in ("a", "b", "c"):
        await put(store, step(incident, EventPhase.DETECTED))
    await put(store, step("a", EventPhase.ACTIVE))
    assert [event.incident_id for event in await closed(store)] == ["b", "c", "a"]


@pytest.mark.parametrize("payload", [b"{}", b"not json", b'{"specversion": "2.0", "type": "x", "data": {}}'])
async def test_a_message_of_another_version_does_not_keep_the_agent_from_starting(
    store: OutboxStore, payload: bytes
) -> None:
    await put(store, step("strange", EventPhase.DETECTED), payload)
    await put(store, step("a", EventPhase.DETECTED))
    assert [event.incident_id for event in await closed(store)] == ["a"]

"""Where the pipelines' reports come together: health of the models, commits with retries, what is told to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import structlog
from fakes.replay import T0_UTC, walkers

from agent.config.delivery import OutboxConfig
from agent.config.schema import EvidenceConfig, HttpConfig
from agent.daemon import listener as module
from agent.daemon.evidence import Evidence
from agent.daemon.listener import MODEL_ERROR_AFTER, AgentListener
from agent.daemon.live import LiveHub
from agent.daemon.losses import LossDesk
from agent.errors import DataError, StorageError, StorageFullError
from agent.events.evidence_writer import EvidenceWriter
from agent.events.gaps import parse_gap
from agent.events.ids import Uuid7
from agent.health.reasons import HealthState
from agent.mqtt.topics import Topics
from agent.observe.metrics import Metrics
from agent.outbox.history import EventQuery
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import GAP, ActionScores, Event, EventPhase, Frame, FrameStamp, Lane, LossReason, People, Tracks

FAILED = DataError("torn picture")


class Store:
    """An EventStore in memory; the first puts raise what `faults` says."""

    series = "3f9a1c22b7e0"

    def __init__(self) -> None:
        self.faults: list[StorageError] = []
        self.kept: list[tuple[Message, bytes]] = []
        self.given_up: list[tuple[Lane, LossReason]] = []
        self.attempts = 0
        self.tell_room: Callable[[bool], None]

    def on_room(self, callback: Callable[[bool], None]) -> None:
        self.tell_room = callback

    def give_up(self, lane: Lane, reason: LossReason) -> None:
        self.given_up.append((lane, reason))

    async def put(self, message: Message) -> int:
        self.attempts += 1
        if self.faults:
            raise self.faults.pop(0)
        sequence = len(self.kept) + 1
        self.kept.append((message, message.payload(sequence)))
        return sequence


@dataclass
class Desk:
    """A listener with real health, metrics, live hub and evidence around it."""

    listener: AgentListener
    store: Store
    health: HealthState
    metrics: Metrics
    live: LiveHub
    beats: list[str] = field(default_factory=list)

    def reasons(self) -> set[str]:
        return {reason.reason for reason in self.health.snapshot().reasons}

    def frame(self, *, people: int = 0, failed: bool = False, camera: str = "cam") -> None:
        """One frame as the pipeline reports it."""
        stamp = FrameStamp(camera, 0, 0, T0_UTC, 64, 48)
        found = walkers(people, 1)[0] if people and not failed else People.empty()
        if failed:
            self.listener.on_failure(camera, "pose", FAILED)
        tracks = Tracks(stamp, People.empty(), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self.listener.on_tracks(Frame(stamp, np.zeros((48, 64, 3), np.uint8)), found, tracks, 0.001)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"recognizer_{name}", labels) or 0.0


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(module, "STORE_RETRIES_S", (0.001, 0.001, 0.001))
    config = EvidenceConfig(enabled=False)
    store, health, metrics = Store(), HealthState(), Metrics("1")
    live = LiveHub(HttpConfig(), {})
    evidence = Evidence(config, EvidenceWriter(tmp_path, config))
    beats: list[str] = []
    listener = AgentListener(
        device_id="box", store=store, topic_of=lambda camera, kind: f"base/box/events/{camera}/{kind}",
        lanes={"fight": Lane.ALARM}, models=lambda: {"pose": "p-1"}, evidence=evidence, live=live, metrics=metrics,
        health=health, beat=beats.append,
    )  # fmt: skip
    yield Desk(listener, store, health, metrics, live, beats)
    evidence.close()
    live.close()


def event(kind: str = "fight", phase: EventPhase = EventPhase.DETECTED) -> Event:
    return Event("e1", "i1", kind, phase, "cam", (1,), 0, T0_UTC, T0_UTC, 1.5, 0.9)


def scores() -> ActionScores:
    return ActionScores("cam", "fight", 0.5, {"fight": 0.5}, 0, 1, T0_UTC, (1,), 0.01)


def test_each_frame_counts_and_beats(desk: Desk) -> None:
    desk.frame()
    desk.frame()
    assert desk.beats == ["cam", "cam"]
    assert desk.metric("frames_total", camera="cam") == 2


def test_ten_pose_failures_in_a_row_are_the_models_fault_and_one_success_ends_that(desk: Desk) -> None:
    for _ in range(MODEL_ERROR_AFTER - 1):
        desk.frame(failed=True)
    assert desk.reasons() == set()
    desk.frame(failed=True)
    assert desk.reasons() == {"pose_model:cam"}
    assert desk.metric("inference_errors_total", model="pose") == MODEL_ERROR_AFTER
    desk.frame(people=1)
    assert desk.reasons() == set()


def test_a_good_frame_with_nobody_in_it_is_a_success_too(desk: Desk) -> None:
    for _ in range(3 * MODEL_ERROR_AFTER):
        desk.frame(failed=True)
        desk.frame()
    assert desk.reasons() == set()


def test_cameras_are_judged_apart(desk: Desk) -> None:
    for _ in range(MODEL_ERROR_AFTER):
        desk.frame(failed=True, camera="a")
        desk.frame(people=1, camera="b")
    assert desk.reasons() == {"pose_model:a"}


def test_failed_classifications_are_counted_by_themselves(desk: Desk) -> None:
    for _ in range(MODEL_ERROR_AFTER):
        desk.listener.on_failure("cam", "action", FAILED, "fight")
        desk.frame(people=1)
    assert desk.reasons() == {"action_model:fight/cam"}
    desk.listener.on_scores(scores())
    assert desk.reasons() == set()
    assert desk.live.camera_state("cam")["scores"] == {"fight": 0.5}


def test_a_service_that_fails_is_not_hidden_by_one_that_works(desk: Desk) -> None:
    for _ in range(MODEL_ERROR_AFTER):
        desk.listener.on_scores(scores())
        desk.listener.on_failure("cam", "action", FAILED, "fall")
    assert desk.reasons() == {"action_model:fall/cam"}


def test_a_camera_that_is_removed_takes_its_reasons_with_it(desk: Desk) -> None:
    for _ in range(MODEL_ERROR_AFTER):
        for camera in ("a", "b"):
            desk.frame(failed=True, camera=camera)
            desk.listener.on_failure(camera, "action", FAILED, "fall")
    desk.listener.forget("a")
    assert desk.reasons() == {"pose_model:b", "action_model:fall/b"}
    for _ in range(MODEL_ERROR_AFTER - 1):
        desk.frame(failed=True, camera="a")
    assert desk.reasons() == {"pose_model:b", "action_model:fall/b"}


async def test_an_event_is_committed_in_its_lane_and_then_shown(desk: Desk) -> None:
    await desk.listener.on_event(event())
    await desk.listener.on_event(event("fall"))
    (fight, payload), (fall, _) = desk.store.kept
    assert (fight.lane, fight.topic) == (Lane.ALARM, "base/box/events/cam/fight")
    assert fall.lane is Lane.EVENT
    data = json.loads(payload)["data"]
    assert (data["sequence"], data["device"], data["models"]) == (1, "box", {"pose": "p-1"})
    assert [step["sequence"] for step in desk.live.recent_events] == [2, 1]
    assert desk.metric("events_total", kind="fight", phase="detected") == 1


async def test_a_failed_commit_is_tried_again(desk: Desk) -> None:
    desk.store.faults = [StorageError("locked"), StorageFullError("no room")]
    await desk.listener.on_event(event())
    assert len(desk.store.kept) == 1
    assert desk.listener.events_lost == 0
    assert desk.reasons() == set()


async def test_an_event_that_cannot_be_committed_is_counted_announced_and_still_shown(desk: Desk) -> None:
    desk.store.faults = [StorageFullError("no room")] * 4
    await desk.listener.on_event(event())
    assert desk.store.attempts == 4
    assert desk.listener.events_lost == 1
    assert desk.reasons() == {"events_lost"}
    assert desk.store.given_up == [(Lane.ALARM, LossReason.SPACE)]
    assert desk.metric("events_total", kind="fight", phase="detected") == 0
    assert [incident["kind"] for incident in desk.live.active_incidents] == ["fight"]


async def test_a_disk_is_full_while_the_store_says_so_whether_events_still_fit_or_not(desk: Desk) -> None:
    desk.store.tell_room(False)
    assert desk.reasons() == {"storage_full"}
    await desk.listener.on_event(event())
    assert len(desk.store.kept) == 1
    assert desk.reasons() == {"storage_full"}
    desk.store.tell_room(True)
    assert desk.reasons() == set()


# --- whoever waits is cancelled: a camera that is removed and does not finish in time ---------------------------------------


@pytest_asyncio.fixture
async def store(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OutboxStore]:
    """A real one, of which the desk's listener hears as in the daemon."""
    monkeypatch.setattr("agent.outbox.database._BUSY_TIMEOUT_S", 0.1)
    losses = LossDesk(Topics("base", "box"), Uuid7(), desk.metrics, desk.health)
    opened = await OutboxStore.open(tmp_path / "events.db", OutboxConfig(), announce=losses.announce)
    opened.on_loss(losses.report)
    desk.listener._store = opened
    yield opened
    await opened.close()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another program has the write lock: puts fail."""
    with contextlib.closing(sqlite3.connect(folder / "events.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def given_up(waiting: asyncio.Task[None]) -> None:
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("failed_before", [0, 1], ids=["in its first try", "between two tries"])
async def test_an_event_whose_camera_is_stopped_meanwhile_is_still_committed_and_before_the_next(
    desk: Desk, store: OutboxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed_before: int
) -> None:
    monkeypatch.setattr(module, "STORE_RETRIES_S", (0.3, 0.3, 0.3))
    with locked(tmp_path), structlog.testing.capture_logs() as logs:
        waiting = asyncio.create_task(desk.listener.on_event(event()))
        await until(lambda: len(logged(logs, "event_not_committed")) >= failed_before)
        await asyncio.sleep(0.02)
        await given_up(waiting)
        last = asyncio.create_task(desk.listener.on_event(replace(event(phase=EventPhase.RESOLVED), event_id="e2")))
        await until(lambda: bool(logged(logs, "event_not_committed")))
    await asyncio.wait_for(last, 5)
    rows = await store.events(EventQuery())
    assert [(row.kind, row.phase) for row in rows] == [("fight", "detected"), ("fight", "resolved")]
    assert desk.metric("events_total", kind="fight", phase="detected") == 1
    assert desk.listener.events_lost == 0


async def test_an_incident_whose_camera_is_stopped_meanwhile_is_recorded_and_over_in_the_live_view(
    desk: Desk, store: OutboxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[EventPhase] = []
    monkeypatch.setattr(desk.listener._evidence, "observe", lambda event: recorded.append(event.phase))
    for phase in (EventPhase.DETECTED, EventPhase.RESOLVED):
        with locked(tmp_path):
            waiting = asyncio.create_task(desk.listener.on_event(replace(event(phase=phase), event_id=phase.value)))
            await asyncio.sleep(0.02)
            await given_up(waiting)
        await asyncio.wait_for(desk.listener.settle(), 5)
        assert bool(desk.live.active_incidents) is (phase is EventPhase.DETECTED)
    assert [step["phase"] for step in desk.live.recent_events] == ["resolved", "detected"]
    assert recorded == [EventPhase.DETECTED, EventPhase.RESOLVED]


async def test_an_event_that_fails_for_good_when_its_camera_is_gone_is_announced_as_lost(
    desk: Desk, store: OutboxStore, tmp_path: Path
) -> None:
    with locked(tmp_path):
        waiting = asyncio.create_task(desk.listener.on_event(event()))
        await asyncio.sleep(0.02)
        await given_up(waiting)
        await until(lambda: desk.listener.events_lost == 1)
    await desk.listener.on_event(replace(event("fall"), event_id="e2"))
    rows = await store.events(EventQuery())
    (gap,) = [parse_gap(row.payload) for row in rows if row.kind == GAP]
    assert (gap.loss.reason, gap.loss.lane, gap.loss.lost) == (LossReason.STORAGE, Lane.ALARM, 1)
    assert desk.reasons() == {"events_lost"}


async def test_the_end_waits_for_what_is_being_committed_and_says_what_it_leaves(
    desk: Desk, store: OutboxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORE_RETRIES_S", (0.2, 60.0))
    await desk.listener.settle()  # nothing to wait for
    with locked(tmp_path), structlog.testing.capture_logs() as logs:
        waiting = asyncio.create_task(desk.listener.on_event(event()))
        await until(lambda: bool(logged(logs, "event_not_committed")))
        await given_up(waiting)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desk.listener.settle(), 0.01)
        assert [log["count"] for log in logged(logs, "events_not_committed")] == [1]
    await asyncio.wait_for(desk.listener.settle(), 5)
    assert [row.phase for row in await store.events(EventQuery())] == ["detected"]


def logged(logs: list[Any], name: str) -> list[Any]:
    return [log for log in logs if log["event"] == name]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_picture_whose_faces_nobody_found_is_neither_kept_nor_shown(desk: Desk) -> None:
    desk.frame(people=1)
    shown = desk.live.camera_state("cam")
    desk.frame(people=2, failed=True)
    assert desk.live.camera_state("cam") == shown
    assert shown["people"] == 1
    desk.frame(people=2)
    assert desk.live.camera_state("cam")["people"] == 2

"""Where everything that the pipelines report comes together: outbox, evidence, live view, metrics, health."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from agent.daemon.drift import ModelWatch
from agent.daemon.evidence import Evidence
from agent.daemon.live import LiveHub
from agent.daemon.vitals import Vitals
from agent.errors import RecognizerError, StorageError, StorageFullError
from agent.events.cloudevents import CONTENT_TYPE, DRIFT, render
from agent.health.reasons import Reason, reason_key
from agent.observe.metrics import CameraMetrics, Metrics
from agent.ports import EventStore, HealthSink, Message
from agent.types import POSE_SLOT, ActionScores, Event, EventPhase, Frame, Lane, LossReason, People, Tracks, action_slot

_log = structlog.get_logger(__name__)

MODEL_ERROR_AFTER = 10
"""Failed inferences in a row that make it the model's fault."""
STORE_RETRIES_S = (0.1, 0.5, 2.0)
"""Waits between the attempts to commit an event; after the last one it is lost, counted, and announced as a gap."""


class _Place(NamedTuple):
    """Where inferences fail or succeed. stage: `pose` or `action`; service: of an action, whose model it is."""

    camera_id: str
    stage: str
    service: str = ""

    @property
    def reason(self) -> str:
        """`pose_model:<camera>` or `action_model:<service>/<camera>`."""
        code = Reason.POSE_MODEL if self.stage == "pose" else Reason.ACTION_MODEL
        return reason_key(code, "/".join(part for part in (self.service, self.camera_id) if part))


class AgentListener:
    """A PipelineListener for all cameras of the daemon.

    topic_of: (camera id, kind) -> MQTT topic; lanes: by kind, default EVENT.
    """

    def __init__(
        self,
        *,
        device_id: str,
        store: EventStore,
        topic_of: Callable[[str, str], str],
        lanes: Mapping[str, Lane],
        models: Callable[[], Mapping[str, str]],
        evidence: Evidence,
        live: LiveHub,
        metrics: Metrics,
        health: HealthSink,
        beat: Callable[[str], None],
        drift: ModelWatch | None = None,
        vitals: Vitals | None = None,
    ) -> None:
        self._device_id = device_id
        self._store = store
        self._topic_of = topic_of
        self._lanes = lanes
        self._models = models
        self._evidence = evidence
        self._live = live
        self._metrics = metrics
        self._health = health
        self._beat = beat
        self._drift = drift
        self._vitals = vitals
        self._cameras: dict[str, CameraMetrics] = {}
        self._failures: Counter[_Place] = Counter()  # in a row
        self._unseen: set[str] = set()  # cameras whose frame on the way to `on_tracks` has no poses
        self._commits: dict[asyncio.Task[None], str] = {}  # under way, in order, and of which camera
        self.events_lost = 0
        store.on_room(self._note_room)

    # --- PipelineListener ---------------------------------------------------------------------------------------------

    def on_tracks(self, frame: Frame, people: People, tracks: Tracks, tracking_s: float) -> None:
        camera_id = frame.stamp.camera_id
        camera = self._cameras.get(camera_id)
        if camera is None:
            camera = self._cameras[camera_id] = self._metrics.camera(camera_id)
        camera.frame()
        self._metrics.observe_tracking(tracking_s)
        self._beat(camera_id)
        if camera_id in self._unseen:  # nobody knows where the faces are: such a picture is neither kept nor shown
            self._unseen.discard(camera_id)
            return
        # with nobody in it, too: an empty corridor must not add up its failures
        self._succeeded(_Place(camera_id, "pose"))
        if self._vitals is not None:
            self._vitals.frame(camera_id, people)
        if self._drift is not None:
            self._drift.observe_people(camera_id, people)
        self._evidence.offer(frame, people, tracks)
        self._live.offer(frame, people, tracks)

    def on_scores(self, scores: ActionScores) -> None:
        self._succeeded(_Place(scores.camera_id, "action", scores.service))
        if self._vitals is not None:
            self._vitals.scores(scores)
        if self._drift is not None:
            self._drift.observe_scores(scores)
        self._live.on_scores(scores)

    def on_failure(self, camera_id: str, stage: str, error: RecognizerError, service: str = "") -> None:
        self._metrics.count_inference_error(stage)
        if self._vitals is not None:
            self._vitals.failure(POSE_SLOT if stage == "pose" else action_slot(service))
        if stage == "pose":
            self._unseen.add(camera_id)
        place = _Place(camera_id, stage, service)
        self._failures[place] += 1
        if self._failures[place] == 1:
            _log.warning("inference_failed", camera=camera_id, stage=stage, service=service, error=str(error))
        if self._failures[place] == MODEL_ERROR_AFTER:
            self._health.raise_reason(place.reason, str(error))

    async def on_event(self, event: Event) -> None:
        pictured = event.kind != DRIFT
        if pictured:
            event = replace(event, attributes=event.attributes | self._evidence.attributes(event))
        if self._vitals is not None and event.phase is EventPhase.DETECTED:
            self._vitals.incident(event.kind)
        commit = self._begin_commit(event)
        if pictured:
            self._evidence.observe(event)  # it says where its evidence will be, whether its end is waited for or not
        await asyncio.shield(commit)

    # ------------------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Before the store is closed: every event is kept, or lost and said to be. Cancelling it gives up the rest."""
        try:
            while self._commits:
                await asyncio.wait(self._commits)
        finally:
            if self._commits:
                _log.error("events_not_committed", count=len(self._commits))

    def forget(self, camera_id: str) -> None:
        """The camera is watched no more: nothing will come from it that could take its reasons back."""
        for place in [place for place in self._failures if place.camera_id == camera_id]:
            self._succeeded(place)
        self._unseen.discard(camera_id)
        self._cameras.pop(camera_id, None)

    def _succeeded(self, place: _Place) -> None:
        if self._failures.pop(place, 0) >= MODEL_ERROR_AFTER:
            self._health.clear_reason(place.reason)

    def _begin_commit(self, event: Event) -> asyncio.Task[None]:
        """It goes on when the camera is stopped meanwhile, and what comes next from there waits for it."""
        before = next((task for task, camera in reversed(self._commits.items()) if camera == event.camera_id), None)
        commit = asyncio.create_task(self._commit(event, self._message(event), before), name=f"event.{event.event_id}")
        self._commits[commit] = event.camera_id
        commit.add_done_callback(self._commits.pop)
        return commit

    async def _commit(self, event: Event, message: Message, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        sequence = await self._put(message)
        self._live.on_event(event, sequence)
        if sequence is None:
            return
        self._metrics.count_event(event.kind, event.phase.value)
        _log.info(
            "event", kind=event.kind, phase=event.phase.value, camera=event.camera_id, sequence=sequence,
            confidence=round(event.confidence, 3), duration_s=round(event.duration_s, 2), incident=event.incident_id,
        )  # fmt: skip

    async def _put(self, message: Message) -> int | None:
        for wait_s in (*STORE_RETRIES_S, None):
            try:
                sequence = await self._store.put(message)
            except StorageError as error:
                _log.error("event_not_committed", event_id=message.event_id, error=str(error), retry_in_s=wait_s)
                if wait_s is None:
                    self.events_lost += 1
                    full = isinstance(error, StorageFullError)
                    self._store.give_up(message.lane, LossReason.SPACE if full else LossReason.STORAGE)
                    self._health.raise_reason(Reason.EVENTS_LOST, f"{self.events_lost} lost; last: {error}")
                    return None
            else:
                return sequence
            await asyncio.sleep(wait_s)
        return None

    def _note_room(self, room: bool) -> None:
        if room:  # not as soon as an event fits: that may be into what was held for alarms
            self._health.clear_reason(Reason.STORAGE_FULL)
        else:
            self._health.raise_reason(Reason.STORAGE_FULL, "no room left on the disk beside what alarms need")

    def _message(self, event: Event) -> Message:
        models = dict(self._models())  # those that have judged; when it is committed, others may serve

        def payload(sequence: int | None) -> bytes:
            if sequence is None:
                raise ValueError("events are committed to lanes with a sequence")
            return render(
                event,
                device_id=self._device_id,
                sequence=sequence,
                series=self._store.series,
                emitted_utc=datetime.now(UTC),
                models=models,
            )

        return Message(
            lane=self._lanes.get(event.kind, Lane.EVENT),
            event_id=event.event_id,
            topic=self._topic_of(event.camera_id, event.kind),
            payload=payload,
            content_type=CONTENT_TYPE,
            kind=event.kind,
            phase=event.phase.value,
            camera_id=event.camera_id,
            t_utc_iso=event.t_utc.isoformat(),
        )

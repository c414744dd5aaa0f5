"""Health as a set of reasons, and the pure function that maps them to a level.

A reason is `<code>` or `<code>:<subject>`, e.g. `camera_offline:entrance`: parts raise and clear them, nobody sets a
level. `docs/operations.md` says for each code what it means and what to do; a test keeps the two in step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from agent.types import Level

_log = structlog.get_logger(__name__)


class Reason(StrEnum):
    """Codes of everything that can be wrong."""

    CAMERA_OFFLINE = "camera_offline"
    CAMERA_FROZEN = "camera_frozen"
    CAMERA_BLIND = "camera_blind"
    CAMERA_MOVED = "camera_moved"
    CAMERA_SLOW = "camera_slow"
    NO_CAMERA = "no_camera"
    POSE_MODEL = "pose_model"
    ACTION_MODEL = "action_model"
    MODEL_FALLBACK = "model_fallback"
    MODEL_DRIFT = "model_drift"
    STORAGE = "storage"
    STORAGE_FULL = "storage_full"
    EVENTS_LOST = "events_lost"
    DISK_LOW = "disk_low"
    MQTT_OFFLINE = "mqtt_offline"
    MQTT_REJECTED = "mqtt_rejected"
    MQTT_SUBSCRIPTION = "mqtt_subscription"
    OUTBOX_BACKLOG = "outbox_backlog"
    SINK_FAILING = "sink_failing"
    SINK_REJECTED = "sink_rejected"
    HTTP = "http"
    EVIDENCE = "evidence"
    CPU_HIGH = "cpu_high"
    MEMORY_HIGH = "memory_high"
    GPU_MEMORY_HIGH = "gpu_memory_high"
    GPU_HOT = "gpu_hot"
    GPU_THROTTLED = "gpu_throttled"
    GPU_LOST = "gpu_lost"
    DEGRADED_STEP = "degraded_step"
    CONFIG_RELOAD = "config_reload"
    UPDATE_SERVER = "update_server"
    UPDATE_TRUST = "update_trust"
    UPDATE_STORE = "update_store"
    PART_FAILED = "part_failed"
    STALLED = "stalled"


FAILED_REASONS = frozenset(
    {Reason.NO_CAMERA, Reason.POSE_MODEL, Reason.STORAGE, Reason.EVENTS_LOST, Reason.GPU_LOST, Reason.STALLED},
)
"""The agent cannot do its job (watch, or keep what it saw). Every other reason, known or not, is DEGRADED."""


def reason_key(code: Reason, subject: str = "") -> str:
    """The reason `code` about `subject` (a camera, a service, a part)."""
    return f"{code}:{subject}" if subject else str(code)


def level_of(reasons: Iterable[str]) -> Level:
    """The level that a set of reasons amounts to."""
    codes = {reason.partition(":")[0] for reason in reasons}
    if not codes:
        return Level.OK
    return Level.FAILED if codes & FAILED_REASONS else Level.DEGRADED


@dataclass(frozen=True, slots=True)
class ActiveReason:
    """A raised reason. since_utc: when it was raised first; latest_s: when again, with this detail, on the monotonic clock."""

    reason: str
    detail: str
    since_utc: datetime
    latest_s: float

    @property
    def code(self) -> str:
        """The part before the colon."""
        return self.reason.partition(":")[0]

    @property
    def subject(self) -> str:
        """The part after the colon, may be empty."""
        return self.reason.partition(":")[2]

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {
            "reason": self.reason,
            "code": self.code,
            "subject": self.subject,
            "detail": self.detail,
            "since": self.since_utc.isoformat(timespec="milliseconds"),
        }


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """Health at one moment; reasons in the order in which they were raised."""

    level: Level
    reasons: tuple[ActiveReason, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"level": self.level.value, "reasons": [reason.as_dict() for reason in self.reasons]}


class HealthState:
    """The reasons that are raised now. Implements `ports.HealthSink`; usable from any thread.

    Listeners are told when a reason appears or goes (a new detail of an old reason is not news), in the thread that
    raised or cleared it and outside the lock.
    """

    def __init__(
        self,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._utc_now = utc_now
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._active: dict[str, ActiveReason] = {}
        self._listeners: list[Callable[[HealthSnapshot], None]] = []

    def raise_reason(self, reason: str, detail: str = "") -> None:
        """Raise `reason`, or renew the detail of one that is raised already."""
        reason = str(reason)
        with self._lock:
            known = self._active.get(reason)
            since_utc = known.since_utc if known else self._utc_now()
            self._active[reason] = ActiveReason(reason, detail, since_utc, self._monotonic_s())
        if known is None:
            _log.warning("health_reason_raised", reason=reason, detail=detail)
            self._tell()

    def clear_reason(self, reason: str) -> None:
        """Take `reason` back; nothing happens when it is not raised."""
        with self._lock:
            known = self._active.pop(str(reason), None)
        if known is not None:
            _log.info("health_reason_cleared", reason=known.reason)
            self._tell()

    def set_reason(self, reason: str, active: bool, detail: str = "") -> None:
        """Raise or clear, whichever `active` says: for conditions that are looked at again and again."""
        if active:
            self.raise_reason(reason, detail)
        else:
            self.clear_reason(reason)

    def snapshot(self) -> HealthSnapshot:
        """Health now."""
        with self._lock:
            reasons = tuple(self._active.values())
        return HealthSnapshot(level_of(reason.reason for reason in reasons), reasons)

    def subscribe(self, listener: Callable[[HealthSnapshot], None]) -> Callable[[], None]:
        """Call `listener` on every change from now on; returns what ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            self._listeners.remove(listener)

        return unsubscribe

    def _tell(self) -> None:
        snapshot = self.snapshot()
        for listener in tuple(self._listeners):
            listener(snapshot)

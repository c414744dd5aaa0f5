"""Rows as values. Times are milliseconds since 1970, UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class UpdateStatus(StrEnum):
    """hawkBit's words for where a device stands."""

    UNKNOWN = "unknown"  # entered by hand, never seen
    REGISTERED = "registered"  # seen, never updated
    PENDING = "pending"
    IN_SYNC = "in_sync"
    ERROR = "error"


class ActionState(StrEnum):
    WAITING = "waiting"  # for the device's (or its owner's) confirmation
    PENDING = "pending"  # the device has not fetched it yet
    RETRIEVED = "retrieved"
    RUNNING = "running"
    DOWNLOADED = "downloaded"
    WARNING = "warning"  # the device would rather not
    CANCELING = "canceling"
    FINISHED = "finished"
    ERROR = "error"
    CANCELED = "canceled"


CLOSED = frozenset({ActionState.FINISHED, ActionState.ERROR, ActionState.CANCELED})
OPEN = frozenset(ActionState) - CLOSED


class Role(StrEnum):
    """What a user may do: each may also do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class AutoConfirm:
    """Who said yes to everything on behalf of a device."""

    by: str
    remark: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Device:
    id: int
    controller_id: str
    name: str
    token_hash: str | None
    attributes: Mapping[str, str]
    created_ms: int
    last_seen_ms: int | None
    address: str
    update_status: UpdateStatus
    ask_attributes: bool
    auto_confirm: AutoConfirm | None


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    id: int
    slot: str
    name: str
    version: str
    number: int
    target: str
    length: int
    sha256: str
    sha1: str
    md5: str
    custom: Mapping[str, Any]
    created_ms: int
    available: bool

    @property
    def file_name(self) -> str:
        """The target's last part: what the artifact is called towards devices."""
        return self.target.rpartition("/")[2]

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Action:
    id: int
    device_id: int
    release_id: int
    previous_release_id: int | None
    rollout_id: int | None
    state: ActionState
    open: bool
    forced: bool
    detail: str
    code: int | None
    created_by: str
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class Installed:
    device_id: int
    slot: str
    release_id: int
    action_id: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says about an action, as it goes into the feedback log."""

    kind: str
    execution: str
    finished: str
    code: int | None = None
    details: tuple[str, ...] = ()
    progress: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    id: int
    action_id: int
    at_ms: int
    kind: str
    execution: str
    finished: str
    code: int | None
    details: tuple[str, ...]
    progress: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class User:
    id: int
    name: str
    role: Role
    active: bool
    created_by: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A change, for the audit log. what: `device.create`; subject: the thing changed, as people call it."""

    at_ms: int
    who: str
    role: str
    address: str
    what: str
    subject: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditRow(Entry):
    id: int
